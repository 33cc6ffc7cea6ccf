"""START HERE: from a recipe to a trained student.

`train` teaches by labels, `distill` by a teacher, which is trained first where it has no
checkpoint. Both build the run's objects and hand them to a `Session`, which trains and records.
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
from dskd.config.recipe import MethodSettings, ModelSettings, Recipe, TeacherSettings
from dskd.data import Dataset
from dskd.data.epoch_plan import LEAST, draw_bank, largest_batch
from dskd.data.loader import Resident, ResidentData
from dskd.engine.build import PROBE, Given, build_model, load_data, spec_of
from dskd.engine.cuda_graph import CudaRecorder
from dskd.engine.lr_schedule import learning_rate
from dskd.engine.optimizer import make_optimizer
from dskd.engine.trainer import Trainer
from dskd.engine.training_run import Result, Session
from dskd.errors import InputError
from dskd.methods.base import Method, Pair, TeacherNeeds
from dskd.models.staged_model import StagedModel
from dskd.runtime import device as devices
from dskd.runtime import distributed
from dskd.runtime.compile import check_compiler, compile_in_place
from dskd.storage.atomic import refuse_links
from dskd.storage.run_directory import LAST, RunDirectory
from dskd.storage.weights import load_weights, read_weights
from dskd.teacher.cache import KeptAnswers, bank_size, check_needs
from dskd.teacher.frozen import Teacher
from dskd.teacher.outputs import Answers
from dskd.teacher.prefetch import Ahead

log = logging.getLogger("dskd")


def train(
    recipe: Recipe, *, resume: bool = False, overwrite: bool = False, given: Given | None = None
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
    recipe: Recipe, *, resume: bool = False, overwrite: bool = False, given: Given | None = None
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
    given = given or Given()
    directory = RunDirectory(recipe.out)
    device = devices.pick(recipe.train.device, graph=recipe.train.graph)
    check_ranks(recipe, device)
    with distributed.joined(device):
        directory.check(recipe.plain(), resume=resume, overwrite=overwrite)
        devices.set_up(device)
        data = distributed.machine_by_machine(lambda: load_data(recipe.data, given.data))
        for note in data.notes:
            log.info(note)
        with distributed.alone():
            needs = check_fit(recipe, data, given)
            check_kept(recipe, data, given, needs)
            if recipe.train.compile:
                check_compiler(device)
        return _distill(recipe, data, needs, device, directory, given, resume, overwrite)


def _distill(
    recipe: Recipe,
    data: Dataset,
    needs: TeacherNeeds,
    device: torch.device,
    directory: RunDirectory,
    given: Given,
    resume: bool,
    overwrite: bool,
) -> Result:
    """The run itself, of what was found to fit."""
    with directory.owned():
        # Another run may have come and gone while the pictures were read.
        directory.check(recipe.plain(), resume=resume, overwrite=overwrite)
        if overwrite:
            directory.clear()
        goes_on = resume and directory.begun
        if not goes_on:
            directory.start(recipe.plain(), devices.environment(device))
        pictures = ResidentData(data, device)
        teacher = make_teacher(recipe, pictures, given, directory.path / "teacher", resume)
        answers = make_answers(recipe, pictures.train, teacher, needs)
        session = make_session(recipe, pictures, given, answers, directory)
        session.begin(resume)
        if goes_on:  # not before: what was moved may be something else
            directory.start(recipe.plain(), devices.environment(device))
        session.train()
        return session.finish()


def check_ranks(recipe: Recipe, device: torch.device) -> None:
    """Refuses what the processes that were started cannot train together, before any work.

    Args:
        recipe: The whole run.
        device: That it trains on.

    Raises:
        InputError: The method or the batches do not allow it, or BatchNorm cannot be synchronised.
    """
    world = distributed.started()
    if recipe.train.sync_batchnorm and (world == 1 or device.type != "cuda"):
        raise InputError(
            "train.sync_batchnorm works between several processes on GPUs, and this run has "
            f"{world} on {device.type}; drop it"
        )
    if world == 1:
        return
    if not methods.find(recipe.method.name).ranks:
        raise InputError(
            f"the method {recipe.method.name!r} keeps state that processes do not share, and "
            f"torchrun started {world}; start it without torchrun"
        )
    if recipe.teacher is not None and recipe.teacher.keep != "none":
        raise InputError(
            f"teacher.keep={recipe.teacher.keep} works in one process, and torchrun started "
            f"{world}; take teacher.keep=none"
        )
    for key in ("graph", "compile"):
        if getattr(recipe.train, key):
            raise InputError(
                f"train.{key}=true works in one process, and torchrun started {world}; drop it"
            )
    if recipe.train.batch_size < LEAST * world:
        raise InputError(
            f"train.batch_size={recipe.train.batch_size} leaves some of {world} processes fewer "
            f"than {LEAST} pictures a step; set {LEAST * world} or more, or start fewer processes"
        )


def check_fit(recipe: Recipe, data: Dataset, given: Given) -> TeacherNeeds:
    """Builds everything once and takes a step: what does not fit is said before any work.

    Args:
        recipe: The whole run.
        data: Its pictures.
        given: Objects in place of names; copies of them are used.

    Returns:
        Which of the teacher's outputs the method reads.

    Raises:
        InputError: Data, student, teacher and method do not fit each other.
        NotFinite: A number of the step is NaN or infinite.
    """
    if distributed.started() > 1 and len(data.train.labels) < LEAST * distributed.started():
        raise InputError(
            f"{len(data.train.labels)} training pictures are too few for {distributed.started()} "
            f"processes with {LEAST} each; start fewer processes"
        )
    student = build_model(recipe.student, data, 0, given.student, given.allow_code)
    teacher = None
    if recipe.teacher is not None:
        model = build_model(recipe.teacher, data, 0, given.teacher, given.allow_code)
        _load_checkpoint(model, recipe.teacher)
        if _trains_teacher(recipe, given):
            check_fit(teacher_recipe(recipe, Path()), data, Given(allow_code=given.allow_code))
        teacher = Teacher(model)
    method = make_method(recipe, data, student, teacher)
    if recipe.train.compile:
        _check_compiles(recipe.method.name, method, teacher)
    if recipe.teacher is not None and recipe.teacher.keep != "none":
        check_needs(recipe.teacher.keep, method.needs, recipe.method.name)
    trainer = make_trainer(
        recipe, method, Answers(teacher), Resident(data.train, torch.device("cpu"))
    )
    trainer.rehearse()
    return method.needs


def _check_compiles(name: str, method: Method, teacher: Teacher | None) -> None:
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
        if model is not None and not model.native:
            raise InputError(
                f"train.compile=true: the {what} {type(model.module).__name__} does not give its "
                "stages by itself, as the zoo's models do; drop it"
            )


def check_kept(recipe: Recipe, data: Dataset, given: Given, needs: TeacherNeeds) -> None:
    """Refuses, before any work, kept answers that the disk cannot hold or that are damaged.

    Which answers are there already follows from the teacher's weights. Of a teacher that is still
    to be trained nothing is known; its answers are looked at when it is (`make_answers`).

    Raises:
        InputError: They are not to be had.
    """
    if recipe.teacher is None or recipe.teacher.keep == "none" or _trains_teacher(recipe, given):
        return
    pictures = Resident(data.train, torch.device("cpu"))
    model = build_model(recipe.teacher, data, recipe.seed, given.teacher, given.allow_code)
    _load_checkpoint(model, recipe.teacher)
    kept = _kept_answers(recipe, pictures, Teacher(model), needs)
    if kept is not None:
        kept.check()


def make_method(
    recipe: Recipe, data: Dataset, student: StagedModel, teacher: Teacher | None
) -> Method:
    """The recipe's method for these models, on their device."""
    classifier = teacher.model.linear if teacher is not None else None
    pair = Pair(
        student,
        spec_of(student, data, "student"),
        spec_of(teacher.model, data, "teacher") if teacher is not None else None,
        copy.deepcopy(classifier),
        data.train.labels,
        largest_batch(recipe.train.batch_size, distributed.world()),
    )
    return methods.find(recipe.method.name)(pair, **recipe.method.options)


