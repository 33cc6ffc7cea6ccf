"""How large a model is that a stranger's file names: found before there is memory for it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from dskd.errors import InputError
from dskd.storage.weights import fitting

_NUMBERS = 2**17
"""What the whole numbers in a model's options add up to, at most: they say how much there is."""
_COMPUTED = 2**28
"""Bytes of buffers that a model may compute anew, and a file need not hold."""


class _TooMany(Exception):
    """A model has more parameters than it may have."""


def check_size(
    build: Callable[[], nn.Module],
    options: Mapping[str, Any],
    weights: Mapping[str, Tensor],
    path: str,
) -> None:
    """Sees that a file's weights are those of the model that it names, before the model is built.

    The model is built on torch's device without memory, which a few bytes of options could fill
    otherwise, and given up where it grows beyond what the file holds.

    Args:
        build: Builds it.
        options: That the file has it built with.
        weights: That the file holds.
        path: Of the file.

    Raises:
        InputError: They are not its weights.
    """
    claimed = InputError(
        f"{path} was not written by dskd or is damaged: the model that it names is larger than "
        "the weights that it holds"
    )
    if sum(_whole_numbers(options)) > _NUMBERS:
        raise claimed
    try:
        with torch.device("meta"), _at_most(2 * len(weights) + 64):  # some are made over
            model = build()
    except InputError as error:
        if isinstance(error.__cause__, _TooMany):
            raise claimed from error
        raise
    fitting(model, weights, path)
    held = sum(weight.nbytes for weight in weights.values())
    if sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers())) > held + _COMPUTED:
        raise claimed


def _whole_numbers(value: Any) -> Iterator[int]:
    """Those anywhere within plain values, without their signs."""
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, list):
        for part in value:
            yield from _whole_numbers(part)
    elif isinstance(value, int):
        yield abs(value)


@contextmanager
def _at_most(count: int) -> Iterator[None]:
    """Within the block, no more than so many parameters are given to modules."""
    left = count

    def counted(_module: nn.Module, _name: str, _parameter: nn.Parameter) -> None:
        nonlocal left
        left -= 1
        if left < 0:
            raise _TooMany

    hook = register_module_parameter_registration_hook(counted)
    try:
        yield
    finally:
        hook.remove()
