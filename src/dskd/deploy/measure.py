"""Measure an exported student: accuracy, and latency next to the teacher's."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor, nn

from dskd.data import Dataset
from dskd.deploy.export import ExportDraft
from dskd.deploy.latency import Latency, measure_latency, one_thread
from dskd.deploy.student_graph import Runner
from dskd.engine.evaluate import EvaluationResult, evaluate_accuracy
from dskd.models.staged_model import StagedModel
from dskd.storage.metric_names import Metric

BATCHES = (1, 64)
"""The batches of which the time is measured."""
EXPORTED, STUDENT, TEACHER = "exported", "student", "teacher"


@dataclass(frozen=True)
class Accuracy:
    """Accuracy on the test split.

    Attributes:
        top1: In percent.
        top5: In percent; None with five classes or fewer.
        images: Size of the split.
        metric: ``agreement`` with the teacher, for images without labels.
    """

    top1: float
    top5: float | None
    images: int
    metric: Metric = "accuracy"

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % interval of top-1 by Wilson's formula: other test images give other numbers.

        Example:
            >>> [round(end, 1) for end in Accuracy(90.0, None, 100).interval]
            [82.6, 94.5]
        """
        from scipy.stats import binomtest

        hits = round(self.top1 * self.images / 100)
        found = binomtest(hits, self.images).proportion_ci(method="wilson")
        return 100 * float(found.low), 100 * float(found.high)


@dataclass(frozen=True)
class Measurements:
    """What was measured of an exported student.

    Attributes:
        accuracy: On the test split, by ``student`` (in PyTorch) and ``exported``.
        latency: By batch, then by ``teacher``, ``student`` (both in PyTorch) and ``exported``.
        parameters: Of ``teacher`` and ``student``.
        missing: Why something was not measured, by what it is.
    """

    accuracy: Mapping[str, Accuracy] = field(default_factory=dict)
    latency: Mapping[int, Mapping[str, Latency]] = field(default_factory=dict)
    parameters: Mapping[str, int] = field(default_factory=dict)
    missing: Mapping[str, str] = field(default_factory=dict)


class _Exported(nn.Module):
    """An exported student as a module from uint8 images to logits."""

    def __init__(self, runner: Runner) -> None:
        super().__init__()
        self.runner = runner

    def forward(self, images: Tensor) -> Tensor:
        return torch.from_numpy(self.runner((images.float() / 255).numpy()))


def measure_accuracy(draft: ExportDraft, data: Dataset) -> dict[str, Accuracy]:
    """Evaluates the student and the exported file on the test split.

    Args:
        draft: The exported student.
        data: The images of its run.
    """
    model = draft.graph.contract.student.model
    exported = _Exported(draft.runner())
    found = evaluate_accuracy(
        nn.ModuleList([model, exported]),
        lambda images: {STUDENT: model(images).logits, EXPORTED: exported(images)},
        data.test.loader(torch.device("cpu")),
    )
    return {name: _accuracy(result, data.metric) for name, result in found.items()}


def _accuracy(result: EvaluationResult, metric: Metric) -> Accuracy:
    return Accuracy(result.accuracy, result.accuracy_top5, len(result.predictions), metric)


def measure_times(draft: ExportDraft, teacher: StagedModel | None) -> dict[int, dict[str, Latency]]:
    """Times teacher, student and exported file, in turns and on one thread.

    Args:
        draft: The exported student.
        teacher: On the CPU; None without one.

    Returns:
        The latencies by batch. An export of a fixed batch has only that one.
    """
    contract = draft.graph.contract
    models = {STUDENT: contract.student.model.module}
    if teacher is not None:
        models = {TEACHER: teacher.module} | models
    runner, times = draft.runner(threads=1), {}
    with one_thread(), torch.inference_mode():
        for batch in BATCHES if contract.batch is None else (contract.batch,):
            images = torch.rand(batch, *contract.student.shape)
            calls: dict[str, Callable[[], object]] = {
                name: partial(module, images) for name, module in models.items()
            }
            calls[EXPORTED] = partial(runner, images.numpy())
            times[batch] = measure_latency(calls)
    return times
