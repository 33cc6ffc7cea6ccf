"""The examples of the pages run: each page from its first block to its last, in a new folder.

Python blocks and the lines of shell blocks that call ``dskd`` are run, with one epoch and fewer
images. A block with a title is a file, which is written first.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from dskd.cli.commands import run_command
from dskd.deploy import latency
from dskd.engine.check import steps
from dskd.models.zoo import build
from tests import processes
from tests.data.file_writers import write_folder

ROOT = Path(__file__).parents[2]
PAGES = (
    "docs/quick-start.md",
    "docs/check.md",
    "docs/your-data.md",
    "docs/tutorials/digits.md",
    "docs/tutorials/photos.md",
    "docs/tutorials/compare.md",
    "docs/tutorials/tune.md",
    "docs/tutorials/own-module.md",
    "docs/tutorials/own-method.md",
    "docs/how-it-works/caching.md",
    "docs/faq.md",
)
BLOCK = re.compile(r'^```(\w+)(?: title="([^"]+)")?\n(.*?)^```$', re.MULTILINE | re.DOTALL)
FEW = "train.epochs=1 data.fraction=0.2 data.test_fraction=0.2"
DIGITS = '{"name": "digits", "fraction": 0.2, "test_fraction": 0.2}'
PHOTOS = "data.fraction=1 data.test_fraction=1 data.size=32 train.batch_size=4 train.lr=0.001"
"""At the rate of a long training, two steps leave a deep network of random weights unusable."""
SHORT = {
    "train": FEW,
    "distill": f"{FEW} teacher.epochs=1",
    "check": f"{FEW} teacher.epochs=1",
    "compare": f"{FEW} teacher.epochs=1",
    "tune": f"{FEW} teacher.epochs=1",
}


ELSEWHERE = f"""
import os, runpy, sys
for name in [name for name in sys.modules if name.partition(".")[0] in ("dskd", "tests")]:
    del sys.modules[name]
installed = [path for path in sys.path if path.startswith(sys.prefix)]
others = [path for path in sys.path if path and not path.startswith({str(ROOT)!r})]
sys.path = list(dict.fromkeys([*others, *installed]))
sys.path[:0] = [os.getcwd() + "/src", os.getcwd() + "/docs", os.getcwd()]
"""
"""Has a process that has imported the package import the one in its working directory."""


def blocks(page: str) -> list[tuple[str, str, str]]:
    """Language, title and text of each block of a page."""
    return BLOCK.findall((ROOT / page).read_text())


def shortened(line: str) -> list[str]:
    """The arguments of a line that calls ``dskd``."""
    few = re.sub(r"--(seeds|trials) \d+", r"--\1 2", line.partition("#")[0])
    words = re.sub(r"--epochs \d+", "", few).split()[1:]
    trains = words[0] in SHORT and any(word.startswith("photos") for word in words)
    own_images = PHOTOS if trains else ""
    return [*words, *SHORT.get(words[0], "").split(), *own_images.split()]


def shortened_code(text: str) -> str:
    """Python code whose runs have one epoch on a part of the digits."""
    text = re.sub(r'"epochs": \d+', '"epochs": 1', text).replace('data="digits"', f"data={DIGITS}")
    text = text.replace("for _ in range(8):", "for _ in range(2):")
    return re.sub(r'"name": "digits"(?!, "fraction")', DIGITS.strip("{}"), text)


@pytest.mark.slow(seconds=4)
@pytest.mark.parametrize("page", PAGES)
def test_the_examples_of_a_page_run(
    page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(latency, "SECONDS", 0.0)
    monkeypatch.setattr(steps, "STEPS", 3)
    (write_folder(tmp_path / "split") / "train").rename(tmp_path / "photos")
    names: dict[str, object] = {"__name__": "example"}
    for language, title, text in blocks(page):
        if title:
            Path(title).write_text(text)
        elif language == "python":
            exec(compile(shortened_code(text), page, "exec"), names)
        elif language == "sh":
            for line in re.findall(r"^dskd .*", text, re.MULTILINE):
                done = run_command(shortened(line))
                assert done == 0 or "--resume" in line, line  # a finished run is not resumed


def train_my_network(images: Tensor, labels: Tensor) -> nn.Module:
    """The reader's own code: a network that is trained on pixels from 0 to 1."""
    net = build("resnet8", num_classes=10, in_channels=1)
    optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
    for few, own in zip(torch.split(images, 64), torch.split(labels, 64), strict=True):
        optimizer.zero_grad()
        torch.autograd.backward(nn.functional.cross_entropy(net(few), own))
        optimizer.step()
    return net


@pytest.mark.slow
def test_the_python_examples_of_the_readme_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    caplog.set_level("INFO", "dskd")
    names: dict[str, object] = {"train_my_network": train_my_network}
    for language, _, text in blocks("README.md"):
        if language == "python":
            exec(compile(text.replace("epochs=3", "epochs=1"), "README.md", "exec"), names)
    assert "the teacher <ResNet> gets pixels from 0 to 1" in caplog.messages


@pytest.mark.slow(seconds=15)
def test_a_method_can_be_added_as_the_tutorial_says(tmp_path: Path) -> None:
    for folder in ("src", "tests", "docs", "benchmarks", "evidence", "examples"):
        shutil.copytree(ROOT / folder, tmp_path / folder)  # with what Python has compiled
    for file in ROOT.iterdir():
        if file.is_file() and not file.name.startswith("."):
            shutil.copy(file, tmp_path)
    for _, title, text in blocks("docs/tutorials/add-a-method.md"):
        if title:
            (tmp_path / title).write_text(text)
    environment = {"OMP_NUM_THREADS": "1", "PATH": ""}

    def run(*words: str) -> None:
        code = f"{ELSEWHERE}sys.argv = {[*words]!r}\nrunpy.run_"
        is_module = not words[0].endswith(".py")
        code += f"{'module' if is_module else 'path'}({words[0]!r}, run_name='__main__')"
        done = processes.run(["-c", code], folder=tmp_path, environment=environment)
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]

    own = ("tests/methods/test_mimic.py", "tests/methods/test_hint.py")
    general = ("tests/methods/test_every_method.py", "tests/methods/test_presets.py")
    tests = (*own, *general, "tests/losses/test_misfits.py")
    run("docs/write_methods.py")
    run("docs/write_settings.py")
    # All tests of the pages, in the process of the others: each imports the package anew.
    chosen = (*tests, "tests/docs/test_docs.py", "-k", "mimic or hint or test_docs")
    run("pytest", "-q", "-p", "no:cacheprovider", *chosen)
    for page in ("docs/methods/README.md", "docs/settings.md", "docs/how-it-works/caching.md"):
        assert "mimic" in (tmp_path / page).read_text()
    readme = (tmp_path / "README.md").read_text()
    assert "[mimic](https://arxiv.org/abs/1312.6184)" in readme
    assert "[hint](https://arxiv.org/abs/1412.6550)" in readme
    run("dskd", *shortened("dskd distill digits method.name=mimic method.kd=0.05"))
