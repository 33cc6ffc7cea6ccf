"""Results of runs that go to another machine."""

from __future__ import annotations

import json
import tarfile
from importlib.util import find_spec
from pathlib import Path

import pytest

from evidence import graphs, records
from tests.graphs.small_graphs import write

pytestmark = pytest.mark.skipif(
    find_spec("torch_geometric") is None, reason="torch_geometric is not installed"
)


@pytest.mark.slow
def test_a_study_goes_on_elsewhere_with_the_runs_that_have_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(graphs, "GRAPHS", ("ring",))
    monkeypatch.setattr(graphs, "METHODS", ("alone", "dskd"))
    archive = tmp_path / "kept" / "graphs.tar.xz"
    changes = ["train.epochs=1", "student.hidden=4", "teacher.hidden=4"]
    for seeds, place in ((1, "first"), (2, "second")):
        data, out = tmp_path / place / "data", tmp_path / place / "out"
        data.mkdir(parents=True)
        write(data / "ring.npz")
        if place == "second":
            assert records.unpack(data, out, archive) > 0
            assert records.unpack(data, out, archive) == 0
        found = graphs.compute(data, out, changes, seeds)
        if place == "first":
            once = found["graphs"]["ring"]["methods"]["dskd"]["seeds"]
            records.main(["pack", str(data), str(out), str(archive), "ring"])
    twice = found["graphs"]["ring"]["methods"]["dskd"]["seeds"]
    assert twice[:1] == once
    assert len(twice) == 2
    assert not list(out.rglob("seed0/student.safetensors")), "only seed 1 was trained here"
    assert list(out.rglob("seed1/student.safetensors"))


def test_an_archive_names_no_folder_of_the_machine(tmp_path: Path) -> None:
    data, out = tmp_path / "data", tmp_path / "out"
    run = out / "study" / "kd" / "seed0"
    run.mkdir(parents=True)
    paths = {"root": str(data), "out": str(run)}
    (run / "result.json").write_text(json.dumps(paths))
    (run / "student.safetensors").write_bytes(b"weights")
    command = {"command": ["study.py", str(data), "/home/somebody"], "processor": "a CPU"}
    (run / "environment.json").write_text(json.dumps(command))
    assert records.pack(data, out, tmp_path / "kept.tar.xz", ["study"]) == 1
    with tarfile.open(tmp_path / "kept.tar.xz") as tar:
        kept = {member.name: tar.extractfile(member) for member in tar.getmembers()}
        read = {name: json.loads(file.read()) for name, file in kept.items() if file is not None}
    folder = "study/kd/seed0"
    assert read == {
        f"{folder}/result.json": {"root": "{DATA}", "out": f"{{OUT}}/{folder}"},
        f"{folder}/environment.json": {"command": ["study.py"], "processor": "a CPU"},
    }
    there = tmp_path / "there"
    records.unpack(data, there, tmp_path / "kept.tar.xz")
    moved = json.loads((there / "study/kd/seed0/result.json").read_text())
    assert moved == {"root": str(data), "out": str(there / "study/kd/seed0")}


def test_bad_archives_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "damaged.tar.xz").write_bytes(b"no archive")
    for words in (
        ["unpack", str(tmp_path), str(tmp_path), str(tmp_path / "damaged.tar.xz")],
        ["unpack", str(tmp_path), str(tmp_path), str(tmp_path / "missing.tar.xz")],
        ["pack", str(tmp_path), str(tmp_path), str(tmp_path / "new.tar.xz"), "nothing"],
    ):
        with pytest.raises(SystemExit) as ended:
            records.main(words)
        assert ended.value.code == 2
        assert len(capsys.readouterr().err.splitlines()) == 1
    assert not (tmp_path / "new.tar.xz").exists()
