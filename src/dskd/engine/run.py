"""START HERE: from a recipe to a trained student.

`train` teaches by labels, `distill` by a teacher, which is trained first where it has no
checkpoint. Both build the run's objects and hand them to a `TrainingRun`, which trains and records.
"""

from __future__ import annotations

import copy
import logging
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from dskd import methods
from dskd.config.schema import MethodSettings, ModelSettings, Recipe, TeacherSettings
from dskd.data import Dataset
from dskd.data.epoch_plan import MIN_SAMPLES, draw_views, largest_batch
from dskd.data.loader import DataLoaders, Loader, MemoryLoader
from dskd.engine.build import PROBE, UserObjects, build_model, load_data, spec_of
from dskd.engine.cuda_graph import CudaRecorder
from dskd.engine.lr_schedule import learning_rate
from dskd.engine.optimizer import make_optimizer
from dskd.engine.trainer import Trainer
from dskd.engine.training_run import Result, TrainingRun
from dskd.errors import InputError
from dskd.methods.base import Method
from dskd.methods.contracts import Pair, TeacherNeeds
from dskd.models.staged_model import StagedModel
from dskd.runtime import device as devices
from dskd.runtime import distributed
from dskd.runtime.compile import check_compiler, compile_in_place
from dskd.storage.atomic import refuse_links
from dskd.storage.run_directory import RunDirectory
from dskd.storage.run_files import LAST
from dskd.storage.weights import load_weights, read_weights
from dskd.teacher.cache import CachedOutputs, cached_views, check_cacheable
from dskd.teacher.frozen import FrozenTeacher
from dskd.teacher.outputs import TeacherOutputs
from dskd.teacher.prefetch import Ahead

log = logging.getLogger("dskd")


def train(
    recipe: Recipe,
    *,
    resume: bool = False,
    overwrite: bool = False,
    given: UserObjects | None = None,
) -> Result:
    """Trains ``student.name`` by labels alone.

    Args:
        recipe: A run; its teacher and method are not read.
        resume: Continue an interrupted run; starts anew, and says so, where there is none.
        overwrite: Replace the run that is there.
        given: Objects in place of names.

    Raises:
        InputError: Something in the recipe cannot be used. Nothing is left behind.
        NotFinite: A number became NaN or infinite; nothing of it is kept.
        Stopped: A signal asked for a stop; the state is saved.
    """
    recipe = recipe.changed(method=_by_labels(), teacher=None)
    return distill(recipe, resume=resume, overwrite=overwrite, given=given)


def distill(
    recipe: Recipe,
    *,
    resume: bool = False,
    overwrite: bool = False,
    given: UserObjects | None = None,
) -> Result:
    """Distils ``student.name`` from ``teacher.name`` by ``method.name``.

    Without ``teacher.checkpoint`` the teacher is trained first, by labels and the recipe's own
    schedule, and kept in the folder ``teacher`` of the run. Where torchrun started several
    processes they train together, see `dskd.runtime.distributed`.

    Args:
        recipe: The whole run.
        resume: Continue an interrupted run; starts anew, and says so, where there is none.
        overwrite: Replace the run that is there.
        given: Objects in place of names.

    Raises:
        InputError: Something in the recipe cannot be used. Nothing is left behind.
        NotFinite: A number became NaN or infinite; nothing of it is kept.
        Stopped: A signal asked for a stop; the state is saved.
        Lost: Another process of the run died.
    """
    assert recipe.out is not None, "a resolved recipe has its folder"
    given = given or UserObjects()
    directory = RunDirectory(recipe.out, trains_teacher=_trains_teacher(recipe, given))
    device = devices.pick(recipe.train.device)
    check_ranks(recipe, device)
    with distributed.process_group(device):
        directory.check(recipe.plain(), resume=resume, overwrite=overwrite)
        devices.set_up(device)
        data = distributed.local_rank_zero_first(lambda: load_data(recipe.data, given.data))
        for note in data.notes:
            log.info(note)
        with distributed.independently():
            needs = rehearse(recipe, data, given)
            check_cache(recipe, data, given, needs)
            if recipe.train.compile:
                check_compiler(device)
        return _distill(recipe, data, needs, device, directory, given, resume, overwrite)


def _distill(
    recipe: Recipe,
    data: Dataset,
    needs: TeacherNeeds,
    device: torch.device,
    directory: RunDirectory,
    given: UserObjects,
    resume: bool,
    overwrite: bool,
) -> Result:
    """The run itself, of what was found to fit."""
    with directory.locked():
        # Another run may have come and gone while the images were read.
        directory.check(recipe.plain(), resume=resume, overwrite=overwrite)
        if overwrite:
            directory.clear()
        goes_on = resume and directory.begun
        if not goes_on:
            directory.start(recipe.plain(), devices.environment(device))
        images = DataLoaders(data, device)
        teacher = make_teacher(recipe, images, given, directory.path / "teacher", resume)
        teacher_outputs = make_teacher_outputs(recipe, images.train, teacher, needs)
        training_run = make_training_run(recipe, images, given, teacher_outputs, directory)
        training_run.begin(resume)
        if goes_on:  # not before: what was moved may be something else
            directory.start(recipe.plain(), devices.environment(device))
        training_run.train()
        return training_run.finish()


