"""Documents agree with the code: links, files, settings, commands and names in them exist."""

from __future__ import annotations

import ast
import dataclasses
import json
import re
import runpy
from itertools import pairwise
from pathlib import Path

import click
import fast_paths
import pytest
import speed_page
import write_methods

import dskd
from dskd import methods
from dskd.cli.commands import cli
from dskd.config import recipe
from dskd.config.schema import Recipe
from dskd.engine.tasks.graphs.settings import GraphRecipe
from dskd.engine.tasks.segmentation.settings import SegmentationRecipe
from dskd.settings import signature_settings

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "src/dskd"
RESULTS = ROOT / "docs/results"
PAGES = sorted(
    path.relative_to(ROOT).as_posix()
    for path in [ROOT / "README.md", ROOT / "SECURITY.md", *(ROOT / "docs").rglob("*.md")]
)
GUIDES = [page for page in PAGES if not page.startswith(("docs/results/", "docs/methods/"))]
"""Pages that describe the code of today. Results quote the commit that computed them."""
SECTIONS = ("data", "student", "teacher", "train")


def read(page: str) -> str:
    return (ROOT / page).read_text()


def test_the_settings_page_is_what_the_code_says() -> None:
    names = runpy.run_path(str(ROOT / "docs/write_settings.py"))
    assert read("docs/settings.md") == names["page"](), "docs/settings.md: run make pages"


def test_the_methods_pages_are_what_the_code_says() -> None:
    folder = ROOT / "docs/methods"
    expected = write_methods.pages()
    assert {path.name for path in folder.glob("*.md")} == set(expected)
    for name, text in expected.items():
        assert (folder / name).read_text() == text, f"{name}: run make pages"


def test_the_readme_is_short_and_in_its_order() -> None:
    text = read("README.md")
    assert len(text.splitlines()) <= 150
    assert re.findall(r"^## (.+)$", text, flags=re.MULTILINE) == [
        "Install",
        "Example",
        "Command line",
        "Results",
        "Methods",
        "Documentation",
        "Contributing",
        "Citation",
        "Licence",
    ]


def test_the_lists_of_methods_in_other_pages_are_what_the_code_says() -> None:
    for page, text in write_methods.lists().items():
        assert read(page) == text, f"{page}: run make pages"


def test_a_source_is_an_arxiv_number_or_a_conference_with_its_year() -> None:
    assert write_methods.source("kd") == ("1503.02531", "")
    assert write_methods.source("mlkd") == ("", "Jin et al., CVPR 2023")
    assert write_methods.source("ce") is None


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub makes of a page's headings."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    for target in re.findall(r"\]\(([^)]+)\)", read(page)):
        if target.startswith("http"):
            continue
        file, _, anchor = target.partition("#")
        found = (ROOT / page).parent / file if file else ROOT / page
        assert found.exists(), target
        if anchor:
            assert anchor in anchors(found), target


@pytest.mark.parametrize("page", GUIDES)
def test_files_that_a_page_names_exist(page: str) -> None:
    named = set(re.findall(r"`([\w./]+\.(?:py|yaml|ipynb))`", read(page)))
    for name in named - {"recipe.yaml", "best.yaml", "src/dskd/methods/NAME.py"}:
        places = [ROOT, SOURCE, ROOT / "tests", ROOT / "tests/faults", (ROOT / page).parent]
        folders = [*places, ROOT / "evidence", *SOURCE.glob("*/")]
        assert any((folder / name).exists() for folder in folders), name


def known_settings() -> set[str]:
    fields = Recipe.model_fields
    known = {f"{name}.{key}" for name in SECTIONS for key in _keys(fields[name].annotation)}
    for model in (GraphRecipe, SegmentationRecipe):
        fields = model.model_fields
        known |= {f"{name}.{key}" for name in SECTIONS for key in _keys(fields[name].annotation)}
    named = [*methods.names(), *methods.names("graphs"), *methods.names("segment")]
    own = [signature_settings(methods.find(name).__init__) for name in named]
    known |= {f"method.{key}" for model in own for key in model.model_fields}
    return known | {"method.name", "method.preset"}


def _keys(section: object) -> set[str]:
    """The keys of a section, which may be absent from a recipe."""
    kinds = [section] if isinstance(section, type) else list(getattr(section, "__args__", ()))
    return {key for kind in kinds for key in getattr(kind, "model_fields", ())}


@pytest.mark.parametrize("page", PAGES)
def test_settings_that_a_page_names_exist(page: str) -> None:
    text = read(page).partition("## Renamed settings")[0]
    text = re.sub(r"^```python.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)
    prose = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    commands = re.findall(r"^(?:dskd|torchrun) .*$", text, flags=re.MULTILINE)
    for command in [*re.findall(r"`[^`]+`", prose), *commands]:
        named = re.findall(rf"(?<![\w./])(?:{'|'.join(SECTIONS)}|method)\.\w+", command)
        named = [name for name in named if not name.endswith((".py", ".pth", ".safetensors"))]
        assert set(named) <= known_settings(), command


@pytest.mark.parametrize("page", GUIDES)
def test_commands_of_a_page_exist_and_name_recipes_that_exist(page: str) -> None:
    for line in re.findall(r"^\$? ?dskd (\S.*)$", read(page), flags=re.MULTILINE):
        words = line.partition("#")[0].split()
        assert words[0] in cli.commands, line
        command = cli.commands[words[0]]
        if isinstance(command, click.Group):
            assert words[1] in command.commands, line
            command = command.commands[words[1]]
        options = {option for one in command.params for option in one.opts}
        assert {word for word in words if word.startswith("--")} <= options, line
    named = [b for a, b in pairwise(read(page).split()) if a in ("distill", "train", "compare")]
    assert {name for name in named if "/" in name and "." not in name} <= set(recipe.shipped())


def test_the_python_of_the_readme_uses_names_that_exist() -> None:
    blocks = re.findall(r"```python\n(.*?)```", read("README.md"), flags=re.DOTALL)
    result = {field.name for field in dataclasses.fields(dskd.Result)}
    for block in blocks:
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                assert node.value.id != "dskd" or hasattr(dskd, node.attr), node.attr
                assert node.value.id != "result" or node.attr in result, node.attr


def test_pages_of_benchmarks_are_drawn_from_their_numbers() -> None:
    names = sorted(RESULTS.glob("speed-*.json"))
    drawn = speed_page.page({path.name: speed_page.read(path) for path in names})
    assert (RESULTS / "speed.md").read_text() == drawn
    numbers = json.loads((RESULTS / "fast-paths.json").read_text())
    assert (RESULTS / "fast-paths.md").read_text() == fast_paths.page(numbers)


def test_every_page_of_results_is_listed() -> None:
    text = (RESULTS / "README.md").read_text()
    pages = {path.name for path in RESULTS.glob("*.md")} - {"README.md"}
    assert pages == set(re.findall(r"^\| \[[^]]+\]\((\S+\.md)\)", text, flags=re.MULTILINE))


def test_every_promise_of_security_names_tests_that_exist() -> None:
    text = read("SECURITY.md").partition("## What is not promised")[0]
    for line in text.splitlines():
        if line.startswith("| ") and not line.startswith("| promise"):
            named = re.findall(r"`([a-z_/*]+\.py)(?:::(\w+))?`", line.rsplit("|", 2)[1])
            assert named, f"it names no test: {line}"
            for path, test in named:
                found = list((ROOT / "tests").glob(path))
                assert found, path
                assert f"def {test}" in found[0].read_text(), test
