"""Checkpoints in all common forms are read, and nothing in a file is ever executed."""

from __future__ import annotations

import argparse
import os
import pickle
import subprocess
import warnings
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from types import FunctionType
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from dskd.errors import InputError
from dskd.models.mobilenet import MobileNetV2
from dskd.models.zoo import build
from dskd.storage.weights import load_weights, read_metadata, read_weights, write_weights

State = dict[str, Tensor]


def net(classes: int = 4, name: str = "resnet8") -> nn.Module:
    return build(name, num_classes=classes)


@pytest.fixture
def state() -> State:
    return net().state_dict()


def same(one: State, other: State) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def prefixed(state: State, prefix: str) -> State:
    return OrderedDict((prefix + key, value) for key, value in state.items())


FORMS: dict[str, Callable[[State], Any]] = {
    "bare": lambda state: state,
    "model": lambda state: {"epoch": 240, "model": state, "best_acc": torch.tensor(79.4)},
    "state_dict": lambda state: {"state_dict": state, "arch": "resnet8", "best": [1.0, None]},
    "student": lambda state: {"student": state, "optimizer": {"state": {}, "param_groups": []}},
    "parallel": lambda state: prefixed(state, "module."),
    "parallel model": lambda state: {"model": prefixed(state, "module."), "epoch": 1},
    "compiled": lambda state: prefixed(state, "_orig_mod."),
    "both": lambda state: {"state_dict": prefixed(state, "module._orig_mod.")},
    "namespace": lambda state: {"model": state, "opt": argparse.Namespace(lr=0.05, gpu=None)},
    "numpy": lambda state: {
        "model": state,
        "test_accuracy": np.float64(79.42),
        "scores": [np.float32(0.5), np.float16(0.5), np.int64(3), np.int32(3), np.bool_(True)],
        "opt": argparse.Namespace(best=np.float64(1.0), epoch=np.int64(2)),
    },
}


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("form", FORMS)
def test_common_forms_of_checkpoints_are_read(
    tmp_path: Path, state: State, form: str, zipped: bool
) -> None:
    path = tmp_path / "teacher.pth"
    torch.save(FORMS[form](state), path, _use_new_zipfile_serialization=zipped)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        weights = read_weights(path)
    other = net()
    load_weights(other, weights, "it")
    assert same(other.state_dict(), state)


class OldNames:
    """A pickle module that writes the module names of NumPy 1."""

    class Pickler(pickle._Pickler):
        def save_global(self, obj: Any, name: str | None = None) -> None:
            if getattr(obj, "__module__", "") == "numpy._core.multiarray":
                self.write(f"cnumpy.core.multiarray\n{obj.__name__}\n".encode())  # type: ignore[attr-defined]
                self.memoize(obj)  # type: ignore[attr-defined]
            else:
                super().save_global(obj, name)  # type: ignore[misc]

        # Functions are dispatched past an overridden save_global.
        dispatch = pickle._Pickler.dispatch | {  # type: ignore[assignment]
            FunctionType: save_global,
        }

    @staticmethod
    def dump(obj: Any, file: Any, protocol: int) -> None:
        OldNames.Pickler(file, protocol).dump(obj)


@pytest.mark.parametrize("number", [np.float64(79.42), np.float32(0.5), np.int64(3)])
@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_numbers_written_by_numpy_1_are_read(
    tmp_path: Path, state: State, number: np.generic, zipped: bool
) -> None:
    path = tmp_path / "teacher.pth"
    content = {"model": state, "test_accuracy": number}
    torch.save(content, path, pickle_module=OldNames, _use_new_zipfile_serialization=zipped)
    written = path.read_bytes()
    assert b"numpy.core.multiarray" in written
    assert b"numpy._core" not in written
    assert same(read_weights(path), state)


def test_safetensors_files_are_read(tmp_path: Path, state: State) -> None:
    path = tmp_path / "teacher.safetensors"
    safetensors.torch.save_file(state, path)
    assert same(read_weights(path), state)
    safetensors.torch.save_file(prefixed(state, "module."), path)
    other = net()
    load_weights(other, read_weights(path), "it")
    assert same(other.state_dict(), state)


def test_a_submodule_called_module_keeps_its_name(tmp_path: Path) -> None:
    path, model = tmp_path / "own.pth", nn.Sequential()
    model.add_module("module", nn.Linear(3, 2))
    torch.save(model.state_dict(), path)
    other = nn.Sequential()
    other.add_module("module", nn.Linear(3, 2))
    load_weights(other, read_weights(path), "it")
    assert same(other.state_dict(), model.state_dict())


