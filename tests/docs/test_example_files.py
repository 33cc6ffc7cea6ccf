"""The files of examples/ run, in a process with nothing but the package on its path."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
NEEDS = {"lightning_module": "lightning", "hugging_face_trainer": "transformers"}
FILES = sorted(path.stem for path in EXAMPLES.glob("*.py"))


def test_the_loop_is_short() -> None:
    assert len((EXAMPLES / "own_loop.py").read_text().splitlines()) <= 30


def test_the_page_shows_each_file_as_it_is() -> None:
    page = (EXAMPLES.parent / "docs/tutorials/own-loop.md").read_text()
    shown = re.findall(r'^```python title="examples/(\w+)\.py"\n(.*?)^```$', page, re.M | re.S)
    assert sorted(name for name, _ in shown) == FILES
    for name, text in shown:
        assert text == (EXAMPLES / f"{name}.py").read_text(), f"copy examples/{name}.py to the page"


@pytest.mark.slow
@pytest.mark.parametrize("name", FILES)
def test_an_example_runs(
    name: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if name in NEEDS:
        pytest.importorskip(NEEDS[name])
    monkeypatch.chdir(tmp_path)
    runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
    assert capsys.readouterr().out
