"""Choose the stages of any module from one traced forward pass."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import TypeVar

from torch import Tensor, nn

from dskd.models.trace import Trace, TracedModule, trace

U = TypeVar("U")
SHALLOWEST = 3
"""A stage's map is at least this many times smaller than the image: stems are left out."""
SMALLER = 1.5
"""A stage's map is at least this many times smaller than that of the stage before it."""
FEWEST, MOST = 3, 5
"""Number of stages that is wanted, if the maps have several sizes."""
EQUAL_MAPS = 4
"""Number of stages of a model whose maps all have one size, as those of plain transformers."""
_APART = 0.1
"""Two stages of one map size are apart by this share of the multiply-adds."""


def choose_stages(module: nn.Module, images: Tensor) -> tuple[str, ...]:
    """Stages of any module, from shallow to deep.

    The module is divided into units that follow each other. A unit whose inside shows further map
    sizes, or that does most of the work, is divided in turn. A stage is the last unit of each map
    size, without the stem and without what only pools. If all units have one size, as the blocks
    of transformers, evenly spaced blocks are the stages.

    Args:
        module: Any classifier of images. It is not changed.
        images: A few images ``[B, C, H, W]``, as the module expects them.

    Returns:
        Names of submodules; empty if no unit returns a feature map.

    Raises:
        InputError: The module does not run on the images.

    Example:
        >>> import torch
        >>> blocks = (nn.Conv2d(3, 4, 3, 2), nn.Conv2d(4, 8, 3, 2), nn.Conv2d(8, 8, 3, 2))
        >>> head = nn.Flatten(), nn.LazyLinear(2)
        >>> choose_stages(nn.Sequential(*blocks, *head), torch.zeros(2, 3, 32, 32))
        ('0', '1', '2')
    """
    traced = trace(module, images)
    units = _working(_Units(module, traced).divided())
    return tuple(unit.name for unit in _select(units, traced, module))


class _Units:
    """The division of a module into units that follow each other.

    A unit is a submodule that ran and returned a map. A submodule that did not run itself, such as
    a ModuleList, or that returned something else, stands for the units in it.
    """

    def __init__(self, module: nn.Module, traced: Trace) -> None:
        self.module, self.traced = module, traced
        self.order = {name: number for number, name in enumerate(traced.modules)}
        self.children: dict[str, list[str]] = {"": []}
        for name, _ in module.named_modules():
            if name:
                self.children.setdefault(name, [])
                self.children[name.rpartition(".")[0]].append(name)

    def inside(self, name: str) -> list[TracedModule]:
        """The units in a submodule, in the order in which they ended."""
        found: list[TracedModule] = []
        for child in self.children[name]:
            traced = self.traced.modules.get(child)
            if traced is not None and _is_image(traced, self.traced.image):
                found.append(traced)
            else:
                found += self.inside(child)
        return sorted(found, key=lambda unit: self.order[unit.name])

    def divided(self) -> list[TracedModule]:
        """The units of the whole module, divided as far as this shows something new."""
        units = self.inside("")
        while True:
            for position, unit in enumerate(units):
                inner = self.inside(unit.name)
                if _follow(inner) and (
                    _new_sizes(inner, units) or self._holds_stages(position, units, inner)
                ):
                    units = [*units[:position], *inner, *units[position + 1 :]]
                    break
            else:
                return units

    def _holds_stages(
        self, position: int, units: Sequence[TracedModule], inner: Sequence[TracedModule]
    ) -> bool:
        """Whether a unit, of too few, is a group of blocks or does more than half of the work."""
        working = _without_idle(inner, self.traced)
        if len(_sizes(units)) >= FEWEST or len(working) < 2:
            return False
        parts = [self.module.get_submodule(unit.name) for unit in working]
        if len({type(part) for part in parts}) == 1 and next(parts[0].children(), None) is not None:
            return True
        before = units[position - 1].multiply_adds if position else 0
        return 2 * (units[position].multiply_adds - before) > self.traced.multiply_adds


def _is_image(unit: TracedModule, image: tuple[int, int]) -> bool:
    """Whether a unit's output is a map with the proportions of the image, up to rounding.

    A pooled vector ``[B, C, 1]`` looks like C tokens of length 1, and is none.
    """
    if unit.map is None or (unit.tokens and unit.map[0] == 1):
        return False
    _, height, width = unit.map
    return abs(height - width * image[0] / image[1]) < 1


