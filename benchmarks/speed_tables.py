"""The tables of the benchmark in Markdown, for the terminal and for the page."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from results import RATIOS, Result

Lines = list[str]
CIFAR100 = 50_000
"""Number of training images of CIFAR-100."""


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> Lines:
    """Draws a table with aligned columns. All columns but the first hold numbers.

    Args:
        head: The headings.
        rows: The rows of cells.

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
    """The ratios and their bounds.

    Args:
        result: The results of the benchmark.
    """
    head = ("ratio", "value", "quartiles over rounds", "n", "bound", "holds")
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
    """The definition of each ratio."""
    return [
        f"- `{name}`: the seconds of `{' '.join(ratio.over)}` divided by those of "
        f"`{' '.join(ratio.under)}`, which is {ratio.meaning}."
        for name, ratio in RATIOS.items()
    ]


def step_table(result: Result, pair: str) -> Lines:
    """The steps of a pair, with their floors.

    Args:
        result: The results of the benchmark.
        pair: Teacher and student.
    """
    rows = [row for row in result["rows"] if row["pair"] == pair]
    reference = {row["row"]: row["seconds"] for row in rows}
    head = (
        *("step", "precision", "ms", "quartiles", "teacher, ms", "speed-up"),
        *("multiply-adds, 10^9", "floor, ms", "ms / floor", "first step, ms", "n"),
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


def cache_table(result: Result) -> Lines:
    """The cost of filling the caches, and the steps before and after.

    Args:
        result: The results of the benchmark.
    """
    seconds = {(row["pair"], row["row"]): row["seconds"] for row in result["rows"]}
    head = (
        *("step", "cache", "views", "images", "time to fill, s", "ms per image"),
        *("cold step, ms", "hits, cold", "warm step, ms", "hits, warm", "bytes per view"),
        *("CIFAR-100, all views, GB", "hours to fill"),
    )
    rows = []
    for fill in result["cached"]:
        size = fill["bytes_a_view"] * fill["views"] * CIFAR100
        seconds_a_view = fill["fill_seconds"] / fill["images"]
        rows.append(
            (
                f"{fill['pair']} {fill['row']}",
                fill["cache"],
                str(fill["views"]),
                f"{fill['images']:,}",
                f"{fill['fill_seconds']:.1f}",
                f"{1000 * seconds_a_view:.2f}",
                _ms(fill["cold_step_seconds"]),
                f"{100 * fill['cold_hits']:.0f} %",
                _ms(seconds[fill["pair"], fill["row"]]),
                f"{100 * fill['warm_hits']:.0f} %",
                f"{fill['bytes_a_view']:,}",
                f"{size / 1e9:.1f}",
                f"{seconds_a_view * fill['views'] * CIFAR100 / 3600:.1f}",
            )
        )
    return table(head, rows)


def compiled_table(result: Result) -> Lines:
    """Compiled steps compared with eager steps; no lines if none was measured.

    Args:
        result: The results of the benchmark.
    """
    rows = {(row["pair"], row["row"], row["precision"]): row for row in result["rows"]}
    head = (
        *("step", "compiled, ms", "eager, ms", "speed-up", "time to compile, s"),
        *("break-even, steps", "break-even, epochs of CIFAR-100"),
    )
    drawn = []
    for (pair, name, precision), row in rows.items():
        method, compiled, _ = name.partition("-compiled")
        if compiled:
            plain = rows[pair, method, precision]
            saved = plain["seconds"] - row["seconds"]
            spent = row["first_seconds"] - plain["first_seconds"]
            steps = spent / saved if saved > 0 else None
            epochs = steps and steps * result["batch_size"] / CIFAR100
            drawn.append(
                (
                    f"{pair} {method}",
                    _ms(row["seconds"]),
                    _ms(plain["seconds"]),
                    f"{plain['seconds'] / row['seconds']:.2f}",
                    f"{spent:.1f}",
                    f"{steps:,.0f}" if steps is not None else "never",
                    f"{epochs:.1f}" if epochs is not None else "",
                )
            )
    return table(head, drawn) if drawn else []


def scaling_tables(scaling: Result) -> list[tuple[str, Lines]]:
    """How time and memory grow, as titles and tables.

    Args:
        scaling: The results of ``scaling.py``.
    """
    return [
        (
            "Number of images: the cost of an epoch without its steps, and memory",
            _images(scaling),
        ),
        ("A full cache of features, with one view of each image", _cache(scaling)),
        ("Size of the images", _sizes(scaling)),
        ("Supervised stages of DSKD", _stages(scaling)),
        ("Students that share a teacher", _students(scaling)),
    ]


def _images(scaling: Result) -> Lines:
    head = (
        *("images", "plan, s", "crops and flips, s", "together, s per epoch", "µs per image"),
        *("read from the cache, s", "predicted, MB", "used, MB", "used / predicted"),
    )
    rows = []
    for row in scaling["images"]:
        together = row["plan_seconds"] + row["batches_seconds"]
        rows.append(
            (
                f"{row['images']:,}",
                f"{row['plan_seconds']:.3f}",
                f"{row['batches_seconds']:.2f}",
                f"{together:.2f}",
                f"{1e6 * together / row['images']:.1f}",
                f"{row['load_seconds']:.2f}",
                f"{row['predicted_bytes'] / 1e6:.1f}",
                f"{row['held_bytes'] / 1e6:.1f}",
                f"{row['held_bytes'] / row['predicted_bytes']:.2f}",
            )
        )
    return table(head, rows)


def _cache(scaling: Result) -> Lines:
    return table(
        ("images", "filled", "predicted, MB", "on disk, MB", "on disk / predicted"),
        (
            (
                f"{row['images']:,}",
                f"{100 * row['filled']:.0f} %",
                f"{row['predicted_bytes'] / 1e6:.1f}",
                f"{row['held_bytes'] / 1e6:.1f}",
                f"{row['held_bytes'] / row['predicted_bytes']:.2f}",
            )
            for row in scaling["cached"]
        ),
    )


def _sizes(scaling: Result) -> Lines:
    head = (
        "size",
        "kd, ms",
        "dskd, ms",
        "dskd / kd",
        "memory of kd, MB",
        "memory of dskd, MB",
        "n",
    )
    return table(
        head,
        (
            (
                f"{row['size']}x{row['size']}",
                _ms(row["seconds"]["kd"]),
                _ms(row["seconds"]["dskd"]),
                f"{row['seconds']['dskd'] / row['seconds']['kd']:.2f}",
                f"{row['memory']['kd'] / 1e6:.0f}",
                f"{row['memory']['dskd'] / 1e6:.0f}",
                str(row["n"]),
            )
            for row in scaling["size"]
        ),
    )


def _stages(scaling: Result) -> Lines:
    first = scaling["stages"][0]
    return table(
        ("supervised stages", "ms", "ms / kd", "memory, MB", "memory / kd"),
        (
            (
                f"{row['stages'] - 1} and the last" if row["stages"] > 1 else "the last (kd)",
                _ms(row["seconds"]),
                f"{row['seconds'] / first['seconds']:.2f}",
                f"{row['memory'] / 1e6:.0f}",
                f"{row['memory'] / first['memory']:.2f}",
            )
            for row in scaling["stages"]
        ),
    )


def _students(scaling: Result) -> Lines:
    return table(
        ("students", "ms per student and step", "saved", "relative to the student alone", "n"),
        (
            (
                str(row["students"]),
                _ms(row["seconds"]),
                f"{100 * row['saving']:.0f} %",
                f"{row['seconds'] / row['plain_seconds']:.2f}",
                str(row["n"]),
            )
            for row in scaling["students"]
        ),
    )


def machine_table(result: Result) -> Lines:
    """The best rates of the machine.

    Args:
        result: The results of the benchmark.
    """
    machine = result["machine"]
    rows = [
        (f"multiply-adds of a {what}, {name}", f"{rate / 1e9:,.0f} * 10^9 / s")
        for what, key in (("matrix product", "product"), ("3x3 convolution", "convolution"))
        for name, rate in machine[key].items()
    ]
    copied = f"{machine['copied_bytes'] / 1e9:.1f} GB/s"
    rows.append(("bytes of a large copy, read and written", copied))
    return table(("operation", "best rate"), rows)


def hardware_line(environment: Result) -> str:
    """The machine of a measurement, in one line.

    Args:
        environment: The environment in the results.
    """
    packages = ", ".join(f"{name} {version}" for name, version in environment["packages"].items())
    memory = environment["memory_bytes"] / 2**30
    return (
        f"{environment['processor']}, {environment['cores']} cores, {environment['threads']} "
        f"threads, {memory:.0f} GiB; {environment['platform']}; Python {environment['python']}, "
        f"{packages}"
    )


def _ms(seconds: float) -> str:
    return f"{1000 * seconds:,.1f}" if seconds < 0.1 else f"{1000 * seconds:,.0f}"
