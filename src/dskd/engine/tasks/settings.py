"""The settings that runs of all tasks other than image classification have."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, ClassVar, TypeVar

from pydantic import Field, model_validator

from dskd.config.base_recipe import BaseRecipe
from dskd.config.schema import MethodSettings
from dskd.config.train_settings import TrainSettings
from dskd.settings import Fraction, PathSetting, Seed, Settings

R = TypeVar("R", bound="TaskRecipe")


class TaskTrainSettings(TrainSettings):
    """The training: schedule, optimizer and hardware."""

    milestones: tuple[Fraction, ...] = ()
    """Milestones of ``step``, as fractions of the epochs; none for a constant rate."""
    optimizer: str = "adamw"
    """``adamw``, ``sgd``, or an optimizer of timm. adamw without weight decay is Adam."""
    weight_decay: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    """Weight decay of every parameter."""

    UNUSED: ClassVar[tuple[str, ...]] = (
        "dot_delta",
        "accumulate",
        "label_smoothing",
        "class_weights",
        "mixup",
        "cutmix",
        "mix_probability",
        "ema",
        "exits",
        "int8_rounding",
        "precision",
        "sync_batchnorm",
        "compile",
    )
    """Settings of image classification that other tasks do not have."""

    @model_validator(mode="after")
    def _settings_of_images(self) -> TaskTrainSettings:
        for key in self.UNUSED:
            if not self.is_default(key):
                raise ValueError(
                    f"{key} is a setting of images and their classes, and does not apply; drop it"
                )
        if self.optimizer == "dot":
            raise ValueError("optimizer=dot separates two gradients of images; set adamw or sgd")
        return self

    def own(self) -> dict[str, Any]:
        """The settings that apply, as plain values."""
        return self.model_dump(mode="json", exclude={*self.UNUSED})


class SplitSettings(Settings):
    """Data whose split is drawn by ``split_seed``, or by the seed of the run if that is None."""

    if TYPE_CHECKING:
        split_seed: int | None

    @property
    def seed_of_split(self) -> int:
        """The seed of the split, which `TaskRecipe.split_data` has filled in."""
        assert self.split_seed is not None, "the settings are those of TaskRecipe.split_data"
        return self.split_seed


class TaskRecipe(BaseRecipe):
    """All settings of a run. A task gives its sections their types."""

    PATHS: ClassVar[tuple[tuple[str, str], ...]] = (("data", "root"), ("teacher", "checkpoint"))

    task: str
    """Tells the recipe from those of other tasks."""
    data: Any
    student: Any
    teacher: Any = None
    method: MethodSettings
    train: TaskTrainSettings = TaskTrainSettings()
    seed: Seed = 0
    """Seed of everything random."""
    out: PathSetting | None = None
    """The run's folder."""

    @property
    def split_data(self) -> Any:
        """The settings of the data with the seed of its split."""
        if self.data.split_seed is not None:
            return self.data
        return self.data.model_copy(update={"split_seed": self.seed})

    def plain(self) -> dict[str, Any]:
        """Converts the recipe to plain values for YAML, without the settings of images alone."""
        return super().plain() | {"train": self.train.own()}
