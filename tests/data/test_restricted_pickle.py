"""The restricted pickle reader reads the CIFAR files and runs nothing."""

from __future__ import annotations

import builtins
import collections
import contextlib
import functools
import os
import pickle
import random
import subprocess
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dskd.data.restricted_pickle import read_pickle
from dskd.errors import InputError
from tests.data.file_writers import cifar_entries, python2_pickle, python3_pickle


class Call:
    """Pickled as a call of ``function``."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.reduced = function, arguments

    def __reduce__(self) -> Any:
        return self.reduced


@pytest.mark.parametrize("write", [python2_pickle, python3_pickle, pickle.dumps])
def test_reads_what_either_python_wrote(write: Any) -> None:
    entries = cifar_entries("fine_labels", 3, 2)
    found = read_pickle(write(entries), "train")
    assert sorted(found) == ["batch_label", "data", "filenames", "fine_labels"]
    assert found["fine_labels"] == [0, 0, 1, 1, 2, 2]
    assert found["filenames"] == entries[b"filenames"]
    data = found["data"]
    assert isinstance(data, np.ndarray)
    assert data.dtype == np.uint8
    assert np.array_equal(data, entries[b"data"])


@pytest.mark.parametrize("protocol", range(5))
def test_reads_arrays_of_any_order_and_number_type(protocol: int) -> None:
    arrays = {
        "columns": np.asfortranarray(np.arange(12, dtype=np.int32).reshape(3, 4)),
        "swapped": np.arange(5, dtype=">i8"),
        "floats": np.linspace(0, 1, 7, dtype=np.float32),
        "scalars": [np.int64(3), np.float64(0.5)],
    }
    found = read_pickle(pickle.dumps(arrays, protocol), "x")
    for name in ("columns", "swapped", "floats"):
        assert np.array_equal(found[name], arrays[name])  # type: ignore[arg-type]
    assert found["scalars"] == [3, 0.5]


HOSTILE: dict[str, Callable[[Path], Any]] = {
    "os.system": lambda mark: Call(os.system, f"touch {mark}"),
    "eval": lambda mark: Call(builtins.eval, f"open({str(mark)!r}, 'w')"),
    "exec": lambda mark: Call(builtins.exec, f"open({str(mark)!r}, 'w')"),
    "open": lambda mark: Call(builtins.open, str(mark), "w"),
    "getattr": lambda mark: Call(builtins.getattr, os, "system"),
    "Popen": lambda mark: Call(subprocess.Popen, ["touch", str(mark)]),
    "partial": lambda mark: Call(functools.partial, print),
    "OrderedDict": lambda mark: collections.OrderedDict(data=1),
    "numpy load": lambda mark: Call(np.load, str(mark)),
    "fromfile": lambda mark: Call(np.fromfile, str(mark)),
    "in an object array": lambda mark: np.array([Call(os.system, f"touch {mark}")], dtype=object),
    "in a list": lambda mark: [[{b"x": (Call(os.system, f"touch {mark}"),)}]],
    "as a scalar": lambda mark: np.array([(Call(os.system, f"touch {mark}"),)], dtype="O,")[0],
}


@pytest.mark.parametrize("case", HOSTILE)
@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_nothing_runs(case: str, protocol: int, tmp_path: Path) -> None:
    mark = tmp_path / "ran"
    if case == "getattr":
        data = b"cbuiltins\ngetattr\n(cos\nsystem\nS'x'\ntR."
    else:
        data = pickle.dumps({b"data": HOSTILE[case](mark)}, protocol)
    with pytest.raises(InputError, match="train"):
        read_pickle(data, "train")
    assert not mark.exists()


def test_the_forbidden_name_is_told() -> None:
    data = pickle.dumps({b"data": Call(os.system, "true")}, 2)
    with pytest.raises(InputError, match=r"here/train asks to load '(posix|nt)\.system'"):
        read_pickle(data, "here/train")
    with pytest.raises(InputError, match=r"'\\x1b\[31m\.x'") as caught:
        read_pickle(b"c\x1b[31m\nx\n.", "train")
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    "data",
    [
        b"cnumpy\nndarray\n}S'numbers'\nK\x01sb.",  # state for a class
        b"cnumpy\nndarray\n(N}S'__setstate__'\nN" + b"stb.",
        b"c_codecs\nencode\n(N}S'_call'\nNstb.",  # state for a function
        b"c_codecs\nencode\n(X\x01\x00\x00\x00aX\x06\x00\x00\x00base64tR.",
        b"cnumpy\ndtype\n(S'O'\nK\x00K\x01tR.",
        b"cnumpy\ndtype\n(S'O8'\nK\x00K\x01tR.",
        b"cnumpy\ndtype\n(S'u1'\ntR(K\x03S'O,'\nNNNtb.",
        b"cnumpy\ndtype\n(S'u1'\ntR(K\x03S'|'\nN(S'a'\nt}tb.",
        b"(dS'data'\ncnumpy\nndarray\n)\x81s.",  # an array without numbers
        b"cnumpy.core.multiarray\nscalar\n(S'u1'\nS'a'\ntR.",
        b"\x82\x01.",  # an extension code
        b"Pname\n.",  # a persistent id
        b"(lr\xff\xff\xff\x7f.",  # a memo number that asks for all memory
        b"(lp999999999999\n.",
        b"(lp-1\n.",
        b"]" * 5 + b".",
        b"",
        b".",
        b"K\x01.",
    ],
)
def test_refuses_forged_pickles(data: bytes) -> None:
    with pytest.raises(InputError, match="train"):
        read_pickle(data, "train")


def test_an_array_must_fill_its_shape() -> None:
    good = python2_pickle({b"data": np.zeros((2, 3), np.uint8)})
    forged = good.replace(b"(J\x02\x00\x00\x00", b"(J\xff\xff\xff\xff")
    for data in (forged, good.replace(b"(J\x02", b"(J\x05")):
        assert data != good
        with pytest.raises(InputError, match="shape"):
            read_pickle(data, "train")


@pytest.mark.parametrize(
    "shape",
    [
        b"X\x08\x00\x00\x00xxxxxxxxJ\x00\x00\x00\x01",  # text, 2**24 times
        b"J\x00\x00\x00\x01X\x08\x00\x00\x00xxxxxxxx",
        b"G@\x00\x00\x00\x00\x00\x00\x00J\x03\x00\x00\x00",  # 2.0
        b"J\xff\xff\xff\xffJ\xfa\xff\xff\xff",  # -1, -6
        b"J\x06\x00\x00\x00" + 8 * b"J\x01\x00\x00\x00",
        b"\x8a\x08\x00\x00\x00\x00\x00\x00\x00\x40J\x00\x00\x00\x00",  # 2**62, 0
    ],
)
def test_a_shape_that_is_not_one_is_refused_before_it_takes_memory(shape: bytes) -> None:
    good = python2_pickle({b"data": np.zeros((2, 3), np.uint8)})
    forged = good.replace(b"(J\x02\x00\x00\x00J\x03\x00\x00\x00", b"(" + shape)
    assert forged != good
    tracemalloc.start()
    try:
        with pytest.raises(InputError, match="an array cannot have the shape"):
            read_pickle(forged, "train")
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("shape", [(6,), (1, 2, 1, 3), (1,) * 7 + (6,), (0, 6)])
def test_arrays_have_up_to_eight_dimensions(shape: tuple[int, ...]) -> None:
    found = read_pickle(python2_pickle({b"data": np.ones(shape, np.uint8)}), "train")["data"]
    assert isinstance(found, np.ndarray)
    assert found.shape == shape


def test_no_mangled_file_raises_anything_else() -> None:
    draw = random.Random(0)
    for whole in (
        python2_pickle(cifar_entries("fine_labels", 2, 2, side=2)),
        python3_pickle(cifar_entries("fine_labels", 2, 2, side=2)),
    ):
        for _ in range(1500):
            data = bytearray(whole[: draw.randrange(len(whole) + 1)])
            for _ in range(draw.randrange(4)):
                if data:
                    data[draw.randrange(len(data))] = draw.randrange(256)
            with contextlib.suppress(InputError):
                read_pickle(bytes(data), "train")


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=60))
def test_no_bytes_raise_anything_else(data: bytes) -> None:
    with contextlib.suppress(InputError):
        read_pickle(data, "train")
