"""The settings of a run on graphs: names, types, defaults and help texts."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from dskd.config.schema import MethodSettings
from dskd.engine.tasks.settings import SplitSettings, TaskRecipe, TaskTrainSettings
from dskd.settings import Count, Fraction, Natural, PathSetting, Rate, Seed, Settings
from dskd.storage.metric_names import Metric

Architecture = Literal["gcn", "gat", "sage"]
"""A graph network."""
DataName = Literal[
    "npz",
    "generated",
    "generated-multilabel",
    "ppi",
    "cora",
    "citeseer",
    "pubmed",
    "amazon-photo",
    "amazon-computers",
    "coauthor-cs",
    "coauthor-physics",
]
"""Where graphs come from."""


class GraphDataSettings(SplitSettings):
    """The graphs, and how their nodes are split."""

    name: DataName
    """``npz``: a file of yours. ``generated`` and ``generated-multilabel``: small random graphs,
    the second with several labels for each node. The others are data sets that PyTorch Geometric
    downloads."""
    root: PathSetting | None = None
    """The .npz file, or the folder of a downloaded data set. None uses the cache folder."""
    normalize: bool = False
    """Divide the features of each node by the sum of their absolute values, as is usual for bags of
    words."""
    split_seed: Seed | None = 0
    """Seed of the split, where the data has none of its own, and of generated graphs. None takes
    the seed of the run, so that a comparison has a split for each seed."""
    train_per_class: Count = 20
    """Training nodes of each class, where the data has no split of its own."""
    val_per_class: Natural = 30
    """Validation nodes of each class, where the data has no split of its own. All other nodes are
    test nodes."""

    @property
    def title(self) -> str:
        """What a reader calls the graphs."""
        return self.root.stem if self.name == "npz" and self.root else self.name

    @property
    def metric(self) -> Metric:
        """What is measured, as far as the settings tell: a file may have several labels a node."""
        return "micro_f1" if self.name in ("ppi", "generated-multilabel") else "accuracy"


class GraphModelSettings(Settings):
    """A graph network."""

    name: Architecture
    """``gcn``, ``gat`` or ``sage``."""
    layers: Annotated[Count, Field(le=64)] | None = None
    """Hidden layers. None takes 4 for gat, and 2 for gcn and sage."""
    hidden: Annotated[Count, Field(le=65536)] = 64
    """Features of a hidden layer; for gat, of each head."""
    heads: Annotated[Count, Field(le=256)] = 3
    """Attention heads of gat."""
    dropout: Fraction = 0.0
    """Share of the inputs of each layer that is dropped in training."""

    @model_validator(mode="after")
    def _heads_are_of_gat(self) -> GraphModelSettings:
        if self.name != "gat" and not self.is_default("heads"):
            raise ValueError(f"heads is a setting of gat, not of {self.name}; drop it")
        return self


class GraphTeacherSettings(GraphModelSettings):
    """The model to learn from."""

    hidden: Annotated[Count, Field(le=65536)] = 256
    """Features of a hidden layer; for gat, of each head."""
    checkpoint: PathSetting | None = None
    """File with the teacher's weights: the student.safetensors of a run. None trains the teacher
    first, into ``teacher`` in the run's folder."""
    epochs: Count | None = None
    """Epochs of the teacher's own training. None uses train.epochs."""

    @property
    def is_given(self) -> bool:
        """Whether no run trains it."""
        return self.checkpoint is not None


class GraphTrainSettings(TaskTrainSettings):
    """The training: schedule, optimizer and hardware."""

    epochs: Count = 300
    """Passes over all graphs, of each student."""
    batch_size: Count = 2
    """Graphs of a step. A single graph is one step, whatever this number is."""
    lr: Rate = 0.005
    """Base learning rate, at most 1e6."""


class GraphRecipe(TaskRecipe):
    """All settings of a run on graphs."""

    TEACHER: ClassVar[str] = "teacher.name=gat"

    task: Literal["graphs"] = "graphs"
    """Tells the recipe from one of images."""
    data: GraphDataSettings
    student: GraphModelSettings
    teacher: GraphTeacherSettings | None = None
    method: MethodSettings = MethodSettings(name="graphs/alignahead")
    train: GraphTrainSettings = GraphTrainSettings()
    seed: Seed = 0
    """Seed of everything random: the students' initial weights and the order of the graphs."""
    out: PathSetting | None = None
    """The run's folder. None uses ``runs/graphs/<recipe>/<method>-seed<seed>``."""