def check_ranks(recipe: Recipe, device: torch.device) -> None:
    """Refuses what the processes that were started cannot train together, before any work.

    Args:
        recipe: The whole run.
        device: That it trains on.

    Raises:
        InputError: The method or the batches do not allow it, or BatchNorm cannot be synchronised.
    """
    world = distributed.launched_world_size()
    if recipe.train.sync_batchnorm and (world == 1 or device.type != "cuda"):
        raise InputError(
            "train.sync_batchnorm works between several processes on GPUs, and this run has "
            f"{world} on {device.type}; drop it"
        )
    if world == 1:
        return
    if not methods.find(recipe.method.name).distributed:
        raise InputError(
            f"the method {recipe.method.name!r} keeps state that processes do not share, and "
            f"torchrun started {world}; start it without torchrun"
        )
    if recipe.teacher is not None and recipe.teacher.cache != "none":
        raise InputError(
            f"teacher.cache={recipe.teacher.cache} works in one process, and torchrun started "
            f"{world}; take teacher.cache=none"
        )
    for key in ("graph", "compile"):
        if getattr(recipe.train, key):
            raise InputError(
                f"train.{key}=true works in one process, and torchrun started {world}; drop it"
            )
    if recipe.train.batch_size < MIN_SAMPLES * world:
        raise InputError(
            f"train.batch_size={recipe.train.batch_size} leaves some of {world} processes fewer "
            f"than {MIN_SAMPLES} images a step; set {MIN_SAMPLES * world} or more, or start fewer "
            "processes"
        )


def rehearse(recipe: Recipe, data: Dataset, given: UserObjects) -> TeacherNeeds:
    """Builds everything once and takes a step: what does not fit is said before any work.

    Args:
        recipe: The whole run.
        data: Its images.
        given: Objects in place of names; copies of them are used.

    Returns:
        Which of the teacher's outputs the method reads.

    Raises:
        InputError: Data, student, teacher and method do not fit each other.
        NotFinite: A number of the step is NaN or infinite.
    """
    if (
        distributed.launched_world_size() > 1
        and len(data.train.labels) < MIN_SAMPLES * distributed.launched_world_size()
    ):
        raise InputError(
            f"{len(data.train.labels)} training images are too few for {distributed.launched_world_size()} "
            f"processes with {MIN_SAMPLES} each; start fewer processes"
        )
    student = build_model(recipe.student, data, 0, given.student, given.allow_code)
    teacher = None
    if recipe.teacher is not None:
        model = build_model(recipe.teacher, data, 0, given.teacher, given.allow_code)
        _load_checkpoint(model, recipe.teacher)
        if _trains_teacher(recipe, given):
            rehearse(teacher_recipe(recipe, Path()), data, UserObjects(allow_code=given.allow_code))
        teacher = FrozenTeacher(model)
    method = make_method(recipe, data, student, teacher)
    if recipe.train.compile:
        _check_compiles(recipe.method.name, method, teacher)
    if recipe.teacher is not None and recipe.teacher.cache != "none":
        check_cacheable(recipe.teacher.cache, method.needs, recipe.method.name)
    trainer = make_trainer(
        recipe, method, TeacherOutputs(teacher), MemoryLoader(data.train, torch.device("cpu"))
    )
    trainer.rehearse()
    return method.needs


def _check_compiles(name: str, method: Method, teacher: FrozenTeacher | None) -> None:
    """Refuses to compile what torch cannot.

    That is a method that says so, and a model that is watched by hooks: these are others at every
    step, and torch would compile it anew each time.

    Raises:
        InputError: One of them is.
    """
    if method.uncompiled:
        raise InputError(
            f"train.compile=true: the method {name} is not compiled: {method.uncompiled}; drop it"
        )
    for what, model in (("student", method.student), ("teacher", teacher and teacher.model)):
        if model is not None and not model.returns_stages:
            raise InputError(
                f"train.compile=true: the {what} {type(model.module).__name__} does not give its "
                "stages by itself, as the zoo's models do; drop it"
            )


