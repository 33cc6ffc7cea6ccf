"""From the settings of the data to the data set of a run."""

from __future__ import annotations

from dskd.config.schema import AUGMENTATIONS, DataSettings
from dskd.data import Dataset, load_dataset, take_part
from dskd.data.pixels import PixelForm
from dskd.data.torch_dataset import TorchSplits
from dskd.errors import InputError

OF_IMAGES_IN_MEMORY = {
    "name",
    "classes",
    "fraction",
    "val_fraction",
    "test_fraction",
    "interpolation",
} | {*AUGMENTATIONS}
"""The keys of ``data`` that apply to images given in Python."""
OF_SAMPLES = {"size", "channels", "value_range", "crop_pct"}
"""The keys that apply to torch's data sets, too."""


def load_data(settings: DataSettings, given: Dataset | TorchSplits | None = None) -> Dataset:
    """The data set that a recipe names, or the one given in place of it.

    Raises:
        InputError: It cannot be read, or a setting does not apply to images in memory.
    """
    if given is not None:
        of_files = DataSettings.model_fields.keys() - OF_IMAGES_IN_MEMORY
        if isinstance(given, TorchSplits):
            of_files -= OF_SAMPLES
        for key in sorted(of_files):
            if not settings.is_default(key):
                raise InputError(f"data.{key} does not apply to images given in Python; drop it")
        if isinstance(given, TorchSplits):
            given = given.read(
                size=settings.size,
                channels=settings.channels,
                form=PixelForm(
                    value_range=settings.value_range,
                    crop_pct=settings.crop_pct,
                    interpolation=settings.interpolation,
                ),
                val_fraction=settings.val_fraction,
            )
        fractions = settings.fraction, settings.val_fraction or 0.0, settings.test_fraction
        return take_part(given, settings.classes, *fractions)
    if settings.name.startswith("<"):
        raise InputError(
            f"this run's images were given in Python as {settings.name}; give them again, as "
            "in dskd.evaluate(run, data=dataset)"
        )
    chosen = settings.model_dump(exclude={"name", *AUGMENTATIONS})
    return load_dataset(settings.name, **chosen)
