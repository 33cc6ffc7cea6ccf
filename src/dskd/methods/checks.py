"""Checks that a method can train a pair of models, and the choice of the stages it uses."""

from __future__ import annotations

import math

from torch import nn

from dskd.errors import InputError
from dskd.methods.contracts import Pair
from dskd.models.spec import ModelSpec, StageSpec


def check_classes(pair: Pair) -> ModelSpec:
    """The teacher's spec, after checking that student and teacher have the same classes.

    Raises:
        InputError: There is no teacher, or the numbers of classes differ.
    """
    if pair.teacher_spec is None:
        raise InputError("this method needs a teacher; give one, as in teacher.name=resnet20")
    student, teacher = pair.student_spec.classes, pair.teacher_spec.classes
    if student != teacher:
        raise InputError(
            f"the teacher has {teacher} classes, the student {student}; "
            "they must be trained for the same classes"
        )
    return pair.teacher_spec


def check_standardized(pair: Pair, setting: str, fix: str) -> None:
    """Refuses to standardise the logits of two classes.

    Their standardised logits differ by their sign alone, so they have no gradient.

    Args:
        pair: Student and teacher.
        setting: That standardises.
        fix: What to set in its place.

    Raises:
        InputError: There are fewer than three classes.
    """
    if pair.student_spec.classes < 3:
        raise InputError(
            f"{setting} standardises the logits of each image, which teaches nothing with "
            f"{pair.student_spec.classes} classes: only their sign is left; {fix}"
        )


def idle_with_two_classes(pair: Pair, method: str, setting: str, why: str) -> tuple[str, ...]:
    """A line for `Method.warnings` if a term of the loss has no gradient with two classes.

    Args:
        pair: Student and teacher.
        method: The method's name.
        setting: The weight of the term.
        why: What the term compares.
    """
    if pair.student_spec.classes > 2:
        return ()
    return (f"{method}: method.{setting} has no effect with 2 classes, as it {why}",)


def check_stages(pair: Pair) -> tuple[tuple[StageSpec, ...], tuple[StageSpec, ...]]:
    """The stages of student and teacher, after checking that each has at least one.

    Raises:
        InputError: One has none.
    """
    teacher = check_classes(pair)
    for what, spec in (("student", pair.student_spec), ("teacher", teacher)):
        if not spec.stages:
            raise InputError(
                f"this method needs a feature map of the {what}; name one or more with "
                f"{how_to_name(what, spec)}"
            )
    return pair.student_spec.stages, teacher.stages


def how_to_name(what: str, spec: ModelSpec, example: str = "a") -> str:
    """How the user names stages of a model, and the parts that can be named.

    Args:
        what: ``student`` or ``teacher``.
        spec: Of the model.
        example: The names of the example.
    """
    return f"{what}.stages=[{example}]; the {what}'s parts: {', '.join(spec.submodules)}"


def check_pooled(pair: Pair) -> tuple[int, int]:
    """The lengths of the pooled vectors of student and teacher.

    Raises:
        InputError: One has no pooled vector.
    """
    teacher = check_classes(pair)
    lengths = []
    for what, spec in (("student", pair.student_spec), ("teacher", teacher)):
        if spec.pooled is None:
            raise InputError(
                f"this method needs the vector that the {what}'s classifier sees, and the {what} "
                "does not end in a linear layer; take another method"
            )
        lengths.append(spec.pooled)
    return lengths[0], lengths[1]


def check_classifier(pair: Pair) -> nn.Linear:
    """The teacher's classifier, frozen, after checking that it computes the teacher's logits.

    Raises:
        InputError: The teacher's logits are not the output of a linear layer.
    """
    teacher, classifier = check_classes(pair), pair.teacher_classifier
    if classifier is None or not teacher.linear_logits:
        raise InputError(
            "this method uses the teacher's classifier again, and the teacher's logits are not "
            "those of a linear layer; take another method"
        )
    return classifier.requires_grad_(False)


def shallow_stages(student: ModelSpec, supervise: list[int] | None) -> list[int]:
    """The stages before the student's last that get a branch, from 0.

    Args:
        student: The student's spec.
        supervise: The wanted stages, from 1; None for all.

    Raises:
        InputError: The student has no shallow stage, or ``supervise`` names one that is not there.
    """
    depth = len(student.stages)
    if depth < 2:
        raise InputError(
            f"branches are put on the stages before the last, and the student has {depth}; "
            f"name two or more with {how_to_name('student', student, 'a,b')}"
        )
    return supervised_stages(depth - 1, supervise, "shallow stages")


def supervised_stages(count: int, supervise: list[int] | None, what: str = "stages") -> list[int]:
    """The stages that get a branch, from 0.

    Args:
        count: Number of stages that can have one.
        supervise: The wanted stages, from 1; None for all.
        what: Names the stages in the message.

    Raises:
        InputError: ``supervise`` is empty, or names a stage that is not there or twice.
    """
    if supervise is None:
        return list(range(count))
    if not supervise or max(supervise) > count or len(set(supervise)) < len(supervise):
        raise InputError(
            f"supervise must name {what} from 1 to {count}, each once, got {supervise}"
        )
    return sorted(stage - 1 for stage in supervise)


def positions_of(student: StageSpec, teacher: StageSpec) -> int:
    """The number of positions at which two maps are compared, at the smaller size of both.

    Example:
        >>> positions_of(StageSpec(8, 4, 1, True), StageSpec(16, 2, 2, True))
        2
    """
    return min(student.height, teacher.height) * min(student.width, teacher.width)


def single_positions(pair: Pair, method: str) -> tuple[str, ...]:
    """A line for `Method.warnings` if a method that compares positions has stages with only one.

    Args:
        pair: Student and teacher, with stages.
        method: The method's name.
    """
    student, teacher = check_stages(pair)
    targets = at_same_depth(len(student), len(teacher))
    stages = [
        str(place)
        for place, (own, target) in enumerate(zip(student, targets, strict=True), 1)
        if positions_of(own, teacher[target]) == 1
    ]
    if not stages:
        return ()
    which = f"stage {stages[0]}" if len(stages) == 1 else f"stages {', '.join(stages)}"
    return (
        f"{method} compares the positions of maps, and the student or its teacher has one in "
        f"{which}, which teaches nothing; take larger images or another method",
    )


def at_same_depth(depth: int, teacher_depth: int) -> list[int]:
    """For each student stage, the teacher stage that it is paired with, from 0.

    ``ceil(l L_t / L) - 1`` for ``l = 1 .. L``.

    Example:
        >>> at_same_depth(3, 3), at_same_depth(3, 5)
        ([0, 1, 2], [1, 3, 4])
    """
    return [math.ceil((stage + 1) * teacher_depth / depth) - 1 for stage in range(depth)]
