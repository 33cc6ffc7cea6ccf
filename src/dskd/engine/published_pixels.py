"""Say how a published teacher was evaluated, if a run prepares its images in another way."""

from __future__ import annotations

import logging
from typing import get_args

from dskd.config.schema import DataSettings, TeacherSettings
from dskd.data.augmentation import Interpolation
from dskd.data.catalog import are_own
from dskd.errors import as_given
from dskd.models.native import native_pixels, short_share

log = logging.getLogger("dskd")

_MODES = {"squash": "squeezed", "border": "padded"}


def log_published_pixels(settings: TeacherSettings, data: DataSettings) -> None:
    """Logs which settings of the data differ from those of the teacher's published weights.

    Args:
        settings: Of the teacher. Nothing is logged if its weights are trained in this run.
        data: Settings of the run's images. Nothing is logged if they are not the user's own, which
            alone can be cropped and resized in another way.
    """
    is_published = settings.is_given and settings.pretrained is True
    if not (is_published and are_own(data.name) and data.size):
        return
    published = native_pixels(settings.name)
    if published is None:
        return
    own = data.interpolation or ("bicubic" if data.crop_pct != 1 else None)
    fixes = []
    if int(data.size / published.crop_pct) != int(data.size / data.crop_pct):
        fixes.append(f"data.crop_pct={short_share(published.crop_pct, data.size)}")
    if published.interpolation != own and published.interpolation in get_args(Interpolation):
        fixes.append(f"data.interpolation={published.interpolation}")
    if fixes:
        log.info(
            as_given(
                f"the weights of {settings.name} were published for other pixels than this run's; "
                f"{' '.join(fixes)} gives the teacher those"
            )
        )
    if published.crop_mode != "center":
        log.warning(
            "the weights of %s were published for images %s to a square (crop_mode %s), and the "
            "centre is cropped here; on images that are not square, the teacher may be less "
            "accurate than published",
            *(settings.name, _MODES.get(published.crop_mode, "made"), published.crop_mode),
        )
