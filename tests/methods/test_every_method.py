"""The contract that every method follows. A new method needs no entry here.

`tests.methods.declared` lists what the test file of a method declares for these tests.
"""

from __future__ import annotations

import copy
import functools
import inspect
import math
import re
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from write_methods import UNPUBLISHED, source
from write_settings import arguments

from dskd import losses, methods, testing
from dskd.data import Dataset
from dskd.engine.optimizer import make_optimizer
from dskd.engine.step import train_step
from dskd.errors import InputError
from dskd.methods.base import Method
from dskd.methods.contracts import Pair, StepOutput
from dskd.settings import Count, Positive, Share, Weight, setting_parameters
from dskd.teacher.frozen import FrozenTeacher
from dskd.teacher.outputs import TeacherOutputs
from tests.builders import make_dataset, make_pair, staged
from tests.methods import declared

NAMES = methods.names()
USUAL = "at cc crd dist dkd dskd fitnet kd nst pkt reviewkd rkd semckd simkd sp srrl sskd vid"
"""The methods with a teacher that the literature usually compares; there may be more."""
WITHOUT_TEACHER = {"byot", "ce", "dsn"}
every_method = pytest.mark.parametrize("name", NAMES)
DATA = testing.sample_images()
LARGER = make_dataset(classes=3, per_class=4, size=32)


def settings_of(name: str) -> dict[str, inspect.Parameter]:
    return setting_parameters(methods.find(name).__init__)


def made(name: str, data: Dataset = DATA, **settings: Any) -> tuple[Method, TeacherOutputs]:
    return testing.set_up(methods.find(name), declared.small(name) | settings, data)


def optimizer_of(method: Method, lr: float = 0.01) -> torch.optim.Optimizer:
    return make_optimizer(method, "sgd", lr=lr, momentum=0.9, nesterov=False, weight_decay=0.0)


def train(
    method: Method, teacher_outputs: TeacherOutputs, steps: int, lr: float = 0.01
) -> list[float]:
    """The objective of each step on one fixed batch."""
    optimizer, batch = optimizer_of(method, lr), testing.batches(DATA)[0]
    return [
        train_step(method, teacher_outputs, batch, optimizer, "float32").objective.item()
        for _ in range(steps)
    ]


def state(module: nn.Module) -> dict[str, Tensor]:
    return {key: value.clone() for key, value in module.state_dict().items()}


def test_the_methods_that_are_usually_compared_are_there() -> None:
    assert {*USUAL.split(), *WITHOUT_TEACHER} <= set(NAMES)
    assert all(methods.find(name).needs_teacher for name in USUAL.split())
    assert not any(methods.find(name).needs_teacher for name in WITHOUT_TEACHER)


@every_method
def test_the_file_of_a_method_has_its_loss_as_a_function_and_its_class(name: str) -> None:
    kind = methods.find(name)
    assert issubclass(kind, Method), f"the class {kind.__name__} must derive from Method"
    assert methods.summary(name) == (inspect.getdoc(kind) or "").splitlines()[0]
    assert hasattr(losses, name), f"write the loss as a function {name}_loss in methods/{name}.py"
    assert inspect.getdoc(getattr(losses, name)), f"{name}_loss needs a docstring with its formula"


SLOW = (testing.resume_is_exact,)
"""The checks that take more than a second for some methods."""


@every_method
@pytest.mark.parametrize(
    "check",
    [pytest.param(one, marks=pytest.mark.slow if one in SLOW else ()) for one in testing.CHECKS],
)
def test_a_method_keeps_its_contract(name: str, check: testing.Check) -> None:
    check(methods.find(name), declared.small(name))


@pytest.mark.slow
@every_method
def test_ten_steps_on_one_batch_lower_the_loss(name: str) -> None:
    values = train(*made(name, **declared.gentle(name)), 10)
    hint = (
        "if the loss is right and its weight too large for 24 small images, declare smaller "
        f"weights as GENTLE in tests/methods/test_{name}.py"
    )
    assert all(math.isfinite(value) for value in values), hint
    assert sum(values[-3:]) / 3 < values[0], hint


@functools.cache
def mismatched(student: str, teacher: str | None) -> tuple[Pair, FrozenTeacher | None]:
    """Networks that are built and measured once for all methods."""
    return make_pair(staged(student, 3), staged(teacher, 3) if teacher else None, LARGER)


@pytest.mark.slow
@every_method
@pytest.mark.parametrize("pair", [("vgg8", "wrn_16_2"), ("MobileNetV2", "resnet8x4")])
def test_pairs_whose_stages_do_not_match(name: str, pair: tuple[str, str]) -> None:
    kind = methods.find(name)
    given, frozen = mismatched(pair[0], pair[1] if kind.needs_teacher else None)
    method = kind(copy.deepcopy(given), **declared.small(name))  # the step changes the student
    batch = testing.batches(LARGER, 4)[0]
    output = train_step(method, TeacherOutputs(frozen), batch, optimizer_of(method), "float32")
    assert output.objective.isfinite()


