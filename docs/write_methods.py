"""Writes docs/methods/ and every list of methods in other pages: ``python docs/write_methods.py``.

Everything comes from the code, except for the costs, which were measured.
"""

from __future__ import annotations

import inspect
import json
import re
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel
from write_settings import arguments, table

from dskd import losses, methods, testing
from dskd.methods.base import LearnsFrom, Method
from dskd.methods.contracts import TeacherNeeds
from dskd.settings import signature_settings

FOLDER = Path(__file__).with_name("methods")
COST = FOLDER / "cost.json"
ROOT = Path(__file__).parents[1]
UNPUBLISHED = "unpublished"
"""The source of a method that has no publication."""
_NOTE = (
    "`python docs/write_methods.py` writes this page from the code and from measurements; a test "
    "compares them."
)
_KINDS = {
    "labels": "labels, without a teacher (byot: also its own last stage)",
    "logits": "the teacher's logits",
    "feature maps": "the teacher's feature maps",
    "relations": "relations between images",
    "classifier": "the teacher's classifier",
    "shallow stages": "the teacher's outputs, by branches on the student's stages",
}
"""The rows of the table in README.md, by `dskd.methods.base.Method.learns_from`."""


def pages() -> dict[str, str]:
    """All pages by their file names."""
    costs = json.loads(COST.read_text())
    written = {f"{name}.md": page(name, costs) for name in methods.names()}
    return {"README.md": index(costs)} | written


def index(costs: dict[str, Any]) -> str:
    """The table of all methods."""
    rows = [
        "| method | objective | step time / kd | extra parameters |",
        "|---|---|---:|---:|",
    ]
    for name in methods.names():
        cost = costs["methods"].get(name)
        measured = f"{cost['step_over_kd']:.2f} | {cost['extra_parameters']:,}" if cost else "- | -"
        rows.append(f"| [{name}]({name}.md) | {_summary(name)} | {measured} |")
    listed = "\n".join(rows)
    return f"""# The methods

Each method is one file in `src/dskd/methods/`. It works with every pair of student and teacher that
has the outputs that its loss reads (logits, feature maps or a classifier); for other pairs it ends
with an error of one line. By default, a method that compares feature maps has the loss of the
labels and classic distillation with weight 1 (`ce = kd = 1`), and adds its own terms with their
published weight. A method that compares logits puts its own loss in the place of classic
distillation. Many methods have the preset `literature`, which sets all weights as published. This
command compares the methods: `dskd compare RECIPE --methods all --seeds 5`.

{listed}

## How the costs were measured

{_measured(costs)}

Extra parameters are trained with the student and then discarded. `simkd` has none: its projector
and the teacher's classifier become part of the student, which is therefore larger.

{_NOTE}
"""


def _measured(costs: dict[str, Any]) -> str:
    machine = costs["environment"]
    return (
        f"Measured with {costs['pair']}, batch size {costs['batch_size']} and "
        f"{costs['precision']}, on {machine['processor']} ({machine['threads']} threads, torch "
        f"{machine['packages']['torch']}), by `{costs['command']}`: the median of "
        f"{costs['rounds']} rounds. In each round every method takes one step, with the teacher's "
        "forward pass. The ratios are rough: a ratio below 1 for a method that computes all of KD "
        "and more, such as pkt, shows how large the error can be."
    )


def page(name: str, costs: dict[str, Any]) -> str:
    """The page of a method."""
    kind = methods.find(name)
    settings: type[BaseModel] = signature_settings(kind.__init__)
    parts = [
        f"# {name}",
        _prose(kind),
        "## Settings",
        table("method.", settings.model_fields, arguments(kind)),
        _presets(kind, {k: f.default for k, f in settings.model_fields.items()}),
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
        f"{_time(name, cost)} The method has {cost['extra_parameters']:,} extra parameters. A step "
        f"needs {cost['memory'] / 1e6:,.0f} MB of memory, without that of the teacher. The pair is "
        f"{costs['pair']}; [how this was measured](README.md#how-the-costs-were-measured)."
    )


def _time(name: str, cost: dict[str, Any]) -> str:
    """The time of a step, relative to a step of kd."""
    if name == "kd":
        return "The times of all methods are relative to a step of kd."
    return (
        f"A step takes {cost['step_over_kd']:.2f} times as long as a step of kd, or "
        f"{cost['student_over_kd']:.2f} times without the teacher's forward pass."
    )


def _doc(documented: object) -> str:
    return inspect.getdoc(documented) or ""


def _summary(name: str) -> str:
    return _markdown(methods.summary(name)).replace("|", "\\|")