def test_written_weights_and_metadata_are_read_back(tmp_path: Path) -> None:
    path, model = tmp_path / "student.safetensors", net().to(memory_format=torch.channels_last)
    path.write_bytes(write_weights(model, {"mean": [0.5], "name": "resnet8"}))
    assert same(read_weights(path), model.state_dict())
    assert read_metadata(path) == {"mean": [0.5], "name": "resnet8"}


def test_a_prefix_of_only_some_keys_stays(tmp_path: Path) -> None:
    path = tmp_path / "own.pth"
    state = {"module.weight": torch.ones(2), "scale": torch.ones(1)}
    torch.save(state, path)
    assert same(read_weights(path), state)


def test_weights_from_before_batchnorm_counted_batches_are_loaded(
    tmp_path: Path, state: State
) -> None:
    old = {key: value for key, value in state.items() if "num_batches_tracked" not in key}
    path = tmp_path / "old.pth"
    torch.save({"model": old}, path)
    other = net()
    load_weights(other, read_weights(path), "it")
    assert same(other.state_dict(), state)


# Files that hold something else


class Runs:
    """Runs a command when it is unpickled."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> Any:
        return self.call


HOSTILE: dict[str, Callable[[Path], Runs]] = {
    "os.system": lambda mark: Runs(os.system, f"touch {mark}"),
    "subprocess": lambda mark: Runs(subprocess.call, ["touch", str(mark)]),
    "exec": lambda mark: Runs(exec, f"open({str(mark)!r}, 'w')"),
    "open": lambda mark: Runs(open, str(mark), "w"),
    "getattr": lambda mark: Runs(getattr, argparse.Namespace(), "lr", mark.touch),
}


@pytest.mark.parametrize("where", ["alone", "next to", "among", "inside", "plain pickle"])
@pytest.mark.parametrize("attack", HOSTILE)
def test_nothing_in_a_file_is_executed(
    tmp_path: Path, state: State, attack: str, where: str
) -> None:
    path, mark = tmp_path / "hostile.pth", tmp_path / "ran"
    runs = HOSTILE[attack](mark)
    contents = {
        "alone": runs,
        "next to": {"model": state, "test_accuracy": runs},
        "among": {**state, "x": runs},
        "inside": {"model": state, "opt": argparse.Namespace(lr=runs)},
    }
    for zipped in (True, False):
        if where == "plain pickle":
            path.write_bytes(pickle.dumps({"model": runs}, protocol=2))
        else:
            torch.save(contents[where], path, _use_new_zipfile_serialization=zipped)
        with pytest.raises(InputError, match="is not a file of plain weights and is not opened"):
            read_weights(path)
        assert not mark.exists()


def test_the_error_names_the_refused_object(tmp_path: Path) -> None:
    path = tmp_path / "whole.pth"
    torch.save({"model": net()}, path)
    with pytest.raises(InputError, match=r"GLOBAL dskd\.models\.resnet\.ResNet .*state_dict\(\)"):
        read_weights(path)


def test_torch_load_is_called_with_weights_only(
    tmp_path: Path, state: State, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, values, load = tmp_path / "teacher.pth", [], torch.load
    torch.save(state, path)

    def watched(*arguments: Any, **settings: Any) -> Any:
        values.append(settings.get("weights_only"))
        assert Dice not in torch.serialization.get_safe_globals()
        return load(*arguments, **settings)

    monkeypatch.setattr(torch, "load", watched)
    with torch.serialization.safe_globals([Dice]):  # as other libraries do
        admitted = set(torch.serialization.get_safe_globals())
        read_weights(path)
        assert values == [True]
        # Ours are allowed only while we read, and others are not then.
        assert set(torch.serialization.get_safe_globals()) == admitted


class Dice:
    """A type that another library allows."""


def torch_bytes(tmp_path: Path, zipped: bool) -> bytes:
    path = tmp_path / "whole.pth"
    torch.save(net().state_dict(), path, _use_new_zipfile_serialization=zipped)
    return path.read_bytes()


@pytest.mark.parametrize("fraction", [0.001, 0.1, 0.5, 0.999])
@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_a_truncated_file_is_refused(tmp_path: Path, zipped: bool, fraction: float) -> None:
    whole, path = torch_bytes(tmp_path, zipped), tmp_path / "part.pth"
    path.write_bytes(whole[: int(len(whole) * fraction)])
    with pytest.raises(InputError, match=r"part\.pth"):
        read_weights(path)


@pytest.mark.parametrize("fraction", [0, 0.001, 0.1, 0.999])
def test_a_truncated_safetensors_file_is_refused(tmp_path: Path, fraction: float) -> None:
    whole, path = write_weights(net(), {}), tmp_path / "part.safetensors"
    path.write_bytes(whole[: int(len(whole) * fraction)])
    with pytest.raises(InputError, match=r"cannot read the checkpoint .*part\.safetensors"):
        read_weights(path)
    with pytest.raises(
        InputError, match=r"part\.safetensors was not written by dskd or is damaged"
    ):
        read_metadata(path)


@pytest.mark.parametrize("name", ["note.pth", "note.safetensors"])
@pytest.mark.parametrize(
    "content", [b"", b"hello, these are no weights\n" * 9, b"\x80\x02}q\x00.", b"PK"]
)
def test_a_file_without_weights_is_refused(tmp_path: Path, name: str, content: bytes) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(InputError) as caught:
        read_weights(path)
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["missing.pth", "missing.safetensors"])
def test_a_missing_file_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError, match="there is no checkpoint file"):
        read_weights(tmp_path / name)


def test_a_folder_in_place_of_a_file_is_told_what_to_give(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"is a folder; give the file .*student\.safetensors"):
        read_weights(tmp_path)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ([1, 2], "holds no state_dict, but list"),
        ({}, "holds no state_dict, but dict"),
        ({"model": {}}, "holds no state_dict, but dict"),
        (
            {"net": {"weight": [1.0]}, "epoch": 1},
            "'net' is dict, 'epoch' is int; known forms: bare",
        ),
        ({1: torch.ones(2)}, "1 is Tensor"),
        (torch.ones(2), "holds no state_dict, but Tensor"),
    ],
)
def test_content_other_than_a_state_dict_is_refused(
    tmp_path: Path, content: Any, said: str
) -> None:
    path = tmp_path / "other.pth"
    torch.save(content, path)
    with pytest.raises(InputError, match=said):
        read_weights(path)


def test_missing_metadata_is_refused(tmp_path: Path, state: State) -> None:
    path = tmp_path / "theirs.safetensors"
    safetensors.torch.save_file(state, path)
    with pytest.raises(InputError, match="was not written by dskd"):
        read_metadata(path)
    with pytest.raises(InputError, match=r"there is no .*; check the path"):
        read_metadata(tmp_path / "missing.safetensors")


# Weights that do not fit


@pytest.mark.parametrize("name", ["resnet8", "vgg8", "MobileNetV2"])
def test_the_error_gives_both_numbers_of_classes(name: str) -> None:
    with pytest.raises(InputError) as caught:
        load_weights(net(4, name), net(7, name).state_dict(), "the checkpoint t.pth")
    assert str(caught.value).startswith("the checkpoint t.pth does not fit ")
    assert str(caught.value).endswith("(7 classes there, 4 here)")


def test_the_error_names_missing_and_extra_keys() -> None:
    with pytest.raises(InputError, match=r"\d+ keys missing, such as 'layer1\.1\.bn1\.bias'$"):
        load_weights(net(name="resnet14"), net().state_dict(), "it")
    with pytest.raises(InputError, match=r"^it does not fit ResNet: \d+ keys left over, such as"):
        load_weights(net(), net(name="resnet14").state_dict(), "it")
    with pytest.raises(InputError, match=r"\d+ keys missing, such as .*; \d+ keys left over, such"):
        load_weights(net(), net(name="vgg8").state_dict(), "it")


def test_the_error_gives_both_shapes() -> None:
    with pytest.raises(InputError) as caught:
        load_weights(net(name="MobileNetV2"), MobileNetV2(1.0, num_classes=4).state_dict(), "it")
    shapes = "conv1.0.weight is [32, 3, 3, 3] in the file, [16, 3, 3, 3] in the model"
    assert str(caught.value) == f"it does not fit MobileNetV2: {shapes}"


def test_a_wrong_shape_in_a_model_without_a_matrix() -> None:
    with pytest.raises(InputError, match=r"weight is \[4, 3, 3, 3\] in the file, \[5, 3, 3, 3\]"):
        load_weights(nn.Conv2d(3, 5, 3), nn.Conv2d(3, 4, 3).state_dict(), "it")


def test_weights_that_do_not_fit_leave_the_model_unchanged() -> None:
    model = net()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(InputError):
        load_weights(model, net(7).state_dict(), "it")
    assert same(model.state_dict(), before)
