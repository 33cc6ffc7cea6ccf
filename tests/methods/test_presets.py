"""The presets and defaults of every method are the numbers that its own test file declares."""

from __future__ import annotations

import inspect
from typing import Any

import pytest

from dskd import losses, methods
from tests.methods import declared

SHARED: dict[str, dict[str, Any]] = {
    "allocate": {
        "allocation": "proportional",
        "tau": 1.0,
        "scale": "relative",
        "weight_sum": "count",
    },
    "feature_loss": {"scale": "relative", "reduction": "mean"},
}
"""The defaults of the losses that are not a method's."""
every_method = pytest.mark.parametrize("name", methods.names())


def defaults_of(loss: str) -> dict[str, Any]:
    parameters = inspect.signature(getattr(losses, loss)).parameters
    return {
        key: parameter.default
        for key, parameter in parameters.items()
        if parameter.default is not inspect.Parameter.empty
    }


@every_method
def test_the_presets_are_those_of_the_test_file(name: str) -> None:
    assert methods.find(name).presets == declared.presets(name), (
        f"PRESETS in tests/methods/test_{name}.py lists other presets; change it if that is meant"
    )


@every_method
def test_the_defaults_of_the_loss_are_those_of_the_test_file(name: str) -> None:
    assert defaults_of(name) == declared.defaults(name), (
        f"define DEFAULTS in tests/methods/test_{name}.py: the optional arguments of {name}_loss"
    )


@pytest.mark.parametrize("name", SHARED)
def test_shared_losses_have_their_defaults(name: str) -> None:
    assert defaults_of(name) == SHARED[name]


@every_method
def test_a_preset_gives_the_method_these_settings(name: str) -> None:
    for preset, settings in declared.presets(name).items():
        resolved = methods.resolve(name, {"preset": preset})
        assert resolved == methods.resolve(name, {}) | settings
