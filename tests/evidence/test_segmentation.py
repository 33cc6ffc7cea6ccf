"""The studies on segmentation: their runs, and their page from their numbers."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path

import pytest
from evidence.segmentation import ROWS, main, page
from PIL import Image

from evidence import segmentation
from tests.segmentation.test_folders import write

pytestmark = pytest.mark.skipif(find_spec("monai") is None, reason="monai is not installed")


def test_the_page_compares_each_row_with_the_baseline_of_its_table() -> None:
    def runs(*dice: float) -> list[dict[str, float | None]]:
        known = {"hd95": 2.0, "hd95_images": 9, "decoder_a": None}
        return [{"dice": one, **known} for one in dice]

    results = {study: {row.name: runs(50, 51, 52) for row in rows} for study, rows in ROWS.items()}
    results["mixed"]["all"] = runs(55.0, 56.1, 57.0)
    results["mixed"]["all"][0]["decoder_a"] = 40.0  # one of three is not enough to name the row
    lost = {"dice": 1.0, "hd95": None, "hd95_images": 0, "decoder_a": None}
    results["mixed"]["seeds"] = [lost] * 3
    results["mixed"]["both"] = [run | {"decoder_a": 45.0} for run in runs(50, 51, 52)]
    environment = {"packages": {}, "processor": "", "device": "cpu", "threads": 1, "python": "3"}
    text = page(
        {
            "study": "segmentation",
            "command": "make",
            "changes": [],
            "commit": "0",
            "date": "",
            "environment": environment,
            "teacher": {"dice": 70.0},
            "results": results,
        }
    )
    (better,) = (line for line in text.splitlines() if "| better |" in line)
    assert "masks and seeds, with KL and entropy | 56.0 ± 2.5 | 2.0" in better
    assert "| +5.0 ± 0.1 | < 0.001 |" in better
    assert "| masks only | 51.0 ± 2.5 | 2.0 (9) | | | |" in text
    (seeds,) = (line for line in text.splitlines() if line.startswith("| seeds only"))
    assert "| - |" in seeds
    assert "in all images where there is something to find: 3 (seeds only)." in text
    assert "has a mean Dice after the last epoch of 45.0 % (masks and seeds)." in text
    assert "Against masks only, in points of Dice. Better: masks and seeds, with KL and" in text
    assert "Worse: seeds only (-50.0" in text
    assert "Against KD at every pixel, in points of Dice. Not shown to differ: student" in text


@pytest.mark.slow
def test_the_studies_go_on_where_they_were_and_write_their_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for split, patients in (("train", 8), ("val", 2)):
        for patient in range(patients):
            write(tmp_path / "heart" / split, f"patient{split}{patient}_1")
    few = {"mixed": ROWS["mixed"][:3], "dense": ROWS["dense"][1:2]}
    monkeypatch.setattr(segmentation, "ROWS", few)
    monkeypatch.setattr(segmentation, "page", json.dumps)
    monkeypatch.setattr(segmentation, "draw", lambda *_: Image.new("L", (4, 4)))
    small = ["data.size=16", "student.width=2", "teacher.width=2", "train.epochs=1"]
    paths = [str(tmp_path / "heart"), str(tmp_path / "out")]
    runs = tmp_path / "out/segmentation"
    for _ in range(2):
        main([*paths, *small, "--seeds=1", f"--results={tmp_path / 'results'}"])
        facts = json.loads((tmp_path / "results/segmentation.json").read_text())
        names = {study: set(rows) for study, rows in facts["results"].items()}
        assert names == {"mixed": {"masks", "seeds", "both"}, "dense": {"kd"}}
        files = sorted(runs.rglob("result.json"))
        assert len(files) == 5  # the teacher's, too
        stamps = [path.stat().st_mtime_ns for path in files]
    assert (runs / "predictions.png").is_file()
    assert stamps == [path.stat().st_mtime_ns for path in files]
    monkeypatch.undo()
    assert segmentation.draw(runs, ("masks", "both")).size == (3 * 16, 2 * 16)
