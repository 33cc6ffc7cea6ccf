"""Find the weights in a checkpoint, and match their keys with those of a model."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from dskd.errors import InputError, brief

log = logging.getLogger("dskd")

State = Mapping[str, Tensor]
"""Tensors by key."""
_Found = Iterator[tuple[str, dict[str, Tensor]]]
_AVERAGED = (
    *("state_dict_ema", "model_ema", "ema_state_dict", "model_ema_state_dict", "ema_model"),
    *("ema", "ema_net", "ema_model_state_dict", "params_ema"),
)
"""Keys of a moving average (EMA) of the weights, which is what training scripts report."""
_RAW = (
    *("model", "state_dict", "student", "net", "model_state_dict", "network", "weights"),
    *("model_state", "params", "module", "classifier", "backbone"),
)
_ONLINE = ("ema_model.", "online_model.")
"""Prefixes of the average and of the raw weights in one state_dict (ema-pytorch)."""
_PARTS = ("backbone.", "neck.", "head.", "cls_head.")
"""Prefixes of the parts of an MMEngine classifier."""
_COUNTERS = (".num_batches_tracked",)
_ADDED = ("total_ops", "total_params", "n_averaged")
"""Buffers that counters of operations (thop) and averaged models add to any model."""
_DEPTH = 3


def find_state(content: Any, key: str | None, path: Path) -> dict[str, Tensor]:
    """The state_dict in the content of a checkpoint.

    Where the file has raw weights and their moving average (EMA), the average is taken, and a line
    says so.

    Args:
        content: What the file holds.
        key: Where the weights are, with dots between levels as in ``"ema.module"``; None finds
            them.
        path: The file, for messages.

    Raises:
        InputError: There is none, or several and none of a known name, or no such key.
    """
    found: dict[str, dict[str, Tensor]] = {}
    if isinstance(content, Mapping):
        found.update(_states(content))
    if key is not None:
        if key not in found:
            raise InputError(f"{path} has no weights under {key!r}; {_has(found)}")
        return found[key]
    if "" in found:
        return found[""]
    if not found:
        raise InputError(_nothing(content, path))
    chosen = _choose(content, found, path)
    if len(found) > 1:
        averaged = " (their moving average)" if _is_averaged(chosen) else ""
        log.info(
            "%s: taking the weights under %r%s; %s; checkpoint_key chooses",
            *(path, chosen, averaged, _has(found)),
        )
    return found[chosen]


def _choose(content: Mapping[str, Any], found: Mapping[str, Any], path: Path) -> str:
    names = [*_AVERAGED, *_RAW]
    # MMEngine swaps the two when it saves: its "state_dict" is the average.
    if "state_dict" in found and "meta" in content and "message_hub" in content:
        names.insert(0, "state_dict")
    for name in names:
        below = [key for key in found if key == name or key.startswith(f"{name}.")]
        below.sort(key=lambda key: (not _is_averaged(key), _rank(key)))
        if below:
            return below[0]
    if len(found) > 1:
        raise InputError(f"{path} has several sets of weights; {_has(found)}; set checkpoint_key")
    return next(iter(found))


def _rank(key: str) -> int:
    """How early the last part of a key is among the known ones."""
    last = key.split(".")[-1]
    return _RAW.index(last) if last in _RAW else len(_RAW)


def _is_averaged(key: str) -> bool:
    return any(part in _AVERAGED for part in key.split("."))


def _has(found: Mapping[str, Any]) -> str:
    """The keys under which there are weights, for a message."""
    if not found:
        return "it has none under any key"
    if set(found) == {""}:
        return "its weights are not under a key: leave checkpoint_key out"
    return f"it has {', '.join(repr(key) for key in found)}"


def _states(content: Mapping[Any, Any], path: str = "", depth: int = 0) -> _Found:
    """The state_dicts in nested mappings, as pairs of dotted key and tensors."""
    if not content or not all(isinstance(key, str) for key in content):
        return
    tensors = {key: value for key, value in content.items() if isinstance(value, Tensor)}
    plain = (int, float, bool, type(None))
    if tensors and all(isinstance(value, (Tensor, *plain)) for value in content.values()):
        if any(value.dim() for value in tensors.values()):  # not a few metrics
            yield path, tensors
    elif depth < _DEPTH:
        for key, value in content.items():
            if isinstance(value, Mapping) and not key.startswith("optim"):
                yield from _states(value, f"{path}.{key}" if path else key, depth + 1)


def _nothing(content: Any, path: Path) -> str:
    if isinstance(content, Mapping) and len(content) == 1 and not content.keys().isdisjoint(_RAW):
        (content,) = content.values()
    if not isinstance(content, Mapping) or not content:
        return f"{path} holds no state_dict, but {type(content).__name__} {brief(content)}"
    kinds = ", ".join(f"{brief(k)} is {type(v).__name__}" for k, v in list(content.items())[:6])
    return (
        f"{path} holds no state_dict: {kinds}; known forms: bare, or under "
        f"{', '.join((*_RAW, *_AVERAGED))}"
    )


def match_keys(weights: State, model: nn.Module, what: str) -> dict[str, Tensor]:
    """Matches the keys of weights with those of a model.

    A common prefix is removed, also a stacked one such as ``module._orig_mod.``. Keys outside the
    prefix, such as the buffer of a loss, are left out, and a line names them. If nothing fits
    wholly, the prefix under which most keys agree is removed, for the message that follows.

    Args:
        weights: By the keys of the file.
        model: Has the keys that are needed.
        what: Names the weights in a message.

    Raises:
        InputError: Two prefixes fit.
    """
    own = set(model.state_dict())
    weights = {k: v for k, v in weights.items() if k in own or not _is_added(k)}
    required = {key for key in own if not key.endswith(_COUNTERS)}
    if required <= weights.keys() or not required:
        return weights
    parts = {_without_part(key): value for key, value in weights.items()}
    fits = [p for p in _prefixes(weights, required) if _fits(weights, p, own, required)]
    if len(fits) > 1 and set(fits) == set(_ONLINE):
        fits = [_ONLINE[0]]
        log.info("%s: taking the moving average under %r", what, _ONLINE[0])
    if len(fits) > 1:
        raise InputError(
            f"{what} has several sets of weights that fit, under the prefixes "
            f"{', '.join(map(repr, sorted(fits)))}; save one of them alone"
        )
    if not fits and len(parts) == len(weights) and _fits(parts, "", own, required):
        return {key: value for key, value in parts.items() if key in own}
    if not fits:
        return _stripped(weights, _likeliest(weights, own))
    left = [key for key in weights if not key.startswith(fits[0])]
    if left:
        log.info(
            "%s: %d keys outside the prefix %r are left out, such as %r",
            *(what, len(left), fits[0], left[0]),
        )
    return _stripped(weights, fits[0])


def _is_added(key: str) -> bool:
    return key.split(".")[-1] in _ADDED


def _without_part(key: str) -> str:
    return next((key.removeprefix(part) for part in _PARTS if key.startswith(part)), key)


def _prefixes(weights: State, required: set[str]) -> list[str]:
    """The prefixes that one of the model's keys has in the file."""
    key = max(sorted(required), key=len)
    return sorted({k.removesuffix(key) for k in weights if k.endswith(f".{key}")})


def _stripped(weights: State, prefix: str) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): v for k, v in weights.items() if k.startswith(prefix)}


def _fits(weights: State, prefix: str, own: set[str], required: set[str]) -> bool:
    keys = _stripped(weights, prefix).keys()
    return required <= keys and keys <= own


def _likeliest(weights: State, own: set[str]) -> str:
    """The common prefix of all keys after which most of them are the model's; may be empty."""
    best, prefix, prefixes = 0, "", [""]
    first = next(iter(weights), "")
    for part in first.split(".")[:-1]:
        prefix += f"{part}."
        if all(key.startswith(prefix) for key in weights):
            prefixes.append(prefix)
    found = ""
    for candidate in prefixes:
        agree = len(_stripped(weights, candidate).keys() & own)
        if agree > best:
            best, found = agree, candidate
    return found