def _markdown(text: str) -> str:
    """Prose of a docstring as Markdown, with code in single backticks."""
    text = re.sub(r"::\n", ":\n", text).replace("``", "`")
    text = re.sub(r"docs/([\w/-]+\.md)", r"[docs/\1](../\1)", text)
    return text.strip()


def _prose(documented: object) -> str:
    """A docstring without its sections for arguments, results, errors and examples."""
    return _markdown(re.split(r"\n(?:Args|Returns|Raises|Example):\n", _doc(documented))[0])


def _presets(kind: type[Method], defaults: dict[str, Any]) -> str:
    """The presets, with the settings in which they differ from the defaults."""
    lines = []
    for name, values in kind.presets.items():
        other = {key: value for key, value in values.items() if defaults[key] != value}
        lines.append(f"- `method.preset={name}`: {_values(other) or 'the defaults'}")
    return "\n".join(["A preset changes these settings:\n", *lines]) if lines else ""


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


def source(name: str) -> tuple[str, str] | None:
    """Where a method was published: its arXiv number or none, and as in "Yang et al., ICLR 2021".

    It is read off the first paragraph of the docstring that begins with ``Source:``. None if there
    is no such paragraph, or if it has neither an arXiv number nor a conference and a year. A method
    without a publication says ``Source: unpublished``.
    """
    text = " ".join(_doc(methods.find(name)).partition("Source:")[2].partition("\n\n")[0].split())
    if text.startswith(UNPUBLISHED):
        return "", UNPUBLISHED
    arxiv = re.search(r"arXiv (\d{4}\.\d{4,5})", text)
    venue = re.search(r"[A-Z]\w* (?:19|20)\d\d\b", text)
    if not arxiv and not venue:
        return None
    authors = text.partition(",")[0].removesuffix(" et al.")
    return arxiv[1] if arxiv else "", f"{authors} et al., {venue[0]}" if venue else ""


def lists() -> dict[str, str]:
    """The pages that are written by hand, with today's methods in their lists, by their paths."""
    hard = [name for name in methods.names() if methods.find(name).hard_labels]
    return {
        "README.md": _readme(),
        "docs/how-it-works/caching.md": _replaced(
            "docs/how-it-works/caching.md",
            r"(?<=those that read only the logits of the teacher: )[^|]*(?= \|)",
            _names(_logit_readers()),
        ),
        "docs/how-it-works/training.md": _replaced(
            "docs/how-it-works/training.md",
            r"(?<=are refused with all settings:\n  )[^.]*(?=\.\n)",
            _names(hard),
        ),
    }


def _replaced(page: str, pattern: str, text: str) -> str:
    """A page with another text at the only place that fits the pattern."""
    written, places = re.subn(pattern, text, (ROOT / page).read_text())
    if places != 1:
        raise ValueError(f"{page} has {places} places that fit {pattern}, and needs one")
    return written


def _names(names: list[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


def _logit_readers() -> list[str]:
    """The methods that read only the logits of the teacher by default."""
    student, teacher = testing.network("resnet8"), testing.network("resnet8x4")
    pair = testing.make_pair(student, teacher, testing.sample_images(size=32))
    needs = {name: methods.find(name)(pair).needs for name in methods.names()}
    return [name for name in needs if needs[name] == TeacherNeeds(logits=True)]


def _readme() -> str:
    """README.md with the number and the table of today's methods."""
    others = f"{len(methods.names()) - 1} more methods"
    rows = ["| what the student learns from | methods |", "|---|---|"]
    for kind in get_args(LearnsFrom):
        listed = [_linked(name) for name in methods.names() if _learns_from(name) == kind]
        rows.append(f"| {_KINDS[kind]} | {', '.join(listed)} |")
    written = _replaced("README.md", r"\b\d+ more methods", others)
    before, _, rest = written.partition(rows[0])
    return before + "\n".join(rows) + "\n\n" + rest.partition("\n\n")[2]


def _learns_from(name: str) -> str:
    return methods.find(name).learns_from


def _linked(name: str) -> str:
    """A method's name with a link to its paper on arXiv, or with authors, conference and year."""
    arxiv, venue = source(name) or ("", "")
    if arxiv:
        return f"[{name}](https://arxiv.org/abs/{arxiv})"
    return f"{name} ({venue})" if venue else name


if __name__ == "__main__":
    for path, text in lists().items():
        (ROOT / path).write_text(text)
    FOLDER.mkdir(exist_ok=True)
    for file, text in pages().items():
        (FOLDER / file).write_text(text)