def autograd_graph(method: Method, output: StepOutput) -> list[tuple[str, list[int]]]:
    """Each operation or parameter of the graph, and which operations its inputs come from."""
    names = {id(parameter): name for name, parameter in method.named_parameters()}
    order: dict[Any, int] = {output.objective.grad_fn: 0}
    graph = []
    for node in (nodes := [*order]):  # grows while it is read
        inputs = [before for before, _ in node.next_functions if before is not None]
        for before in inputs:
            if before not in order:
                order[before] = len(order)
                nodes.append(before)
        label = names.get(id(getattr(node, "variable", None)), node.name())
        graph.append((label, [order[before] for before in inputs]))
    return graph


@every_method
def test_the_graph_is_the_same_in_every_step_if_the_method_says_so(name: str) -> None:
    method, teacher_outputs = made(name)
    graphs = [
        autograd_graph(method, method(batch, teacher_outputs(batch, method.needs)))
        for batch in (*testing.batches(DATA)[:2], *testing.batches(DATA, size=5, seed=1)[-1:])
    ]
    if method.static_graph:
        assert graphs[0] == graphs[1] == graphs[2], (
            "the steps do not use the same parameters in the same order: set static_graph = False"
        )


def is_refused(name: str, pair: Pair, key: str, value: object) -> bool:
    """Whether the method refuses a setting: at once, or else before its first step."""
    settings: dict[str, Any] = {key: value}
    for make in (lambda: methods.find(name)(pair, **settings), lambda: made(name, **settings)):
        try:
            make()
        except InputError:
            return True
    return False


@pytest.mark.slow
@every_method
def test_settings_out_of_range_are_refused(name: str) -> None:
    teacher = staged("resnet14") if methods.find(name).needs_teacher else None
    pair, _ = make_pair(staged("resnet8"), teacher, DATA)
    for key, parameter in settings_of(name).items():
        kind = parameter.annotation
        bad: list[Any] = ["many", [], {"a": 1}]
        if kind in (Weight, Positive, Share, Count):
            bad += [-1, float("nan"), float("inf"), True]
        if kind in (Positive, Share, Count):
            bad.append(0)
        for value in bad:
            if kind is str and isinstance(value, str):
                continue
            if kind == dict[str, Any] | None and isinstance(value, dict):
                continue
            assert is_refused(name, pair, key, value), (
                f"{key}={value!r} must be an InputError: put @checked above __init__ and annotate "
                "the setting with a type of dskd.settings"
            )
    with pytest.raises(InputError, match="unknown setting"):
        methods.resolve(name, {"no_such_setting": 1})


@every_method
def test_published_weights_are_settings_of_the_method(name: str) -> None:
    kind = methods.find(name)
    for preset in kind.presets:
        assert methods.resolve(name, {"preset": preset})
    if name not in ("ce", "dskd") and source(name) != ("", UNPUBLISHED):
        assert "literature" in kind.presets, (
            'presets needs an entry "literature" with published weights'
        )


@every_method
def test_every_method_says_its_formula_its_source_and_its_settings(name: str) -> None:
    kind = methods.find(name)
    doc = inspect.getdoc(kind) or ""
    assert re.search("``[^`]+``", doc.splitlines()[0]), (
        "the first line of the class's docstring needs the objective in double backticks"
    )
    if name != "ce":
        assert source(name), (
            "the class's docstring needs a paragraph that begins with Source: and has an arXiv "
            'number ("arXiv 1503.02531"), a conference with its year ("CVPR 2023"), or the word '
            '"unpublished"'
        )
    described = arguments(kind)
    missing = [key for key in settings_of(name) if not described.get(key)]
    assert not missing, "describe these settings under Args: in the class's docstring"


@every_method
def test_a_method_that_learns_from_a_teacher_says_so(name: str) -> None:
    kind = methods.find(name)
    assert "ce" in settings_of(name), "every method has a setting ce, the weight of the labels"
    assert (kind.learns_from == "labels") != kind.needs_teacher, (
        "set learns_from to what the student learns from (LearnsFrom in dskd/methods/base.py)"
    )
    if kind.needs_teacher:
        assert "kd" in settings_of(name), "a method with a teacher has a setting kd"
        pair, _ = make_pair(staged("resnet8"), None, DATA)
        with pytest.raises(InputError, match="needs a teacher"):
            kind(pair)


def test_a_teacher_of_other_classes_is_refused_by_all() -> None:
    for name in NAMES:
        if not methods.find(name).needs_teacher:
            continue
        pair, _ = make_pair(staged("resnet8", 4), staged("resnet14", 5), DATA)
        with pytest.raises(InputError, match="the teacher has 5 classes, the student 4"):
            methods.find(name)(pair)


def test_a_prepared_part_is_frozen_afterwards() -> None:
    for name in NAMES:
        if methods.find(name).prepare is Method.prepare:
            continue
        method, _ = made(name)
        held = {id(p) for g in optimizer_of(method).param_groups for p in g["params"]}
        frozen = [p for p in method.parameters() if not p.requires_grad]
        computed = [b for key, b in method.named_buffers() if not key.startswith("student.")]
        assert frozen or computed, (
            f"{name}: what prepare() has trained must be frozen (requires_grad_(False)), and what "
            "it has computed must be a buffer"
        )
        assert not held & set(map(id, frozen))
