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


@every_loss
def test_every_argument_of_a_loss_is_tried(name: str) -> None:
    kind, parameters = arguments_of(name), inspect.signature(getattr(losses, name)).parameters
    tried = {*kind.tensors, *kind.numbers, *kind.choices}
    untried = parameters.keys() - tried - {"prediction_options", "deep_options"}
    assert not untried, f"add these arguments of {name}_loss to ARGUMENTS in test_{name}.py"
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
