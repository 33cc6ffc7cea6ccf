"""The model card of a trained student, in the form of huggingface_hub."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from dskd import methods
from dskd.config.schema import Recipe
from dskd.deploy.caller import hub_caller
from dskd.deploy.card_exits import exits_section, table
from dskd.deploy.card_recipe import public_model, recipe_section
from dskd.deploy.hub import WEIGHTS, WRITTEN_BY
from dskd.deploy.input_contract import InputContract
from dskd.deploy.measure import (
    EXPORTED,
    PLAIN,
    QUANTIZED,
    STUDENT,
    TEACHER,
    Accuracy,
    Measurements,
)
from dskd.deploy.student import DeployedStudent, Which
from dskd.errors import printable
from dskd.settings import validate
from dskd.storage.json_file import read_json
from dskd.storage.metric_names import Metric
from dskd.storage.run_files import RECIPE, RESULT, ResultFile
from dskd.storage.yaml_file import read_yaml_file
from dskd.version import __version__

_COLUMNS = {
    TEACHER: "teacher, PyTorch",
    STUDENT: "student, PyTorch",
    PLAIN: "student without exits, ONNX Runtime",
}
_ACCURACIES = {
    "last": "test_accuracy",
    "best": "best_test_accuracy",
    "ema": "ema_test_accuracy",
}
"""The keys of ``result.json`` by the choice of weights."""
_PAPER = "https://arxiv.org/abs/2202.07846"


@dataclass(frozen=True)
class RunFacts:
    """What a run says about its student.

    Attributes:
        recipe: The recipe.
        result: The numbers of ``result.json``; empty if the run is not finished.
    """

    recipe: Recipe
    result: Mapping[str, Any]

    @classmethod
    def read(cls, folder: Path) -> RunFacts:
        """Reads them from the folder of a run.

        Raises:
            InputError: A file is damaged.
        """
        # The run has resolved it, and the method need not be here: it may be the user's own class.
        recipe = validate(Recipe, read_yaml_file(folder / RECIPE, "recipe"))
        method = recipe.method.name
        if method in methods.names() and not methods.find(method).needs_teacher:
            recipe = recipe.model_copy(update={"teacher": None})
        path = folder / RESULT
        found = read_json(path, ResultFile, f"remove {path}") if path.is_file() else None
        return cls(recipe, found.model_dump() if found is not None else {})

    @property
    def metric(self) -> Metric:
        """What the run measures."""
        return self.recipe.data.metric

    def accuracy(self, which: Which) -> float | None:
        """The accuracy of a student on the test split, in percent, as the run measured it."""
        value: float | None = self.result.get(_ACCURACIES[which])
        return value


@dataclass(frozen=True)
class CardParts:
    """What a model card is made of.

    Attributes:
        contract: What the file expects.
        caller: A program that calls the file.
        file: The name of the file.
        runtime: The program that runs the file.
        facts: Of the run; None if the student is of no run.
        measured: What was measured.
        license: Of the weights, as in ``apache-2.0``; None if it was not given.
        difference: The largest relative difference from the trained student.
        size: Bytes of the file.
        qat: Epochs of quantization-aware training; None for none.
    """

    contract: InputContract
    caller: str
    file: str
    runtime: str
    facts: RunFacts | None = None
    measured: Measurements = field(default_factory=Measurements)
    license: str | None = None
    difference: float | None = None
    size: int | None = None
    qat: int | None = None


def model_card(parts: CardParts) -> ModelCard:
    """Writes the card: what the student is, how it was trained, and how it is called."""
    name = public_model(parts.contract.student.name)
    sections = [
        f"# {printable(name)}, {len(parts.contract.student.classes)} classes",
        _summary(parts),
        "## How to call it",
        f"`{parts.file}` runs with {parts.runtime}. This program prints the class of each image "
        "file of its command line:",
        f"```python\n{parts.caller.strip()}\n```",
        "## What it expects",
        _expects(parts.contract),
        *exits_section(parts.contract),
        "## How good it is",
        _quality(parts),
    ]
    if parts.facts is not None:
        sections += ["## How it was trained", recipe_section(parts.facts.recipe)]
    sections.append(f"{WRITTEN_BY}{_PAPER}) {__version__}.")
    text = "\n\n".join(sections)
    return ModelCard(f"---\n{_data(parts).to_yaml()}\n---\n\n{text}\n", ignore_metadata_errors=True)


def saved_card(student: DeployedStudent, license: str | None = None) -> ModelCard:
    """The card of a student in a folder of ``save_pretrained``.

    Args:
        student: Of a run or of a file.
        license: Of the weights; None if it was not given.
    """
    contract = InputContract(student, None, normalizes=False)
    return model_card(
        CardParts(
            contract,
            hub_caller(student),
            WEIGHTS,
            "PyTorch",
            RunFacts.read(student.run) if student.run is not None else None,
            license=license,
        )
    )


def license_text(license: str | None) -> str:
    """The sentence on the licence; None if none was given."""
    if license:
        return f"Licence of the weights: {license}."
    return "No licence of the weights was given."


def _data(parts: CardParts) -> ModelCardData:
    """The head of the card, which the Hub reads."""
    facts, results = parts.facts, None
    if facts is not None and (top1 := _top1(parts)) is not None:
        data = printable(facts.recipe.data.title)
        results = [
            EvalResult(
                task_type="image-classification",
                dataset_type=data,
                dataset_name=data,
                dataset_split="test",
                metric_name=_metric_name(parts.contract.student, facts),
                metric_type=facts.metric,
                metric_value=round(top1 / 100, 6),
            )
        ]
    return ModelCardData(
        license=parts.license,
        library_name="dskd",
        pipeline_tag="image-classification",
        tags=["image-classification", "knowledge-distillation"],
        eval_results=results,
        model_name=public_model(parts.contract.student.name) if results else None,
        ignore_metadata_errors=True,
    )


def _metric_name(student: DeployedStudent, facts: RunFacts) -> str | None:
    """The name of the metric on the Hub, where its own does not say enough."""
    chosen_on_test = facts.result.get("best_chosen_on") == "test" and student.which == "best"
    return f"{facts.metric}, epoch chosen on the test split" if chosen_on_test else None


def _summary(parts: CardParts) -> str:
    license = license_text(parts.license)
    if parts.facts is None:
        return license
    recipe = parts.facts.recipe
    how, method = "Trained on labels", f" by the method `{printable(recipe.method.name)}`"
    if recipe.method.name == "ce":
        method = ""
    elif recipe.teacher is not None:
        how = f"Distilled from `{printable(public_model(recipe.teacher.name))}`"
    return f"{how}{method}, on the images `{printable(recipe.data.title)}`. {license}"


def _expects(contract: InputContract) -> str:
    """The table of what the file expects."""
    plain, student = contract.plain(), contract.student
    channels, height, width = student.shape
    mean, std = contract.mean, contract.std
    inside = (
        f"inside the file (mean {mean}, std {std})"
        if contract.normalizes
        else f"not in the file: subtract {mean} and divide by {std}, channel by channel"
    )
    shape = ", ".join(str(side) for side in plain["input"]["shape"])
    rows = {
        "input": f"`{plain['input']['name']}`, float32, [{shape}] (NCHW)",
        "colour": "RGB" if channels == 3 else f"{channels} channel (gray)",
        "range": "0 to 1: divide the 8-bit pixels by 255",
        "pixels": plain["pixels"],
        "size": f"{width}x{height} pixels",
        "resize rule": plain["resize"]["rule"],
        "normalisation": inside,
        "precision": "weights and activations in int8" if contract.int8 else "float32",
        "output": f"`{plain['output']['name']}`, float32, [N, {len(student.classes)}]: logits; "
        "softmax gives probabilities",
    }
    if student.form.value_range is not None:
        low, high = student.form.value_range
        rows["levels"] = f"values from {low:g} to {high:g} become 0 to 255"
    listed = table(["", "value"], [[key, value] for key, value in rows.items()])
    names = "\n".join(f"{k}. `{printable(name)}`" for k, name in enumerate(student.classes))
    return f"{listed}\n\nThe classes in the order of the logits, from 0:\n\n{names}"


def _accuracy(parts: CardParts) -> Accuracy | None:
    found = parts.measured.accuracy
    return found.get(EXPORTED) or found.get(STUDENT)


def _top1(parts: CardParts) -> float | None:
    """The accuracy in percent: measured now, or by the run if the file computes the same."""
    if (accuracy := _accuracy(parts)) is not None:
        return accuracy.top1
    if parts.facts is None or _computes_otherwise(parts, parts.facts):
        return None
    return parts.facts.accuracy(parts.contract.student.which)


def _computes_otherwise(parts: CardParts, facts: RunFacts) -> bool:
    """Whether the file computes something else than the student that the run evaluated."""
    finished = parts.contract.int8 or parts.qat is not None or parts.contract.exits is not None
    return finished or facts.recipe.train.int8_rounding  # the run rounds, the file does not


def _weights(student: DeployedStudent, result: Mapping[str, Any]) -> str:
    """Which weights of the run these are."""
    if student.which != "best":
        last = student.which == "last"
        return "of the last epoch" if last else "the moving average (`train.ema`)"
    if not result:
        return "of the best epoch of a run that is not finished"
    epoch = f"of the best epoch, {result['best_epoch']}, which was chosen on the"
    if result["best_chosen_on"] == "validation":
        return f"{epoch} validation images"
    return f"{epoch} test images, so the accuracy on them is too optimistic"


def _metric(facts: RunFacts | None) -> tuple[str, str]:
    """What was measured, and on which images."""
    if facts is not None and facts.metric == "agreement":
        return "Agreement with the teacher", "images held out"
    return "Accuracy", "test images"


def _quality(parts: CardParts) -> str:
    """Accuracy, difference and times."""
    measured, lines = parts.measured, []
    title, images = _metric(parts.facts)
    if parts.facts is not None:
        weights = _weights(parts.contract.student, parts.facts.result)
        lines.append(f"- Weights: {weights}")
    if (accuracy := _accuracy(parts)) is not None:
        low, high = accuracy.interval
        lines.append(
            f"- {title} on the {accuracy.images:,} {images}: {accuracy.top1:.2f} % (95 % "
            f"interval {low:.1f} to {high:.1f} %)"
        )
    elif (top1 := _top1(parts)) is not None:
        lines.append(f"- {title} of the student on the {images} in its run: {top1:.2f} %")
    elif parts.facts is not None and "accuracy" not in measured.missing:
        lines.append(f"- {title} of this file: not measured")
    if parts.facts is not None and parts.facts.result.get("teacher_accuracy") is not None:
        teacher = parts.facts.result["teacher_accuracy"]
        lines.append(f"- Accuracy of the teacher on the {images}: {teacher:.2f} %")
    lines += _qat(parts)
    if parts.difference is not None:
        lines.append(
            "- Largest difference of the outputs from the trained student: "
            f"{parts.difference:.1e}, relative to the largest output"
        )
    if parts.size is not None:
        lines.append(f"- Size on disk: {parts.size:,} bytes")
    # Not why: the reason may name folders of this machine.
    lines += [f"- {what}: not measured" for what in measured.missing]
    if not measured.latency:
        return "\n".join(lines) or "Nothing was measured."
    times = next(iter(measured.latency.values()))
    own = measured.exported_title(parts.file, parts.runtime)
    header = [_COLUMNS.get(name, own) for name in times]
    rows = [
        [f"{batch}", *(str(time) for time in found.values())]
        for batch, found in measured.latency.items()
    ]
    kind = (
        "median and quartiles"
        if parts.contract.exits is None
        else "mean and quartiles over test images, because the time depends on the image"
    )
    busy = f" {measured.busy}" if measured.busy else ""
    return "\n".join(lines) + (
        f"\n\nMilliseconds for a batch on one thread of the processor, {kind}.{busy}\n\n"
        + table(["batch", *header], rows)
    )


def _qat(parts: CardParts) -> list[str]:
    """A line about quantization-aware training, if there was some."""
    if parts.qat is None:
        return []
    found = parts.measured.accuracy
    steps = {
        "as trained, in float32": found.get(STUDENT),
        "in int8 without further training": found.get(QUANTIZED),
        f"in int8 after {parts.qat} epochs of quantization-aware training": found.get(EXPORTED),
    }
    known = [f"{one.top1:.2f} % {what}" for what, one in steps.items() if one is not None]
    if not known:
        return [f"- Finished by {parts.qat} epochs of quantization-aware training"]
    return [f"- {_metric(parts.facts)[0]} of the student: {', '.join(known)}"]
