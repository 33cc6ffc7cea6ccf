"""Every loss refuses arguments that do not fit, with one line, and nothing but an InputError."""

from __future__ import annotations

import inspect

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dskd import losses, methods
from dskd.errors import InputError
from tests.losses.misfits import SHARED, Arguments, changes
from tests.methods import declared

NAMES = sorted({*SHARED, *methods.names()})
every_loss = pytest.mark.parametrize("name", NAMES)


def arguments_of(name: str) -> Arguments:
    return SHARED.get(name) or declared.arguments(name)


def test_no_loss_is_left_out() -> None:
    public = [name for name in {*losses.__all__, *dir(losses)} if not name.startswith("_")]
    functions = {name for name in public if inspect.isfunction(getattr(losses, name))}
    assert functions == {*NAMES}


def how_to_declare(parameter: inspect.Parameter) -> str:
    """The part of ``ARGUMENTS`` that takes an argument of a loss, as its author writes it."""
    name, default = parameter.name, parameter.default
    if isinstance(default, bool | str):
        return f'choices=("{name}",)'
    if isinstance(default, int | float):
        return f'numbers={{"{name}": 0.0}}, with a number that {name} must not be in place of 0.0'
    return f'"{name}": "B K" among the tensors, with the letters of its dimensions in place of B K'


@pytest.mark.parametrize(
    ("default", "place"),
    [
        (4.0, 'numbers={"what": '),
        (True, 'choices=("what",)'),
        ("mean", 'choices=("what",)'),
        (inspect.Parameter.empty, '"what": "B K" among the tensors'),
    ],
)
def test_a_missing_argument_is_told_its_place(default: object, place: str) -> None:
    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    assert how_to_declare(inspect.Parameter("what", kind, default=default)).startswith(place)


@every_loss
def test_every_argument_of_a_loss_is_tried(name: str) -> None:
    kind, parameters = arguments_of(name), inspect.signature(getattr(losses, name)).parameters
    tried = {*kind.tensors, *kind.numbers, *kind.choices}
    untried = parameters.keys() - tried - {"prediction_options", "deep_options"}
    places = [how_to_declare(parameters[key]) for key in parameters if key in untried]
    assert not untried, (
        f"add these arguments of {name}_loss to ARGUMENTS in tests/methods/test_{name}.py: "
        + "; ".join(places)
    )
    assert tried <= parameters.keys(), "ARGUMENTS names arguments that the loss does not have"


@every_loss
def test_arguments_that_fit_are_taken(name: str) -> None:
    value = getattr(losses, name)(**arguments_of(name).fitting())
    assert value.isfinite().all()


@pytest.mark.slow
@every_loss
@given(data=st.data())
@settings(max_examples=150, deadline=None)
def test_misfits_are_refused_in_one_line(name: str, data: st.DataObject) -> None:
    kind = arguments_of(name)
    arguments = kind.fitting()
    change = data.draw(st.sampled_from(changes(kind)))
    change(data.draw, kind, arguments)
    with pytest.raises(InputError) as refusal:
        getattr(losses, name)(**arguments)
    assert "got" in str(refusal.value) or "unknown" in str(refusal.value)
    assert "\n" not in str(refusal.value)
    assert len(str(refusal.value)) < 300
