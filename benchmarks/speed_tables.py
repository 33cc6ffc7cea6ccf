"""The tables of a benchmark, in Markdown: the same on the screen and on the page."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from results import RATIOS, Result

Lines = list[str]


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> Lines:
    """A table whose columns but the first are numbers; as wide as its cells, to be read as it is.

    Example:
        >>> table(("a", "n"), [("x", "10")])
        ['| a |  n |', '|---|---:|', '| x | 10 |']
    """
    lines = [tuple(head), *(tuple(row) for row in rows)]
    widths = [max(len(row[column]) for row in lines) for column in range(len(head))]
    drawn = [
        f"| {' | '.join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])])} |"
        for row in lines
    ]
    rule = ["-" * (widths[0] + 2), *(f"{'-' * (width + 1)}:" for width in widths[1:])]
    return [drawn[0], f"|{'|'.join(rule)}|", *drawn[1:]]


def ratio_table(result: Result) -> Lines:
    """The ratios beside what was wanted of them."""
    head = ("ratio", "value", "quarters of the rounds", "n", "wanted", "holds")
    details = result["ratio_details"]
    return table(
        head,
        (
            (
                f"`{name}`",
                f"{row['value']:.2f}",
                f"{row['low']:.2f} to {row['high']:.2f}",
                str(row["n"]),
                row["wanted"],
                "yes" if row["holds"] else "**no**",
            )
            for name, row in details.items()
        ),
    )


def ratio_meanings() -> Lines:
    """How each ratio is computed."""
    return [
        f"- `{name}`: `{' '.join(ratio.over)}` seconds over `{' '.join(ratio.under)}` seconds: "
        f"{ratio.meaning}."
        for name, ratio in RATIOS.items()
    ]


def step_table(result: Result, pair: str) -> Lines:
    """The steps of a pair, with their floors."""
    rows = [row for row in result["rows"] if row["pair"] == pair]
    reference = {row["row"]: row["seconds"] for row in rows}
    head = (
        *("step", "precision", "ms", "quarters", "teacher, ms", "speed-up"),
        *("multiply-adds, 10^9", "floor, ms", "times floor", "first step, ms", "n"),
    )
    return table(head, (_step(row, reference) for row in rows))


def _step(row: Result, seconds: dict[str, float]) -> tuple[str, ...]:
    against = seconds["reference-ce" if row["row"] in ("ce", "reference-ce") else "reference-kd"]
    return (
        row["row"],
        row["precision"],
        _ms(row["seconds"]),
        f"{_ms(row['low'])} to {_ms(row['high'])}",
        _ms(row["teacher_seconds"]) if row["teacher_seconds"] else "",
        f"{against / row['seconds']:.2f}",
        f"{row['multiply_adds'] / 1e9:.1f}",
        _ms(row["floor_seconds"]),
        f"{row['seconds'] / row['floor_seconds']:.2f}",
        _ms(row["first_seconds"]),
        str(row["n"]),
    )


def machine_table(result: Result) -> Lines:
    """What the machine can do at best."""
    machine = result["machine"]
    rows = [
        (f"multiply-adds of a {what}, {name}", f"{rate / 1e9:,.0f} * 10^9 / s")
        for what, key in (("matrix product", "product"), ("3x3 convolution", "convolution"))
        for name, rate in machine[key].items()
    ]
    copied = f"{machine['copied_bytes'] / 1e9:.1f} GB/s"
    rows.append(("bytes of a large copy, read and written", copied))
    return table(("of the machine", "at best"), rows)


def hardware_line(environment: Result) -> str:
    """Where it was measured, in a line."""
    packages = ", ".join(f"{name} {version}" for name, version in environment["packages"].items())
    memory = environment["memory_bytes"] / 2**30
    return (
        f"{environment['processor']}, {environment['cores']} cores, {environment['threads']} "
        f"threads, {memory:.0f} GiB; {environment['platform']}; Python {environment['python']}, "
        f"{packages}"
    )


def _ms(seconds: float) -> str:
    return f"{1000 * seconds:,.1f}" if seconds < 0.1 else f"{1000 * seconds:,.0f}"
