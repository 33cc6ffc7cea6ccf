"""Methods from outside the package: a class, a name of code, an installed package."""

from __future__ import annotations

import json
import re
import sys
from importlib.metadata import EntryPoint, EntryPoints
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

import dskd
from dskd import methods
from dskd.cli.commands import run_command
from dskd.cli.listing import LISTS
from dskd.compare.variants import method_variants
from dskd.config.recipe import load
from dskd.data.loader import Batch
from dskd.errors import InputError
from dskd.methods import outside
from dskd.methods.base import LogitMethod
from dskd.methods.contracts import Pair
from dskd.methods.kd import KD
from dskd.report.build import make_report
from dskd.runtime.launchers.processes import Processes
from dskd.settings import Positive, Weight, checked
from tests import processes

DATA = {"name": "digits", "fraction": 0.1}
SOURCE = Path(__file__).read_text()


class Scaled(LogitMethod):
    """The squared distance of the logits."""

    @checked
    def __init__(self, pair: Pair, *, ce: Weight = 1.0, kd: Weight = 1.0, by: Positive = 1.0):
        super().__init__(pair, ce, kd)
        self.by = by

    def logit_losses(
        self, batch: Batch, student_logits: Tensor, teacher_logits: Tensor
    ) -> dict[str, Tensor]:
        """The loss."""
        return {"scaled": self.kd * self.by * (student_logits - teacher_logits).square().mean()}


