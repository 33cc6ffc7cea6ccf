"""Text is taken as it stands: ``key=value`` is typed by the setting, and paths are paths."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import dskd
from dskd.cli.commands import run_command
from dskd.compare.variants import method_variants
from dskd.config import recipe
from dskd.errors import InputError

AS_IT_STANDS = [
    "run #1",
    "#1",
    "a: b",
    "@home",
    "*",
    "&a",
    "!tag",
    "%x",
    "`x`",
    "2024-11-28",
    "on",
    "No",
    "true",
    "007",
    "0x1F",
    "1_000",
    "1e3",
    ".inf",
    " both ends ",
    "{braces}",
    "[brackets]",
    '"quotes"',
    "'quotes'",
    "a=b",
    "- dash",
    "NULL",
    "None",
    "café",
]


@pytest.mark.parametrize("text", AS_IT_STANDS)
@pytest.mark.parametrize("key", ["out", "data.root", "data.cache_dir", "teacher.checkpoint"])
def test_a_path_is_taken_as_it_stands(key: str, text: str) -> None:
    loaded = recipe.load("digits", [f"{key}={text}"])
    section, _, last = key.rpartition(".")
    found = getattr(getattr(loaded, section) if section else loaded, last)
    assert found == Path(text)


@pytest.mark.parametrize("text", AS_IT_STANDS)
def test_a_name_is_taken_as_it_stands(text: str) -> None:
    loaded = recipe.load("digits", [f"student.name={text}", f"student.stages=[x, '{'y'}']"])
    assert loaded.student.name == text
    assert loaded.student.stages == ["x", "y"]
    with pytest.raises(InputError, match="unknown data set") as refusal:
        recipe.load("digits", [f"data.name={text}"])
    assert text in str(refusal.value) or repr(text)[1:-1] in str(refusal.value)


def test_null_is_none_where_a_setting_may_be_none() -> None:
    loaded = recipe.load("digits", ["data.root=null", "data.size=null", "student.stages=null"])
    assert (loaded.data.root, loaded.data.size, loaded.student.stages) == (None, None, None)
    assert recipe.load("digits", ["data.root=./null"]).data.root == Path("null")
    assert recipe.load("digits", ["student.name=null"]).student.name == "null"


@pytest.mark.parametrize("key", ["out", "data.root", "data.size", "train.lr", "student.stages"])
def test_an_empty_value_is_refused(key: str) -> None:
    """As that of a shell's variable that is not set. It was None, and so the default."""
    with pytest.raises(InputError, match=f"^{key}: .* is needed.*got ''$"):
        recipe.load("digits", [f"{key}="])


@pytest.mark.parametrize(
    ("change", "value"),
    [
        ("seed=010", 10),
        ("seed= 7 ", 7),
        ("train.epochs=1e3", 1000),
        ("train.lr=1e-2", 0.01),
        ("train.milestones=[0.5, .75]", (0.5, 0.75)),
        ("data.flip=on", True),
        ("data.flip=no", False),
        ("data.flip=False", False),
        ("data.classes=5", 5),
        ("data.classes=[007, on, 2024-11-28, null, 1]", ["007", "on", "2024-11-28", "null", "1"]),
        ("student.options={drop: 0.5, name: 'on'}", {"drop": 0.5, "name": "on"}),
        ("teacher.lr=null", None),
    ],
)
def test_other_types_keep_their_forms(change: str, value: object) -> None:
    loaded = recipe.load("digits", ["train.schedule=step", change]).model_dump()
    for part in change.partition("=")[0].split("."):
        loaded = loaded[part]
    assert loaded == value


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ("train.epochs=0x10", "a whole number is needed, got '0x10'"),
        ("train.lr=1:30", "a number is needed, got '1:30'"),
        ("train.lr=true", "a number is needed, got true"),
        ("train.lr=nan", "train.lr: .*got nan"),
        ("data.classes=cat,dog", "how many classes.*or a list"),
        ("data.classes=[cat #1, dog]", "data.classes: the value .* is not YAML"),
        ("student.stages=layer1", "a list is needed, as in"),
        ("student=resnet8", "student holds settings"),
    ],
)
def test_what_does_not_fit_is_refused(change: str, match: str) -> None:
    with pytest.raises(InputError, match=match):
        recipe.load("digits", [change])


def test_a_method_types_its_own_settings() -> None:
    changes = ["method.feature_loss=cosine", "method.beta=03", "method.supervise=[1]"]
    for order in ([*changes, "method.name=dskd"], ["method.name=dskd", *changes]):
        options = recipe.load("digits", order).method.options
        assert options["feature_loss"] == "cosine"
        assert options["beta"] == 3
        assert options["supervise"] == [1]
    kd = recipe.load("digits", ["method.temperature=2", "method.name=kd"])
    assert kd.method.options["temperature"] == 2
    whole = recipe.load("digits", ["method={name: kd, ce: 0.5}", "method.temperature=2"])
    assert whole.method.options["ce"] == 0.5
    assert whole.method.options["temperature"] == 2


