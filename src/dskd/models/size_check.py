"""Check the size of the model that an untrusted file names, before it is built."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from dskd.errors import InputError
from dskd.storage.weights import fitting

_MAX_OPTIONS = 2**17
"""Largest sum of the whole numbers in a model's options, which determine its size."""
_MAX_COMPUTED = 2**28
"""Bytes of buffers that a model may compute itself, so that they are not in the file."""


class _TooManyParameters(Exception):
    """A model has more parameters than allowed."""


def check_size(
    build: Callable[[], nn.Module],
    options: Mapping[str, Any],
    weights: Mapping[str, Tensor],
    path: str,
) -> None:
    """Check that the weights of a file fit the model that the file names, without building it.

    A few bytes of options could ask for a model that fills the memory. So the model is first built
    on the ``meta`` device, and only as far as the file has weights for it.

    Args:
        build: Builds the model.
        options: Options of the model, from the file.
        weights: Weights in the file.
        path: Path of the file, for messages.

    Raises:
        InputError: The weights do not fit the model.
    """
    too_large = InputError(
        f"{path} was not written by dskd or is damaged: the model that it names is larger than "
        "the weights that it holds"
    )
    if sum(_whole_numbers(options)) > _MAX_OPTIONS:
        raise too_large
    try:
        with torch.device("meta"), _limit_parameters(2 * len(weights) + 64):  # some are replaced
            model = build()
    except InputError as error:
        if isinstance(error.__cause__, _TooManyParameters):
            raise too_large from error
        raise
    fitting(model, weights, path)
    in_file = sum(weight.nbytes for weight in weights.values())
    if (
        sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers()))
        > in_file + _MAX_COMPUTED
    ):
        raise too_large


def _whole_numbers(value: Any) -> Iterator[int]:
    """The absolute values of all whole numbers within plain values."""
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, list):
        for part in value:
            yield from _whole_numbers(part)
    elif isinstance(value, int):
        yield abs(value)


@contextmanager
def _limit_parameters(count: int) -> Iterator[None]:
    """Within the block, registering more than ``count`` parameters raises `_TooManyParameters`."""
    left = count

    def count_down(_module: nn.Module, _name: str, _parameter: nn.Parameter) -> None:
        nonlocal left
        left -= 1
        if left < 0:
            raise _TooManyParameters

    hook = register_module_parameter_registration_hook(count_down)
    try:
        yield
    finally:
        hook.remove()
