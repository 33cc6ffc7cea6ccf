"""The frozen teacher. Eval mode is set here and nowhere else."""

from __future__ import annotations

import hashlib
from typing import Any

import torch
from torch import Tensor, nn

from dskd.models.fuse_batchnorm import fuse_batchnorm, in_bfloat16
from dskd.models.output import ModelOutput
from dskd.models.staged_model import StagedModel


class FrozenTeacher(nn.Module):
    """A trained model in eval mode whose weights never change.

    Args:
        model: The trained model, on its device. Its parameters stop requiring gradients.
        fuse_on: A few images, uint8 ``[B, C, H, W]``, on the same device. If given, the forward
            pass runs a copy whose BatchNorm is fused into the convolutions (see
            `dskd.models.fuse_batchnorm.fuse_batchnorm`). Its outputs differ by rounding alone.
        bfloat16: Whether the copy's weights are converted to bfloat16 once, for forward passes
            under autocast to bfloat16. Without autocast the forward pass stays in float32.

    Attributes:
        model: The trained model as given.
        test_predictions: int64 ``[N]``: the predicted class of each test image; None until the
            teacher is evaluated.

    Example:
        >>> from dskd.models.zoo import build
        >>> net = build("resnet8", num_classes=10)
        >>> FrozenTeacher(StagedModel(net, mean=(0.5,) * 3, std=(0.5,) * 3)).train().training
        False
    """

    def __init__(
        self, model: StagedModel, fuse_on: Tensor | None = None, *, bfloat16: bool = False
    ) -> None:
        super().__init__()
        self.model = model.requires_grad_(False)
        self.test_predictions: Tensor | None = None
        self.eval()
        self._fused = self.model if fuse_on is None else fuse_batchnorm(self.model, fuse_on)
        self._fused_bfloat16 = self._fused
        if bfloat16 and fuse_on is not None:
            self._fused_bfloat16 = in_bfloat16(self._fused, fuse_on)

    def keep_hooks(self) -> None:
        """See `dskd.models.staged_model.StagedModel.keep_hooks`."""
        for model in (self.model, self._fused, self._fused_bfloat16):
            model.keep_hooks()

    def train(self, mode: bool = True) -> Any:
        """Stays in eval mode, whatever ``mode`` says."""
        return super().train(False)

    def fingerprint(self) -> str:
        """A hash of every weight and buffer and the class order, equal for equal teachers."""
        digest = _weights_digest(self.model)
        if self.model.other_classes is not None:
            classes = self.model.ignored_for  # the logits are as many zeros
            digest.update(f"logits ignored for {classes} classes".encode())
        if self.model.class_order is not None:
            digest.update(f"class order {self.model.class_order.tolist()}".encode())
        return digest.hexdigest()

    # Not torch.inference_mode: its tensors cannot be saved for the student's backward pass.
    @torch.no_grad()
    def forward(self, images: Tensor) -> ModelOutput:
        """The outputs for a batch of images, uint8 ``[B, C, H, W]``, without gradients."""
        autocast = torch.is_autocast_enabled(images.device.type)
        output: ModelOutput = (self._fused_bfloat16 if autocast else self._fused)(images)
        return output


def weights_fingerprint(module: nn.Module) -> str:
    """A hash of every weight and buffer of a module."""
    return _weights_digest(module).hexdigest()


def _weights_digest(module: nn.Module) -> hashlib._Hash:
    digest = hashlib.sha256()
    for name, value in module.state_dict().items():
        digest.update(f"{name} {list(value.shape)} {value.dtype}".encode())
        flat = value.detach().cpu().contiguous().flatten()
        digest.update(flat.view(torch.uint8).numpy().data)
    return digest
