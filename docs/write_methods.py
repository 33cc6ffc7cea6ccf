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
    "This page is written by `python docs/write_methods.py` from the code and from measurements; "
    "a test holds them together."
)


def pages() -> dict[str, str]:
    """Every page by its file name."""
    costs = json.loads(COST.read_text())
    written = {f"{name}.md": page(name, costs) for name in methods.names()}
    return {"README.md": index(costs)} | written


def index(costs: dict[str, Any]) -> str:
    """The table of all methods."""
    rows = [
        "| method | objective | step, times kd's | trained beside the student |",
        "|---|---|---:|---:|",
    ]
    for name in methods.names():
        cost = costs["methods"][name]
        rows.append(
            f"| [{name}]({name}.md) | {_summary(methods.find(name))} | "
            f"{cost['step_over_kd']:.2f} | {cost['extra_parameters']:,} |"
        )
    listed = "\n".join(rows)
    return f"""# The methods

Each is one file in `src/dskd/methods/`, and works on any pair of student and teacher. With the
default settings all that have a teacher keep the labels' loss and classic distillation at weight 1
(`ce = kd = 1`) and add their own terms with the weight that they were published with;
`method.preset=literature` takes the published weights whole. To compare them:
`dskd compare RECIPE --methods all --seeds 5`.

{listed}

{_measured(costs)}

{_NOTE}
"""


def _measured(costs: dict[str, Any]) -> str:
    machine = costs["environment"]
    return (
        f"Costs: {costs['pair']}, batch {costs['batch_size']}, {costs['precision']}, median of "
        f"{costs['rounds']} interleaved steps with the teacher's forward included, on "
        f"{machine['processor']} ({machine['threads']} threads, torch "
        f"{machine['packages']['torch']}): `{costs['command']}`."
    )


def page(name: str, costs: dict[str, Any]) -> str:
    """The page of a method."""
    kind = methods.find(name)
    settings: type[BaseModel] = signature_settings(kind.__init__)
    cost = costs["methods"][name]
    own = weights_of(name, {k: f.default for k, f in settings.model_fields.items()})
    parts = [
        f"# {name}",
        _prose(kind),
        "## Settings",
        table("method.", settings.model_fields, arguments(kind)),
        _presets(kind),
        f"Weights of the losses by default: {_values(own)}.",
        *_pure_function(name),
        "## Cost",
        f"A step takes {cost['step_over_kd']:.2f} times kd's ({cost['student_over_kd']:.2f} times "
        f"where the teacher's forward is not counted), trains {cost['extra_parameters']:,} "
        f"parameters beside the student, and holds {cost['memory'] / 1e6:,.0f} MB without the "
        f"teacher's own. {_measured(costs)}",
        f"[All methods](README.md). {_NOTE}",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _doc(documented: object) -> str:
    return inspect.getdoc(documented) or ""


def _summary(kind: type[Method]) -> str:
    return _doc(kind).splitlines()[0].replace("``", "`").replace("|", "\\|")


def _markdown(text: str) -> str:
    """Prose of a docstring: code in single ticks, indented formulas behind ``::`` as code."""
    text = re.sub(r"::\n", ":\n", text).replace("``", "`")
    return text.strip()


def _prose(documented: object) -> str:
    """A docstring without its sections of arguments, errors and examples."""
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
    """Signature and formula of the loss function, where the method has one of its name."""
    function = getattr(losses, name, None)
    if function is None:
        return []
    parameters = inspect.signature(function).parameters.values()
    own = [p.name if p.default is p.empty else f"{p.name}={p.default!r}" for p in parameters]
    call = f"dskd.losses.{name}({', '.join(own)})"
    if len(call) > 100:
        call = f"dskd.losses.{name}(\n" + "".join(f"    {one},\n" for one in own) + ")"
    return [
        "## The loss as a function",
        f"```python\n{call}\n```",
        _prose(function),
    ]


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for file, text in pages().items():
        (FOLDER / file).write_text(text)
