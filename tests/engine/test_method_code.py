"""Runs that go on, or stay, after the file of their method was changed."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from dskd.compare.runner import run_grid
from dskd.config import recipe
from dskd.engine import method_code, run
from dskd.errors import Stopped
from dskd.methods import outside
from dskd.storage.run_files import ENVIRONMENT
from tests.compare.small_comparison import Silent, StopsAfter, small

CODE = """
from dskd.methods.kd import KD

class Halved(KD):
    def factor(self):
        return 0.5
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A file with a method."""
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path / "halved_method.py"
    sys.modules.pop("halved_method", None)


def test_the_digest_is_that_of_the_file_and_of_the_methods_it_derives_from(module: Path) -> None:
    module.write_text(CODE)
    import halved_method  # type: ignore[import-not-found]

    class Quartered(halved_method.Halved):  # type: ignore[misc]
        pass

    for kind in (halved_method.Halved, Quartered):
        name = outside.give(kind)
        before = method_code.digest(name)
        assert before is not None
        assert before != method_code.digest("kd")
        module.write_text(CODE.replace("0.5", "0.25"))
        assert method_code.digest(name) != before
        module.write_text(CODE)
        assert method_code.digest(name) == before


def test_code_without_a_file_has_no_digest() -> None:
    namespace = {"__name__": "no_such_module"}
    exec(CODE, namespace)
    assert method_code.digest(outside.give(namespace["Halved"])) is None  # type: ignore[arg-type]


@pytest.mark.parametrize("content", [None, "{", "[]", "{}", json.dumps({"method_code": None})])
def test_a_run_whose_code_is_not_known_counts_as_unchanged(
    tmp_path: Path, content: str | None
) -> None:
    if content is not None:
        (tmp_path / ENVIRONMENT).write_text(content)
    assert not method_code.has_changed(tmp_path, "kd")


@pytest.mark.slow
def test_a_comparison_says_which_of_its_runs_other_code_trained(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    out = tmp_path / "comparison"
    run_grid(small(out, "ce,kd"), Silent())
    run_grid(small(out, "ce,kd"), Silent())
    assert "was changed" not in caplog.text
    _forget_code(out / "kd/seed0")
    run_grid(small(out, "ce,kd"), Silent())
    (line,) = [one for one in caplog.messages if "was changed" in one]
    assert line == (
        "the code of kd was changed since a run of it ended; what has ended stays as it is; to "
        f"train it again, remove {out / 'kd'}"
    )
    shutil.rmtree(out / "kd")  # as the line says
    caplog.clear()
    run_grid(small(out, "ce,kd"), Silent())
    assert "was changed" not in caplog.text
    assert (out / "kd/seed1/result.json").is_file()


@pytest.mark.slow
def test_a_comparison_says_that_a_run_goes_on_with_other_code(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    out = tmp_path / "comparison"
    with pytest.raises(Stopped):
        run_grid(small(out, "kd", seeds=1), StopsAfter(3))
    _forget_code(out / "kd/seed0")
    run_grid(small(out, "kd", seeds=1), Silent())
    (line,) = [one for one in caplog.messages if "was changed" in one]
    assert f"was changed since {out / 'kd/seed0'} was started" in line


@pytest.mark.slow
def test_a_run_that_is_resumed_says_that_its_method_was_changed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    out = tmp_path / "run"
    own = recipe.load(
        "digits", ["method.name=ce", "data.fraction=0.1", "train.epochs=2", f"out={out}"]
    )
    run.distill(own)
    _forget_code(out)
    (out / "result.json").unlink()
    run.distill(own, resume=True)
    (line,) = [one for one in caplog.messages if "was changed" in one]
    assert line.startswith(f"the code of ce was changed since {out} was started")
    assert json.loads((out / ENVIRONMENT).read_text())["method_code"] == method_code.digest("ce")


def test_a_run_that_goes_on_elsewhere_says_so_and_keeps_what_was_known(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    out = tmp_path / "run"
    changes = ["method.name=ce", "data.fraction=0.03", "train.epochs=1", "student.name=resnet8"]
    own = recipe.load("digits", [*changes, "teacher=null", f"out={out}"])
    run.distill(own)
    path = out / ENVIRONMENT
    before = json.loads(path.read_text())
    before["packages"]["torch"], before["threads"] = "1.0", 99
    path.write_text(json.dumps(before))
    for _ in range(2):
        (out / "result.json").unlink()
        run.distill(own, resume=True)
    (line,) = [one for one in caplog.messages if "goes on with" in one]
    assert line.startswith(f"{out} goes on with torch {torch.__version__.split('+')[0]}")
    assert ", not '1.0'; threads " in line
    assert ", not 99: its student" in line
    now = json.loads(path.read_text())
    assert now.pop("earlier") == [before]
    assert now.keys() == before.keys()
    assert now["threads"] != 99


def _forget_code(folder: Path) -> None:
    """Makes a run look as if other code had trained it."""
    facts = json.loads((folder / ENVIRONMENT).read_text())
    (folder / ENVIRONMENT).write_text(json.dumps(facts | {"method_code": "0" * 64}))