def check_cache(recipe: Recipe, data: Dataset, given: UserObjects, needs: TeacherNeeds) -> None:
    """Refuses, before any work, cached outputs that the disk cannot hold or that are damaged.

    Which answers are there already follows from the teacher's weights. Of a teacher that is still
    to be trained nothing is known; its answers are looked at when it is (`make_teacher_outputs`).

    Raises:
        InputError: They are not to be had.
    """
    if recipe.teacher is None or recipe.teacher.cache == "none" or _trains_teacher(recipe, given):
        return
    images = MemoryLoader(data.train, torch.device("cpu"))
    model = build_model(recipe.teacher, data, recipe.seed, given.teacher, given.allow_code)
    _load_checkpoint(model, recipe.teacher)
    kept = _cached_outputs(recipe, images, FrozenTeacher(model), needs)
    if kept is not None:
        kept.check()


def make_method(
    recipe: Recipe, data: Dataset, student: StagedModel, teacher: FrozenTeacher | None
) -> Method:
    """The recipe's method for these models, on their device."""
    classifier = teacher.model.linear_classifier if teacher is not None else None
    pair = Pair(
        student,
        spec_of(student, data, "student"),
        spec_of(teacher.model, data, "teacher") if teacher is not None else None,
        copy.deepcopy(classifier),
        data.train.labels,
        largest_batch(recipe.train.batch_size, distributed.world_size()),
    )
    return methods.find(recipe.method.name)(pair, **recipe.method.options)


def make_teacher(
    recipe: Recipe, images: DataLoaders, given: UserObjects, folder: Path, resume: bool
) -> FrozenTeacher | None:
    """The frozen teacher: given, loaded, or trained first; None for a method that needs none.

    Args:
        recipe: The run.
        images: On the device where the teacher is to answer.
        given: Objects in place of names.
        folder: Where a teacher that has no checkpoint is trained, unless it was already.
        resume: Whether its interrupted training goes on.

    Raises:
        InputError: Weights do not fit, or another teacher lies in the folder, or is at work there.
        Stopped: A signal asked for a stop; the state is saved.
    """
    settings = recipe.teacher
    if settings is None or not methods.find(recipe.method.name).needs_teacher:
        return None
    model = build_model(settings, images.data, recipe.seed, given.teacher, given.allow_code)
    _load_checkpoint(model, settings)
    device = images.train.device
    if _trains_teacher(recipe, given):
        own = RunDirectory(folder)
        plan = teacher_recipe(recipe, own.path)
        distributed.on_rank_zero(refuse_links)(folder)
        with own.locked():
            own.check_same(plan.plain())
            if own.finished:
                own.check_data(images.data.fingerprint())
            else:
                log.info("training the teacher %s first, in %s", settings.name, own.path)
                own.start(plan.plain(), devices.environment(device))
                alone = UserObjects(allow_code=given.allow_code)
                _fit(make_training_run(plan, images, alone, TeacherOutputs(None), own), resume)
        weights = distributed.on_rank_zero(read_weights)(own.path / LAST)
        load_weights(model.module, weights, f"the teacher in {own.path}")
    model.to_device(device)
    fold_on = images.train.probe(PROBE) if settings.fuse_batchnorm else None
    return FrozenTeacher(model, fold_on, bfloat16=recipe.train.precision == "bfloat16")


def make_teacher_outputs(
    recipe: Recipe, split: Loader, teacher: FrozenTeacher | None, needs: TeacherNeeds
) -> TeacherOutputs:
    """Of a teacher that is asked at every step, or only for what is not kept (``teacher.cache``).

    With ``teacher.ahead`` several steps' answers are got at once. Answers that are kept come from
    the teacher as it is, also where steps are compiled: they are to depend on the teacher alone.

    Args:
        recipe: The run.
        split: The training split, on the teacher's device.
        teacher: The frozen teacher; None for a method that needs none.
        needs: What is kept of its answers.

    Raises:
        InputError: The store of cached outputs is damaged, or the disk cannot hold it.
    """
    teacher_outputs: TeacherOutputs
    kept = _cached_outputs(recipe, split, teacher, needs)
    if kept is not None:
        kept.open()
        teacher_outputs = kept
    else:
        teacher_outputs = TeacherOutputs(teacher, compile=recipe.train.compile)
    if teacher is None or recipe.teacher is None or recipe.teacher.ahead == 1:
        return teacher_outputs
    return Ahead(teacher_outputs, recipe.teacher.ahead, recipe.train.precision)


def _cached_outputs(
    recipe: Recipe, split: Loader, teacher: FrozenTeacher | None, needs: TeacherNeeds
) -> CachedOutputs | None:
    settings = recipe.teacher
    if teacher is None or settings is None or settings.cache == "none" or not needs:
        return None
    return CachedOutputs(
        teacher,
        split,
        needs,
        keep=settings.cache,
        views=settings.views,
        padding=recipe.data.crop_padding,
        flip=recipe.data.flip,
        precision=recipe.train.precision,
        facts={
            "name": settings.name,
            "options": settings.options,
            "folded": settings.fuse_batchnorm,
        },
        folder=settings.cache_dir,
    )


