"""Parts of a module that came frozen or in evaluation mode; training leaves them so."""

from __future__ import annotations

from torch import nn


def parts_in_eval_mode(module: nn.Module) -> tuple[str, ...]:
    """Names of the submodules that stay in evaluation mode while the module is trained.

    These are the submodules that came in evaluation mode. In addition, buffers of a frozen part
    must not change: a submodule with buffers, such as a BatchNorm with its running statistics,
    stays in evaluation mode if no parameter of it, or of a part that contains it, is trained. A
    module that is in evaluation mode as a whole was evaluated before, so its mode says nothing.

    Args:
        module: The module as it came.

    Example:
        >>> net = nn.Sequential(nn.Dropout().eval(), nn.BatchNorm2d(3), nn.Linear(3, 2))
        >>> _ = net[1].requires_grad_(False)
        >>> parts_in_eval_mode(net)
        ('0', '1')
    """
    parts = dict(module.named_modules())
    evaluated = not any(part.training for part in parts.values())
    frozen = {name for name, part in parts.items() if _is_frozen(part)}
    return tuple(
        name
        for name, part in parts.items()
        if (not evaluated and not part.training)
        or (_has_buffers(part) and any(_contains(outer, name) for outer in frozen))
    )


def frozen_note(module: nn.Module, name: str) -> str | None:
    """A line about what training will leave as it came; None if that is nothing.

    Args:
        module: The module, before training.
        name: Names it in the line.

    Example:
        >>> net = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 2))
        >>> frozen_note(net, "net") is None
        True
        >>> _ = net[0].requires_grad_(False)
        >>> frozen_note(net, "net")
        'net: 12 of 20 parameters came frozen and stay so'
    """
    parameters = list(module.parameters())
    frozen = sum(p.numel() for p in parameters if not p.requires_grad)
    told = []
    if frozen:
        total = sum(p.numel() for p in parameters)
        told.append(f"{frozen:,} of {total:,} parameters came frozen and stay so")
    if not any(part.training for part in module.modules()):
        told.append("it came in evaluation mode as a whole, and is trained in training mode")
    if kept := [part for part in parts_in_eval_mode(module) if part]:
        more = ", ..." if len(kept) > 3 else ""
        told.append(f"{len(kept)} submodules stay in evaluation mode ({', '.join(kept[:3])}{more})")
    return f"{name}: {'; '.join(told)}" if told else None


def _is_frozen(part: nn.Module) -> bool:
    parameters = list(part.parameters())
    return bool(parameters) and not any(p.requires_grad for p in parameters)


def _has_buffers(part: nn.Module) -> bool:
    """Whether a submodule has buffers of its own that are saved with its weights."""
    return any(
        value is not None and key not in part._non_persistent_buffers_set
        for key, value in part._buffers.items()
    )


def _contains(outer: str, name: str) -> bool:
    return not outer or name == outer or name.startswith(f"{outer}.")
