"""Copies of modules that a user gives: without wrappers, so that they have the plain keys."""

from __future__ import annotations

import copy
from typing import Any

from torch import Tensor, nn
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from dskd.errors import InputError, first_line

_WRAPPERS = {
    "torch._dynamo.eval_frame.OptimizedModule": "_orig_mod",
    "torch.nn.parallel.data_parallel.DataParallel": "module",
    "torch.nn.parallel.distributed.DistributedDataParallel": "module",
    "torch.optim.swa_utils.AveragedModel": "module",
}
"""Modules that run another one, and the attribute that holds it."""
_SHARDED = "torch.distributed.fsdp.fully_sharded_data_parallel.FullyShardedDataParallel"


def unwrap(module: nn.Module) -> nn.Module:
    """The network within torch.compile, DataParallel, DistributedDataParallel or AveragedModel.

    Args:
        module: Any module; wrappers may be nested.

    Raises:
        InputError: Its weights are spread over several processes (FullyShardedDataParallel).

    Example:
        >>> net = nn.Linear(2, 3)
        >>> unwrap(nn.DataParallel(nn.DataParallel(net))) is net
        True
    """
    while (inner := _inner(module)) is not None:
        module = inner
    return module


def plain_copy(module: nn.Module) -> nn.Module:
    """A copy of a module in which every wrapper is replaced by the network within it.

    The module itself is not changed. Submodules may be wrapped too, as in
    ``net.layer1 = torch.compile(net.layer1)``.

    Args:
        module: Any module.

    Raises:
        InputError: It cannot be copied, or its state_dict holds something else than tensors.

    Example:
        >>> net = nn.Sequential(nn.DataParallel(nn.Linear(2, 3)))
        >>> list(net.state_dict()), list(plain_copy(net).state_dict())
        (['0.module.weight', '0.module.bias'], ['0.weight', '0.bias'])
    """
    plain = unwrap(module)
    name = type(plain).__name__
    try:
        twin = _copy(plain)
    except InputError:
        raise
    except Exception as error:  # open files, locks and the like
        raise InputError(
            f"{name} cannot be copied ({first_line(error)}); give it as it is before its first "
            "forward pass, or by a function (package.module:function)"
        ) from error
    for key, value in twin.state_dict().items():
        if not isinstance(value, Tensor):
            raise InputError(
                f"{name} keeps {key!r} in its state_dict, which is no tensor; files of weights "
                "hold tensors only"
            )
    return twin


def _copy(plain: nn.Module) -> nn.Module:
    memo: dict[int, Any] = {}
    parts = list(plain.modules())
    for part in parts:
        for hook in part._forward_pre_hooks.values():
            # Such a hook computes the weight anew in each forward pass. The last weight has a
            # history, which deepcopy refuses.
            if isinstance(hook, WeightNorm | SpectralNorm):
                weight = getattr(part, hook.name)
                memo[id(weight)] = weight.detach().clone()
    for part in reversed(parts):  # wrappers within wrappers first
        inner = unwrap(part)
        if inner is not part:
            memo[id(part)] = copy.deepcopy(inner, memo)
    return copy.deepcopy(plain, memo)


def _inner(module: nn.Module) -> nn.Module | None:
    """The module within a wrapper; None for other modules."""
    for kind in type(module).__mro__:
        name = f"{kind.__module__}.{kind.__qualname__}"
        if name == _SHARDED:
            raise InputError(
                "a module in FullyShardedDataParallel holds only a part of its weights; give the "
                "module within it, with all its weights"
            )
        if name in _WRAPPERS:
            inner = getattr(module, _WRAPPERS[name])
            assert isinstance(inner, nn.Module)
            return inner
    return None
