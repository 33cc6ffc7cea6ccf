"""Tables on stdout."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.console import Console
from rich.table import Table

from dskd.errors import printable


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Prints a table: with lines in a terminal, as plain text in a file or pipe.

    No cell is cut. The first column is aligned left. Another column is aligned right if all its
    cells hold numbers.

    Args:
        columns: The header.
        rows: The cells, one sequence per row.
    """
    # Markup is off: a class name or path may hold brackets and colons.
    console = Console(markup=False, emoji=False, highlight=False)
    rows = [[printable(cell) for cell in row] for row in rows]
    right = [i > 0 and all(_is_number(row[i]) for row in rows) for i in range(len(columns))]
    if console.is_terminal:
        drawn = Table(box=box.SIMPLE_HEAD)
        for name, is_right in zip(columns, right, strict=True):
            drawn.add_column(name, justify="right" if is_right else "left", overflow="fold")
        for row in rows:
            drawn.add_row(*row)
        console.print(drawn)
        return
    lines = [list(columns), *map(list, rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(columns))]
    for line in lines:
        cells = [
            cell.rjust(width) if is_right else cell.ljust(width)
            for cell, width, is_right in zip(line, widths, right, strict=True)
        ]
        print("  ".join(cells).rstrip())


def _is_number(cell: str) -> bool:
    return cell in ("", "-") or cell[:1].isdigit()
