"""Check a run before it starts: data, teacher, losses, speed, memory, time and disk.

Nothing is written into the run's folder. What cannot be used at all is refused, as by `distill`.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import torch

from dskd import methods
from dskd.config.schema import Recipe
from dskd.data import Dataset
from dskd.data.loader import DataLoaders
from dskd.data.sampling import Sampling, sampled
from dskd.engine.build import build_trainer, method_on
from dskd.engine.check.cost import check_cost, cost_reasons
from dskd.engine.check.data import (
    DECODE_SECONDS,
    check_data,
    data_reasons,
    data_warnings,
    load_with_bad_files,
    sampled_part,
)
from dskd.engine.check.findings import (
    CheckReport,
    CostFindings,
    LossFindings,
    StepFindings,
    TeacherFindings,
)
from dskd.engine.check.steps import check_losses, check_steps
from dskd.engine.check.teacher import check_teacher
from dskd.engine.prepare import Prepared, prepare, trains_teacher
from dskd.engine.train_teacher import freeze
from dskd.engine.trainer import Trainer
from dskd.engine.unlabelled import training_loader
from dskd.engine.user_objects import UserObjects
from dskd.errors import InputError, NonFiniteError, as_given
from dskd.models.stage_table import Stage, stage_rows
from dskd.models.staged_model import StagedModel
from dskd.runtime import device as devices
from dskd.runtime import distributed
from dskd.runtime.cores import TOLERATED, cpu_threads
from dskd.runtime.nonfinite import REMEDY
from dskd.runtime.single_run import single_run
from dskd.storage.run_directory import RunDirectory
from dskd.teacher.frozen import FrozenTeacher
from dskd.teacher.outputs import TeacherOutputs

DOMINATES = 100
"""A loss term whose gradient is that many times all others together is worth a look."""
WAITS = 0.4
"""Share of the time spent waiting for images that is worth a look."""
_TRACED = 2


@dataclass
class _Found:
    """What was found so far."""

    reasons: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    teacher: TeacherFindings | None = None
    stages: dict[str, list[Stage]] = field(default_factory=dict)
    losses: list[LossFindings] = field(default_factory=list)
    steps: list[StepFindings] = field(default_factory=list)
    cost: CostFindings | None = None


def check(recipe: Recipe, objects: UserObjects | None = None) -> CheckReport:
    """Checks a run before it starts.

    Args:
        recipe: The run.
        objects: Objects in place of names.

    Raises:
        InputError: Something in the recipe cannot be used, or torchrun started several processes.
    """
    start = time.perf_counter()
    objects = objects or UserObjects()
    if distributed.launched_world_size() > 1:
        raise InputError("a check runs in one process; start it without torchrun")
    device = devices.pick(recipe.train.device)
    gpus = [device] if device.type == "cuda" else []
    found = _Found()
    _check_folder(recipe, objects, found)
    with single_run(), cpu_threads(recipe.train.threads), torch.random.fork_rng(gpus):
        devices.set_up(device, recipe.train.precision)
        with sampled(DECODE_SECONDS) as sampling:
            data, loaded = load_with_bad_files(recipe, objects)
        findings = check_data(data, recipe.data.skip_bad, sampling)
        if objects.data is None:
            findings = replace(findings, name=recipe.data.title)
        found.reasons += data_reasons(findings)
        found.warnings += data_warnings(findings)
        try:
            _check_models(loaded, data, sampling, objects, device, found)
        except NonFiniteError as error:
            found.reasons.append(f"the first step fails: {error}; check the data and the models")
        except torch.OutOfMemoryError:
            text = "the GPU has too little memory for this run; lower train.batch_size"
            found.reasons.append(text)
    return CheckReport(
        [as_given(reason) for reason in found.reasons],
        [as_given(warning) for warning in found.warnings],
        torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        findings,
        found.teacher,
        found.stages,
        found.losses,
        found.steps,
        found.cost,
        time.perf_counter() - start,
    )


def _check_folder(recipe: Recipe, objects: UserObjects, found: _Found) -> None:
    """Checks that the run can write into its folder. A run that is there may be continued."""
    assert recipe.out is not None, "a resolved recipe has a folder"
    directory = RunDirectory(recipe.out, trains_teacher=trains_teacher(recipe, objects))
    try:
        directory.check(recipe, resume=False, overwrite=False)
    except InputError as error:
        there = any(_takes(directory, recipe, resume) for resume in (True, False))
        (found.warnings if there else found.reasons).append(str(error))


def _takes(directory: RunDirectory, recipe: Recipe, resume: bool) -> bool:
    """Whether a folder takes a run that continues the one in it, or that replaces it."""
    try:
        directory.check(recipe, resume=resume, overwrite=not resume)
    except InputError:
        return False
    return True


def _check_models(
    recipe: Recipe,
    whole: Dataset,
    sampling: Sampling,
    objects: UserObjects,
    device: torch.device,
    found: _Found,
) -> None:
    """Checks all that needs the models, in the order in which a run uses them."""
    data = sampled_part(whole, sampling) if sampling.images else whole
    prepared = prepare(recipe, data, objects, device, show_stages=False)  # the report has them
    found.stages["student"] = _stages(prepared.student, data)
    used = prepared.teacher if methods.find(recipe.method.name).needs_teacher else None
    if used is not None:
        found.stages["teacher"] = _stages(used.model, data)
    loaders = DataLoaders(data, device)
    trainers: list[Trainer] = []
    if used is not None and used.training is not None:
        trainers.append(
            _trainer(used.training, copy.deepcopy(used.training.student), None, loaders)
        )
        found.steps.append(check_steps(trainers[-1], "teacher", recipe.train.warmup))
    teacher: FrozenTeacher | None = None
    if used is not None:
        assert recipe.teacher is not None
        fused, precision = recipe.teacher.fuse_batchnorm, recipe.train.precision
        teacher = freeze(used.model, loaders, fused, precision)
    tested = check_teacher(prepared, teacher, loaders)
    found.teacher = tested.findings
    found.reasons += [tested.reason] if tested.reason else []
    found.warnings += [tested.warning] if tested.warning else []
    if teacher is not None and teacher.model.head is not None:
        found.warnings.append(
            "the teacher's head is not fitted yet: its logits are 0 in this check"
        )
    trainers.append(_trainer(prepared, prepared.student, teacher, loaders))
    found.losses += check_losses(trainers[-1])
    found.warnings += _loss_warnings(found.losses)
    found.steps.append(check_steps(trainers[-1], "student", recipe.train.warmup))
    found.reasons += _step_reasons(found.steps)
    found.warnings += _step_warnings(recipe, found.steps)
    if all(step.seconds for step in found.steps):
        costs = check_cost(prepared, teacher, loaders, trainers, found.steps, whole)
        if sampling.images:
            decoding = {"decoding": sampling.whole_seconds}
            shortest = {"decoding": decoding["decoding"] * (1 - found.steps[-1].waiting)}
            costs = replace(
                costs,
                seconds=decoding | costs.seconds,
                free_core_seconds=shortest | costs.free_core_seconds,
            )
        found.cost = costs
        found.reasons += cost_reasons(found.cost, device)


def _trainer(
    prepared: Prepared, student: StagedModel, teacher: FrozenTeacher | None, data: DataLoaders
) -> Trainer:
    """The trainer of a run without a cache and without torch's compiler."""
    recipe, device = prepared.recipe, data.train.device
    torch.manual_seed(recipe.seed)
    method = method_on(device, recipe, data.data, student, teacher)
    return build_trainer(recipe, method, TeacherOutputs(teacher), training_loader(recipe, data))


