"""The folder ``data.unlabelled``: what is read, what is left out, what is refused."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from dskd.config.schema import DataSettings
from dskd.data import Dataset
from dskd.data.file_split import FileSplit
from dskd.data.loader import NO_LABEL
from dskd.engine.build_data import load_data, load_training_data
from dskd.errors import InputError
from tests.builders import make_dataset
from tests.data.file_writers import write_folder


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write_folder(tmp_path / "root", per_class=5, val_per_class=2, side=8)


@pytest.fixture
def others(tmp_path: Path) -> Path:
    """Four images at different depths, beside what is no image."""
    folder = tmp_path / "others"
    for number, name in enumerate(("a.png", "b/c.png", "b/d/e.png", "b/d/f.jpg")):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((12, 10, 3), 60 * number, np.uint8)).save(folder / name)
    (folder / "notes.txt").write_text("no image")
    (folder / "__MACOSX").mkdir()
    shutil.copy(folder / "a.png", folder / "__MACOSX/a.png")
    return folder


def load(root: Path, unlabelled: Path, **settings: Any) -> Dataset:
    chosen = {"name": "folder", "root": root, "unlabelled": unlabelled, **settings}
    return load_training_data(DataSettings.model_validate(chosen))


def test_images_at_any_depth_get_the_size_of_the_others(root: Path, others: Path) -> None:
    data = load(root, others)
    assert data.unlabelled is not None
    assert list(data.unlabelled.names) == ["a.png", "b/c.png", "b/d/e.png", "b/d/f.jpg"]
    assert data.unlabelled.sample_shape == data.shape == (3, 8, 8)
    assert data.unlabelled.labels.tolist() == [NO_LABEL] * 4
    means = data.unlabelled.images.float().mean((1, 2, 3))
    torch.testing.assert_close(means, torch.tensor([0.0, 60, 120, 180]), atol=2, rtol=0)
    assert data.train.labels.min() == 0
    assert any("data.unlabelled: 4 images from" in note for note in data.notes)


def test_streamed_images_are_those_in_memory(root: Path, others: Path) -> None:
    streamed = load(root, others, loading="stream", workers=4, unlabelled_share=0.25)
    kept = load(root, others, loading="memory")
    assert isinstance(streamed.unlabelled, FileSplit)
    assert isinstance(streamed.train, FileSplit)
    assert (streamed.train.workers, streamed.unlabelled.workers) == (3, 1)
    assert kept.unlabelled is not None
    assert torch.equal(streamed.unlabelled.images, kept.unlabelled.images)
    assert list(streamed.unlabelled.names) == list(kept.unlabelled.names)


def test_decoded_images_come_from_the_cache_until_a_file_changes(
    root: Path, others: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = load(root, others)
    with monkeypatch.context() as patch:
        patch.setattr("dskd.data.own_images.decode_all", None)
        assert load(root, others).fingerprint() == first.fingerprint()
    Image.fromarray(np.full((12, 10, 3), 255, np.uint8)).save(others / "a.png")
    assert load(root, others).fingerprint() != first.fingerprint()


@pytest.mark.parametrize("loading", ["memory", "stream"])
@pytest.mark.parametrize("folder", ["", "train", "train/cat", ".."])
def test_images_of_the_data_set_are_left_out(root: Path, folder: str, loading: str) -> None:
    """So the rest of the training images can be given as they lie there."""
    data = load(root, root / folder, fraction=0.4, loading=loading, workers=0)
    assert len(data.train) == 6
    assert data.unlabelled is not None
    start = f"{folder}/" if folder.startswith("train") else f"{root.name}/" if folder else ""
    inside = folder if folder.startswith("train") else ""
    names = {(f"{inside}/" if inside else "") + name for name in data.unlabelled.names}
    if folder == "..":
        names = {name.removeprefix(start) for name in data.unlabelled.names}
    assert not names & {*data.train.names, *data.test.names}
    assert len(names) == (3 if folder == "train/cat" else 9)
    assert any("more are images of the data set" in note for note in data.notes)


def test_a_held_out_test_split_is_left_out(root: Path) -> None:
    shutil.rmtree(root / "val")
    data = load(root / "train", root / "train", fraction=0.5, test_split=0.2)
    assert data.unlabelled is not None
    names = [{*split.names} for split in (data.train, data.test, data.unlabelled)]
    assert sum(map(len, names)) == len(set.union(*names)) == 15


def test_evaluation_does_not_read_it(root: Path, others: Path) -> None:
    settings = DataSettings.model_validate(
        {"name": "folder", "root": root, "unlabelled": others / "missing"}
    )
    assert load_data(settings).unlabelled is None


def test_other_data_sets_take_a_folder_too(others: Path) -> None:
    settings: dict[str, Any] = {"name": "digits", "unlabelled": others, "loading": "stream"}
    data = load_training_data(DataSettings.model_validate({**settings, "workers": 0}))
    assert isinstance(data.unlabelled, FileSplit)
    assert data.unlabelled.sample_shape == data.shape == (1, 8, 8)
    given = make_dataset(size=8)
    settings = {"name": "<Dataset>", "unlabelled": others}
    joined = load_training_data(DataSettings.model_validate(settings), given)
    assert joined.unlabelled is not None
    assert len(joined.unlabelled) == 4


@pytest.mark.parametrize("loading", ["memory", "stream"])
def test_images_are_cropped_as_the_others(root: Path, others: Path, loading: str) -> None:
    how: dict[str, Any] = {"crop_pct": 0.5, "loading": loading, "workers": 0}
    data = load(root, others, size=8, **how)
    assert data.unlabelled is not None
    assert len(data.unlabelled) == 4
    if isinstance(data.unlabelled, FileSplit):
        assert data.unlabelled.form.crop_pct == 0.5
    own = DataSettings.model_validate({"name": "digits", "unlabelled": others, **how})
    assert load_training_data(own).unlabelled is not None  # the size is that of the data set


def test_links_to_images_of_the_data_set_are_left_out(root: Path, others: Path) -> None:
    (root / "val/cat/link.png").symlink_to(others / "a.png")
    (others / "link.png").symlink_to(root / "val/cat/0.png")
    (others / "folder").symlink_to(root / "train/owl")
    data = load(root, others, size=8)
    assert data.unlabelled is not None
    assert list(data.unlabelled.names) == ["b/c.png", "b/d/e.png", "b/d/f.jpg"]
    assert any("as 7 more are images of the data set" in note for note in data.notes)


def test_checks_of_the_same_folder_with_and_without_labels_are_kept_apart(root: Path) -> None:
    """The first lists training images first, the second lists them by name."""
    (root / "val").rename(root / "test")
    (root / "train/cat/0.png").write_bytes(b"no image")
    how: dict[str, Any] = {"size": 8, "loading": "stream", "workers": 0, "skip_bad": True}
    data = load(root, root, fraction=0.5, **how)
    assert data.unlabelled is not None
    assert "train/cat/0.png" not in data.unlabelled.names
    assert all(line.startswith("train/cat/0.png: ") for line in data.skipped)


def test_what_cannot_be_used_is_refused_in_a_line(root: Path, others: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for unlabelled, message in (
        (tmp_path / "none", r"data\.unlabelled: .*none does not exist"),
        (tmp_path / "empty", r"data\.unlabelled: .* holds no image"),
        (root / "val", "no image that folder lacks"),
    ):
        with pytest.raises(InputError, match=message) as caught:
            load(root, unlabelled)
        assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match=r"data\.unlabelled_share"):
        load_training_data(DataSettings(name="digits", unlabelled_share=0.3))
    (others / "b" / "bad.png").write_bytes(b"no image")
    with pytest.raises(InputError, match=r"bad\.png"):
        load(root, others)
    data = load(root, others, skip_bad=True)
    assert data.unlabelled is not None
    assert len(data.unlabelled) == 4
    assert any("bad.png" in line for line in data.skipped)
