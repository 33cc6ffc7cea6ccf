"""Published weights and the defaults of losses, as numbers: a change here must be meant."""

from __future__ import annotations

import inspect
from typing import Any

import pytest

from dskd import losses, methods
from tests.losses.misfits import LOSSES

CRD_REPOSITORY = {"ce": 1.0, "kd": 0.0}
"""In the runs of CRD's repository, a method's own loss joins the labels alone."""

PUBLISHED: dict[str, dict[str, dict[str, Any]]] = {
    "at": {"literature": {**CRD_REPOSITORY, "weight": 1000.0}},
    "byot": {
        "literature": {
            "ce": 1.0,
            "weight": 0.7,
            "kd": 0.3 / 3**2,
            "features": 0.03,
            "temperature": 3.0,
        }
    },
    "cc": {"literature": {**CRD_REPOSITORY, "weight": 0.02}},
    "ce": {},
    "crd": {"literature": {**CRD_REPOSITORY, "weight": 0.8}},
    "dist": {"literature": {"ce": 1.0, "kd": 1.0, "beta": 2.0, "gamma": 2.0}},
    "dkd": {"literature": {"ce": 1.0, "kd": 1.0, "alpha": 1.0, "beta": 8.0, "warmup": 20.0}},
    "dskd": {
        "paper": {
            "temperature": 2.0,
            "ce": 1.0,
            "kd": 0.0,
            "alpha": 0.5,
            "beta": 0.5,
            "allocation": "hard-first",
            "allocate": "separate",
            "allocation_scale": "raw",
            "weight_sum": "one",
            "feature_scale": "none",
            "deep_stage": "both",
            "adapter": "linear",
            "classifier": "mlp",
            "gamma": 0.0,
            "tau": 1.0,
            "allocation_basis": "loss",
            "allocation_smoothing": 0.0,
            "weights_per": "batch",
            "feature_loss": "mse",
            "feature_target": "last",
            "fuse": False,
            "adapter_width": None,
            "adapter_depth": 1,
            "supervise": None,
            "prediction_loss": "kl",
            "deep_loss": "kd",
        },
        "paper-abstract": {
            "temperature": 4.0,
            "ce": 1.0,
            "kd": 1.0,
            "alpha": 1.0,
            "beta": 1.0,
            "allocation": "proportional",
            "allocate": "joint",
            "allocation_scale": "relative",
            "weight_sum": "count",
            "feature_scale": "relative",
            "deep_stage": "none",
            "adapter": "pool",
            "classifier": "linear",
            "gamma": 0.0,
            "tau": 1.0,
            "allocation_basis": "loss",
            "allocation_smoothing": 0.0,
            "weights_per": "batch",
            "feature_loss": "mse",
            "feature_target": "last",
            "fuse": False,
            "adapter_width": None,
            "adapter_depth": 1,
            "supervise": None,
            "prediction_loss": "kl",
            "deep_loss": "kd",
        },
    },
    "dsn": {"literature": {"ce": 1.0, "weight": 1.0}},
    "fitnet": {"literature": {**CRD_REPOSITORY, "weight": 100.0}},
    "kd": {"literature": {"ce": 0.1, "kd": 0.9}},
    "lskd": {
        "literature": {"base": "kd", "ce": 0.1, "kd": 9.0},
        "literature-dkd": {
            "base": "dkd",
            "ce": 1.0,
            "kd": 9.0,
            "alpha": 1.0,
            "beta": 8.0,
            "warmup": 20.0,
        },
        "literature-mlkd": {"base": "mlkd", "ce": 0.1, "kd": 9.0},
    },
    "mlkd": {
        "literature": {"ce": 0.1, "kd": 0.9},
        "code": {
            "ce": 0.2,
            "kd": 0.9,
            "instance_level": 1.5,
            "batch_level": 0.5,
            "class_level": 0.5,
        },
    },
    "nkd": {"literature": {"ce": 1.0, "kd": 1.0, "gamma": 3.5, "temperature": 3.0}},
    "nst": {"literature": {**CRD_REPOSITORY, "weight": 50.0}},
    "pkt": {"literature": {**CRD_REPOSITORY, "weight": 30000.0}},
    "reviewkd": {"literature": {**CRD_REPOSITORY, "weight": 5.0, "warmup": 20.0}},
    "rkd": {"literature": {**CRD_REPOSITORY, "weight": 1.0, "distance": 25.0, "angle": 50.0}},
    "sdd": {
        "literature": {"ce": 0.1, "kd": 0.9, "scales": [1, 2], "warmup": 30.0},
        "code": {"ce": 0.1, "kd": 0.9, "scales": [1, 2], "form": "code"},
    },
    "semckd": {"literature": {"ce": 1.0, "kd": 1.0, "weight": 400.0}},
    "simkd": {"literature": {"ce": 0.0, "kd": 0.0, "weight": 1.0}},
    "sp": {"literature": {**CRD_REPOSITORY, "weight": 3000.0}},
    "srrl": {"literature": {**CRD_REPOSITORY, "feature": 1.0, "regression": 1.0}},
    "sskd": {"literature": {"ce": 0.1, "kd": 0.9, "ss": 10.0, "tf": 2.7, "head_epochs": 60}},
    "vid": {"literature": {**CRD_REPOSITORY, "weight": 1.0}},
    "wttm": {
        "literature": {"ce": 1.0, "kd": 3.0, "gamma": 0.1},
        "ttm": {"ce": 1.0, "kd": 100.0, "gamma": 0.1, "weighted": False},
    },
}
"""The presets of every method; the methods' descriptions name the sources."""

