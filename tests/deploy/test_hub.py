"""Students are saved and loaded as huggingface_hub does it, in a local folder."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import HfApi, ModelCard

import dskd
from dskd.cli.commands import run_command
from dskd.errors import InputError
from tests.builders import make_dataset


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[dskd.Result, Path]:
    """A run, and the folder in which its student was saved."""
    folder = tmp_path_factory.mktemp("hub")
    data = {"name": "digits", "fraction": 0.1}
    run = dskd.train("resnet8", data=data, epochs=1, out=folder / "run")
    student = dskd.load_deployed(run.path)
    student.save_pretrained(folder / "saved", model_card_kwargs={"license": "apache-2.0"})
    return run, folder / "saved"


def test_a_saved_student_is_the_same_to_the_bit(saved: tuple[dskd.Result, Path]) -> None:
    run, folder = saved
    assert sorted(path.name for path in folder.iterdir()) == [
        "README.md",
        "config.json",
        "model.safetensors",
    ]
    images = torch.randint(0, 256, (3, 1, 8, 8), dtype=torch.uint8)
    before = dskd.load_deployed(run.path)
    for again in (dskd.DeployedStudent.from_pretrained(folder), dskd.load_deployed(folder)):
        assert (again.classes, again.shape, again.form) == (
            before.classes,
            before.shape,
            before.form,
        )
        with torch.no_grad():
            assert torch.equal(again.model(images).logits, before.model(images).logits)
    config = json.loads((folder / "config.json").read_text())
    assert config["dskd"]["model"] == "resnet8"


def test_its_card_has_the_accuracy_of_the_run_and_stays(
    saved: tuple[dskd.Result, Path], tmp_path: Path
) -> None:
    run, folder = saved
    card = ModelCard.load(folder / "README.md")
    assert card.data.license == "apache-2.0"
    assert f"in its run: {run.test_accuracy:.2f} %" in card.text
    assert "DeployedStudent.from_pretrained" in card.text
    dskd.DeployedStudent.from_pretrained(folder).save_pretrained(tmp_path / "again")
    assert (tmp_path / "again/README.md").read_text() == (folder / "README.md").read_text()


def test_a_licence_is_written_into_a_card_that_stays(
    saved: tuple[dskd.Result, Path], tmp_path: Path
) -> None:
    student = dskd.DeployedStudent.from_pretrained(saved[1])
    student.save_pretrained(tmp_path / "again", model_card_kwargs={"license": "mit"})
    card = ModelCard.load(tmp_path / "again/README.md")
    assert card.data.license == "mit"
    assert "Licence of the weights: mit." in card.text
    assert "apache" not in card.content


def test_another_student_in_the_same_folder_has_its_own_card(
    saved: tuple[dskd.Result, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    student, card = dskd.load_deployed(saved[0].path), tmp_path / "README.md"
    student.save_pretrained(tmp_path)
    other = replace(student, classes=tuple("abcdefghij"))
    other.save_pretrained(tmp_path)
    assert "0. `a`\n1. `b`" in card.read_text()
    assert not caplog.messages
    card.write_text("My own notes.")
    student.save_pretrained(tmp_path)
    assert card.read_text() == "My own notes."
    assert f"{card} stays, because dskd did not write it" in caplog.text
    caplog.clear()
    dskd.DeployedStudent.from_pretrained(tmp_path).save_pretrained(tmp_path)
    assert not caplog.messages


def test_it_is_uploaded_with_its_card(
    saved: tuple[dskd.Result, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    uploaded: dict[str, Any] = {}

    class Repository:
        repo_id = "me/digits"

    def upload(_: HfApi, *, folder_path: Path, **options: Any) -> str:
        uploaded.update(options, files=sorted(path.name for path in folder_path.iterdir()))
        return "done"

    monkeypatch.setattr(HfApi, "create_repo", lambda *_, **__: Repository())
    monkeypatch.setattr(HfApi, "upload_folder", upload)
    student = dskd.load_deployed(saved[0].path)
    assert student.push_to_hub("me/digits") == "done"
    assert uploaded["repo_id"] == "me/digits"
    assert uploaded["files"] == ["README.md", "config.json", "model.safetensors"]


@pytest.mark.slow
def test_commands_take_the_folder(saved: tuple[dskd.Result, Path], tmp_path: Path) -> None:
    out = tmp_path / "student.pt2"
    assert run_command(["export", str(saved[1]), "--out", str(out), "--no-measure"]) == 0
    assert out.is_file()


def test_commands_know_that_the_folder_has_one_student(
    saved: tuple[dskd.Result, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command(["export", str(saved[1]), "--best"]) == 2
    assert "has one student; do not choose weights" in capsys.readouterr().err


def test_what_is_no_student_is_refused_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"model.safetensors; check the path"):
        dskd.DeployedStudent.from_pretrained(tmp_path)
    with pytest.raises(InputError, match=r"cannot load a student from \.\./no such name"):
        dskd.DeployedStudent.from_pretrained("../no such name", local_files_only=True)


def test_a_module_of_the_users_own_is_given_again(tmp_path: Path) -> None:
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.Flatten(), torch.nn.Linear(784, 4))
    data = make_dataset(4, per_class=3)
    run = dskd.train(net, data=data, train={"epochs": 1, "batch_size": 4}, out=tmp_path / "run")
    dskd.load_deployed(run.path, student=net).save_pretrained(tmp_path / "saved")
    with pytest.raises(InputError, match="given in Python as <Sequential>"):
        dskd.DeployedStudent.from_pretrained(tmp_path / "saved")
    again = dskd.DeployedStudent.from_pretrained(tmp_path / "saved", student=net)
    for key, value in again.model.module.state_dict().items():
        assert torch.equal(value, run.student.state_dict()[key])
