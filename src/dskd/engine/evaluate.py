"""Top-1 and top-5 accuracy on a split."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dskd.data.loader import Loader
from dskd.methods.base import Method
from dskd.models.eval_mode import eval_mode
from dskd.runtime import distributed
from dskd.storage.metric_names import Metric

PIXELS = {"cuda": 500 * 64 * 64, "cpu": 100 * 32 * 32}
"""Pixels of a batch, so that memory does not grow with the size of the images. On a CPU, a small
network is evaluated twice as fast if its feature maps stay in the cache."""


@dataclass(frozen=True)
class EvaluationResult:
    """Accuracy of a classifier on a split.

    Attributes:
        accuracy: Top-1, in percent.
        accuracy_top5: In percent; None with five classes or fewer, of which it says nothing.
        predictions: int64 ``[N]``, the predicted class of each image.
        finite: Whether every logit was finite.
        metric: ``agreement`` if the labels are the teacher's predictions (``data.labels=none``).
    """

    accuracy: float
    accuracy_top5: float | None
    predictions: Tensor
    finite: bool
    metric: Metric = "accuracy"

    def agreement(self, other: EvaluationResult) -> float:
        """Share of the images for which both predict the same class, in percent."""
        return percent(self.predictions == other.predictions)


def percent(hits: Tensor) -> float:
    """The share of true values in percent, rounded to 1e-4."""
    return round(100 * hits.double().mean().item(), 4)


Average = Callable[[Loader], EvaluationResult]
"""Evaluates a moving average on a split."""
Evaluate = Callable[
    [nn.Module, Callable[[Tensor], dict[str, Tensor]], Loader], dict[str, EvaluationResult]
]
"""Evaluates classifiers on a split, as `evaluate_accuracy` does."""


@torch.no_grad()
def evaluate_accuracy(
    module: nn.Module, logits: Callable[[Tensor], dict[str, Tensor]], loader: Loader
) -> dict[str, EvaluationResult]:
    """Evaluates classifiers on a split, in float32 and eval mode; then restores the mode.

    Several processes each evaluate a share of the batches; all get the whole result.

    Args:
        module: Owns all modules that ``logits`` runs.
        logits: From images, uint8 ``[B, C, H, W]``, to logits ``[B, K]`` by name.
        loader: Of the split.

    Returns:
        A result for each name.
    """
    with eval_mode(module):
        batches = own_batches(loader)
        parts = distributed.shard_map(lambda images: _top_classes(logits(images)), batches)
    return {
        name: _result(torch.cat([part[name] for part in parts]), loader.labels.cpu())
        for name in parts[0]
    }


def own_batches(loader: Loader) -> Iterator[Tensor]:
    """The images that this process evaluates, for `dskd.runtime.distributed.shard_map`."""
    share = distributed.rank(), distributed.world_size()
    batches = (images for images, _ in loader.in_order(evaluation_batch(loader), *share))
    return distributed.of_this_process(batches)


def evaluation_batch(loader: Loader) -> int:
    """The number of images that are evaluated at a time."""
    height, width = loader.sample_shape[1:]
    return max(1, min(500, PIXELS[loader.device.type] // (height * width)))


@dataclass(frozen=True)
class SplitResults:
    """The classifiers of a run on the test split.

    Attributes:
        student: The student.
        others: The method's other classifiers, by name.
        average: The moving average of the student; None without one.
    """

    student: EvaluationResult
    others: dict[str, EvaluationResult]
    average: EvaluationResult | None


def evaluate_on_test(
    method: Method, test: Loader, average: Average | None, evaluate: Evaluate
) -> SplitResults:
    """Evaluates the classifiers of a run, with the BatchNorm statistics of rank 0.

    Args:
        method: Has the student.
        test: The test split.
        average: Evaluates the moving average of the student; None without one.
        evaluate: Evaluates the method's classifiers.
    """
    distributed.broadcast(method.buffers())
    others = evaluate(method, method.classifier_logits, test)
    student = others.pop("student")
    return SplitResults(student, others, None if average is None else average(test))


def epoch_accuracies(
    method: Method,
    validation: Loader | None,
    tested: SplitResults,
    average: Average | None,
    evaluate: Evaluate,
) -> dict[str, float]:
    """Metrics of an epoch: accuracies of the student and of the method's other classifiers.

    Args:
        method: Has the student.
        validation: The split on which it is evaluated here; None without one.
        tested: Of `evaluate_on_test`.
        average: As there.
        evaluate: As there.
    """
    student = tested.student
    row = {"test_accuracy": student.accuracy}
    if student.accuracy_top5 is not None:
        row["test_accuracy_top5"] = student.accuracy_top5
    row |= {f"{name}/test_accuracy": other.accuracy for name, other in tested.others.items()}
    if validation is not None:
        found = evaluate(method, method.classifier_logits, validation)
        row["val_accuracy"] = found["student"].accuracy
    if tested.average is not None:
        row["ema_test_accuracy"] = tested.average.accuracy
    if average is not None and validation is not None:
        row["ema_val_accuracy"] = average(validation).accuracy
    return row


def _top_classes(logits: dict[str, Tensor]) -> dict[str, Tensor]:
    """The five best classes of each image, whether its logits are finite, and their number.

    int64 ``[B, 7]`` by name, on the CPU.
    """
    return {
        name: torch.cat(
            [
                values.topk(min(5, values.shape[1]), dim=1).indices,
                values.isfinite().all(1, keepdim=True),
                values.new_full((len(values), 1), values.shape[1], dtype=torch.int64),
            ],
            1,
        ).cpu()
        for name, values in logits.items()
    }


def _result(found: Tensor, labels: Tensor) -> EvaluationResult:
    best, finite, classes = found[:, :-2], found[:, -2], int(found[0, -1])
    hits = best == labels[:, None]
    top5 = percent(hits.any(1)) if classes > 5 else None
    return EvaluationResult(percent(hits[:, 0]), top5, best[:, 0], bool(finite.all()))
