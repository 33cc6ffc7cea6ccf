"""Builds the documentation site from the pages of the repository; MkDocs calls these functions.

The pages can be read in the repository and on the site. The site adds the pages of the repository's
root, and adapts the links. A link to a source file becomes plain text, because the site has no
source files. A page that would load something from another host is an error.
"""

from __future__ import annotations

import logging
import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

DOCS = Path(__file__).parent
ROOT = DOCS.parent
ROOT_PAGES = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CODE_OF_CONDUCT.md": "code-of-conduct.md",
    "SECURITY.md": "security.md",
    "CHANGELOG.md": "changelog.md",
}
"""Pages of the repository's root, and their names on the site."""
_FENCE = re.compile(r"(^```.*?^```$)", re.MULTILINE | re.DOTALL)
_LINK = re.compile(
    r"(?P<image>!?)\[(?P<text>(?:\[[^]]*\]\([^)]*\)|[^][])*)\]\((?P<target>[^)\s]+)\)"
)
_ROW = re.compile(r"^\|.*$", re.MULTILINE)
_CELL = re.compile(r"<t[hd]\b.*?</t[hd]>", re.DOTALL)
_REMOTE = re.compile(
    r"<(?:script|link|img|iframe)\b[^>]*?\b(?:src|href)=[\"']?(?:https?:)?//[^>]*>"
)

log = logging.getLogger("mkdocs.hooks.site")


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Puts the pages of a folder in the place of each entry of the navigation that names it."""
    config.nav = [_expanded(entry) for entry in config.nav or []]
    return config


def _expanded(entry: Any) -> Any:
    if isinstance(entry, dict):
        return {title: _expanded(value) for title, value in entry.items()}
    if isinstance(entry, list):
        return [_expanded(value) for value in entry]
    return pages_of(entry) if entry.endswith("/") else entry


def pages_of(folder: str) -> list[str]:
    """The pages of a folder of ``docs``, its README first."""
    names = sorted(path.name for path in (DOCS / folder).glob("*.md"))
    return [folder + name for name in sorted(names, key=lambda name: name != "README.md")]


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the pages of the repository's root."""
    for source, name in ROOT_PAGES.items():
        text = (ROOT / source).read_text(encoding="utf-8")
        files.append(File.generated(config, name, content=text))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Leads every link to its place on the site."""
    sources = {name: source for source, name in ROOT_PAGES.items()}
    name = page.file.src_uri
    source = sources.get(name, f"docs/{name}")
    parts = _FENCE.split(markdown)
    return "".join(
        part if i % 2 else relinked(_ROW.sub(_unescaped, part), source, name)
        for i, part in enumerate(parts)
    )


def _unescaped(row: re.Match[str]) -> str:
    """A row of a table as MkDocs needs it: in code, a pipe has no backslash."""
    return re.sub(r"`[^`]*`", lambda code: code[0].replace(r"\|", "|"), row[0])


def relinked(text: str, source: str, page: str) -> str:
    """A page's text with the links that it has on the site.

    Args:
        text: Markdown without code blocks.
        source: File of the page in the repository.
        page: Name of the page on the site.

    Example:
        >>> relinked("[a](../SECURITY.md) [b](../src/dskd)", "docs/method.md", "method.md")
        '[a](security.md) b'
    """

    def link(found: re.Match[str]) -> str:
        label = relinked(found["text"], source, page)
        target, hash_, anchor = found["target"].partition("#")
        if not target or re.match(r"\w+:", target):
            return f"{found['image']}[{label}]({found['target']})"
        place = place_of(posixpath.normpath(posixpath.join(posixpath.dirname(source), target)))
        if place is None:
            return label
        relative = posixpath.relpath(place, posixpath.dirname(page) or ".")
        return f"{found['image']}[{label}]({relative}{hash_}{anchor})"

    return _LINK.sub(link, text)


def place_of(path: str) -> str | None:
    """Where a file or folder of the repository is on the site; None if it is not there.

    Example:
        >>> place_of("README.md"), place_of("docs/methods"), place_of("src/dskd")
        ('index.md', 'methods/README.md', None)
    """
    if path in ROOT_PAGES:
        return ROOT_PAGES[path]
    if path == "docs":
        return "index.md"
    if not path.startswith("docs/") or path.endswith(".py"):
        return None
    if (ROOT / path).is_dir():
        path += "/README.md"
    return path.removeprefix("docs/")


def on_page_content(html: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Lets a browser break a long label in a table, such as ``dskd:beta=1:alpha=0``."""
    return _CELL.sub(lambda cell: re.sub(r"(?<=\w):(?=\w)", ":<wbr>", cell[0]), html)


def on_post_page(output: str, page: Page, config: MkDocsConfig) -> str:
    """Warns of anything that a browser would load from another host; a strict build then fails."""
    for tag in _REMOTE.findall(output):
        log.warning("%s loads something from elsewhere: %s", page.file.src_uri, tag)
    return output