def _height(unit: TracedModule) -> int:
    assert unit.map is not None, "units have maps"
    return unit.map[1]


def _follow(inner: Sequence[TracedModule]) -> bool:
    """Whether the maps of units never grow, so that the units follow each other."""
    heights = [_height(unit) for unit in inner]
    return bool(inner) and all(b <= a for a, b in itertools.pairwise(heights))


def _new_sizes(inner: Iterable[TracedModule], units: Iterable[TracedModule]) -> bool:
    """Whether units have maps of a size that others do not have; a single position is no map."""
    known = [_height(unit) for unit in units]
    heights = {_height(unit) for unit in inner} - {1}
    return any(all(not 1 / SMALLER < h / other < SMALLER for other in known) for h in heights)


def _sizes(units: Iterable[TracedModule]) -> dict[int, TracedModule]:
    """The last unit of each map size."""
    last: dict[int, TracedModule] = {}
    for unit in units:
        last = {size: u for size, u in last.items() if size >= SMALLER * _height(unit)}
        last[_height(unit)] = unit
    return last


def _working(units: Sequence[TracedModule]) -> list[TracedModule]:
    """The units up to the pooling, without those that run on a class token alone."""
    found: list[TracedModule] = []
    has_grid = False
    for unit in units:
        assert unit.map is not None
        is_point = unit.map[1] * unit.map[2] == 1
        if unit.tokens and is_point and has_grid:
            continue
        if found and is_point and _pools(unit, found[-1]):
            break
        has_grid |= unit.tokens and not is_point
        found.append(unit)
    return found


def _pools(unit: TracedModule, before: TracedModule) -> bool:
    """Whether a unit averages the whole map, rather than shrinking it as any stage does."""
    return _height(before) > 2 or unit.multiply_adds == before.multiply_adds


def _select(units: Sequence[TracedModule], traced: Trace, module: nn.Module) -> list[TracedModule]:
    """The units that become stages."""
    stages = _without_idle(list(_sizes(units).values()), traced)
    small = [unit for unit in stages if SHALLOWEST * _height(unit) <= traced.image[0]]
    stages = small if len(small) >= FEWEST else stages
    if len(stages) >= FEWEST:
        return stages[-MOST:]
    if len(stages) < 2:
        return evenly(_blocks(units, traced, module))
    return _filled_up(stages, units, traced)


def _without_idle(units: Sequence[TracedModule], traced: Trace) -> list[TracedModule]:
    """The units that compute something after the one before, as pooling does not."""
    found: list[TracedModule] = []
    done = 0
    for unit in units:
        if unit.multiply_adds > done or not traced.multiply_adds:
            found.append(unit)
            done = unit.multiply_adds
    return found


def _blocks(units: Sequence[TracedModule], traced: Trace, module: nn.Module) -> list[TracedModule]:
    """The repeated blocks among units of one map size, or all units that work."""
    units = _without_idle(units, traced)
    kinds: Mapping[type, int] = Counter(type(module.get_submodule(u.name)) for u in units)
    kind, number = max(kinds.items(), key=lambda item: item[1], default=(nn.Module, 0))
    if number < 2:
        return units
    return [unit for unit in units if type(module.get_submodule(unit.name)) is kind]


def evenly(units: Sequence[U]) -> list[U]:
    """`EQUAL_MAPS` of the units, evenly spaced, with the last.

    Example:
        >>> evenly(range(6)), evenly("ab")
        ([1, 2, 4, 5], ['a', 'b'])
    """
    count = min(EQUAL_MAPS, len(units))
    return [units[-(-(index + 1) * len(units) // count) - 1] for index in range(count)]


def _filled_up(
    stages: list[TracedModule], units: Sequence[TracedModule], traced: Trace
) -> list[TracedModule]:
    """Two stages, and the unit whose work is farthest from both, if there is one in between."""
    total = max(traced.multiply_adds, 1)
    names = {unit.name for unit in stages}
    others = {
        min(abs(unit.multiply_adds - stage.multiply_adds) for stage in stages) / total: unit
        for unit in _without_idle(units, traced)
        if unit.name not in names and SHALLOWEST * _height(unit) <= traced.image[0]
    }
    if others and max(others) >= _APART:
        added = others[max(others)]
        stages = sorted([*stages, added], key=_work)
    return stages


def _work(unit: TracedModule) -> int:
    return unit.multiply_adds