def make_teacher(
    recipe: Recipe, pictures: ResidentData, given: Given, folder: Path, resume: bool
) -> Teacher | None:
    """The frozen teacher: given, loaded, or trained first; None for a method that needs none.

    Args:
        recipe: The run.
        pictures: On the device where the teacher is to answer.
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
    model = build_model(settings, pictures.data, recipe.seed, given.teacher, given.allow_code)
    _load_checkpoint(model, settings)
    device = pictures.train.device
    if _trains_teacher(recipe, given):
        own = RunDirectory(folder)
        plan = teacher_recipe(recipe, own.path)
        distributed.by_first(refuse_links)(folder)
        with own.owned():
            own.check_same(plan.plain())
            if own.finished:
                own.check_pictures(pictures.data.fingerprint())
            else:
                log.info("training the teacher %s first, in %s", settings.name, own.path)
                own.start(plan.plain(), devices.environment(device))
                alone = Given(allow_code=given.allow_code)
                _fit(make_session(plan, pictures, alone, Answers(None), own), resume)
        weights = distributed.by_first(read_weights)(own.path / LAST)
        load_weights(model.module, weights, f"the teacher in {own.path}")
    model.place(device)
    fold_on = pictures.train.images[:PROBE] if settings.fold else None
    return Teacher(model, fold_on, bfloat16=recipe.train.precision == "bfloat16")


def make_answers(
    recipe: Recipe, split: Resident, teacher: Teacher | None, needs: TeacherNeeds
) -> Answers:
    """Of a teacher that is asked at every step, or only for what is not kept (``teacher.keep``).

    With ``teacher.ahead`` several steps' answers are got at once. Answers that are kept come from
    the teacher as it is, also where steps are compiled: they are to depend on the teacher alone.

    Args:
        recipe: The run.
        split: The training split, on the teacher's device.
        teacher: The frozen teacher; None for a method that needs none.
        needs: What is kept of its answers.

    Raises:
        InputError: The store of kept answers is damaged, or the disk cannot hold it.
    """
    answers: Answers
    kept = _kept_answers(recipe, split, teacher, needs)
    if kept is not None:
        kept.open()
        answers = kept
    else:
        answers = Answers(teacher, compile=recipe.train.compile)
    if teacher is None or recipe.teacher is None or recipe.teacher.ahead == 1:
        return answers
    return Ahead(answers, recipe.teacher.ahead, recipe.train.precision)


def _kept_answers(
    recipe: Recipe, split: Resident, teacher: Teacher | None, needs: TeacherNeeds
) -> KeptAnswers | None:
    settings = recipe.teacher
    if teacher is None or settings is None or settings.keep == "none" or not needs:
        return None
    return KeptAnswers(
        teacher,
        split,
        needs,
        keep=settings.keep,
        views=settings.views,
        padding=recipe.data.crop,
        flip=recipe.data.flip,
        precision=recipe.train.precision,
        facts={"name": settings.name, "options": settings.options, "folded": settings.fold},
        folder=settings.store,
    )


def _bank(recipe: Recipe, pictures: int) -> Tensor | None:
    """The views that each picture is limited to, whichever the method; None for all."""
    if recipe.teacher is None or recipe.teacher.keep != "bank":
        return None
    padding, flip = recipe.data.crop, recipe.data.flip
    views = bank_size("bank", recipe.teacher.views, padding, flip)
    return draw_bank(pictures, padding, flip, views)


def _trains_teacher(recipe: Recipe, given: Given) -> bool:
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


def make_session(
    recipe: Recipe, pictures: ResidentData, given: Given, answers: Answers, directory: RunDirectory
) -> Session:
    """A run that can begin. The student's weights depend on the seed alone.

    Args:
        recipe: The run.
        pictures: On the device that trains.
        given: Objects in place of names.
        answers: Of the teacher, on the same device.
        directory: Where it is recorded.
    """
    device = pictures.train.device
    student = build_model(
        recipe.student, pictures.data, recipe.seed, given.student, given.allow_code
    )
    torch.manual_seed(_stream(recipe.seed, 1))
    method = make_method(recipe, pictures.data, student, answers.teacher).to(device)
    method.student.place(device)
    if recipe.train.sync_batchnorm:
        method = nn.SyncBatchNorm.convert_sync_batchnorm(method)  # type: ignore[no-untyped-call]
    if recipe.train.compile:
        compile_in_place(method)
    trainer = make_trainer(recipe, method, answers, pictures.train)
    torch.manual_seed(_stream(recipe.seed, 2 + distributed.rank()))
    return Session(recipe, pictures, trainer, directory)


def _fit(session: Session, resume: bool) -> Result:
    session.begin(resume)
    session.train()
    return session.finish()


def make_trainer(recipe: Recipe, method: Method, answers: Answers, split: Resident) -> Trainer:
    """The trainer of a recipe's schedule.

    Args:
        recipe: Its ``train``, ``data``, ``seed`` and ``teacher.keep`` are read.
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
        answers,
        split,
        optimizer,
        rate,
        seed=recipe.seed,
        epochs=settings.epochs,
        batch_size=settings.batch_size,
        padding=recipe.data.crop,
        flip=recipe.data.flip,
        precision=settings.precision,
        bank=_bank(recipe, len(split)),
        recorder=CudaRecorder(split.device) if settings.graph and on_gpu else None,
    )


def _stream(seed: int, part: int) -> int:
    """A seed of its own for each part of a run."""
    return int(np.random.SeedSequence([seed, part]).generate_state(1)[0])
