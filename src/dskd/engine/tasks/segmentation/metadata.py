"""What the file of a student says about it, apart from the weights."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from dskd.engine.tasks.segmentation.settings import Normalize, SegmentationModelSettings
from dskd.engine.tasks.segmentation.unet import SegmentationModel
from dskd.models.staged_net import StagedNet
from dskd.settings import Count, Number, Positive, Settings, validate
from dskd.storage.weights import read_metadata


class StudentMetadata(Settings):
    """The metadata of a student's file; see `dskd.engine.tasks.segmentation.task`."""

    task: Literal["segment"]
    model: SegmentationModelSettings
    channels: Literal[1, 3]
    size: tuple[Count, Count]
    classes: tuple[str, ...]
    mean: tuple[Number, ...]
    std: tuple[Positive, ...]
    normalize: Normalize = "dataset"
    method: str

    def model_of(self, net: StagedNet) -> SegmentationModel:
        """A network with the normalisation that the student was trained with."""
        by_image = self.normalize == "image"
        return SegmentationModel(net, mean=self.mean, std=self.std, by_image=by_image)


def read_student_metadata(path: Path) -> StudentMetadata:
    """Reads the metadata of a student's file.

    Raises:
        InputError: It is missing, or not that of a student of segmentation.
    """
    found = {k: v for k, v in read_metadata(path).items() if k in StudentMetadata.model_fields}
    return validate(StudentMetadata, found, f"{path}: ")
