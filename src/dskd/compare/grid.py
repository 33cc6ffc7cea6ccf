"""The grid of methods and seeds: run, recorded row by row, and continued where it stopped."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from dskd import methods
from dskd.compare.lockstep import Student, Watcher, train_together
from dskd.compare.reader import (
    COMPARISON,
    Comparison,
    read_comparison,
    read_facts,
    read_failure,
    read_result,
)
from dskd.compare.variants import MethodVariant, Weights, method_variants
from dskd.config.recipe import load
from dskd.config.schema import Recipe
from dskd.data import Dataset
from dskd.data.loader import DataLoaders
from dskd.engine.build import UserObjects, load_data
from dskd.engine.run import (
    check_cache,
    make_teacher,
    make_teacher_outputs,
    make_training_run,
    rehearse,
)
from dskd.engine.training_run import TrainingRun
from dskd.errors import InputError, NonFiniteError
from dskd.methods.base import TeacherNeeds
from dskd.runtime import device as devices
from dskd.runtime import distributed
from dskd.runtime.compile import check_compiler
from dskd.storage.atomic import (
    check_writable,
    explain_disk_errors,
    is_part,
    refuse_links,
    remove_parts,
    replace_file,
)
from dskd.storage.diff import differences
from dskd.storage.json_file import MAX_LOG_BYTES
from dskd.storage.lock import LOCK, LOCK_PID, lock_folder
from dskd.storage.run_directory import RunDirectory
from dskd.storage.run_files import FAILED, LAST
from dskd.teacher.frozen import FrozenTeacher
from dskd.teacher.outputs import SharedOutputs, TeacherOutputs

log = logging.getLogger("dskd")
ROWS = "results.jsonl"
_OWN = (COMPARISON, ROWS, "environment.json", LOCK_PID)
"""The comparison's own files, which it may leave halfway as it is killed."""


@dataclass(frozen=True)
class Grid:
    """Methods and seeds on one recipe.

    Attributes:
        recipe: Its method and ``out`` are not read.
        contenders: The methods.
        seeds: Each method is trained at every seed.
        weights: How the contenders' weights were chosen, for the record.
        path: The comparison's folder.
        share: Whether students of a seed learn side by side from one answer of the teacher's, or
            one after the other, each asking for itself. The results are the same.
    """

    recipe: Recipe
    method_variants: tuple[MethodVariant, ...]
    seeds: tuple[int, ...]
    weights: Weights
    path: Path
    share: bool = True

    def folder(self, variant: MethodVariant, seed: int) -> Path:
        """The folder of one run."""
        return self.path / variant.folder / f"seed{seed}"

    def recipe_of(self, variant: MethodVariant, seed: int) -> Recipe:
        """The recipe of one run, taught by the comparison's teacher."""
        teacher = self.recipe.teacher
        if teacher is not None and teacher.checkpoint is None and not teacher.name.startswith("<"):
            teacher = teacher.model_copy(update={"checkpoint": self.path / "teacher" / LAST})
        return self.recipe.changed(
            method=variant.method, teacher=teacher, seed=seed, out=self.folder(variant, seed)
        )

    def with_teacher(self) -> Recipe | None:
        """The recipe under a method that needs the teacher; None where no method does."""
        for variant in self.method_variants:
            if methods.find(variant.method.name).needs_teacher:
                return self.recipe.changed(method=variant.method)
        return None


def plan(
    recipe: Recipe,
    names: Iterable[str],
    path: Path,
    *,
    seeds: int,
    weights: Weights = "equal",
    share: bool = True,
) -> Grid:
    """Methods by their names at ``recipe.seed`` and the seeds after it.

    Args:
        recipe: What they are compared on.
        names: See `dskd.compare.variants.method_variants`.
        path: The comparison's folder.
        seeds: How many.
        weights: ``equal`` or ``literature``.
        share: See `Grid`.

    Raises:
        InputError: A name does not exist, a method needs a teacher and the recipe has none, or
            there is no seed.
    """
    chosen = method_variants(names, recipe, weights)
    if seeds < 1:
        raise InputError(f"seeds: one at least is needed, got {seeds}")
    if recipe.teacher is None:
        for variant in chosen:
            if methods.find(variant.method.name).needs_teacher:
                raise InputError(f"the method {variant.label!r} needs a teacher; set teacher.name")
    if recipe.teacher is not None and recipe.teacher.ahead > 1:
        raise InputError(
            "teacher.ahead has no part in a comparison, whose students share each answer as it is "
            "asked for; drop it"
        )
    first = recipe.seed
    return Grid(recipe, tuple(chosen), tuple(range(first, first + seeds)), weights, path, share)