DEFAULTS: dict[str, dict[str, Any]] = {
    "allocate": {
        "allocation": "proportional",
        "tau": 1.0,
        "scale": "relative",
        "weight_sum": "count",
    },
    "at": {"power": 2.0},
    "byot": {"ce": 1.0, "weight": 1.0, "kd": 1.0, "features": 0.03, "temperature": 3.0},
    "cc": {"form": "neighbours", "gamma": 0.4, "order": 2},
    "ce": {"reduction": "mean"},
    "crd": {"log_z": None, "temperature": 0.07},
    "dist": {"beta": 1.0, "gamma": 1.0, "temperature": 4.0, "reduction": "mean"},
    "dkd": {"alpha": 1.0, "beta": 8.0, "temperature": 4.0, "reduction": "mean"},
    "dskd": {
        "temperature": 4.0,
        "ce": 1.0,
        "kd": 1.0,
        "alpha": 1.0,
        "beta": 10.0,
        "gamma": 0.0,
        "allocation": "proportional",
        "tau": 1.0,
        "allocate": "joint",
        "allocation_scale": "relative",
        "allocation_basis": "loss",
        "allocation_smoothing": 0.0,
        "weight_sum": "count",
        "feature_loss": "mse",
        "weights_per": "batch",
        "feature_scale": "relative",
        "prediction_loss": "kl",
        "prediction_options": None,
        "deep_loss": "kd",
        "deep_options": None,
    },
    "feature_loss": {"scale": "relative", "reduction": "mean"},
    "kd": {"temperature": 4.0, "standardize": False, "reduction": "mean"},
    "lskd": {"base": "kd", "temperature": 2.0, "alpha": 1.0, "beta": 8.0},
    "mlkd": {
        "temperatures": (2.0, 3.0, 4.0, 5.0, 6.0),
        "instance_level": 1.0,
        "batch_level": 1.0,
        "class_level": 1.0,
        "standardize": False,
    },
    "nkd": {"gamma": 3.5, "temperature": 3.0, "reduction": "mean"},
    "pkt": {"eps": 1e-7},
    "rkd": {"distance": 25.0, "angle": 50.0},
    "sdd": {
        "base": "kd",
        "temperature": 4.0,
        "alpha": 1.0,
        "beta": 8.0,
        "complementary": 2.0,
        "form": "paper",
    },
    "srrl": {"feature": 1.0, "regression": 1.0},
    "sskd": {"share": 0.75, "temperature": 0.5},
    "wttm": {"gamma": 0.1, "weighted": True},
}
"""The options of every loss, where it has any."""


def test_every_method_has_its_published_weights() -> None:
    assert {name: methods.find(name).presets for name in methods.names()} == PUBLISHED


@pytest.mark.parametrize("name", LOSSES)
def test_every_loss_has_its_defaults(name: str) -> None:
    parameters = inspect.signature(getattr(losses, name)).parameters
    options = {
        key: parameter.default
        for key, parameter in parameters.items()
        if parameter.default is not inspect.Parameter.empty
    }
    assert options == DEFAULTS.get(name, {})


@pytest.mark.parametrize("name", [name for name in methods.names() if methods.find(name).presets])
def test_a_preset_gives_the_method_these_settings(name: str) -> None:
    for preset, settings in PUBLISHED[name].items():
        resolved = methods.resolve(name, {"preset": preset})
        assert resolved == methods.resolve(name, {}) | settings