def test_the_methods_of_a_comparison_are_typed_too() -> None:
    digits = recipe.load("digits")
    [one] = method_variants(["dskd:beta=03:feature_loss=cosine"], digits, "equal")
    assert one.method.options["beta"] == 3
    assert one.method.options["feature_loss"] == "cosine"
    with pytest.raises(InputError, match=r"'30' is not key=value"):
        method_variants(["dskd:beta=1:30"], digits, "equal")


@pytest.mark.parametrize(
    "text", ["on", "OFF", "007", "08", "2024-11-28", "0x1F", "1_0", "1:30", "12E4"]
)
def test_a_recipe_file_changes_no_text(tmp_path: Path, text: str) -> None:
    """YAML 1.1 reads these as true, false, 7, a date, 31, 1000 and 90."""
    path = tmp_path / "r.yaml"
    path.write_text(
        f"data: {{name: digits, classes: [{text}, a]}}\nstudent: {{name: {text}}}\n"
        f"method: {{name: ce}}\nout: {text}\n"
    )
    loaded = recipe.load(str(path))
    assert loaded.student.name == text
    assert loaded.out == Path(text)
    assert loaded.data.classes == [text, "a"]
    for quote in "'", '"':
        path.write_text(path.read_text().replace(f"name: {text}", f"name: {quote}{text}{quote}"))
        assert recipe.load(str(path)).student.name == text


@pytest.mark.parametrize("text", ["on", "no", "007", "08", "2024-11-28", "0x1F", "1e-3"])
def test_what_may_be_text_or_not_is_refused_in_options_of_any_type(
    tmp_path: Path, text: str
) -> None:
    path = tmp_path / "r.yaml"
    options = f"{{deep: [{{x: {text}}}]}}"
    path.write_text(
        f"data: {{name: digits}}\nstudent: {{name: timm/a, options: {options}}}\n"
        "method: {name: ce}\n"
    )
    for name, changes in ((str(path), []), ("digits", [f"student.options={options}"])):
        with pytest.raises(InputError, match=rf"student.options.deep.0.x: {text} may be text"):
            recipe.load(name, changes)
    loaded = recipe.load("digits", [f"student.options.x='{text}'", "student.options.y=0.001"])
    assert loaded.student.options == {"x": text, "y": 0.001}


def test_a_number_of_a_file_is_decimal(tmp_path: Path) -> None:
    """YAML 1.1 reads 010 as 8."""
    path = tmp_path / "r.yaml"
    path.write_text(
        "data: {name: digits, flip: yes}\nstudent: {name: resnet8}\nmethod: {name: ce}\nseed: 010\n"
    )
    loaded = recipe.load(str(path))
    assert loaded.seed == 10
    assert loaded.data.flip is True


def _images(root: Path, level: int) -> None:
    for part in ("train", "val"):
        for name in "ab":
            folder = root / part / name
            folder.mkdir(parents=True)
            for index in range(4):
                pixels = np.full((16, 16, 3), level + index, np.uint8)
                Image.fromarray(pixels).save(folder / f"{index}.png")


def test_images_and_run_of_a_command_are_those_that_it_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What follows `` #`` was a comment, so other images were trained on."""
    monkeypatch.chdir(tmp_path)
    _images(Path("images"), 50)
    _images(Path("images #2"), 200)
    Path("r.yaml").write_text(
        "data: {name: folder, size: 16}\nstudent: {name: resnet8}\nmethod: {name: ce}\n"
        "train: {epochs: 1, batch_size: 4, device: cpu}\n"
    )
    assert run_command(["train", "r.yaml", "data.root=images #2", "out=run #1"]) == 0
    assert not Path("run").exists()
    written = recipe.load("run #1/recipe.yaml")
    assert written.data.root == tmp_path / "images #2"
    assert run_command(["evaluate", "run #1"]) == 0


def test_python_takes_paths_as_text_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _images(tmp_path / "images", 50)
    monkeypatch.setenv("HOME", str(tmp_path))
    whole = dskd.load_dataset("folder", root=tmp_path / "images", cache_dir=tmp_path / "cache")
    for root in (str(tmp_path / "images"), "~/images", Path("~/images")):
        again = dskd.load_dataset("folder", root=root, cache_dir="~/cache")
        assert torch.equal(again.train.images, whole.train.images)
    for wrong in ("", 7, None):
        with pytest.raises(InputError, match="a path is needed"):
            dskd.load_deployed(wrong)  # type: ignore[arg-type]


def test_a_tilde_is_the_home_folder_everywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A shell does not expand it within a word, as in ``out=~/run`` or ``--out=~/run``."""
    monkeypatch.setenv("HOME", str(tmp_path))
    assert recipe.load("digits", ["out=~/run"]).out == tmp_path / "run"
    for command in (["evaluate", "~/run"], ["report", "~/run"], ["export", "~/run"]):
        assert run_command(command) == 2
        assert f"{tmp_path}/run" in capsys.readouterr().err
    with pytest.raises(InputError, match=f"{tmp_path}/run"):
        dskd.evaluate("~/run")
    with pytest.raises(InputError, match=f"{tmp_path}/r.yaml"):
        recipe.load("~/r.yaml")
    assert run_command(["evaluate", "~nobody-has-this-name/run"]) == 2
    assert "that user has no home folder" in capsys.readouterr().err