def load_plan(
    recipe_name: str,
    overrides: Iterable[str],
    names: Iterable[str],
    out: Path | None,
    **others: Any,
) -> Grid:
    """As `plan`, from what a command line says.

    Args:
        recipe_name: A shipped recipe or a YAML file.
        overrides: ``key=value``.
        names: The methods.
        out: The comparison's folder; None for ``runs/compare/<recipe>``.
        others: Further arguments of `plan`.

    Raises:
        InputError: Something in it does not exist or does not fit.
    """
    overrides = list(overrides)
    if any(override.startswith("out=") for override in overrides):
        raise InputError("out has no effect on a comparison; give its folder with --out")
    label = recipe_name.removesuffix(".yaml").removesuffix(".yml")
    path = out or Path("runs") / "compare" / label.strip("./").replace("/", "-")
    return plan(load(recipe_name, overrides), names, path, **others)


def run_grid(grid: Grid, watcher: Watcher, given: UserObjects | None = None) -> Comparison:
    """Trains what is not there yet; what is finished, or failed before, is left as it is.

    Args:
        grid: What is compared.
        watcher: Told of every step and every end.
        given: Objects in place of names.

    Returns:
        The comparison as it lies on the disk then.

    Raises:
        InputError: A method does not fit the pair, or the folder holds something else.
        Stopped: A signal asked for a stop; the same call goes on.
    """
    distributed.require_single_process("a comparison")
    given = given or UserObjects()
    _merged(grid)
    check_writable(grid.path, "--out")
    device = devices.pick(grid.recipe.train.device)
    devices.set_up(device)
    data = load_data(grid.recipe.data, given.data)
    for note in data.notes:
        log.info(note)
    needs = check_methods(grid, data, given)
    check_cache(grid.recipe, data, given, needs)
    if grid.recipe.train.compile:
        check_compiler(device)
    with lock_folder(grid.path, "--out"):
        remove_parts(grid.path, _OWN)
        facts = _merged(grid, data)
        if not (grid.path / COMPARISON).is_file():
            _write_facts(grid, facts, device)
        images = DataLoaders(data, device)
        teacher = _teacher(grid, images, given)
        _write_facts(grid, _taught(grid.path, facts, teacher), device)
        _repair_rows(grid)
        teacher_outputs = make_teacher_outputs(grid.recipe, images.train, teacher, needs)
        for seed in grid.seeds:
            _run_seed(grid, seed, images, given, teacher_outputs, _Recorder(grid, watcher))
        return read_comparison(grid.path)


def _teacher(grid: Grid, images: DataLoaders, given: UserObjects) -> FrozenTeacher | None:
    """The one teacher of all methods that need one."""
    plan = grid.with_teacher()
    if plan is None:
        return None
    folder = grid.path / "teacher"
    return make_teacher(plan, images, given, folder, resume=RunDirectory(folder).begun)


def check_methods(grid: Grid, data: Dataset, given: UserObjects) -> TeacherNeeds:
    """Rehearses every method: what does not fit the pair is said before any work.

    Returns:
        Which of the teacher's outputs the methods read together.

    Raises:
        InputError: One does not fit; it is named.
    """
    needs = TeacherNeeds()
    for variant in grid.method_variants:
        try:
            needs |= rehearse(grid.recipe.changed(method=variant.method), data, given)
        except InputError as error:
            raise InputError(f"{variant.label}: {error}") from error
    return needs


def _run_seed(
    grid: Grid,
    seed: int,
    images: DataLoaders,
    given: UserObjects,
    source: TeacherOutputs,
    watcher: Watcher,
) -> None:
    """Trains the students of a seed that are not there yet."""
    shared = SharedOutputs(source)
    left = [c for c in grid.method_variants if not _ended(grid.folder(c, seed))]
    groups = [left] if grid.share else [[variant] for variant in left]
    for group in groups:
        with ExitStack() as owned:
            students = []
            for variant in group:
                needs = methods.find(variant.method.name).needs_teacher
                own = shared if grid.share else SharedOutputs(source)
                teacher_outputs = own.teacher_outputs() if needs else TeacherOutputs(None)
                recipe = grid.recipe_of(variant, seed)
                directory = RunDirectory(grid.folder(variant, seed))
                refuse_links(directory.path.parent, directory.path)
                owned.enter_context(directory.locked())
                begun = directory.begun
                directory.check_same(recipe.plain())
                directory.start(recipe.plain(), devices.environment(images.train.device))
                training_run = make_training_run(recipe, images, given, teacher_outputs, directory)
                failure = _begin(training_run, begun)
                student = Student(variant.label, seed, training_run)
                if failure is None:
                    students.append(student)
                else:
                    watcher.ended(student, failure)
            train_together(students, watcher)
    if shared.ran:
        log.info(
            "seed %d: the teacher ran %d times for %d steps of students",
            *(seed, shared.ran, shared.asked),
        )


def _begin(training_run: TrainingRun, resume: bool) -> str | None:
    """Has a run begin; why it cannot, where what its method prepares comes to NaN."""
    try:
        training_run.begin(resume)
    except NonFiniteError as error:
        return str(error)
    return None


def _ended(folder: Path) -> bool:
    return (folder / "result.json").is_file() or (folder / FAILED).is_file()


