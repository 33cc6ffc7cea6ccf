"""Writes docs/methods/ from the code and the measured costs: ``python docs/write_methods.py``."""

from __future__ import annotations

import inspect
import json
import re
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from write_settings import arguments, table

from dskd import losses, methods
from dskd.compare.variants import weights_of
from dskd.methods.base import Method
from dskd.settings import signature_settings

FOLDER = Path(__file__).with_name("methods")
COST = FOLDER / "cost.json"
_NOTE = (
    "`python docs/write_methods.py` writes this page from the code and from measurements; a test "
    "compares them."
)


def pages() -> dict[str, str]:
    """All pages by their file names."""
    costs = json.loads(COST.read_text())
    written = {f"{name}.md": page(name, costs) for name in methods.names()}
    return {"README.md": index(costs)} | written


def index(costs: dict[str, Any]) -> str:
    """The table of all methods."""
    rows = [
        "| method | objective | step time / kd | auxiliary parameters |",
        "|---|---|---:|---:|",
    ]
    for name in methods.names():
        cost = costs["methods"].get(name)
        measured = f"{cost['step_over_kd']:.2f} | {cost['extra_parameters']:,}" if cost else "- | -"
        rows.append(f"| [{name}]({name}.md) | {_summary(name)} | {measured} |")
    listed = "\n".join(rows)
    return f"""# The methods

Each method is one file in `src/dskd/methods/` and works on any pair of student and teacher. By
default, every method with a teacher uses the loss of the labels and classic distillation with
weight 1 (`ce = kd = 1`), and adds its own terms with their published weight.
`method.preset=literature` sets all weights as published. This command compares the methods:
`dskd compare RECIPE --methods all --seeds 5`.

{listed}

{_measured(costs)}

{_NOTE}
"""


def _measured(costs: dict[str, Any]) -> str:
    machine = costs["environment"]
    return (
        f"Measured with {costs['pair']}, batch size {costs['batch_size']} and "
        f"{costs['precision']}: the median of {costs['rounds']} interleaved steps, including the "
        f"teacher's forward pass, on {machine['processor']} ({machine['threads']} threads, torch "
        f"{machine['packages']['torch']}), by `{costs['command']}`."
    )


def page(name: str, costs: dict[str, Any]) -> str:
    """The page of a method."""
    kind = methods.find(name)
    settings: type[BaseModel] = signature_settings(kind.__init__)
    own = weights_of(name, {k: f.default for k, f in settings.model_fields.items()})
    parts = [
        f"# {name}",
        _prose(kind),
        "## Settings",
        table("method.", settings.model_fields, arguments(kind)),
        _presets(kind),
        f"Default weights of the losses: {_values(own)}.",
        "## The loss as a function",
        *_pure_function(name),
        "## Cost",
        _cost(name, costs),
        f"[All methods](README.md). {_NOTE}",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _cost(name: str, costs: dict[str, Any]) -> str:
    """The measured cost of a method, or how to measure it."""
    cost = costs["methods"].get(name)
    if cost is None:
        return f"Not measured yet: `{costs['command']}`."
    return (
        f"A step takes {cost['step_over_kd']:.2f} times as long as one of kd "
        f"({cost['student_over_kd']:.2f} times without the teacher's forward pass). The method "
        f"has {cost['extra_parameters']:,} auxiliary parameters, and a step needs "
        f"{cost['memory'] / 1e6:,.0f} MB in addition to the teacher's. {_measured(costs)}"
    )


def _doc(documented: object) -> str:
    return inspect.getdoc(documented) or ""


def _summary(name: str) -> str:
    return _markdown(methods.summary(name)).replace("|", "\\|")


def _markdown(text: str) -> str:
    """Prose of a docstring as Markdown, with code in single backticks."""
    text = re.sub(r"::\n", ":\n", text).replace("``", "`")
    return text.strip()


def _prose(documented: object) -> str:
    """A docstring without its sections for arguments, results, errors and examples."""
    return _markdown(re.split(r"\n(?:Args|Returns|Raises|Example):\n", _doc(documented))[0])


def _presets(kind: type[Method]) -> str:
    return "\n".join(
        f"- `method.preset={name}`: {_values(values)}" for name, values in kind.presets.items()
    )


def _values(values: dict[str, Any]) -> str:
    return ", ".join(
        f"`{key} = {value:g}`" if isinstance(value, float) else f"`{key} = {value}`"
        for key, value in values.items()
    )


def _pure_function(name: str) -> list[str]:
    """Signature and formula of the loss function."""
    function = getattr(losses, name)
    parameters = inspect.signature(function).parameters.values()
    own = [p.name if p.default is p.empty else f"{p.name}={p.default!r}" for p in parameters]
    call = f"dskd.losses.{name}({', '.join(own)})"
    if len(call) > 100:
        call = f"dskd.losses.{name}(\n" + "".join(f"    {one},\n" for one in own) + ")"
    return [f"```python\n{call}\n```", _prose(function)]


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for file, text in pages().items():
        (FOLDER / file).write_text(text)
