"""Describe the methods of installed packages. Their source is read, and nothing is imported."""

from __future__ import annotations

import ast
import importlib.util
import sys
import tokenize
from collections.abc import Iterator, Sequence
from importlib.machinery import ModuleSpec
from importlib.metadata import EntryPoint

from dskd.errors import InputError, first_line, printable

_FOLLOWED = 4
"""Imports that are followed from the named module to the class."""


def descriptions(points: Sequence[EntryPoint], known: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Name and description of each method, sorted by name.

    The description is the first line of the class's docstring and the name of its package. If the
    method cannot be used, it says why.

    Args:
        points: The entry points that name the methods.
        known: The names of the methods of this package, which come first where two are the same.
    """
    taken = dict.fromkeys(known, "dskd")
    for point in sorted(points, key=lambda one: one.name):
        package = point.dist.name if point.dist is not None else point.value
        if point.name in taken:
            text = f"cannot be used: {taken[point.name]} has a method of this name"
        else:
            taken[point.name] = package
            try:
                text = _summary(point.value)
            except InputError as error:
                text = f"cannot be used: {error}"
        yield printable(point.name), printable(f"{text} (package {package})".lstrip())


def _summary(value: str) -> str:
    """The first line of the docstring of ``package.module:Class``; empty if it is not found.

    Raises:
        InputError: The class is not there.
    """
    module, _, name = (part.strip() for part in value.partition(":"))
    if not name:
        raise InputError(f"{value!r} is not of the form package.module:Class")
    for _ in range(_FOLLOWED):
        spec = _spec(module)
        if spec is None:
            raise InputError(f"there is no module {module}")
        if spec.origin is None or not spec.origin.endswith(".py"):
            return ""
        found = _bound(spec.origin, name)
        if isinstance(found, ast.ClassDef):
            return (ast.get_docstring(found) or "").partition("\n")[0].replace("``", "")
        if not isinstance(found, ast.ImportFrom):
            return ""
        source = "." * found.level + (found.module or "")
        package = module if spec.submodule_search_locations is not None else spec.parent
        module = importlib.util.resolve_name(source, package)
        name = next(one.name for one in found.names if name in (one.asname, one.name))
    return ""


def _spec(module: str) -> ModuleSpec | None:
    """Where a module is; `importlib.util.find_spec` would import the packages above it."""
    path, name, spec = None, "", None
    for part in module.split("."):
        name = f"{name}.{part}".lstrip(".")
        finders = (getattr(finder, "find_spec", None) for finder in sys.meta_path)
        found = (find(name, path) for find in finders if find is not None)
        spec = next((one for one in found if one is not None), None)
        if spec is None:
            return None
        path = spec.submodule_search_locations
    return spec


def _bound(path: str, name: str) -> ast.stmt | None:
    """The statement of a module that defines a name; None if it is computed.

    Raises:
        InputError: The file cannot be read, or nothing in it can define the name.
    """
    try:
        with tokenize.open(path) as file:
            body = ast.parse(file.read()).body
    except (OSError, SyntaxError, ValueError) as error:
        raise InputError(f"{path}: {first_line(error)}") from error
    for node in reversed(body):
        if isinstance(node, ast.ClassDef) and node.name == name:
            return node
        if isinstance(node, ast.ImportFrom) and any(
            name == (one.asname or one.name) for one in node.names
        ):
            return node
    if all(isinstance(node, _DEFINES_NO_OTHER) and not _imports_all(node) for node in body):
        raise InputError(f"{path} has no class {name}")
    return None


_DEFINES_NO_OTHER = ast.ClassDef | ast.ImportFrom | ast.Import | ast.Expr


def _imports_all(node: ast.stmt) -> bool:
    return isinstance(node, ast.ImportFrom) and any(one.name == "*" for one in node.names)
