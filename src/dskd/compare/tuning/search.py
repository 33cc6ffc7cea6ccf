"""What a study is: the recipe, what is tuned, and the images by which trials are compared."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from dskd import methods
from dskd.compare.tuning.space import Tuned, configured
from dskd.config.schema import Recipe, TeacherSettings
from dskd.data import Dataset
from dskd.engine.teacher_labels import training_data
from dskd.engine.user_objects import UserObjects
from dskd.errors import InputError
from dskd.storage.run_directory import RunDirectory
from dskd.storage.run_files import LAST, TEACHER


@dataclass(frozen=True)
class Search:
    """A study.

    Attributes:
        recipe: What all trials share, with all defaults.
        space: The settings that are tuned.
        seeds: Each trial is trained at every seed.
        path: The folder of the study.
        objects: Objects in place of names.
    """

    recipe: Recipe
    space: tuple[Tuned, ...]
    seeds: tuple[int, ...]
    path: Path
    objects: UserObjects

    def folder(self, number: int) -> Path:
        """The folder of a trial."""
        return self.path / "trials" / f"{number:04}"

    def best_folder(self, number: int, seed: int) -> Path:
        """The folder of a run of the best configuration, that of a trial."""
        return self.path / "best" / f"trial{number:04}" / f"seed{seed}"

    def trial_of(self, values: Mapping[str, str], seed: int, out: Path) -> Recipe:
        """The recipe of a trial, whose early exits nobody uses; its images calibrate none."""
        return without_exits(self.recipe_of(values, seed, out))

    def recipe_of(self, values: Mapping[str, str], seed: int, out: Path) -> Recipe:
        """The recipe of a run with these values, with the teacher of the study."""
        recipe = configured(self.recipe, values)
        return recipe.changed(teacher=self.teacher, seed=seed, out=out)

    @property
    def trains_teacher(self) -> bool:
        """Whether the study trains its teacher."""
        teacher = self.recipe.teacher
        needed = methods.find(self.recipe.method.name).needs_teacher
        return needed and teacher is not None and not teacher.is_given

    @property
    def teacher(self) -> TeacherSettings | None:
        """The teacher once it is trained."""
        teacher = self.recipe.teacher
        if teacher is None or not self.trains_teacher:
            return teacher
        found = {"checkpoint": self.path / TEACHER / LAST, "pretrained": False, "trust": True}
        return teacher.model_copy(update=found)

    @property
    def own_recipe(self) -> Recipe:
        """The recipe as the user gave it, with the teacher of the study, for a trial."""
        return without_exits(self.recipe.changed(teacher=self.teacher))

    def tested_data(self) -> Dataset:
        """The images with the test split, which the best configuration alone may read.

        Raises:
            InputError: There is no validation split.
        """
        data = training_data(self.recipe, self.objects)
        if data.validation is None:
            raise InputError(
                f"{data.name} has no validation split, by which trials are compared; hold out a "
                "part of the training images with data.val_fraction=0.1"
            )
        return data

    def data(self) -> Dataset:
        """The images of trials, see `of_trials`.

        Raises:
            InputError: There is no validation split.
        """
        return of_trials(self.tested_data())

    def tested(self) -> tuple[int, ...]:
        """The trials of which a run with the test split is finished."""
        names = (folder.name for folder in self.path.glob("best/trial*"))
        numbers = {int(part) for name in names if (part := name.removeprefix("trial")).isdecimal()}
        return tuple(number for number in sorted(numbers) if self.tested_runs(number))

    def tested_runs(self, number: int) -> list[RunDirectory]:
        """The finished runs of the configuration of a trial with the test split."""
        runs = (RunDirectory(self.best_folder(number, seed)) for seed in self.seeds)
        return [run for run in runs if run.finished]


def without_exits(recipe: Recipe) -> Recipe:
    """The recipe without early exits, which do not change the student.

    Example:
        >>> from dskd.config.recipe import load
        >>> without_exits(load("digits", ["train.exits=true"])).train.exits
        False
    """
    return recipe.changed(train=recipe.train.model_copy(update={"exits": False}))


def of_trials(data: Dataset) -> Dataset:
    """The validation images in place of the test split, which is absent.

    So ``test_accuracy`` in the folder of a trial is the accuracy on validation images.

    Args:
        data: The images, with a validation split.
    """
    assert data.validation is not None, "it is checked before"
    # A trial lists no test images: its recipe names a test split that it does not have.
    return replace(data, test=data.validation, validation=None, test_is_held_out=False)
