"""How the students of a run on images with masks are evaluated and described."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from dskd.data.loader import Loader
from dskd.engine.evaluate import EvaluationResult
from dskd.engine.task import RunLoaders, Task
from dskd.engine.tasks.segmentation.loader import MaskedLoader, SegmentationLoaders
from dskd.engine.tasks.segmentation.metrics import dice_scores
from dskd.engine.tasks.segmentation.settings import SegmentationRecipe
from dskd.engine.tasks.teacher_facts import record_teacher
from dskd.engine.training_run import TrainingRun
from dskd.methods.base import Method
from dskd.models.eval_mode import eval_mode

PIXELS = 2**18
"""Pixels of a batch, so that memory does not grow with the size of the images."""


class SegmentationTask(Task):
    """The class of every pixel: Dice."""

    samples: ClassVar[str] = "images"

    @torch.no_grad()
    def evaluate(
        self, module: nn.Module, logits: Callable[[Any], dict[str, Tensor]], loader: Loader
    ) -> dict[str, EvaluationResult]:
        """See `Task.evaluate`. The predictions are uint8 ``[N, H, W]``."""
        assert isinstance(loader, MaskedLoader), "of a split of images with masks"
        parts: list[dict[str, tuple[Tensor, bool]]] = []
        size = max(1, PIXELS // (loader.sample_shape[1] * loader.sample_shape[2]))
        with eval_mode(module):
            for images, _ in loader.in_order(size):
                parts.append({name: _predicted(z) for name, z in logits(images).items()})
        found = {}
        for name in parts[0]:
            predictions = torch.cat([part[name][0] for part in parts])
            finite = all(part[name][1] for part in parts)
            score = _mean_dice(predictions, loader)
            found[name] = EvaluationResult(score, None, predictions, finite, "dice")
        return found

    def score(self, predictions: Tensor, data: RunLoaders) -> float | None:
        """The mean Dice over images and classes without the background."""
        return _mean_dice(predictions, data.test)

    def student_metadata(
        self, recipe: SegmentationRecipe, loaders: SegmentationLoaders, method: Method
    ) -> Mapping[str, Any]:
        """See `Task.student_metadata`."""
        data, model = loaders.data, method.student
        return {
            "task": "segment",
            "model": recipe.student.model_dump(mode="json"),
            "channels": data.shape[0],
            "size": list(data.shape[1:]),
            "classes": list(data.classes),
            "mean": model.mean.flatten().tolist(),
            "std": model.std.flatten().tolist(),
            "normalize": recipe.data.normalize,
            "method": recipe.method.name,
        }

    def record_models(self, run: TrainingRun, *, resumes: bool) -> None:
        """Writes how good the teacher is, if there is one."""
        record_teacher(self, run, _near_chance)


def _near_chance(predictions: Tensor, loader: Loader) -> bool:
    """Whether no pixel of a class is found."""
    return _mean_dice(predictions, loader) == 0.0


def _predicted(logits: Tensor) -> tuple[Tensor, bool]:
    """The class of each pixel, and whether all logits are finite."""
    return logits.argmax(1).to(torch.uint8).cpu(), bool(logits.isfinite().all())


def _mean_dice(predictions: Tensor, loader: Loader) -> float:
    """The mean Dice over images and classes without the background, in percent."""
    assert isinstance(loader, MaskedLoader), "of a split of images with masks"
    dice = dice_scores(predictions, loader.labels.cpu(), loader.classes)
    return round(100 * dice.double().mean().item(), 4)


SEGMENTATION = SegmentationTask()
