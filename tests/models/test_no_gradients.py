"""What only looks at a model records no gradients: a graph would hold every feature map."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

from dskd.models.cost import model_cost
from dskd.models.fuse_batchnorm import fuse_batchnorm, in_bfloat16
from dskd.models.spec import describe
from dskd.models.staged_model import StagedModel
from dskd.teacher.frozen import FrozenTeacher

IMAGES = torch.zeros(2, 3, 8, 8, dtype=torch.uint8)


class Watched(nn.Module):
    """Notes whether gradients are recorded. Copies write into the same set."""

    seen: ClassVar[set[bool]] = set()

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU())
        self.classifier = nn.Linear(4, 5)

    def forward(self, images: Tensor) -> Any:
        self.seen.add(torch.is_grad_enabled())
        return self.classifier(self.features(images).mean((2, 3)))


@pytest.mark.parametrize(
    "look",
    [
        lambda model: fuse_batchnorm(model, IMAGES),
        lambda model: in_bfloat16(model, IMAGES),
        lambda model: describe(model, IMAGES),
        lambda model: model_cost(model.module, (3, 8, 8)),
        lambda model: FrozenTeacher(model, IMAGES, bfloat16=True)(IMAGES),
    ],
    ids=["fuse_batchnorm", "in_bfloat16", "describe", "model_cost", "FrozenTeacher"],
)
def test_a_model_that_is_only_looked_at_records_no_gradients(
    look: Callable[[StagedModel], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = StagedModel(Watched(), mean=(0.5,) * 3, std=(0.25,) * 3).eval()
    monkeypatch.setattr(Watched, "seen", set())
    with torch.enable_grad():
        look(model)
        assert torch.is_grad_enabled()
    assert Watched.seen == {False}
