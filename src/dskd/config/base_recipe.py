"""What recipes of all tasks share: they are stored with a run, and compared with a stored one."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping, Sequence
from typing import Any, ClassVar, TypeVar

from pydantic import BaseModel

from dskd import methods
from dskd.settings import Settings, settings_of, signature_settings
from dskd.storage.diff import differences

R = TypeVar("R", bound="BaseRecipe")


class BaseRecipe(Settings):
    """A recipe of any task."""

    PATHS: ClassVar[tuple[tuple[str, str], ...]] = ()
    """Settings that may hold a path, by section and key."""
    TEACHER: ClassVar[str] = "teacher.name=resnet20"
    """An example of a teacher's setting, for messages."""
    AUGMENTATIONS: ClassVar[tuple[str, ...]] = ()
    """Settings of the data that a named set of augmentations replaces."""

    def plain(self) -> dict[str, Any]:
        """Converts the recipe to plain values for YAML, with every default filled in.

        Paths become absolute, because another folder may be the current one when they are read.
        """
        plain: dict[str, Any] = self.model_dump(mode="json")
        for section, key in self.PATHS:
            if plain[section] and isinstance(plain[section][key], str):
                plain[section][key] = os.path.abspath(plain[section][key])  # noqa: PTH100 (no "..")
        return plain

    def changed(self: R, **sections: Any) -> R:
        """Copies the recipe with some sections replaced."""
        return self.model_copy(update=sections)

    def differences(
        self,
        stored: Mapping[str, Any],
        *,
        more_epochs: bool = False,
        ignored: Collection[str] = (),
    ) -> str:
        """Lists the settings in which a stored recipe differs from this one.

        A recipe is stored with every setting that exists. A setting that it lacks is newer, and its
        default stands for what was done before the setting existed. So the defaults are filled in
        first.

        Args:
            stored: A recipe from a file, as `plain` gave it.
            more_epochs: Whether this recipe may have more epochs.
            ignored: Sections that may differ.

        Returns:
            One line; empty if nothing differs.
        """
        here = {key: value for key, value in self.plain().items() if key not in ignored}
        there, removed = _aligned(
            {key: value for key, value in stored.items() if key not in ignored}, here, type(self)
        )
        before = stored_epochs(there)
        if more_epochs and before is not None and before < here["train"]["epochs"]:
            there["train"] = {**there["train"], "epochs": here["train"]["epochs"]}
        return _one_line(differences(there, here), removed)


def stored_epochs(recipe: Mapping[str, Any]) -> int | None:
    """The epochs in a recipe from a file; None if there is no such number."""
    train = recipe.get("train")
    epochs = train.get("epochs") if isinstance(train, Mapping) else None
    return epochs if type(epochs) is int else None


def method_differences(stored: Mapping[str, Any], here: Mapping[str, Any]) -> str:
    """Lists the settings in which a stored method differs from another, as `BaseRecipe` does.

    Args:
        stored: Name and settings of a method, from a file.
        here: Name and settings of a method that can be used.
    """
    there, removed = _aligned_method(stored, here)
    return _one_line(differences(there, here), removed)


def _aligned(
    stored: Mapping[str, Any], here: Mapping[str, Any], model: type[BaseModel], where: str = ""
) -> tuple[dict[str, Any], list[str]]:
    """A stored recipe, or a section of it, with the keys of the present one.

    Args:
        stored: From a file.
        here: The same section of the present recipe.
        model: The class of its settings.
        where: What the keys begin with in messages.

    Returns:
        The section with the defaults of the settings that it lacks (those without a default stay
        missing), and a text about each setting that exists no longer.
    """
    known = model.model_construct().model_dump(mode="json", warnings=False) | dict(stored)
    there = {key: known[key] for key in here if key in known}
    removed = [
        f"{where}{key} is {value} there, and this version has no such setting"
        for key, value in stored.items()
        if key not in here
    ]
    for key, own in here.items():
        part, section = there.get(key), settings_of(model, key)
        if not section or not isinstance(part, Mapping) or not isinstance(own, Mapping):
            continue
        if key == "method":
            there[key], more = _aligned_method(part, own)
        else:
            there[key], more = _aligned(part, own, section, f"{where}{key}.")
        removed += more
    return there, removed


def _aligned_method(
    stored: Mapping[str, Any], here: Mapping[str, Any]
) -> tuple[dict[str, Any], list[str]]:
    """A stored method with the settings of the present one; another method as it is."""
    if stored.get("name") != here["name"]:
        return dict(stored), []
    model = signature_settings(methods.find(here["name"]).__init__)
    return _aligned(stored, here, model, "method.")


def _one_line(listed: str, removed: Sequence[str]) -> str:
    return "; ".join([*([listed] if listed else ()), *removed])
