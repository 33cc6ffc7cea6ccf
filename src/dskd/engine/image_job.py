"""A run of image classification, from its recipe to the training run."""

from __future__ import annotations

import logging

import torch

from dskd.config.schema import Recipe
from dskd.data.loader import DataLoaders
from dskd.engine.build import build_run, build_teacher_outputs
from dskd.engine.check.data import log_counts
from dskd.engine.preflight import check_processes
from dskd.engine.prepare import Prepared, prepare, trains_teacher
from dskd.engine.task import Job
from dskd.engine.teacher_labels import training_data
from dskd.engine.train_teacher import given_teacher, trained_teacher
from dskd.engine.training_run import TrainingRun
from dskd.engine.unlabelled import log_unlabelled, teacher_loader
from dskd.engine.user_objects import UserObjects
from dskd.errors import as_given
from dskd.runtime import distributed
from dskd.storage.run_directory import RunDirectory
from dskd.storage.run_files import TEACHER
from dskd.teacher.frozen import FrozenTeacher

log = logging.getLogger("dskd")


class ImageJob(Job):
    """A run of image classification.

    Args:
        recipe: The run.
        objects: Objects in place of names.
    """

    _prepared: Prepared
    _loaders: DataLoaders
    _teacher: FrozenTeacher | None

    def __init__(self, recipe: Recipe, objects: UserObjects) -> None:
        super().__init__(recipe)
        self._recipe, self._objects = recipe, objects

    @property
    def trains_teacher(self) -> bool:
        """See `Job.trains_teacher`."""
        return trains_teacher(self._recipe, self._objects)

    def check_processes(self, device: torch.device) -> None:
        """See `Job.check_processes`."""
        check_processes(self._recipe, device)

    def prepare(self, device: torch.device, *, begun: bool) -> None:
        """Loads the images, builds the models and rehearses a step; evaluates a given teacher."""
        recipe = self._recipe
        data = distributed.local_rank_zero_first(lambda: training_data(recipe, self._objects))
        for note in data.notes:
            log.info(as_given(note))
        log_counts(data)
        with distributed.independently():
            self._prepared = prepare(recipe, data, self._objects, device)
        log_unlabelled(recipe, data)
        self._loaders = DataLoaders(data, device)
        # A run that has begun has passed this; other images or another teacher are refused later.
        learning = [] if begun else [recipe.method]
        self._teacher = given_teacher(self._prepared, self._loaders, learning)

    def build(self, directory: RunDirectory, *, resume: bool) -> TrainingRun:
        """Trains the teacher if it is not given, opens its outputs, and builds the run."""
        prepared, loaders, recipe = self._prepared, self._loaders, self._recipe
        teacher = self._teacher
        if teacher is None:
            teacher = trained_teacher(prepared, loaders, directory.path / TEACHER, resume)
        images = teacher_loader(recipe.data, loaders)
        outputs = build_teacher_outputs(recipe, images, teacher, prepared.needs)
        outputs.open()
        return build_run(recipe, prepared.student, loaders, outputs, directory)
