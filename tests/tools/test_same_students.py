"""Two checkouts are compared bit for bit, and a checkout equals itself."""

from __future__ import annotations

import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from tests import processes
from tests.tools import same_students
from tests.tools.same_students import STUDENTS, compare_runs, compare_tensors

ROOT = Path(__file__).parents[2]


def test_equal_tensors_are_the_same_whatever_they_hold() -> None:
    tensors = {"w": torch.tensor([0.5, float("nan")]), "n": torch.tensor(3), "e": torch.ones(0, 2)}
    assert compare_tensors(tensors, {key: value.clone() for key, value in tensors.items()}) == ""


@pytest.mark.parametrize(
    ("other", "text"),
    [
        ({"w": torch.tensor([1.0, 2.25])}, "largest difference 2.5e-01 in w"),
        ({"w": torch.tensor([1.0, 2.0 + 2**-22])}, "1 of 1 tensors"),
        ({"v": torch.tensor([1.0, 2.0])}, "in one file only, such as v"),
        ({"w": torch.tensor([1.0])}, "the shape or type of w"),
        ({"w": torch.tensor([1.0, 2.0]).double()}, "the shape or type of w"),
    ],
)
def test_a_difference_is_named(other: dict[str, Tensor], text: str) -> None:
    assert text in compare_tensors({"w": torch.tensor([1.0, 2.0])}, other)


def test_the_sign_of_zero_is_a_difference() -> None:
    zeros = torch.tensor([0.0])
    assert "largest difference 0.0e+00" in compare_tensors({"w": zeros}, {"w": -zeros})


def test_runs_are_compared_by_both_students_and_without_metadata(tmp_path: Path) -> None:
    for name, key in (("one", "old"), ("other", "new")):
        (tmp_path / name).mkdir()
        for file in STUDENTS:
            save_file({"w": torch.ones(2)}, tmp_path / name / file, {key: "1"})
    one, other = tmp_path / "one", tmp_path / "other"
    assert compare_runs(one, other) == ""
    save_file({"w": torch.zeros(2)}, other / STUDENTS[1])
    assert compare_runs(one, other).startswith(f"{STUDENTS[1]}: 1 of 1 tensors")
    (other / STUDENTS[0]).unlink()
    assert f"{STUDENTS[0]} is missing" in compare_runs(one, other)


class Forked:
    """As `subprocess.Popen`, for the Python that this process runs."""

    def __init__(self, words: list[str], *, cwd: Path, env: dict[str, str], **log: Any) -> None:
        output, errors = (Path(log[name].name) for name in ("stdout", "stderr"))
        self._process = processes.start(words[1:], output, errors, folder=cwd, environment=env)

    def poll(self) -> int | None:
        return self._process.exitcode

    def wait(self) -> int:
        return processes.wait(self._process)


@pytest.mark.slow(seconds=10)
def test_a_checkout_trains_the_same_students_as_itself(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # The names of the methods come from an interpreter with the path of the checkout.
    forking = SimpleNamespace(Popen=Forked, run=subprocess.run)
    monkeypatch.setattr(same_students, "subprocess", forking)
    assert same_students.main([str(ROOT), str(ROOT), "--methods", "ce", "--epochs", "1"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split() for line in lines] == [["the", "teacher", "same"], ["ce", "same"]]


def test_a_folder_without_the_package_is_refused(tmp_path: Path) -> None:
    with pytest.raises(same_students.RunFailed, match="has no package"):
        same_students.main([str(tmp_path), str(ROOT)])
