"""Synchronise BatchNorm between processes (``train.sync_batchnorm``)."""

from __future__ import annotations

from typing import TypeVar

from torch import nn

from dskd.errors import InputError

M = TypeVar("M", bound=nn.Module)


def check_norms(module: nn.Module) -> None:
    """Refuses a BatchNorm whose own forward pass would be lost.

    Args:
        module: Will be synchronised.

    Raises:
        InputError: A submodule is of a class that derives from BatchNorm and computes more than it.
    """
    for name, part in module.named_modules():
        if isinstance(part, nn.modules.batchnorm._BatchNorm) and not _is_known(part):
            raise InputError(
                f"train.sync_batchnorm: {name} is a {type(part).__name__}, which computes more "
                "than a BatchNorm, and this would be lost; drop train.sync_batchnorm"
            )


def synchronized(module: M) -> M:
    """The module with synchronised BatchNorms in place of its own, and the same weights.

    timm's function also knows timm's BatchNorms that contain an activation; torch's drops it.

    Args:
        module: Passed `check_norms`.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
        >>> type(synchronized(net)[1]).__name__
        'SyncBatchNorm'
    """
    from timm.layers.norm_act import convert_sync_batchnorm

    converted: M = convert_sync_batchnorm(module)  # type: ignore[no-untyped-call]
    return converted


def _is_known(part: nn.Module) -> bool:
    """Whether `synchronized` replaces the module by one that computes the same."""
    from timm.layers.norm_act import BatchNormAct2d

    known = nn.modules.batchnorm._BatchNorm, nn.SyncBatchNorm, BatchNormAct2d
    return type(part).forward in [one.forward for one in known]
