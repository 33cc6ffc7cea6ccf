"""Reports about files of weights: every common form is read, or a line says what there is."""

from __future__ import annotations

import argparse
import collections
import datetime
import logging
import pathlib
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from dskd.errors import InputError
from dskd.models.zoo import build
from dskd.storage.weights import load_weights, read_weights

State = dict[str, Tensor]


def net() -> nn.Module:
    return build("resnet8", num_classes=4)


def same(one: State, other: State) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def prefixed(prefix: str, state: State) -> State:
    return {prefix + key: value for key, value in state.items()}


def raw() -> State:
    torch.manual_seed(9)
    return net().state_dict()


def history() -> Any:
    values = collections.defaultdict(list)
    values["loss"].append(0.5)
    return values


READ: dict[str, Callable[[State], Any]] = {
    "Lightning": lambda w: {
        "state_dict": prefixed("model.", w),
        "pytorch-lightning_version": "2.5",
        "hyper_parameters": {"lr": 0.1},
    },
    "a loss next to the network": lambda w: {
        "state_dict": prefixed("net.", w) | {"criterion.weight": torch.ones(4)}
    },
    "any prefix": lambda w: prefixed("my.own.", w),
    "stacked prefixes": lambda w: prefixed("module._orig_mod.model.", w),
    "net": lambda w: {"net": w, "acc": 93.1, "epoch": 200},
    "torch's tutorial": lambda w: {
        "epoch": 3,
        "model_state_dict": w,
        "optimizer_state_dict": {"state": {0: {"exp_avg": torch.ones(3)}}, "param_groups": [{}]},
    },
    "DeepSpeed": lambda w: {"module": prefixed("model.", w)},
    "an unknown key": lambda w: {"best": w, "epoch": 1},
    "nested": lambda w: {"checkpoint": {"state_dict": w}, "epoch": 1},
    "MMEngine": lambda w: {
        "meta": {"epoch": 3},
        "message_hub": {},
        "state_dict": {("head." if k.startswith("fc") else "backbone.") + k: w[k] for k in w},
        "ema_state_dict": prefixed("module.", raw()),  # MMEngine swaps the two
    },
    "timm, averaged": lambda w: {"state_dict": raw(), "state_dict_ema": w},
    "torchvision, averaged": lambda w: {
        "model": raw(),
        "model_ema": {"n_averaged": torch.tensor(9)} | prefixed("module.", w),
    },
    "the average alone": lambda w: {"epoch": 3, "state_dict_ema": w},
    "ema-pytorch": lambda w: {
        **prefixed("online_model.", raw()),
        **prefixed("ema_model.", w),
        "initted": torch.tensor(True),
    },
    "random states": lambda w: {
        "model": w,
        "rng": np.random.get_state(),
        "python": random.getstate(),
        "torch": torch.get_rng_state(),
    },
    "paths and times": lambda w: {
        "model": w,
        "args": argparse.Namespace(output_dir=pathlib.PurePosixPath("/runs"), data=Path("/data")),
        "when": datetime.datetime(2024, 5, 1),
    },
    "a defaultdict": lambda w: {"model": w, "history": history()},
    "a deque": lambda w: {"model": w, "last": collections.deque([1.0, 2.0])},
    "counted operations (thop)": lambda w: (
        w | {"total_ops": torch.zeros(1), "layer1.total_params": torch.zeros(1)}
    ),
}


@pytest.mark.parametrize("form", READ)
def test_files_of_the_field_are_read(tmp_path: Path, form: str) -> None:
    path, state, other = tmp_path / "c.pth", net().state_dict(), net()
    torch.save(READ[form](state), path)
    load_weights(other, read_weights(path), "it")
    assert same(other.state_dict(), state)


def test_safetensors_are_recognized_whatever_the_name(tmp_path: Path) -> None:
    path, state = tmp_path / "pytorch_model.bin", net().state_dict()
    safetensors.torch.save_file(state, path)
    assert same(read_weights(path), state)


def test_the_average_is_named_and_the_key_chooses(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path, average, plain = tmp_path / "c.pth", net().state_dict(), raw()
    torch.save({"state_dict": plain, "state_dict_ema": average}, path)
    with caplog.at_level(logging.INFO, "dskd"):
        assert same(read_weights(path), average)
    assert "taking the weights under 'state_dict_ema' (their moving average)" in caplog.text
    assert same(read_weights(path, "state_dict"), plain)
    with pytest.raises(InputError, match="no weights under 'emma'; it has 'state_dict', 'state_di"):
        read_weights(path, "emma")


def test_several_sets_of_weights_without_a_known_name_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "c.pth"
    torch.save({"first": net().state_dict(), "second": raw()}, path)
    with pytest.raises(InputError, match="it has 'first', 'second'; set checkpoint_key"):
        read_weights(path)


def test_two_prefixes_that_fit_are_refused() -> None:
    state = prefixed("one.", net().state_dict()) | prefixed("two.", raw())
    with pytest.raises(InputError, match=r"under the prefixes 'one\.', 'two\.'"):
        load_weights(net(), state, "it")


def test_keys_that_do_not_fit_are_named() -> None:
    with pytest.raises(
        InputError, match=r"the file's keys begin with stem, the model's with conv1"
    ):
        load_weights(net(), {"stem.weight": torch.ones(2)}, "it")


def test_an_array_next_to_the_weights_costs_no_memory(tmp_path: Path) -> None:
    """A file may claim an array of any size: it is left out, so nothing is allocated."""
    path, state = tmp_path / "c.pth", net().state_dict()

    class Huge:
        def __reduce__(self) -> Any:
            return np.ones(1).__reduce__()[0], (np.ndarray, (2**40,), b"b")

    torch.save({"model": state, "huge": Huge()}, path)
    assert same(read_weights(path), state)
