"""Documents agree with the code."""

from __future__ import annotations

import re
import runpy
from itertools import pairwise
from pathlib import Path

import pytest
import write_methods

from dskd.config import recipe

ROOT = Path(__file__).parents[2]


def test_the_settings_page_is_what_the_code_says() -> None:
    names = runpy.run_path(str(ROOT / "docs/write_settings.py"))
    assert (ROOT / "docs/settings.md").read_text() == names["page"]()


def test_the_methods_pages_are_what_the_code_says() -> None:
    folder = ROOT / "docs/methods"
    expected = write_methods.pages()
    assert {path.name for path in folder.glob("*.md")} == set(expected)
    for name, text in expected.items():
        assert (folder / name).read_text() == text, f"{name}: run python docs/write_methods.py"


def test_the_readme_s_recipe_is_the_demo_s() -> None:
    block = (ROOT / "README.md").read_text().partition("```yaml\n")[2].partition("```")[0]
    shipped = (ROOT / "src/dskd/recipes/digits.yaml").read_text()
    assert block == "".join(ln for ln in shipped.splitlines(True) if not ln.startswith("#"))


@pytest.mark.parametrize(
    "page", ["README.md", "docs/architecture.md", "docs/method.md", "docs/reliability.md"]
)
def test_links_lead_somewhere(page: str) -> None:
    text = (ROOT / page).read_text()
    for target in re.findall(r"\]\(([^)#]+)", text):
        if not target.startswith("http"):
            assert (ROOT / page).parent.joinpath(target).exists(), target


def test_every_file_of_the_source_is_on_the_readme_s_map() -> None:
    text = (ROOT / "README.md").read_text()
    for path in (ROOT / "src/dskd").rglob("*.py"):
        if not path.name.startswith("__"):
            assert f"`{path.relative_to(ROOT / 'src/dskd').as_posix()}`" in text, path


def test_readme_commands_name_recipes_that_exist() -> None:
    words = (ROOT / "README.md").read_text().split()
    named = [b for a, b in pairwise(words) if a in ("distill", "train", "compare")]
    assert {n for n in named if "/" in n} <= set(recipe.shipped())


def test_every_promise_of_security_names_tests_that_exist() -> None:
    text = (ROOT / "SECURITY.md").read_text().partition("## What is not promised")[0]
    for line in text.splitlines():
        if line.startswith("| ") and not line.startswith("| promise"):
            named = re.findall(r"`([a-z_/*]+\.py)(?:::(\w+))?`", line.rsplit("|", 2)[1])
            assert named, f"it names no test: {line}"
            for path, test in named:
                found = list((ROOT / "tests").glob(path))
                assert found, path
                assert f"def {test}" in found[0].read_text(), test
