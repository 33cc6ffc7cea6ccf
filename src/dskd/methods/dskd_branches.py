"""The branches of DSKD: which of the teacher's maps supervises a stage, and how it is reached."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

from torch import Tensor, nn

from dskd.errors import InputError
from dskd.losses.feature_maps import pool_to
from dskd.methods.branches import (
    Adapter,
    AdapterForm,
    Branch,
    BuildClassifier,
    FusedBranch,
    MapAdapter,
    PooledFusion,
    linear_classifier,
    mlp_classifier,
)
from dskd.methods.checks import at_same_depth, check_classes, check_classifier, check_stages
from dskd.methods.contracts import Pair
from dskd.models.output import ModelOutput
from dskd.models.spec import StageSpec

FeatureTarget = Literal["last", "matched"]
ClassifierKind = Literal["linear", "mlp", "teacher"]
StagePair = tuple[StageSpec, StageSpec]
"""A student stage and the teacher's map for it."""
LAST = -1
"""Stands for the map that the teacher's classifier averages, among the teacher's stages."""


def check_branch_settings(
    target: FeatureTarget,
    fuse: bool,
    adapter: Adapter,
    width: int | None,
    depth: int,
    classifier: ClassifierKind,
) -> None:
    """Refuses settings that would have no effect together."""
    if fuse and (adapter != "pool" or depth != 1):
        raise InputError(
            "fuse=true fuses stages in place of the adapters; leave out adapter and adapter_depth"
        )
    if adapter == "linear" and (depth != 1 or width is not None):
        raise InputError(
            "adapter=linear has a single convolution; leave out adapter_depth and adapter_width"
        )
    if classifier == "teacher" and target != "last":
        raise InputError(
            "classifier=teacher applies the teacher's classifier to the branches' maps, which must "
            "then be those of its last map; set feature_target=last"
        )


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
    return branches, PooledFusion(*deep, width, fuses=False) if deep is not None else None


def choose_targets(
    pair: Pair, supervised: list[int], target: FeatureTarget, classifier: ClassifierKind
) -> list[int]:
    """The teacher's map for each supervised stage, from 0, or `LAST`."""
    student, teacher = check_stages(pair)
    if classifier == "teacher":
        return [LAST] * len(supervised)
    matched = at_same_depth(len(student), len(teacher))
    return [len(teacher) - 1 if target == "last" else matched[stage] for stage in supervised]


def map_spec(pair: Pair, target: int, map_size: int | None) -> StageSpec:
    """The shape in which the teacher's map is compared: no side is larger than ``map_size``."""
    spec = _map_spec(pair, target)
    sides = [
        side if map_size is None else min(side, map_size) for side in (spec.height, spec.width)
    ]
    return replace(spec, height=sides[0], width=sides[1])


def _map_spec(pair: Pair, target: int) -> StageSpec:
    spec = check_classes(pair)
    if target != LAST:
        return spec.stages[target]
    if spec.last is None or not spec.average_pooled:
        raise InputError(
            "classifier=teacher needs a teacher whose classifier sees the average of its last map; "
            "take classifier=linear"
        )
    return spec.last


def teacher_map(
    teacher: ModelOutput, target: int, size: Sequence[int], map_size: int | None
) -> Tensor:
    """The teacher's map in the size of a branch's, pooled to ``map_size`` first, as in a cache."""
    if target == LAST:
        assert teacher.last is not None, "the constructor checks this"
        return pool_to(teacher.last, *size)
    found = teacher.stages[target]
    return pool_to(found if map_size is None else pool_to(found, map_size, map_size), *size)


def classifier_for(pair: Pair, kind: ClassifierKind) -> BuildClassifier:
    """Builds the classifier of a branch."""
    classes = pair.student_spec.classes
    if kind == "teacher":
        shared = check_classifier(pair)
        return lambda channels: shared
    return mlp_classifier(classes) if kind == "mlp" else linear_classifier(classes)
