"""The methods for segmentation. Their names begin with ``segment/``, as in ``segment/mixed``."""

from __future__ import annotations

from dskd.engine.tasks.segmentation.base import SegmentationMethod
from dskd.engine.tasks.segmentation.dense import DenseDSKD, PixelKD
from dskd.engine.tasks.segmentation.supervision import Masks, Mixed, Seeds

METHODS: dict[str, type[SegmentationMethod]] = {
    "masks": Masks,
    "seeds": Seeds,
    "mixed": Mixed,
    "kd": PixelKD,
    "dskd": DenseDSKD,
}
"""The methods by their name after ``segment/``."""
