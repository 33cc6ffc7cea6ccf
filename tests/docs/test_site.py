"""The documentation site: navigation, links and generated pages; the files of a public project."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import write_commands
import yaml

import dskd
from dskd import methods
from tests.docs.test_docs import anchors, known_settings

site_hooks = pytest.importorskip("site_hooks", reason="needs MkDocs: pip install '.[docs]'")

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
ROOT_PAGES: dict[str, str] = site_hooks.ROOT_PAGES
CONFIG: dict[str, Any] = yaml.safe_load((ROOT / "mkdocs.yml").read_text())
MAKEFILE = (ROOT / "Makefile").read_text()


def navigation(entry: Any) -> list[str]:
    """All pages of an entry of the navigation."""
    if isinstance(entry, dict):
        return [page for value in entry.values() for page in navigation(value)]
    if isinstance(entry, list):
        return [page for value in entry for page in navigation(value)]
    pages: list[str] = site_hooks.pages_of(entry) if entry.endswith("/") else [entry]
    return pages


def test_every_page_is_in_the_navigation_once() -> None:
    pages = [path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md")]
    assert sorted(navigation(CONFIG["nav"])) == sorted([*pages, *ROOT_PAGES.values()])


def test_every_page_of_the_root_is_on_the_site() -> None:
    assert {path.name for path in ROOT.glob("*.md")} == set(ROOT_PAGES)


@pytest.mark.parametrize("page", ROOT_PAGES)
def test_links_of_a_root_page_lead_somewhere(page: str) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", (ROOT / page).read_text()):
        if re.match(r"\w+:", target):
            continue
        file, _, anchor = target.partition("#")
        found = ROOT / (file or page)
        assert found.exists(), target
        assert not anchor or anchor in anchors(found), target


@pytest.mark.parametrize(
    ("text", "source", "page", "expected"),
    [
        ("[a](docs/faq.md#x)", "README.md", "index.md", "[a](faq.md#x)"),
        ("[a](../README.md)", "docs/faq.md", "faq.md", "[a](index.md)"),
        ("[a](../../SECURITY.md)", "docs/a/b.md", "a/b.md", "[a](../security.md)"),
        ("[a](methods/)", "docs/faq.md", "faq.md", "[a](methods/README.md)"),
        ("[`a`](../src/dskd)", "docs/faq.md", "faq.md", "`a`"),
        ("[a](https://example.org)", "docs/faq.md", "faq.md", "[a](https://example.org)"),
        (
            "[![a](docs/report/light.png)](docs/report/)",
            "README.md",
            "index.md",
            "[![a](report/light.png)](report/README.md)",
        ),
    ],
)
def test_a_link_has_its_place_on_the_site(text: str, source: str, page: str, expected: str) -> None:
    assert site_hooks.relinked(text, source, page) == expected


def test_tables_show_pipes_in_code_and_break_labels() -> None:
    page = type("Page", (), {"file": type("File", (), {"src_uri": "faq.md"})})
    shown = site_hooks.on_page_markdown("| `\\|e\\|` | a \\| b |\n`\\|`", page, None, None)
    assert shown == "| `|e|` | a \\| b |\n`\\|`"
    cell = site_hooks.on_page_content("<td><code>kd:kd=2</code></td> a:b", page, None, None)
    assert cell == "<td><code>kd:<wbr>kd=2</code></td> a:b"


def test_a_page_that_loads_from_elsewhere_is_noticed(caplog: pytest.LogCaptureFixture) -> None:
    page = type("Page", (), {"file": type("File", (), {"src_uri": "a.md"})})
    site_hooks.on_post_page('<script src="https://example.org/a.js">', page, None)
    site_hooks.on_post_page('<a href="https://example.org">', page, None)
    assert len(caplog.records) == 1


def test_the_commands_page_is_what_the_code_says() -> None:
    assert (DOCS / "commands.md").read_text() == write_commands.page(), (
        "docs/commands.md: run make pages"
    )


def test_no_setting_and_no_method_is_without_a_page() -> None:
    settings = (DOCS / "settings.md").read_text()
    known = known_settings()
    of_student = [key.removeprefix("student.") for key in known if key.startswith("student.")]
    for key in known - {f"teacher.{key}" for key in of_student}:  # described for the student
        assert f"`{key}`" in settings, key
    assert all((DOCS / "methods" / f"{name}.md").exists() for name in methods.names())


def test_no_public_name_is_without_documentation() -> None:
    documented = set(re.findall(r"^::: dskd\.(\w+)$", (DOCS / "python-api.md").read_text(), re.M))
    assert documented >= set(dskd.__all__) - {"__version__"}


def test_the_citation_has_what_the_format_requires_and_the_version_of_the_package() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation.keys() >= {"cff-version", "message", "title", "authors"}
    assert citation["cff-version"] == "1.2.0"
    assert citation["version"] == dskd.__version__


@pytest.mark.parametrize("path", [".github", ".pre-commit-config.yaml"])
def test_configurations_are_valid_yaml(path: str) -> None:
    files = [ROOT / path] if (ROOT / path).is_file() else list((ROOT / path).rglob("*.yml"))
    assert files
    for file in files:
        assert isinstance(yaml.safe_load(file.read_text()), dict), file


@pytest.mark.parametrize("page", ["CONTRIBUTING.md", ".github/workflows/ci.yml"])
def test_targets_of_make_that_a_page_names_exist(page: str) -> None:
    named = re.findall(r"^(?:- run: |\s+- run: )?make ([\w-]+)", (ROOT / page).read_text(), re.M)
    assert named
    for target in named:
        assert re.search(rf"^{target}:", MAKEFILE, re.M), target
