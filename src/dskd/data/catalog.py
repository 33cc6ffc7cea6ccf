"""The data sets by name: what each is, and the function that loads it.

This module imports neither torch nor a loader, so that a list of the data sets comes at once. A new
data set is one module with a `LoadFunction` and one entry here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from dskd.data.dataset import Dataset
    from dskd.data.read_options import ReadOptions

Loading = Literal["auto", "memory", "stream"]
"""Whether images are decoded once, or whenever they are used."""
LoadFunction = Callable[[Path | None, "ReadOptions", Path | None], "Dataset"]
"""Takes ``root``, how images are read, and ``cache_dir`` (see `dskd.data.registry`)."""


@dataclass(frozen=True)
class DatasetEntry:
    """A data set of the catalog.

    Attributes:
        description: One line for a list.
        module: Name of the module that loads it, within `dskd.data`.
        function: Name of its `LoadFunction` in that module.
        own_images: Whether the images are the user's own, of any format.
        settings: Keys of ``data`` that only sources of such images have.
    """

    description: str
    module: str
    function: str = "load"
    own_images: bool = False
    settings: tuple[str, ...] = ()

    def load_function(self) -> LoadFunction:
        """Import the function that loads the data set."""
        module = import_module(f"dskd.data.{self.module}")
        function: LoadFunction = getattr(module, self.function)
        return function


DATASETS: Mapping[str, DatasetEntry] = MappingProxyType(
    {
        "digits": DatasetEntry("handwritten digits, 8x8 gray, 10 classes, no download", "digits"),
        "cifar10": DatasetEntry("CIFAR-10, 32x32, 10 classes", "cifar", "load_cifar10"),
        "cifar100": DatasetEntry("CIFAR-100, 32x32, 100 classes", "cifar", "load_cifar100"),
        "tiny_imagenet": DatasetEntry("Tiny ImageNet, 64x64, 200 classes", "tiny_imagenet"),
        "folder": DatasetEntry(
            "your images, in ROOT/CLASS, or in ROOT/train/CLASS and ROOT/val/CLASS",
            "image_folder",
            own_images=True,
        ),
        "manifest": DatasetEntry(
            "your images, listed in a CSV, TSV, JSON lines or Parquet file",
            "manifest",
            own_images=True,
            settings=("image_column", "label_column", "split_column"),
        ),
        "hf": DatasetEntry(
            "your images in a data set of Hugging Face datasets, in a folder or on the Hub",
            "hf",
            own_images=True,
            settings=("image_column", "label_column", "hub"),
        ),
        "webdataset": DatasetEntry(
            "your images in tar shards, as the library webdataset writes them",
            "shards",
            own_images=True,
            settings=("image_column", "label_column", "shards"),
        ),
    }
)
"""Every data set, by the name that ``data.name`` takes."""

SOURCE_SETTINGS = tuple(dict.fromkeys(key for entry in DATASETS.values() for key in entry.settings))
"""Keys of ``data`` that only some data sets have."""

MANIFESTS = (".csv", ".tsv", ".jsonl", ".ndjson", ".parquet")
"""Suffixes of manifests."""


def are_files(name: str) -> bool:
    """Whether the images of a data set are the user's own files.

    Args:
        name: As ``data.name``.

    Example:
        >>> are_files("folder"), are_files("digits"), are_files("<dataset>")
        (True, False, False)
    """
    return name in DATASETS and DATASETS[name].own_images


def are_own(name: str) -> bool:
    """Whether the images are the user's own: `are_files`, or objects that were given in Python.

    Args:
        name: As ``data.name``.

    Example:
        >>> are_own("folder"), are_own("digits"), are_own("<dataset>")
        (True, False, True)
    """
    return name.startswith("<") or are_files(name)


def title(name: str, root: Path | None, hub: str | None = None) -> str:
    """What a reader calls the images: a data set, or the folder or file of the user's own.

    Args:
        name: As ``data.name``.
        root: As ``data.root``.
        hub: As ``data.hub``.

    Example:
        >>> title("digits", None), title("folder", Path("a/photos")), title("hf", None, "a/b")
        ('digits', 'photos', 'a/b')
    """
    if not are_files(name) or root is None:
        return hub or name
    path = root.expanduser().resolve()
    return (path.stem if path.suffix.lower() in MANIFESTS else path.name) or name


SAVED = ("dataset_dict.json", "state.json")
"""Files by which a folder is known that ``save_to_disk`` of the library ``datasets`` wrote."""
