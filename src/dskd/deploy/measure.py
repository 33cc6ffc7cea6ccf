"""Measure an exported student: accuracy, and latency next to the teacher's."""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from dskd.data import Dataset
from dskd.data.file_split import spread
from dskd.deploy.export import ExportDraft
from dskd.deploy.latency import Latency, measure_latency, one_thread
from dskd.deploy.student_graph import Runner, student_graph
from dskd.engine.evaluate import EvaluationResult, evaluate_accuracy
from dskd.models.staged_model import StagedModel
from dskd.runtime.cores import TOLERATED
from dskd.storage.metric_names import Metric

BATCHES = (1, 64)
"""The batches of which the time is measured."""
EXPORTED, STUDENT, TEACHER = "exported", "student", "teacher"
QUANTIZED = "quantized"
"""The student in 8 bits before quantization-aware training."""
PLAIN = "plain"
"""The student without its early exits, exported in the same format."""
_IMAGES = 40
"""Test images on which early exits are timed, because their time depends on the image."""


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
        accuracy: On the test split, by ``student`` (in PyTorch) and ``exported``; with
            quantization-aware training also ``quantized``, before it.
        latency: By batch, then by ``teacher``, ``student`` (both in PyTorch) and ``exported``; with
            early exits also ``plain``, the exported student without them.
        parameters: Of ``teacher`` and ``student``.
        missing: Why something was not measured, by what it is.
        waiting: Share of the time of the latencies in which they waited for a processor core.
        all_cores: Whether the exported student was timed on all cores, the others on one thread.
    """

    accuracy: Mapping[str, Accuracy] = field(default_factory=dict)
    latency: Mapping[int, Mapping[str, Latency]] = field(default_factory=dict)
    parameters: Mapping[str, int] = field(default_factory=dict)
    missing: Mapping[str, str] = field(default_factory=dict)
    waiting: float = 0.0
    all_cores: bool = False

    def exported_title(self, file: str, runtime: str) -> str:
        """The heading of the exported file in tables.

        Args:
            file: Its name.
            runtime: The program that runs it.

        Example:
            >>> Measurements(all_cores=True).exported_title("student.pte", "ExecuTorch")
            'student.pte, ExecuTorch on all cores'
        """
        return f"{file}, {runtime}{' on all cores' if self.all_cores else ''}"

    @property
    def busy(self) -> str:
        """A sentence if other programs took the processor while the latencies were measured."""
        if self.waiting <= TOLERATED:
            return ""
        return (
            f"Other programs took the processor: models waited for {100 * self.waiting:.0f} % of "
            "this time. Export again on a quiet machine."
        )


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


def measure_times(
    draft: ExportDraft, teacher: StagedModel | None, data: Dataset | None = None
) -> dict[int, dict[str, Latency]]:
    """Times teacher, student and exported file, in turns and on one thread if the runtime allows.

    The time of a file with early exits depends on the image, so it is the mean over test images.

    Args:
        draft: The exported student.
        teacher: On the CPU; None without one.
        data: The images of the run, for early exits; None for random images.

    Returns:
        The latencies by batch. An export of a fixed batch has only that one.
    """
    contract = draft.graph.contract
    models = {STUDENT: contract.student.model.module}
    if teacher is not None:
        models = {TEACHER: teacher.module} | models
    runner, times = draft.runner(threads=1), {}
    with one_thread(), torch.inference_mode():
        if contract.exits is not None:
            with _without_exits(draft) as plain:
                runners = {EXPORTED: runner, PLAIN: plain}
                return {1: _mean_latencies(models, runners, _images(draft, data))}
        for batch in BATCHES if contract.batch is None else (contract.batch,):
            images = torch.rand(batch, *contract.student.shape)
            times[batch] = measure_latency(_calls(models, {EXPORTED: runner}, images))
    return times


def _calls(
    models: Mapping[str, nn.Module], runners: Mapping[str, Runner], images: Tensor
) -> dict[str, Callable[[], object]]:
    """What is timed, by name."""
    calls: dict[str, Callable[[], object]] = {
        name: partial(module, images) for name, module in models.items()
    }
    return calls | {name: partial(runner, images.numpy()) for name, runner in runners.items()}


@contextmanager
def _without_exits(draft: ExportDraft) -> Iterator[Runner]:
    """The student without its exits, in the same format."""
    contract = replace(draft.graph.contract, exits=None)
    with tempfile.TemporaryDirectory(prefix="dskd-plain-") as folder:
        path = Path(folder) / draft.path.name
        plain = replace(draft, path=path, graph=student_graph(contract), card=None)
        plain.write()
        yield plain.runner(threads=1)


def _images(draft: ExportDraft, data: Dataset | None) -> Tensor:
    """Test images from all over the split, or random ones."""
    if data is None:
        return draft.graph.example()
    return data.test.images_at(spread(len(data.test), _IMAGES)).cpu().float() / 255


def _mean_latencies(
    models: Mapping[str, nn.Module], runners: Mapping[str, Runner], images: Tensor
) -> dict[str, Latency]:
    """The mean time of an image, with the quartiles over the images."""
    found = [measure_latency(_calls(models, runners, image[None]), seconds=0.0) for image in images]
    means = {}
    for name in found[0]:
        times = [one[name].median for one in found]
        low, _, high = statistics.quantiles(times * 2, n=4, method="inclusive")
        means[name] = Latency(statistics.fmean(times), low, high)
    return means
