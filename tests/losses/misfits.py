"""Arguments of every loss that fit, and random changes after which they do not.

Every tensor says its dimensions by letters, as in ``B K``. Dimensions of one letter must be equal.
So another size of one dimension is a misfit exactly if its letter stands elsewhere too.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from hypothesis import strategies as st
from torch import Tensor

SIZES = dict(zip("BKCDEHWIJNMRPQZ", (3, 5, 2, 4, 6, 4, 4, 2, 2, 7, 4, 8, 1, 2, 2), strict=True))
"""The sizes of the letters. ``R`` is four views of two images."""
FIXED = "PQZ"
"""Letters whose size is always a misfit if it changes."""
LENGTH = 2
"""The length of lists of tensors."""


class Place(NamedTuple):
    """A tensor among the arguments.

    Attributes:
        name: The argument.
        element: The index in the list; None if the argument is a tensor.
        letters: The letters of its dimensions; with a star if each element has a size of its own.
    """

    name: str
    element: int | None
    letters: tuple[str, ...]

    def get(self, given: dict[str, Any]) -> Tensor:
        """The tensor at this place."""
        value = given[self.name] if self.element is None else given[self.name][self.element]
        assert isinstance(value, Tensor)
        return value

    def put(self, given: dict[str, Any], value: object) -> None:
        """Puts another value at this place."""
        if self.element is None:
            given[self.name] = value
        else:
            given[self.name][self.element] = value

    def sizes(self) -> list[tuple[str, int | None]]:
        """Each dimension's letter, with the element if each element has a size of its own."""
        return [(one[0], self.element if one.endswith("*") else None) for one in self.letters]


@dataclass(frozen=True)
class Arguments:
    """The arguments of a loss.

    Example: ``Arguments({"student_logits": "B K", "labels": "B"}, indices={"labels": "K"})``.

    Attributes:
        tensors: The letters of each tensor, by the name of the argument; in brackets for a list.
        indices: Which tensors are int64, and the letter whose size their values are below.
        numbers: Options that are numbers, each with a number that is out of range.
        choices: Options that are names.
    """

    tensors: dict[str, str]
    indices: dict[str, str] = field(default_factory=dict)
    numbers: dict[str, float] = field(default_factory=dict)
    choices: tuple[str, ...] = ()

    @property
    def lists(self) -> list[str]:
        """The names of the arguments that are lists."""
        return [name for name, letters in self.tensors.items() if letters.startswith("[")]

    def places(self) -> list[Place]:
        """All tensors among the arguments."""
        found = []
        for name, text in self.tensors.items():
            elements = range(LENGTH) if name in self.lists else [None]
            found += [Place(name, one, tuple(text.strip("[]").split())) for one in elements]
        return found

    def fitting(self) -> dict[str, Any]:
        """Tensors that fit, by the names of the arguments."""
        given: dict[str, Any] = {name: [None] * LENGTH for name in self.lists}
        for place in self.places():
            shape = [SIZES[letter[0]] for letter in place.letters]
            below = self.indices.get(place.name)
            values = torch.randint(SIZES[below], shape) if below else torch.rand(shape) + 0.1
            place.put(given, values)
        return given

    def tied(self) -> list[tuple[Place, int]]:
        """The places and dimensions where another size is a misfit."""
        places = self.places()
        keys = [key for place in places for key in place.sizes()]
        return [
            (place, dimension)
            for place in places
            for dimension, key in enumerate(place.sizes())
            if keys.count(key) > 1 or key[0] in FIXED
        ]


def resized(tensor: Tensor, dimension: int, size: int) -> Tensor:
    """The tensor with another size of a dimension."""
    rows = torch.arange(size) % tensor.shape[dimension]
    return tensor.index_select(dimension, rows)


Draw = Callable[[st.SearchStrategy[Any]], Any]
Change = Callable[[Draw, Arguments, dict[str, Any]], None]
"""Makes a misfit of the arguments that are given."""
# Made once: to read the pattern anew takes longer than to draw from it.
NO_ARGUMENTS = st.from_regex(r"[a-z]{3,8}_no", fullmatch=True)
NO_NAMES = st.sampled_from(["relativ", "sum", "", 3, ["mean"]]) | st.text(max_size=8).map(
    "no {}".format
)
NO_TENSORS = st.sampled_from([1.5, "map", [0.5, 0.5], np.ones(3), object()])


def other_size(draw: Draw, kind: Arguments, given: dict[str, Any]) -> None:
    """Another batch, number of classes, channels, height, or length."""
    place, dimension = draw(st.sampled_from(kind.tied()))
    tensor = place.get(given)
    size = tensor.shape[dimension]
    other = draw(st.sampled_from([1, size - 1, size + 1, 2 * size]).filter(lambda n: 0 < n != size))
    place.put(given, resized(tensor, dimension, other))


