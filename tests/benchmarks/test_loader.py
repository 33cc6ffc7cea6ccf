"""The benchmark of the loaders: every loader gives the batches that it is timed on."""

from __future__ import annotations

import argparse
from pathlib import Path

import loader
import pytest
import torch

from tests.data.file_writers import write_folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_folder(tmp_path, per_class=8, val_per_class=1) / "train"


@pytest.mark.slow
def test_every_loader_is_timed_on_normalised_batches(folder: Path, tmp_path: Path) -> None:
    loader.enlarge(folder, tmp_path / "large", 40, 30)
    for name, batches in loader.LOADERS.items():
        found = list(batches(tmp_path / "large", 32, 4, 0))
        assert len(found) == 6, name
        values = torch.cat(found)
        assert values.shape[1:] == (3, 32, 32), name
        assert -2.2 < float(values.min()) < float(values.max()) < 2.7, name


@pytest.mark.slow
def test_the_table_has_rates_and_ratios(folder: Path) -> None:
    options = argparse.Namespace(size=16, batch_size=4, workers=0, batches=2, rounds=2)
    rates = loader.measure(folder, options)
    assert {name: len(values) for name, values in rates.items()} == dict.fromkeys(rates, 2)
    assert set(rates) == {"dskd", "torchvision", "timm"}
    rates = {"dskd": [30.0, 40.0], "torchvision": [20.0, 20.0], "timm": [30.0, 20.0]}
    lines = loader.table(rates).splitlines()
    assert "20 (20 to 20)" in lines[2]
    assert lines[2].endswith(" 1.75 (1.50 to 2.00)")


def test_a_folder_of_few_images_is_said_to_be_small() -> None:
    with pytest.raises(SystemExit, match="too few images"):
        loader.images_per_second(iter([torch.zeros(4, 3, 8, 8)]), 2, 8)
