"""What a study is: the recipe, what is tuned, and the images by which trials are compared."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from dskd import methods
from dskd.compare.tuning.space import Tuned, configured
from dskd.config.schema import Recipe, TeacherSettings
from dskd.data import Dataset
from dskd.engine.teacher_labels import training_data
from dskd.engine.user_objects import UserObjects
from dskd.errors import InputError
from dskd.storage.json_file import read_json
from dskd.storage.run_files import LAST, TEACHER

FACTS = "study.json"
"""Marks the folder of a study, and says what it is."""


class StudyFacts(BaseModel):
    """``study.json``.

    Attributes:
        recipe: The recipe without its folder.
        space: The tuned settings, as the user wrote them.
        seeds: The seeds of each trial.
        data: Fingerprint of the images.
        teacher: Fingerprint of the teacher; None until there is one.
    """

    model_config = ConfigDict(extra="allow")

    recipe: dict[str, Any]
    space: dict[str, str]
    seeds: list[int]
    data: str | None = None
    teacher: str | None = None


def read_facts(folder: Path) -> dict[str, Any]:
    """Reads ``study.json``.

    Raises:
        InputError: It is missing or damaged.
    """
    fix = "check the path, or tune anew in another folder"
    return read_json(folder / FACTS, StudyFacts, fix).model_dump(mode="json")


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

    def data(self) -> Dataset:
        """The images of trials: the validation images in place of the test split, which is absent.

        So ``test_accuracy`` in the folder of a trial is the accuracy on validation images.

        Raises:
            InputError: There is no validation split.
        """
        data = training_data(self.recipe, self.objects)
        if data.validation is None:
            raise InputError(
                f"{data.name} has no validation split, by which trials are compared; hold out a "
                "part of the training images with data.val_fraction=0.1"
            )
        # A trial lists no test images: its recipe names a test split that it does not have.
        return replace(data, test=data.validation, validation=None, test_is_held_out=False)

    def facts(self) -> dict[str, Any]:
        """The content of `FACTS`, before data and teacher are known."""
        recipe = self.recipe.plain()
        del recipe["out"]
        return {
            "recipe": recipe,
            "space": {one.key: one.text for one in self.space},
            "seeds": list(self.seeds),
        }
