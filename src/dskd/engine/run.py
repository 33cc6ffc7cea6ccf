"""START HERE: from a recipe to a trained student.

`distill` prepares the run, gets the teacher, trains the student, and returns the result. `train`
does the same without a teacher. Both are runs of images; `run_job` is the story of every run, and
`dskd.engine.image_job` has what is particular to images. The training step is in
`dskd.engine.step`.
"""

from __future__ import annotations

import torch

from dskd.config.schema import Recipe
from dskd.engine import method_code
from dskd.engine.finish import finish
from dskd.engine.image_job import ImageJob
from dskd.engine.more_epochs import takes_more_epochs
from dskd.engine.prepare import label_method
from dskd.engine.result import Result
from dskd.engine.task import Job
from dskd.engine.user_objects import UserObjects
from dskd.runtime import device as devices
from dskd.runtime import distributed
from dskd.runtime.cores import cpu_threads
from dskd.runtime.single_run import single_run
from dskd.storage.run_directory import RunDirectory


def train(
    recipe: Recipe,
    *,
    resume: bool = False,
    overwrite: bool = False,
    objects: UserObjects | None = None,
) -> Result:
    """Trains the recipe's student by labels alone.

    Args:
        recipe: The run. Its teacher and its method are ignored.
        resume: Continue an interrupted run, or a finished one to more epochs. If there is none,
            start a new one and say so.
        overwrite: Replace an existing run.
        objects: Objects in place of names.

    Raises:
        InputError: Something in the recipe cannot be used. Nothing is left behind.
        NonFiniteError: A number became NaN or infinite. Nothing is saved after that.
        Stopped: A signal asked for a stop. The state is saved.
    """
    recipe = recipe.changed(method=label_method(), teacher=None)
    return distill(recipe, resume=resume, overwrite=overwrite, objects=objects)


def distill(
    recipe: Recipe,
    *,
    resume: bool = False,
    overwrite: bool = False,
    objects: UserObjects | None = None,
) -> Result:
    """Distils the recipe's student from its teacher by its method.

    Without ``teacher.checkpoint`` the teacher is trained first, by labels and with the recipe's
    schedule, in the folder ``teacher`` of the run. If torchrun started several processes, they
    train together (see `dskd.runtime.distributed`).

    Args:
        recipe: The run.
        resume: Continue an interrupted run, or a finished one to more epochs. If there is none,
            start a new one and say so.
        overwrite: Replace an existing run.
        objects: Objects in place of names.

    Raises:
        InputError: Something in the recipe cannot be used. Nothing is left behind.
        NonFiniteError: A number became NaN or infinite. Nothing is saved after that.
        Stopped: A signal asked for a stop. The state is saved.
        ProcessLost: Another process of the run died.
    """
    return run_job(ImageJob(recipe, objects or UserObjects()), resume=resume, overwrite=overwrite)


def run_job(job: Job, *, resume: bool = False, overwrite: bool = False) -> Result:
    """Trains a student of any task: prepare, teacher, train, result.

    Args:
        job: The run. `dskd.engine.image_job.ImageJob` is that of images.
        resume: See `distill`.
        overwrite: See `distill`.

    Raises:
        InputError: See `distill`; so are the others.
        NonFiniteError: A number became NaN or infinite.
        Stopped: A signal asked for a stop.
        ProcessLost: Another process of the run died.
    """
    recipe = job.recipe
    assert recipe.out is not None, "a resolved recipe has a folder"
    directory = RunDirectory(recipe.out, trains_teacher=job.trains_teacher)
    device = devices.pick(recipe.train.device)
    job.check_processes(device)
    with single_run(), distributed.process_group(device), cpu_threads(recipe.train.threads):
        more = resume and not overwrite and takes_more_epochs(recipe, directory)
        if not more:
            directory.check(recipe, resume=resume, overwrite=overwrite)
        devices.set_up(device, recipe.train.precision)
        job.prepare(device, begun=resume and directory.begun)
        with directory.locked():
            # Another run may have started here while the data was read.
            if not more:
                directory.check(recipe, resume=resume, overwrite=overwrite)
            if overwrite:
                directory.clear()
            return _train(job, directory, device, resume)


def _train(job: Job, directory: RunDirectory, device: torch.device, resume: bool) -> Result:
    """Trains the teacher if it is not given, then trains and evaluates the student."""
    plain = job.recipe.plain()
    continues = resume and directory.begun
    facts = method_code.environment(job.recipe, device)
    if not continues:
        directory.start(plain, facts)
    run = job.build(directory, resume=resume)
    run.begin(resume)
    if continues:  # not earlier: `begin` refuses a folder that belongs to another run
        method_code.warn_if_changed(directory.path, job.recipe.method.name, facts)
        directory.start(plain, facts)
    run.train()
    return finish(run)