def _stages(model: StagedModel, data: Dataset) -> list[Stage]:
    """The table of a model's stages."""
    if model.chosen_stages:
        return [*model.chosen_stages]
    images = data.train.images_at(torch.arange(min(_TRACED, len(data.train))))
    return stage_rows(model, model.normalize(images))


def _loss_warnings(losses: Sequence[LossFindings]) -> Iterator[str]:
    """What is odd about the gradients of the loss terms."""
    sizes = {loss.name: sum(loss.gradients.values()) for loss in losses}
    for loss in losses:
        others = sum(sizes.values()) - sizes[loss.name]
        if loss.value and not sizes[loss.name]:
            yield f"the loss term {loss.name} has no gradient at the student's stages and logits"
        elif others and sizes[loss.name] > DOMINATES * others:
            yield (
                f"the gradient of the loss term {loss.name} is {sizes[loss.name] / others:.0f} "
                "times that of all others together; a smaller weight may be meant"
            )


def _step_reasons(steps: Sequence[StepFindings]) -> Iterator[str]:
    for found in steps:
        if found.problem:
            rate = "teacher.lr or train.lr" if found.trained == "teacher" else "train.lr"
            problem = found.problem.removesuffix(f"; {REMEDY}")
            yield f"the {found.trained}'s training does not start: {problem}; lower {rate}"


def _fewer_threads(recipe: Recipe) -> str:
    """Threads that wait for each other suffer most from other work; one thread does not."""
    threads = recipe.train.threads or torch.get_num_threads()
    return f", or set train.threads below {threads}" if threads > 1 else ""


def _step_warnings(recipe: Recipe, steps: Sequence[StepFindings]) -> Iterator[str]:
    size = recipe.train.batch_size * recipe.train.accumulate
    for found in steps:
        if found.batch_size < size:
            yield (
                f"a step of {size} images takes long here, so the {found.trained}'s steps had "
                f"{found.batch_size}, and a learning rate that is smaller in proportion"
            )
        if found.loading > WAITS:
            yield (
                f"{100 * found.loading:.0f} % of the time of the {found.trained}'s training is "
                "spent waiting for images; raise data.workers, or set data.loading=memory"
            )
    if (waiting := max(found.waiting for found in steps)) > TOLERATED:
        yield (
            "the processor cores are busy with other work: the steps waited for a core "
            f"{100 * waiting:.0f} % of the time; the shorter times are those without that waiting; "
            f"stop other programs{_fewer_threads(recipe)}, and check again"
        )
    if recipe.train.compile:
        yield "train.compile=true is left out of the check; compiled steps may be faster"
