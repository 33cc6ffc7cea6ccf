"""Tuning from Python."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from dskd.compare.jobs import launcher_for
from dskd.compare.tuning.results import TuningResult
from dskd.compare.tuning.space import given_space
from dskd.compare.tuning.start import make_search
from dskd.compare.tuning.tune import check_trials
from dskd.compare.tuning.tune import tune as make_study
from dskd.engine.arguments import Data, Model, Section, resolve_arguments
from dskd.engine.progress import python_output
from dskd.methods import outside
from dskd.methods.base import Method
from dskd.runtime.launchers.choose import named_launcher
from dskd.storage.paths import as_path


def tune(
    student: Model | None = None,
    *,
    teacher: Model | None = None,
    data: Data | None = None,
    method: str | type[Method] | Section | None = None,
    space: Mapping[str, str | Sequence[Any]],
    trials: int = 20,
    seeds: int = 1,
    epochs: int | None = None,
    train: Section | None = None,
    seed: int | None = None,
    recipe: str | Path | Section | None = None,
    out: str | Path | None = None,
    jobs: int | None = None,
    launcher: str | Section = "processes",
    allow_code: bool = False,
    verbose: int = 1,
) -> TuningResult:
    """Tunes settings by the accuracy on validation images, and tests the best configuration.

    The same call continues a study, and more trials extend it. It needs Optuna, ``dskd[tune]``.

    Args:
        student: As for `dskd.distill`.
        teacher: As for `dskd.distill`. It is trained once.
        data: As for `dskd.distill`, with a validation split, as by ``{..., "val_fraction": 0.1}``.
        method: As for `dskd.distill`.
        space: By setting, a range as in ``"0.01..0.2:log"``, or a list of choices.
        trials: The number of trials.
        seeds: The number of seeds of each trial: ``seed``, ``seed + 1`` and so on.
        epochs: As for `dskd.distill`.
        train: As for `dskd.distill`.
        seed: The first seed, and the seed of the teacher and of the search.
        recipe: As for `dskd.distill`.
        out: Folder of the study; by default named as for `dskd.distill`, in ``runs/tune``.
        jobs: As for `dskd.compare_methods`, of trials.
        launcher: As for `dskd.compare_methods`.
        allow_code: As for `dskd.distill`.
        verbose: As for `dskd.distill`.

    Raises:
        InputError: An argument cannot be used.
    """
    parts = {"student": student, "teacher": teacher, "data": data}
    settings = {"method": method, "epochs": epochs, "train": train, "seed": seed}
    with python_output(verbose), outside.code_allowed(allow_code):
        resolved, objects = resolve_arguments(recipe, parts, settings, allow_code, "run")
        kind = method.get("name") if isinstance(method, Mapping) else method
        objects = replace(objects, methods=(kind,) if isinstance(kind, type) else ())
        tuned = given_space(space, resolved.method.name)
        assert resolved.out is not None, "a resolved recipe has its folder"
        default = Path("runs/tune") / resolved.out.parent.name
        path = default if out is None else as_path(out, "out")
        search = make_search(resolved, tuned, path, seeds, objects)
        check_trials(trials)
        where = launcher_for(search, trials, jobs, *named_launcher(launcher))
        return make_study(search, trials, where)
