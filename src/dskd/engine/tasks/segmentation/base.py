"""The base class of the methods for segmentation."""

from __future__ import annotations

from typing import ClassVar

from dskd.data.loader import Batch
from dskd.engine.tasks.segmentation.loader import MaskedBatch, Supervision
from dskd.engine.tasks.segmentation.unet import UNet
from dskd.methods.base import Method


class SegmentationMethod(Method):
    """A way to train a segmentation network.

    Args:
        pair: The student, and perhaps the shapes of a teacher.
    """

    needs_teacher: ClassVar[bool] = False
    distributed: ClassVar[bool] = False

    @property
    def supervision(self) -> Supervision:
        """What its batches are learned from."""
        return "masks"

    @property
    def net(self) -> UNet:
        """The student's network."""
        net = self.student.module
        assert isinstance(net, UNet), "a method for segmentation trains a U-Net"
        return net


def masked_batch(batch: Batch) -> MaskedBatch:
    """The batch of a loader of images with masks."""
    assert isinstance(batch, MaskedBatch), "a loader of images with masks gives it"
    return batch