def no_values(draw: Draw, kind: Arguments, given: dict[str, Any]) -> None:
    """A tensor without values."""
    place = draw(st.sampled_from(kind.places()))
    dimension = draw(st.integers(0, len(place.letters) - 1))
    place.put(given, resized(place.get(given), dimension, 0))


def no_image(_: Draw, kind: Arguments, given: dict[str, Any]) -> None:
    """An empty batch of everything."""
    for place in kind.places():
        for dimension, letter in enumerate(place.letters):
            if letter in "BR":
                place.put(given, resized(place.get(given), dimension, 0))


def other_rank(draw: Draw, kind: Arguments, given: dict[str, Any]) -> None:
    """Other numbers of dimensions, of one tensor or of all."""
    places = kind.places()
    for place in draw(st.sampled_from([places, [draw(st.sampled_from(places))]])):
        tensor = place.get(given)
        change = draw(st.sampled_from([torch.Tensor.sum, lambda t: t[None, None]]))
        place.put(given, change(tensor))


def other_type(draw: Draw, kind: Arguments, given: dict[str, Any]) -> None:
    """A tensor of a type that the loss cannot use."""
    place = draw(st.sampled_from(kind.places()))
    whole = [torch.int32, torch.uint8, torch.float32, torch.bool]
    real = [torch.int64, torch.int32, torch.bool, torch.complex64]
    dtype = draw(st.sampled_from(whole if place.name in kind.indices else real))
    place.put(given, place.get(given).to(dtype))


def no_tensor(draw: Draw, kind: Arguments, given: dict[str, Any]) -> None:
    """Something that is not a tensor."""
    draw(st.sampled_from(kind.places())).put(given, draw(NO_TENSORS))


def other_device(draw: Draw, kind: Arguments, given: dict[str, Any]) -> None:
    """One tensor on another device."""
    place = draw(st.sampled_from(kind.places()))
    place.put(given, place.get(given).to("meta"))


def out_of_range(draw: Draw, kind: Arguments, given: dict[str, Any]) -> None:
    """A label or row that does not exist."""
    name = draw(st.sampled_from([*kind.indices]))
    first_beyond = SIZES[kind.indices[name]]
    value = draw(st.integers(-200, -1) | st.integers(first_beyond, first_beyond + 200))
    values = given[name].flatten()
    values[draw(st.integers(0, len(values) - 1))] = value
    given[name] = values.view(given[name].shape)


def other_length(draw: Draw, kind: Arguments, given: dict[str, Any]) -> None:
    """A list of another length than the others, or an empty one."""
    name = draw(st.sampled_from(kind.lists))
    longer = [*given[name], given[name][-1]]
    length = draw(st.sampled_from([0] if len(kind.lists) == 1 else [0, 1, 3]))
    given[name] = longer[:length]


def no_list(draw: Draw, kind: Arguments, given: dict[str, Any]) -> None:
    """A tensor, or something else, in place of a list."""
    name = draw(st.sampled_from(kind.lists))
    given[name] = draw(st.sampled_from([given[name][0], torch.stack([given[name][0]] * 2), None]))


def other_number(draw: Draw, kind: Arguments, given: dict[str, Any]) -> None:
    """An option that is not a number, or out of range."""
    name = draw(st.sampled_from([*kind.numbers]))
    wrong = ["high", ["high"], True, float("nan"), float("inf"), kind.numbers[name]]
    given[name] = draw(st.sampled_from(wrong))


def other_name(draw: Draw, kind: Arguments, given: dict[str, Any]) -> None:
    """An option that is not one of the names."""
    name = draw(st.sampled_from([*kind.choices]))
    given[name] = draw(NO_NAMES)


def other_argument(draw: Draw, _: Arguments, given: dict[str, Any]) -> None:
    """An argument that the loss does not have."""
    given[draw(NO_ARGUMENTS)] = 1.0


def changes(kind: Arguments) -> list[Change]:
    """The changes that are misfits of these arguments."""
    found: list[Change] = [no_values, no_image, other_rank, other_type, no_tensor, other_argument]
    found += [other_size] * bool(kind.tied())
    found += [other_device] * (len(kind.places()) > 1)
    found += [out_of_range] * bool(kind.indices)
    found += [other_length, no_list] * bool(kind.lists)
    found += [other_number] * bool(kind.numbers)
    found += [other_name] * bool(kind.choices)
    return found


SHARED: dict[str, Arguments] = {
    "allocate": Arguments({"losses": "B"}, {}, {"tau": 0.0}, ("allocation", "scale", "weight_sum")),
    "feature_loss": Arguments(
        {"adapted": "B C H W", "target": "B C H W"}, choices=("scale", "reduction")
    ),
}
"""The arguments of the losses that are not a method's; a method's are in its test file."""
