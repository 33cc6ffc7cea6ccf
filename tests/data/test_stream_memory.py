"""The memory of a million images that are streamed."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

SCRIPT = """
import json, sys
from pathlib import Path
import numpy as np, psutil, torch
from dskd.data.epoch_plan import draw_plan
from dskd.data.file_split import FileSplit
from dskd.data.folder_files import ListedFiles
from dskd.data.path_list import PathList
from dskd.data.pixels import RGB
from dskd.data.stream_decoding import BatchDecoder

def black(self, job):
    assert self.files.names[int(job.indices[-1])]
    return torch.zeros(len(job.indices), *self.shape, dtype=torch.uint8)

BatchDecoder.__call__ = black
def bytes_of(count):
    names = PathList(f"train/n{i % 1000:08d}/n{i % 1000:08d}_{i:08d}.JPEG" for i in range(count))
    facts = np.zeros(count, np.int64)
    files = ListedFiles(Path("/nowhere"), names, facts, facts.copy())
    labels = torch.arange(count) % 1000
    split = FileSplit(files, labels, (3, 8, 8), True, RGB, workers=2)
    batches = split.loader(torch.device("cpu")).batches(draw_plan(0, 0, count, flip=True), 64)
    for step in range(12):
        next(batches)
    here = psutil.Process()
    family = [here, *here.children()]
    assert len(family) == 3
    found = sum(process.memory_full_info().pss for process in family)
    batches.close()
    return found

few = bytes_of(1000)
print(json.dumps([few, bytes_of(1_000_000)]))
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="only Linux says what processes share")
def test_a_million_images_take_less_than_300_mb_in_all_processes() -> None:
    """Names, labels, order, seeds and views; not the programs, which a few images need too."""
    done = subprocess.run([sys.executable, "-c", SCRIPT], check=True, capture_output=True)
    few, many = json.loads(done.stdout)
    assert many - few < 300e6