def _views_of_each(recipe: Recipe, images: int) -> Tensor | None:
    """The views that each image is limited to, whichever the method; None for all."""
    if recipe.teacher is None or recipe.teacher.cache != "features":
        return None
    padding, flip = recipe.data.crop_padding, recipe.data.flip
    views = cached_views("features", recipe.teacher.views, padding, flip)
    return draw_views(images, padding, flip, views)


def _trains_teacher(recipe: Recipe, given: UserObjects) -> bool:
    """Whether the recipe's teacher has to be trained before it can teach."""
    if recipe.teacher is None or not methods.find(recipe.method.name).needs_teacher:
        return False
    return recipe.teacher.checkpoint is None and given.teacher is None


def _load_checkpoint(teacher: StagedModel, settings: TeacherSettings) -> None:
    if settings.checkpoint is not None:
        what = f"the teacher checkpoint {settings.checkpoint}"
        load_weights(teacher.module, read_weights(settings.checkpoint), what)


def teacher_recipe(recipe: Recipe, out: Path) -> Recipe:
    """How a recipe trains its teacher: by labels, else as the student."""
    teacher = recipe.teacher
    assert teacher is not None
    own = {"epochs": teacher.epochs, "lr": teacher.lr}
    schedule = {key: value for key, value in own.items() if value is not None}
    return recipe.changed(
        student=ModelSettings(**{key: getattr(teacher, key) for key in ModelSettings.model_fields}),
        teacher=None,
        method=_by_labels(),
        train=recipe.train.model_copy(update=schedule),
        out=out,
    )


def _by_labels() -> MethodSettings:
    return MethodSettings(name="ce", **methods.resolve("ce", {}))


def make_training_run(
    recipe: Recipe,
    images: DataLoaders,
    given: UserObjects,
    teacher_outputs: TeacherOutputs,
    directory: RunDirectory,
) -> TrainingRun:
    """A run that can begin. The student's weights depend on the seed alone.

    Args:
        recipe: The run.
        images: On the device that trains.
        given: Objects in place of names.
        answers: Of the teacher, on the same device.
        directory: Where it is recorded.
    """
    device = images.train.device
    student = build_model(recipe.student, images.data, recipe.seed, given.student, given.allow_code)
    torch.manual_seed(_stream(recipe.seed, 1))
    method = make_method(recipe, images.data, student, teacher_outputs.teacher).to(device)
    method.student.to_device(device)
    if recipe.train.sync_batchnorm:
        method = nn.SyncBatchNorm.convert_sync_batchnorm(method)  # type: ignore[no-untyped-call]
    if recipe.train.compile:
        compile_in_place(method)
    trainer = make_trainer(recipe, method, teacher_outputs, images.train)
    torch.manual_seed(_stream(recipe.seed, 2 + distributed.rank()))
    return TrainingRun(recipe, images, trainer, directory)


def _fit(training_run: TrainingRun, resume: bool) -> Result:
    training_run.begin(resume)
    training_run.train()
    return training_run.finish()


def make_trainer(
    recipe: Recipe, method: Method, teacher_outputs: TeacherOutputs, split: Loader
) -> Trainer:
    """The trainer of a recipe's schedule.

    Args:
        recipe: Its ``train``, ``data``, ``seed`` and ``teacher.cache`` are read.
        method: On its device.
        answers: Of a teacher on the same device.
        split: The training split, on the same device.
    """
    settings = recipe.train
    optimizer = make_optimizer(
        method,
        settings.optimizer,
        lr=settings.lr,
        momentum=settings.momentum,
        nesterov=settings.nesterov,
        weight_decay=settings.weight_decay,
    )
    rate = partial(
        learning_rate,
        epochs=settings.epochs,
        lr=settings.lr,
        schedule=settings.schedule,
        milestones=settings.milestones,
        gamma=settings.gamma,
        warmup=settings.warmup,
    )
    on_gpu = split.device.type == "cuda"  # a rehearsal takes its step on the CPU
    return Trainer(
        method,
        teacher_outputs,
        split,
        optimizer,
        rate,
        seed=recipe.seed,
        epochs=settings.epochs,
        batch_size=settings.batch_size,
        padding=recipe.data.crop_padding,
        flip=recipe.data.flip,
        precision=settings.precision,
        views_of_each=_views_of_each(recipe, len(split)),
        recorder=CudaRecorder(split.device) if settings.graph and on_gpu else None,
    )


def _stream(seed: int, part: int) -> int:
    """A seed of its own for each part of a run."""
    return int(np.random.SeedSequence([seed, part]).generate_state(1)[0])
