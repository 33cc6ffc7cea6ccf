"""What a training run needs to know of its task: what differs between images and other data.

A `Task` says how the students of a run are evaluated and described. A `Job` is one run of a task:
it loads the data, builds the models, and gives the `dskd.engine.training_run.TrainingRun`. The
rest of the engine knows a task through these two classes alone, so runs survive, and can be
compared and read, whatever they train on. `dskd.engine.image_task` has the task of images, and
`dskd.engine.tasks` others.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import torch
from torch import Tensor, nn

from dskd.config.schema import MethodSettings
from dskd.config.train_settings import TrainSettings
from dskd.data.loader import Loader
from dskd.engine.evaluate import EvaluationResult
from dskd.methods.base import Method
from dskd.storage.diff import StorableRecipe
from dskd.storage.metric_names import Metric
from dskd.storage.run_directory import RunDirectory

if TYPE_CHECKING:
    from dskd.engine.training_run import TrainingRun


class Named(Protocol):
    """Settings of a model."""

    @property
    def name(self) -> str:
        """Name of the model."""


class RunRecipe(StorableRecipe, Protocol):
    """What a run reads of its recipe; `dskd.config.schema.Recipe` has it, and so have others."""

    @property
    def student(self) -> Named:
        """The model to train."""

    @property
    def method(self) -> MethodSettings:
        """The method and its settings."""

    @property
    def train(self) -> TrainSettings:
        """The schedule."""

    @property
    def seed(self) -> int:
        """The seed of everything random."""

    @property
    def out(self) -> Path | None:
        """The folder of the run."""


class SplitData(Protocol):
    """What a run reads of its data set as a whole."""

    @property
    def name(self) -> str:
        """Name in the recipe."""

    @property
    def metric(self) -> Metric:
        """What is measured on the samples that are evaluated."""

    def fingerprint(self) -> str:
        """A hash of all samples and labels."""


class RunLoaders(Protocol):
    """The data of a run on its device; `dskd.data.loader.DataLoaders` has it."""

    @property
    def data(self) -> SplitData:
        """The data set."""

    @property
    def train(self) -> Loader:
        """Loader of the training split."""

    @property
    def test(self) -> Loader:
        """Loader of the test split."""

    @property
    def validation(self) -> Loader | None:
        """Loader of the validation split; None without one."""


class Task(ABC):
    """How the students of a run are evaluated and described.

    Attributes:
        samples: The word for samples in messages.
    """

    samples: ClassVar[str]

    @abstractmethod
    def evaluate(
        self, module: nn.Module, logits: Callable[[Any], dict[str, Tensor]], loader: Loader
    ) -> dict[str, EvaluationResult]:
        """Evaluates classifiers on a split, in eval mode; then restores the mode.

        Args:
            module: Owns all modules that ``logits`` runs.
            logits: From the inputs of a batch to logits by name.
            loader: Of the split.

        Returns:
            A result for each name.
        """

    @abstractmethod
    def score(self, predictions: Tensor, data: RunLoaders) -> float | None:
        """The score of predictions on the test split, in percent; None without labels."""

    @abstractmethod
    def student_metadata(self, recipe: Any, loaders: Any, method: Method) -> Mapping[str, Any]:
        """All that is needed to build a deployed student and to feed it, as plain values."""

    @abstractmethod
    def record_models(self, run: TrainingRun, *, resumes: bool) -> None:
        """Writes facts about the models of a run that begins into its folder.

        Args:
            run: Which begins.
            resumes: Whether it continues from a checkpoint.

        Raises:
            InputError: A run that continues had other models.
        """


class Job(ABC):
    """One run of a task, from its recipe to the training run.

    Args:
        recipe: The run.
    """

    def __init__(self, recipe: RunRecipe) -> None:
        self.recipe = recipe

    @property
    @abstractmethod
    def trains_teacher(self) -> bool:
        """Whether the run trains a teacher first, in the folder ``teacher`` of the run."""

    @abstractmethod
    def check_processes(self, device: torch.device) -> None:
        """Refuses what the processes of this run cannot train together.

        Raises:
            InputError: They cannot.
        """

    @abstractmethod
    def prepare(self, device: torch.device, *, begun: bool) -> None:
        """Loads the data and builds the models; writes nothing.

        Args:
            device: That trains.
            begun: Whether the run goes on with one that has passed all of this before.

        Raises:
            InputError: Something in the recipe cannot be used.
        """

    @abstractmethod
    def build(self, directory: RunDirectory, *, resume: bool) -> TrainingRun:
        """The training run, which can begin. Trains the teacher before, if that is not given.

        Args:
            directory: Of the run, which has started and is locked.
            resume: Whether an interrupted run goes on.
        """
