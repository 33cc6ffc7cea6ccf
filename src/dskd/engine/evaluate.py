"""How well a model names the images of a split."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dskd.data.loader import Loader
from dskd.models.eval_mode import eval_mode
from dskd.runtime import distributed

PIXELS = {"cuda": 500 * 64 * 64, "cpu": 100 * 32 * 32}
"""Of a batch: memory then does not grow with the size of the images. On a CPU a small network is
evaluated twice as fast where its maps stay in the cache."""


@dataclass(frozen=True)
class EvaluationResult:
    """What logits say of a split.

    Attributes:
        accuracy: Top-1, in percent.
        accuracy_top5: In percent; of all classes where there are five or fewer.
        predictions: int64 ``[N]``, the class named for each image.
        finite: Whether every logit was a finite number.
    """

    accuracy: float
    accuracy_top5: float
    predictions: Tensor
    finite: bool

    def agreement(self, other: EvaluationResult) -> float:
        """Share of the images, in percent, that both give the same class."""
        return percent(self.predictions == other.predictions)


def percent(hits: Tensor) -> float:
    """The share of true values, in percent, rounded to 1e-4."""
    return round(100 * hits.double().mean().item(), 4)


@torch.no_grad()
def evaluate_accuracy(
    module: nn.Module, heads: Callable[[Tensor], dict[str, Tensor]], split: Loader
) -> dict[str, EvaluationResult]:
    """Judges every head on a split, in float32 and eval mode; the mode is put back afterwards.

    Several processes each evaluate every so many-th batch, and all get the whole.

    Args:
        module: Owns all that ``heads`` runs.
        heads: From images, uint8 ``[B, C, H, W]``, to logits ``[B, K]`` by name.
        split: The images and labels.

    Returns:
        A judgement for each head.
    """
    height, width = split.sample_shape[1:]
    batch_size = max(1, min(500, PIXELS[split.device.type] // (height * width)))
    with eval_mode(module):
        batches = (images for images, _ in split.in_order(batch_size))
        parts = distributed.shard_map(lambda images: _best(heads(images)), batches)
    return {
        name: _evaluate(torch.cat([part[name] for part in parts]), split.labels.cpu())
        for name in parts[0]
    }


def _best(logits: dict[str, Tensor]) -> dict[str, Tensor]:
    """Each head's five best classes for each image, and whether all its logits are finite.

    int64 ``[B, 6]``, on the CPU.
    """
    return {
        name: torch.cat(
            [
                values.topk(min(5, values.shape[1]), dim=1).indices,
                values.isfinite().all(1, keepdim=True),
            ],
            1,
        ).cpu()
        for name, values in logits.items()
    }


def _evaluate(found: Tensor, labels: Tensor) -> EvaluationResult:
    best, finite = found[:, :-1], found[:, -1]
    hits = best == labels[:, None]
    return EvaluationResult(
        percent(hits[:, 0]), percent(hits.any(1)), best[:, 0], bool(finite.all())
    )
