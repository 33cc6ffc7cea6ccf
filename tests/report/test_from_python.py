"""`dskd.write_report` with images and models that were given in Python."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import dskd
from tests.builders import make_dataset


@pytest.mark.slow(seconds=10)
def test_a_report_takes_the_images_and_models_of_its_run_again(tmp_path: Path) -> None:
    images = make_dataset(classes=3, per_class=8, size=16)
    student, teacher = (dskd.load_model(name, num_classes=3) for name in ("resnet8", "resnet14"))
    run = tmp_path / "run"
    dskd.distill(
        student,
        teacher={"module": teacher, "trust": True},
        data=images,
        train={"epochs": 1, "batch_size": 8},
        out=run,
        verbose=0,
    )
    with pytest.raises(dskd.InputError, match=r"or dskd\.write_report\(run, data=dataset\)$"):
        dskd.write_report(run, verbose=0)
    page, _, values, _ = dskd.write_report(
        str(run), tmp_path / "page.html", data=images, student=student, teacher=teacher, verbose=0
    )
    assert page == tmp_path / "page.html"
    report = json.loads(values.read_text())
    assert report["disagreements"]
    assert report["layer_similarity"]