@pytest.fixture
def code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a module with a method, on the path of Python."""
    (tmp_path / "code").mkdir()
    head, _, rest = SOURCE.partition("class Scaled")
    imports = [line for line in head.splitlines() if line.startswith(("from dskd", "from torch"))]
    body = "class Scaled" + rest.partition("@pytest")[0]
    (tmp_path / "code/their_methods.py").write_text("\n".join([*imports, body]))
    monkeypatch.syspath_prepend(tmp_path / "code")
    monkeypatch.delitem(sys.modules, "their_methods", raising=False)
    return "their_methods:Scaled"


def test_a_class_distils_and_its_student_needs_it_no_more(tmp_path: Path) -> None:
    result = dskd.distill(
        "resnet8",
        teacher="resnet14",
        data=DATA,
        epochs=1,
        method={"name": Scaled, "by": 2},
        out=tmp_path / "run",
        verbose=0,
    )
    assert result.method == "<Scaled>"
    assert "by: 2.0" in (tmp_path / "run/recipe.yaml").read_text()
    outside._GIVEN.clear()
    evaluation = dskd.evaluate(tmp_path / "run")
    assert evaluation.accuracy == result.test_accuracy
    page = make_report(tmp_path / "run")[0].read_text()
    assert "Scaled" in page
    with pytest.raises(InputError, match=r"given in Python.*method=Scaled"):
        methods.find("<Scaled>")


def test_the_folder_of_a_run_has_the_name_of_the_class(tmp_path: Path) -> None:
    name = outside.give(Scaled)
    recipe = load("digits", ["method.name=dskd"]).model_dump() | {"out": None, "method": {}}
    resolved = dskd.config.recipe.resolve(recipe | {"method": {"name": name}}, tmp_path)
    assert resolved.out == tmp_path / "Scaled-seed0"


def test_settings_of_a_class_are_checked() -> None:
    with pytest.raises(InputError, match=r"method\.by: input should be greater than 0"):
        dskd.distill("resnet8", teacher="resnet14", data=DATA, method={"name": Scaled, "by": 0})
    with pytest.raises(InputError, match=r"method\.bye.*did you mean.*by"):
        dskd.distill("resnet8", teacher="resnet14", data=DATA, method={"name": Scaled, "bye": 1})


@pytest.mark.parametrize("kind", [dict, Batch])
def test_a_class_that_is_no_method_is_refused(kind: Any) -> None:
    with pytest.raises(InputError, match=f"{kind.__name__} is no method; derive"):
        dskd.distill("resnet8", teacher="resnet14", data=DATA, method=kind)


def test_code_needs_permission(code: str, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["distill", "digits", f"method.name={code}", "data.fraction=0.1"]
    assert run_command(arguments) == 2
    assert "would run your own code; if you trust it, add --allow-code" in capsys.readouterr().err
    assert "their_methods" not in sys.modules
    with pytest.raises(InputError, match="allow_code=True"):
        dskd.distill("resnet8", teacher="resnet14", data=DATA, method=code)


def test_code_that_is_allowed_distils(code: str, tmp_path: Path) -> None:
    run = tmp_path / "run"
    arguments = ["distill", "digits", f"method={{name: {code}, by: 2}}", "data.fraction=0.1"]
    extra = ["train.epochs=1", "teacher.epochs=1", f"out={run}", "--allow-code"]
    assert run_command([*arguments, *extra]) == 0
    assert json.loads((run / "result.json").read_text())["method"] == code
    assert run_command(["evaluate", str(run)]) == 0  # the student is a plain one


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("no_such_module:Class", "cannot import the method .*no_such_module.*PYTHONPATH"),
        ("json:NoSuchClass", "cannot import the method .*NoSuchClass"),
        ("json:JSONDecoder", "json:JSONDecoder is no method; derive a class"),
    ],
)
def test_code_that_is_no_method_is_refused(name: str, message: str) -> None:
    with outside.code_allowed(True), pytest.raises(InputError, match=message):
        methods.find(name)


def test_an_installed_package_brings_methods(monkeypatch: pytest.MonkeyPatch) -> None:
    points = EntryPoints([EntryPoint("theirs", "dskd.methods.kd:KD", outside.GROUP)])
    monkeypatch.setattr(outside, "entry_points", lambda **which: points.select(**which))
    assert methods.find("theirs") is KD
    assert methods.exists("theirs")
    assert "theirs" not in methods.names()
    with pytest.raises(InputError, match="did you mean 'theirs'"):
        methods.find("their")
    assert load("digits", ["method.name=theirs", "method.temperature=2"]).method.options == {
        **methods.resolve("kd", {}),
        "temperature": 2.0,
    }


MODULES = {
    "__init__": "from .plain import Wide as Narrow",
    "plain": 'class Wide:\n    """The ``width`` alone.\n\n    More of it."""\n',
    "broken": "class Wide(:",
    "empty": "import json",
    "computed": "from json import *",
}
LISTED = {
    "plain": ("acme_kd.plain:Wide", "The width alone. (package acme-kd)"),
    "exported": ("acme_kd:Narrow", "The width alone. (package acme-kd)"),
    "computed": ("acme_kd.computed:Wide", "(package acme-kd)"),
    "kd": (
        "acme_kd.plain:Wide",
        "cannot be used: dskd has a method of this name (package acme-kd)",
    ),
    "gone": (
        "acme_kd.gone:Wide",
        "cannot be used: there is no module acme_kd.gone (package acme-kd)",
    ),
    "broken": ("acme_kd.broken:Wide", "cannot be used: .*broken.py: .*syntax.*"),
    "empty": ("acme_kd.empty:Wide", "cannot be used: .*empty.py has no class Wide .*"),
    "no_class": ("acme_kd", "cannot be used: 'acme_kd' is not of the form package.module:Class .*"),
}


def test_methods_of_installed_packages_are_listed_and_not_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "acme_kd").mkdir()
    for name, text in MODULES.items():
        (tmp_path / f"acme_kd/{name}.py").write_text(text)
    info = tmp_path / "acme_kd-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: acme-kd\nVersion: 1.0\n")
    lines = [f"{name} = {value}" for name, (value, _) in LISTED.items()]
    (info / "entry_points.txt").write_text("\n".join(["[dskd.methods]", *lines]))
    monkeypatch.syspath_prepend(tmp_path)
    rows = LISTS["methods"]()[1]
    own = methods.names()
    assert [name for name, _ in rows] == [*own, *sorted(LISTED)]
    for name, text in rows[len(own) :]:
        assert re.fullmatch(
            LISTED[name][1].replace("(package acme-kd)", r"\(package acme-kd\)"), text
        )
    assert not [name for name in sys.modules if name.startswith("acme_kd")]
    assert run_command(["list", "methods"]) == 0
    assert "cannot be used: there is no module acme_kd.gone" in capsys.readouterr().out
    with pytest.raises(InputError, match="cannot import the method 'broken': invalid syntax"):
        methods.find("broken")


def test_a_comparison_takes_classes_and_code(code: str) -> None:
    recipe = load("digits")
    name = outside.give(Scaled)
    with outside.code_allowed(True):
        one, two, three = method_variants(["kd", f"{name}:by=3", f"{code}:by=2"], recipe, "equal")
    assert one.label == "kd"
    assert (two.method.name, two.method.options["by"], two.folder) == (name, 3.0, "+Scaled+by=3")
    assert (three.method.name, three.method.options["by"]) == (code, 2.0)


@pytest.mark.slow(seconds=3)
def test_a_class_is_compared_in_jobs_and_reported_where_it_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # One process for both jobs, which imports nothing: it is another process all the same.
    processes.fork_jobs(monkeypatch)
    monkeypatch.setattr("dskd.api.images.launcher_for", lambda *_: Processes(1))
    rows = dskd.compare_methods(
        "resnet8",
        teacher="resnet14",
        data=DATA,
        methods=["kd", Scaled],
        seeds=1,
        jobs=2,
        epochs=1,
        out=tmp_path / "compared",
        verbose=0,
    )
    assert {row.label for row in rows} == {"kd", "<Scaled>"}
    outside._GIVEN.clear()
    page = tmp_path / "page.html"
    make_report([tmp_path / "compared"], page)
    assert "&lt;Scaled&gt;" in page.read_text()
