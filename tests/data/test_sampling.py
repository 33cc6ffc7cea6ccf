"""Decoding a sample of the images."""

from __future__ import annotations

from pathlib import Path

from dskd.data.class_folders import scan
from dskd.data.read_options import read_options
from dskd.data.sampling import Sampling
from dskd.data.unlabelled_folder import scan_images
from tests.data.file_writers import write_folder


def test_sources_of_one_folder_have_samples_of_their_own(tmp_path: Path) -> None:
    """They list its files in different orders."""
    root = write_folder(tmp_path / "root", per_class=30, side=4)
    (root / "val").rename(root / "test")
    for path in (root / "train/cat").iterdir():
        path.write_bytes(b"no image")
    sampling, options = Sampling(0.0), read_options(4, None, workers=0)
    for source in (scan(root), scan_images(root, "data.unlabelled")):
        found = sampling.take(source, options, in_memory=False)
        assert found is not None
        assert found.bad
        names = source.all_names()
        assert all(names[row].startswith("train/cat/") for row in found.bad)
        assert sampling.take(source, options, in_memory=False) is found
