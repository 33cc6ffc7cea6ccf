"""Reads docstrings for the site as the code writes them: an extension of griffe."""

from __future__ import annotations

from typing import Any

import griffe


class Docstrings(griffe.Extension):
    """Takes ``Example:`` for the section that griffe calls ``Examples:``."""

    def on_instance(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Rewrites the docstring of an object that griffe has read."""
        if obj.docstring:
            text = obj.docstring.value.replace("\nExample:\n", "\nExamples:\n")
            obj.docstring.value = text.replace("::\n", ":\n")
