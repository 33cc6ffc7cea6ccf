"""Measures the effect of deep supervision on shallow stages: ``python -m evidence.why OUT``.

OUT is the folder of the studies ``table`` and ``defaults``. The students of ce, kd, and dskd
(preset and defaults) are measured at every seed that all of them have. The results are written to
``docs/results/why.json`` and drawn as ``docs/results/why.md``.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from datetime import date
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn

from dskd.compare.reader import Comparison, read_comparison
from dskd.compare.variants import folder_of
from dskd.config.recipe import resolve
from dskd.config.schema import Recipe
from dskd.data import Dataset
from dskd.data.dataset import Samples
from dskd.data.loader import DataLoaders
from dskd.deploy.load_teacher import load_teacher
from dskd.engine.build import build_run
from dskd.engine.build_data import load_data
from dskd.engine.build_model import build_model
from dskd.engine.prepare import prepare_teacher
from dskd.engine.train_teacher import freeze
from dskd.engine.user_objects import UserObjects
from dskd.errors import InputError
from dskd.methods.checks import at_same_depth
from dskd.models.staged_model import StagedModel
from dskd.models.staged_net import StagedNet
from dskd.report.cka import layer_similarity
from dskd.report.load_models import load_student
from dskd.storage.run_directory import RunDirectory
from dskd.teacher.outputs import TeacherOutputs
from evidence import figure
from evidence.exits import exit_codes
from evidence.facts import commit_of_code, machine
from evidence.study import RESULTS
from evidence.why_page import page

LABELS = ("ce", "kd", "dskd", "dskd:feature_target=matched:beta=10")
OURS = LABELS[2:]
FIRST_EPOCHS = 3
"""Epochs with measured gradients. They are trained again from the first step."""
_BATCH = 100


def measure(table: Path) -> dict[str, Any]:
    """Measures everything that the page shows.

    Args:
        table: The folder of the study ``table``.

    Returns:
        Plain values, ready for JSON.

    Raises:
        InputError: No seed is finished for all `LABELS`.
    """
    if not table.is_dir():
        raise InputError(f"{table} is missing; run the studies table and defaults")
    comparison = read_comparison(table)
    finished = [{*entry.results} for entry in comparison.variants if entry.label in LABELS]
    seeds = sorted(set.intersection(*finished)) if len(finished) == len(LABELS) else []
    if not seeds:
        raise InputError(
            f"{table}: no seed of {', '.join(LABELS)} is finished; run the studies table "
            "and defaults"
        )
    students = MeasuredStudents(comparison, seeds[0])
    runs = [(label, seed) for label in LABELS for seed in seeds]
    return {
        "study": "why",
        "command": "python -m evidence.why OUT",
        "commit": commit_of_code(),
        "date": date.today().isoformat(),
        "environment": machine(torch.device("cpu")),
        "teacher": students.teacher_name,
        "student": students.recipe.student.name,
        "seeds": seeds,
        "stages": list(students.stages),
        "probe": _by_label(runs, students.probe),
        "similarity": _by_label(runs, students.similarity),
        "gradient": _by_label(runs, students.gradients),
        "epochs": _by_label([run for run in runs if run[0] in OURS], students.epochs),
    }


def _by_label(runs: Sequence[tuple[str, int]], measured: Any) -> dict[str, dict[str, Any]]:
    """The measurements of every run, by label and seed."""
    found: dict[str, dict[str, Any]] = {}
    for label, seed in runs:
        found.setdefault(label, {})[str(seed)] = measured(label, seed)
    return found


class MeasuredStudents:
    """The students of the study ``table``, their teacher and their images.

    Args:
        comparison: The comparison of the study.
        seed: A finished seed.
    """

    def __init__(self, comparison: Comparison, seed: int) -> None:
        self.table = comparison.path
        methods = {entry["label"]: entry["method"] for entry in comparison.facts["variants"]}
        self.recipes: dict[str, Recipe] = {
            label: resolve({**comparison.facts["recipe"], "method": methods[label]}, self.table)
            for label in LABELS
        }
        self.recipe = recipe = self.recipes[LABELS[0]]
        self.data: Dataset = load_data(recipe.data)
        assert recipe.teacher is not None, "the table has a teacher"
        self.teacher_name = recipe.teacher.name
        teacher = load_teacher(self.table, recipe, self.data, UserObjects())
        assert teacher is not None, "the recipe names one"
        self.teacher: StagedModel = teacher
        net = self._student(LABELS[0], seed).module
        assert isinstance(net, StagedNet), "the student is a model of the zoo"
        self.stages = net.stage_names

    def _folder(self, label: str, seed: int) -> Path:
        return self.table / folder_of(label) / f"seed{seed}"

    def _student(self, label: str, seed: int) -> StagedModel:
        return load_student(self._folder(label, seed), self.data, UserObjects())

    def probe(self, label: str, seed: int) -> list[float]:
        """Test accuracy, in percent, of a linear classifier on the pooled map of each stage.

        Args:
            label: The student's label.
            seed: The student's seed.
        """
        student = self._student(label, seed)
        train, test = (pooled_stages(student, part) for part in (self.data.train, self.data.test))
        labels = self.data.train.labels.numpy(), self.data.test.labels.numpy()
        scores = []
        for known, unknown in zip(train, test, strict=True):
            probe = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000))
            probe.fit(known.numpy(), labels[0])
            scores.append(round(100 * float(probe.score(unknown.numpy(), labels[1])), 4))
        return scores

    def similarity(self, label: str, seed: int) -> dict[str, list[float | None]]:
        """Linear CKA of each stage with the teacher's last stage and with that of the same depth.

        Args:
            label: The student's label.
            seed: The student's seed.
        """
        student = self._student(label, seed)
        found = layer_similarity(label, seed, student, self.teacher, self.data.test)
        stages = [name for name in found.teacher if name not in ("pooled", "logits")]
        depth = at_same_depth(len(self.stages), len(stages))
        rows = found.values[: len(self.stages)]
        return {
            "last": [row[len(stages) - 1] for row in rows],
            "same depth": [row[column] for row, column in zip(rows, depth, strict=True)],
        }

    def gradients(self, label: str, seed: int) -> list[list[float]]:
        """The mean gradient norm of every stage, for each of the first epochs.

        Args:
            label: The student's label.
            seed: The student's seed.
        """
        recipe = self.recipes[label].changed(seed=seed)
        images = DataLoaders(self.data, torch.device("cpu"))
        prepared = prepare_teacher(recipe, self.data, UserObjects(), torch.device("cpu"))
        assert prepared is not None, "a study has a teacher"
        assert recipe.teacher is not None, "a study has a teacher"
        teacher = freeze(
            prepared.model, images, recipe.teacher.fuse_batchnorm, recipe.train.precision
        )
        student = build_model(recipe.student, self.data, seed)
        with TemporaryDirectory() as folder:
            directory = RunDirectory(Path(folder) / "run")
            training_run = build_run(recipe, student, images, TeacherOutputs(teacher), directory)
            module = training_run.trainer.method.student.module
            epochs = []
            for _ in range(FIRST_EPOCHS):
                stepwise = [norms(module, self.stages) for _ in training_run.trainer.train_epoch()]
                training_run.trainer.end_epoch()
                epochs.append([sum(stage) / len(stepwise) for stage in zip(*stepwise, strict=True)])
        return epochs

    def epochs(self, label: str, seed: int) -> list[dict[str, float]]:
        """The metrics of the branches of DSKD, for each epoch.

        Args:
            label: The student's label.
            seed: The student's seed.
        """
        lines = (self._folder(label, seed) / "metrics.jsonl").read_text().splitlines()
        return [
            {key: value for key, value in json.loads(line).items() if key.startswith("stage")}
            for line in lines
        ]


@torch.no_grad()
def pooled_stages(model: StagedModel, split: Samples) -> list[Tensor]:
    """The average-pooled maps of all images.

    Args:
        model: The student.
        split: The images.

    Returns:
        One tensor ``[N, C]`` for each stage.
    """
    outputs = [
        [stage.mean((2, 3)) for stage in model(images).stages]
        for images in torch.split(split.images, _BATCH)
    ]
    return [torch.cat(parts) for parts in zip(*outputs, strict=True)]


def norms(module: nn.Module, stages: Sequence[str]) -> list[float]:
    """The norm of the gradient of each stage, after a step.

    Args:
        module: The student.
        stages: The names of its stages.
    """
    return [float(torch.stack([*_squares(module.get_submodule(s))]).sum().sqrt()) for s in stages]


def _squares(stage: nn.Module) -> Iterator[Tensor]:
    for parameter in stage.parameters():
        assert parameter.grad is not None, "every parameter of a stage is trained"
        yield parameter.grad.square().sum()


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures the students and writes the page.

    Args:
        arguments: The command line; None for that of the process.
    """
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path, help="the folder of the studies")
    parser.add_argument("--results", type=Path, default=RESULTS, help="the folder of the page")
    chosen = parser.parse_args(arguments)
    with exit_codes():
        facts = measure(chosen.out / "table")
    chosen.results.mkdir(parents=True, exist_ok=True)
    (chosen.results / "why.json").write_text(json.dumps(facts, indent=1) + "\n")
    (chosen.results / "why.svg").write_bytes(figure.stages(facts))
    (chosen.results / "why.md").write_text(page(facts))


if __name__ == "__main__":
    main()
