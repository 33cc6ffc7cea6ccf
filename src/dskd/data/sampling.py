"""Decode a sample of many images in place of all, for a look at a run before it starts."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field

import numpy as np

from dskd.data.image_decoding import Checked, check_all, decode_all, without
from dskd.data.image_source import ImageSource
from dskd.data.path_list import PathList
from dskd.data.read_options import ReadOptions
from dskd.errors import InputError

_CHUNK = 64
"""Images between two looks at the clock."""


@dataclass
class Sampling:
    """The images that were decoded of sources that cannot be decoded in time.

    Attributes:
        seconds: Time for each source.
        images: Images of the sampled sources; 0 if no source was sampled.
        decoded: How many of them were decoded.
        names: The names of those that can be used.
        whole_seconds: Time to decode all, as far as the sample shows.
        in_memory: Whether a run keeps the images in memory.
    """

    seconds: float
    images: int = 0
    decoded: int = 0
    names: set[str] = field(default_factory=set)
    whole_seconds: float = 0.0
    in_memory: bool = False
    _outcomes: dict[tuple[str, str], Checked] = field(default_factory=dict)

    def take(self, source: ImageSource, options: ReadOptions, in_memory: bool) -> Checked | None:
        """Decodes images from all over a source until the time is over.

        Args:
            source: What was found.
            options: How it is read.
            in_memory: Whether a run keeps the images in memory.

        Returns:
            Which images cannot be used; those that were not decoded count as good. None if all can
            be decoded in time.

        Raises:
            InputError: Images have different sizes and ``size`` is None.
        """
        place = source.name, str(source.files.root)  # each lists files in its own order
        if place in self._outcomes:
            return self._outcomes[place]
        names = source.all_names()
        order = np.random.default_rng(0).permutation(len(names))
        outcome = Checked(range(0), {}, 1, 1)
        good: list[str] = []
        start, done = time.perf_counter(), 0
        while done < len(order):
            rows = order[done : done + _CHUNK]
            part = names.take(rows)
            found = _decoded(source, part, options, in_memory)
            if options.size is None and good and found.good:
                _require_one_size(source, outcome, found)
            if found.good:
                outcome.height, outcome.width = found.height, found.width
            outcome.deepest = max(outcome.deepest or 0.0, found.deepest or 0.0) or None
            outcome.bad |= {int(rows[index]): error for index, error in found.bad.items()}
            good += [part[index] for index in found.good]
            done += len(rows)
            spent = time.perf_counter() - start
            whole = spent * len(order) / done
            if whole <= self.seconds:
                return None
            if spent >= self.seconds:
                break
        if done == len(order):
            return None
        self.images += len(order)
        self.decoded += done
        self.names.update(good)
        self.whole_seconds += whole
        self.in_memory = in_memory
        outcome.bad = dict(sorted(outcome.bad.items()))
        outcome.good = without(outcome.bad, len(order))
        self._outcomes[place] = outcome
        return outcome


def _decoded(
    source: ImageSource, names: PathList, options: ReadOptions, in_memory: bool
) -> Checked:
    """Decodes some images in the way that a run decodes all of them."""
    if not in_memory:
        return check_all(source.files, names, options.size is None, options.form)
    found = decode_all(source.files, names, options.size, options.form)
    height, width = found.images.shape[2:]
    return Checked(found.good, found.bad, height, width, found.deepest)


def _require_one_size(source: ImageSource, first: Checked, other: Checked) -> None:
    if (first.height, first.width) != (other.height, other.width):
        raise InputError(
            f"the images in {source.files.root} have different sizes, such as "
            f"{first.width}x{first.height} and {other.width}x{other.height}; give all one size "
            "with data.size"
        )


_CURRENT: ContextVar[Sampling | None] = ContextVar("sampling", default=None)


@contextmanager
def sampled(seconds: float) -> Iterator[Sampling]:
    """Has images decoded for a limited time only, within the block.

    Args:
        seconds: For each source.

    Yields:
        What was decoded.
    """
    sampling = Sampling(seconds)
    token = _CURRENT.set(sampling)
    try:
        yield sampling
    finally:
        _CURRENT.reset(token)


def current_sampling() -> Sampling | None:
    """The sampling of the block that is running; None outside of `sampled`."""
    return _CURRENT.get()
