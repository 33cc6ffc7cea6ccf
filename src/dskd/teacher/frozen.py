"""The teacher: frozen, in eval mode, and kept so in this one place."""

from __future__ import annotations

import hashlib
from typing import Any

import torch
from torch import Tensor, nn

from dskd.models.fuse_batchnorm import fuse_batchnorm, in_bfloat16
from dskd.models.output import ModelOutput
from dskd.models.staged_model import StagedModel


class FrozenTeacher(nn.Module):
    """A trained model that answers and never changes.

    Args:
        model: The trained model, on its device; its parameters stop requiring gradients.
        fold_on: A few images, uint8 ``[B, C, H, W]``, on the same device: where they are given,
            what answers is a copy with BatchNorm folded into the convolutions (see
            `dskd.models.fuse_batchnorm.fuse_batchnorm`), whose answers differ by rounding alone.
        bfloat16: Whether it is to answer under autocast to bfloat16: the copy's weights are turned
            to bfloat16 once, not at every step. Elsewhere it answers in float32 as before.

    Attributes:
        model: The trained model as it came.

    Example:
        >>> from dskd.models.zoo import build
        >>> net = build("resnet8", num_classes=10)
        >>> Teacher(StagedModel(net, mean=(0.5,) * 3, std=(0.5,) * 3)).train().training
        False
    """

    def __init__(
        self, model: StagedModel, fold_on: Tensor | None = None, *, bfloat16: bool = False
    ) -> None:
        super().__init__()
        self.model = model.requires_grad_(False)
        self.eval()
        self._answering = self.model if fold_on is None else fuse_batchnorm(self.model, fold_on)
        self._in_autocast = self._answering
        if bfloat16 and fold_on is not None:
            self._in_autocast = in_bfloat16(self._answering, fold_on)

    def train(self, mode: bool = True) -> Any:
        """Stays in eval mode, whatever is asked."""
        return super().train(False)

    def fingerprint(self) -> str:
        """A hash of every weight: equal if and only if the teachers are."""
        digest = hashlib.sha256()
        for name, value in self.model.state_dict().items():
            digest.update(f"{name} {list(value.shape)} {value.dtype}".encode())
            flat = value.detach().cpu().contiguous().flatten()
            digest.update(flat.view(torch.uint8).numpy().data)
        return digest.hexdigest()

    # Not torch.inference_mode: its tensors cannot be saved for the student's gradients.
    @torch.no_grad()
    def forward(self, images: Tensor) -> ModelOutput:
        """The answers to a batch of images, uint8 ``[B, C, H, W]``, without gradients."""
        autocast = torch.is_autocast_enabled(images.device.type)
        output: ModelOutput = (self._in_autocast if autocast else self._answering)(images)
        return output
