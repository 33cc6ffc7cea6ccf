"""Recipes of a task: load a YAML file, apply ``key=value`` overrides, and check the result."""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, Generic

from dskd import methods
from dskd.config.contradictions import (
    check_schedule,
    check_shared,
    check_teaches,
    keys_of,
    refuse_ambiguous,
    warn_of_unused_training,
)
from dskd.config.overrides import all_keys, method_for_all, overridden
from dskd.config.recipe import folder_name, read_recipe, stems
from dskd.config.schema import MethodSettings
from dskd.config.short_forms import check_sections
from dskd.engine.tasks.settings import R
from dskd.errors import InputError, unknown
from dskd.settings import validate


@dataclass(frozen=True)
class TaskRecipes(Generic[R]):
    """The recipes of a task.

    Attributes:
        task: Its name. The names of its methods begin with it, as in ``graphs/dskd``.
        model: The settings of a recipe.
        package: The package with the folder ``recipes``.
        method: The method by default, without the name of the task.
        alone: The method that trains a student, or a teacher, without a teacher.
        check: Refuses settings of the data that contradict each other.
    """

    task: str
    model: type[R]
    package: str
    method: str
    alone: str
    check: Callable[[R], None] = lambda recipe: None

    @property
    def prefix(self) -> str:
        """What the names of the methods begin with."""
        return f"{self.task}/"

    def shipped(self) -> list[str]:
        """Lists the recipes that come with the package."""
        return list(stems(self._folder))

    @property
    def _folder(self) -> Path:
        return Path(str(resources.files(self.package) / "recipes"))

    def load(self, name: str | Mapping[str, Any] | None, overrides: Iterable[str] = ()) -> R:
        """Loads a recipe by name or from a YAML file, and applies overrides.

        Names of methods may be given without the name of the task.

        Args:
            name: A name of `shipped`, the path of a YAML file, or its content; None for no recipe.
            overrides: As in ``["train.epochs=10", "seed=1"]``.

        Raises:
            InputError: The recipe or a key does not exist, a value does not fit, or an override
                sets a teacher that the method does not need.
        """
        overrides = list(overrides)
        recipe = self._load(name, overrides)
        self.check_teaches(recipe, keys_of(overrides))
        return recipe

    def _load(self, name: str | Mapping[str, Any] | None, overrides: Iterable[str]) -> R:
        values, folder = self.read(name)
        named = [self._with_task(override) for override in overrides]
        return self.resolve(overridden(values, named, self.model), folder)

    def check_teaches(self, recipe: R, keys: Collection[str]) -> None:
        """As `dskd.config.contradictions.check_teaches`, with the short name of the method."""
        name = recipe.method.name
        check_teaches(recipe.teacher, name, keys, self.short(name))

    def read(self, recipe: str | Path | Mapping[str, Any] | None) -> tuple[dict[str, Any], Path]:
        """The values of a recipe with the whole name of its method, and the folder of its runs.

        Args:
            recipe: A name of `shipped`, the path of a YAML file, or its content; None for no
                recipe.

        Raises:
            InputError: There is no such recipe, or it cannot be read.
        """
        # What is merged later changes sections in place, and those of the caller stay.
        values, stem = copy.deepcopy(dict(recipe)) if isinstance(recipe, Mapping) else {}, "own"
        if isinstance(recipe, str | Path):
            values, stem = read_recipe(str(recipe), self._folder)
        check_sections(values)
        return self._with_method(values), Path("runs") / self.task / stem

    def load_shared(self, name: str | None, overrides: Iterable[str] = ()) -> R:
        """Loads a recipe as `load` does, for a comparison.

        Raises:
            InputError: As `load`, or an override sets the folder or the method, which a comparison
                names elsewhere.
        """
        overrides = list(overrides)
        check_shared(overrides)
        values, folder = self.read(name)
        recipe = self.resolve(self.for_all(overridden(values, overrides, self.model)), folder)
        warn_of_unused_training(recipe.teacher, keys_of(overrides))
        return recipe

    def for_all(self, values: dict[str, Any]) -> dict[str, Any]:
        """The values for a comparison, see `dskd.config.overrides.method_for_all`."""
        method_for_all(values, self.prefix + self.method, self.prefix + self.alone)
        return values

    def load_alone(self, name: str | None, overrides: Iterable[str] = ()) -> R:
        """Loads a recipe as `load` does, to train its student without a teacher, by `alone`.

        Raises:
            InputError: As `load`, or an override sets the teacher or the method, which such a run
                does not use.
        """
        overrides = list(overrides)
        for override in overrides:
            key = override.partition("=")[0]
            if key.split(".")[0] in ("teacher", "method"):
                raise InputError(
                    f"{key} has no effect on training by labels; use `dskd {self.task} distill`"
                )
        alone = f"method={{name: {self.prefix}{self.alone}}}"
        return self.load(name, [*overrides, alone, "teacher=null"])

    def resolve(self, values: Mapping[str, Any], folder: Path) -> R:
        """Checks a whole recipe before any work starts, and fills in the defaults.

        Args:
            values: Nested plain values, as read from YAML.
            folder: If the recipe sets no ``out``, the run's folder is ``<method>-seed<seed>`` in
                here.

        Raises:
            InputError: A key does not exist, a value does not fit, or two settings contradict.
        """
        given = self._with_method(values)
        recipe = validate(self.model, given, known=all_keys(given, self.model))
        name, short = recipe.method.name, self.short(recipe.method.name)
        if not name.startswith(self.prefix):
            raise unknown("method", name, methods.names(self.task))
        self.check(recipe)
        needs_teacher = methods.find(name).needs_teacher
        teacher = recipe.teacher if needs_teacher else None
        check_schedule(recipe.train, None if teacher and teacher.is_given else teacher)
        options = methods.resolve(name, recipe.method.options)
        refuse_ambiguous(options, "method")
        if needs_teacher and recipe.teacher is None:
            raise InputError(
                f"the method {short!r} needs a teacher; give one, as in {recipe.TEACHER}"
            )
        out = recipe.out or folder / f"{folder_name(short)}-seed{recipe.seed}"
        return recipe.changed(method=MethodSettings(name=name, **options), out=out)

    def short(self, method: str) -> str:
        """The name of a method without that of the task."""
        return method.removeprefix(self.prefix)

    def of_teacher(self, recipe: R, student: Any, folder: Path) -> R:
        """The run that trains a recipe's teacher, by `alone`.

        Args:
            recipe: The run.
            student: The settings of the teacher as those of a model to train.
            folder: Of the teacher's run.
        """
        name = self.prefix + self.alone
        epochs = recipe.teacher.epochs or recipe.train.epochs
        return recipe.changed(
            student=student,
            teacher=None,
            method=MethodSettings(name=name, **methods.resolve(name, {})),
            train=recipe.train.model_copy(update={"epochs": epochs}),
            out=folder,
        )

    def _with_task(self, override: str) -> str:
        key, _, text = override.partition("=")
        if key == "method.name" and "/" not in text:
            return f"{key}={self.prefix}{text}"
        return override

    def _with_method(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """The values with the whole name of their method."""
        method = values.get("method", {})
        if not isinstance(method, Mapping):
            return dict(values)
        name = method.get("name", self.method)
        whole = self.prefix + name if isinstance(name, str) and "/" not in name else name
        return {**values, "method": {**method, "name": whole}}
