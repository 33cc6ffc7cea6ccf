"""Write a recipe file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from dskd.config.recipe import Composed, resolve
from dskd.errors import InputError, option
from dskd.storage.atomic import replace_file

_HEADER = """\
# A recipe of dskd: all settings that are not listed have their defaults. Paths are relative to the
# folder in which dskd runs. docs/settings.md explains the settings.
"""


def write_recipe(composed: Composed, path: Path | None) -> Path:
    """Writes a recipe file for ``dskd distill FILE``.

    Args:
        composed: The recipe.
        path: The file; None for ``<student>-<teacher>-<data>.yaml`` in the current folder, whose
            runs are in the same folders as those of the same options without a recipe.

    Returns:
        The file.

    Raises:
        InputError: A setting does not fit, or the file exists.
    """
    resolve(composed.values, composed.folder)
    path = path or Path(f"{composed.folder.name}.yaml")
    if path.suffix not in (".yaml", ".yml"):
        raise InputError(f"{path} needs the suffix .yaml; change it")
    if path.exists():
        raise InputError(f"{path} exists; remove it, or give {option('out', 'FILE')}")
    order = ("data", "student", "teacher", "method", "train")
    values: dict[str, Any] = {key: composed.values[key] for key in order if key in composed.values}
    values |= {key: value for key, value in composed.values.items() if key not in order}
    values.setdefault("seed", 0)
    text = yaml.safe_dump(_plain(values), sort_keys=False, allow_unicode=True)
    replace_file(path, (_HEADER + text).encode())
    return path


def _plain(value: Any) -> Any:
    """The value in YAML's own types."""
    if isinstance(value, dict):
        return {key: _plain(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    return str(value) if isinstance(value, str | Path) else value
