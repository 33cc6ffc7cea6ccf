"""The branches of DSKD: which of the teacher's maps supervises a stage, and how it is reached."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from torch import Tensor, nn

from dskd.errors import InputError
from dskd.methods.branches import (
    AdapterForm,
    Branch,
    BuildClassifier,
    FusedBranch,
    MapAdapter,
    linear_classifier,
    mlp_classifier,
)
from dskd.methods.checks import at_same_depth, check_classes, check_classifier, check_stages
from dskd.methods.contracts import Pair
from dskd.methods.stage_fusion import Fusion
from dskd.models.output import ModelOutput
from dskd.models.spec import StageSpec

FeatureTarget = Literal["last", "matched"]
ClassifierKind = Literal["linear", "mlp", "teacher"]
StagePair = tuple[StageSpec, StageSpec]
"""A student stage and the teacher's map for it."""
LAST = -1
"""Stands for the map that the teacher's classifier averages, among the teacher's stages."""


def plain_branches(
    shallow: Sequence[StagePair],
    deep: StagePair | None,
    classifier: BuildClassifier,
    form: AdapterForm,
) -> tuple[nn.ModuleList, nn.Module | None]:
    """A branch for each shallow stage, and an adapter for the deep stage, if it has one."""
    branches = nn.ModuleList(Branch(*stage, classifier, form) for stage in shallow)
    return branches, MapAdapter(*deep, form) if deep is not None else None


def fused_branches(
    shallow: Sequence[StagePair],
    deep: StagePair | None,
    classifier: BuildClassifier,
    width: int,
) -> tuple[nn.ModuleList, nn.Module | None]:
    """As `plain_branches`, with a fusion in place of each adapter.

    The deepest stage of all has no deeper one to be fused with.
    """
    fuses = [True] * (len(shallow) - 1) + [deep is not None]
    branches = nn.ModuleList(
        FusedBranch(*stage, classifier, width, fused)
        for stage, fused in zip(shallow, fuses, strict=True)
    )
    return branches, Fusion(*deep, width, fuses=False) if deep is not None else None


def choose_targets(
    pair: Pair, supervised: list[int], target: FeatureTarget, classifier: ClassifierKind
) -> list[int]:
    """The teacher's map for each supervised stage, from 0, or `LAST`."""
    student, teacher = check_stages(pair)
    if classifier == "teacher":
        return [LAST] * len(supervised)
    matched = at_same_depth(len(student), len(teacher))
    return [len(teacher) - 1 if target == "last" else matched[stage] for stage in supervised]


def map_spec(pair: Pair, target: int) -> StageSpec:
    """The shape of the teacher's map."""
    spec = check_classes(pair)
    if target != LAST:
        return spec.stages[target]
    if spec.last is None or not spec.average_pooled:
        raise InputError(
            "classifier=teacher needs a teacher whose classifier sees the average of its last map; "
            "take classifier=linear"
        )
    return spec.last


def map_of(teacher: ModelOutput, target: int) -> Tensor:
    """The teacher's map."""
    if target != LAST:
        return teacher.stages[target]
    assert teacher.last is not None, "the constructor checks this"
    return teacher.last


def classifier_for(pair: Pair, kind: ClassifierKind) -> BuildClassifier:
    """Builds the classifier of a branch."""
    classes = pair.student_spec.classes
    if kind == "teacher":
        shared = check_classifier(pair)
        return lambda channels: shared
    return mlp_classifier(classes) if kind == "mlp" else linear_classifier(classes)