class _Recorder:
    """Writes the row of a run that ended, and passes on what it is told."""

    def __init__(self, grid: Grid, watcher: Watcher) -> None:
        self.grid, self.watcher = grid, watcher

    def stepped(self, student: Student) -> None:
        """Passed on."""
        self.watcher.stepped(student)

    def ended(self, student: Student, failure: str | None) -> None:
        """Recorded and passed on."""
        folder = student.training_run.directory.path
        if failure is not None:
            replace_file(folder / FAILED, f"{failure}\n".encode())
        path, line = self.grid.path / ROWS, _row(student.label, student.seed, folder).encode()
        with explain_disk_errors(path, lambda: len(line)), path.open("ab", buffering=0) as file:
            file.write(line)
        self.watcher.ended(student, failure)


def _row(label: str, seed: int, folder: Path) -> str:
    """The line of a run that ended."""
    row: dict[str, Any] = {"label": label, "seed": seed}
    if (folder / FAILED).is_file():
        row["failed"] = read_failure(folder)
    else:
        row |= read_result(folder)
    return json.dumps(row) + "\n"


def _repair_rows(grid: Grid) -> None:
    """Drops rows that are torn, and adds those of runs that ended before it could be said."""
    path = grid.path / ROWS
    text = ""
    if path.is_file():
        with path.open("rb") as file:  # what is beyond comes from the runs again
            text = file.read(MAX_LOG_BYTES).decode(errors="replace")
    rows: dict[tuple[str, int], str] = {}
    for line in text.splitlines():
        with suppress(ValueError, TypeError, KeyError, RecursionError):
            row = json.loads(line)
            rows[row["label"], row["seed"]] = f"{line}\n"
    for seed in grid.seeds:
        for variant in grid.method_variants:
            folder = grid.folder(variant, seed)
            if (variant.label, seed) not in rows and _ended(folder):
                rows[variant.label, seed] = _row(variant.label, seed, folder)
    replace_file(path, "".join(rows.values()).encode())


def _merged(grid: Grid, data: Dataset | None = None) -> dict[str, Any]:
    """What ``comparison.json`` is to say: what it says already, and the grid.

    Args:
        grid: What is compared.
        data: Its images; None before they are read.

    Raises:
        InputError: The folder holds another comparison, one of other images, or something else.
    """
    recipe = grid.recipe.plain()
    for key in ("method", "seed", "out"):
        del recipe[key]
    own: dict[str, Any] = {
        "recipe": recipe,
        "weights": grid.weights,
        "seeds": list(grid.seeds),
        "entries": [variant.plain() for variant in grid.method_variants],
        "teacher": None,  # until one was needed
    }
    if data is not None:
        own |= {"images": len(data.test), "data": data.fingerprint()}
    if not (grid.path / COMPARISON).is_file():
        if grid.path.is_dir() and any(map(_counts, grid.path.iterdir())):
            raise InputError(f"{grid.path} holds other files; choose another folder with --out")
        return own
    there = read_facts(grid.path)
    same = {key: there[key] for key in ("recipe", "weights")}
    if listed := differences(same, {key: own[key] for key in same}):
        raise InputError(
            f"{grid.path} holds a comparison of another recipe: {listed}; choose another folder "
            "with --out"
        )
    if data is not None and there["data"] not in (None, own["data"]):
        raise InputError(
            f"{grid.path} holds a comparison on other images; give the same, or choose another "
            "folder with --out"
        )
    return own | {
        "teacher": there["teacher"],
        "seeds": sorted({*there["seeds"], *own["seeds"]}),
        "entries": _merged_entries(grid.path, there["entries"], own["entries"]),
    }


def _taught(path: Path, facts: dict[str, Any], teacher: FrozenTeacher | None) -> dict[str, Any]:
    """What ``comparison.json`` is to say, once its teacher is known.

    Raises:
        InputError: Another teacher taught the runs that are there.
    """
    if teacher is None:
        return facts
    fingerprint = teacher.fingerprint()
    if facts["teacher"] not in (None, fingerprint):
        raise InputError(
            f"{path} holds a comparison with another teacher; give the same, or choose another "
            "folder with --out"
        )
    return facts | {"teacher": fingerprint}


def _merged_entries(
    path: Path, there: list[dict[str, Any]], own: list[dict[str, Any]]
) -> list[dict[str, Any]]:
    merged = {entry["label"]: entry for entry in there}
    for entry in own:
        before = merged.setdefault(entry["label"], entry)
        if listed := differences(before["method"], entry["method"]):
            raise InputError(
                f"{entry['label']} has other settings in {path}: {listed}; choose another folder "
                "with --out"
            )
    return list(merged.values())


def _counts(path: Path) -> bool:
    """Whether a file says that the folder is in use."""
    return path.name not in (LOCK, LOCK_PID) and not is_part(path.name, _OWN)


def _write_facts(grid: Grid, facts: dict[str, Any], device: torch.device) -> None:
    _write_json(grid.path / COMPARISON, facts)  # first: it marks the folder as a comparison
    _write_json(grid.path / "environment.json", devices.environment(device))


def _write_json(path: Path, values: dict[str, Any]) -> None:
    replace_file(path, (json.dumps(values, indent=2) + "\n").encode())
