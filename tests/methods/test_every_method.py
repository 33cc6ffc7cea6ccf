"""The contract that every method follows. A new method needs no entry here.

`tests.methods.declared` lists what the test file of a method declares for these tests.
"""

from __future__ import annotations

import copy
import inspect
import math
import re
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from write_methods import UNPUBLISHED, source
from write_settings import arguments

from dskd import losses, methods
from dskd.data.epoch_plan import draw_plan
from dskd.data.loader import Batch, MemoryLoader
from dskd.engine.optimizer import make_optimizer
from dskd.engine.step import train_step
from dskd.errors import InputError
from dskd.methods.base import Method
from dskd.methods.contracts import Pair, StepOutput
from dskd.models.output import ModelOutput
from dskd.settings import Count, Positive, Share, Weight, setting_parameters
from dskd.teacher.outputs import TeacherOutputs
from tests.conftest import make_dataset, make_pair, staged
from tests.methods import declared

NAMES = methods.names()
USUAL = "at cc crd dist dkd dskd fitnet kd nst pkt reviewkd rkd semckd simkd sp srrl sskd vid"
"""The methods with a teacher that the literature usually compares; there may be more."""
WITHOUT_TEACHER = {"byot", "ce", "dsn"}
every_method = pytest.mark.parametrize("name", NAMES)
DATA = make_dataset(classes=4, per_class=6, size=16)


def settings_of(name: str) -> dict[str, inspect.Parameter]:
    return setting_parameters(methods.find(name).__init__)


def batches(data: Any = DATA, size: int = 8, seed: int = 0) -> list[Batch]:
    plan = draw_plan(seed, 0, len(data.train), 2, True)
    return list(MemoryLoader(data.train, torch.device("cpu")).batches(plan, size))


def made(name: str, data: Any = DATA, **settings: Any) -> tuple[Method, TeacherOutputs]:
    kind = methods.find(name)
    channels, classes = data.shape[0], len(data.classes)
    teacher = staged("resnet14", classes, channels) if kind.needs_teacher else None
    pair, frozen = make_pair(staged("resnet8", classes, channels), teacher, data)
    method = kind(pair, **declared.small(name) | settings)
    teacher_outputs = TeacherOutputs(frozen)

    def epochs(count: int) -> Iterator[tuple[Batch, ModelOutput | None]]:
        epoch = [(batch, teacher_outputs(batch, method.needs)) for batch in batches(data)]
        return iter(epoch * count)

    method.train()
    method.prepare(epochs)
    return method, teacher_outputs


def optimizer_of(method: Method, lr: float = 0.01) -> torch.optim.Optimizer:
    return make_optimizer(method, "sgd", lr=lr, momentum=0.9, nesterov=False, weight_decay=0.0)


def train(
    method: Method, teacher_outputs: TeacherOutputs, steps: int, lr: float = 0.01
) -> list[float]:
    """The objective of each step on one fixed batch."""
    optimizer, batch = optimizer_of(method, lr), batches()[0]
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


@pytest.mark.slow
@every_method
def test_twenty_steps_on_one_batch_lower_the_loss(name: str) -> None:
    values = train(*made(name, **declared.gentle(name)), 20)
    hint = (
        "if the loss is right and its weight too large for 24 small images, declare smaller "
        f"weights as GENTLE in tests/methods/test_{name}.py"
    )
    assert all(math.isfinite(value) for value in values), hint
    assert sum(values[-3:]) / 3 < values[0], hint


@every_method
def test_the_teacher_never_changes(name: str) -> None:
    method, teacher_outputs = made(name)
    if teacher_outputs.teacher is None:
        assert not method.needs_teacher
        return
    assert method.needs, "set needs to the teacher outputs that the method reads"
    before = state(teacher_outputs.teacher)
    train(method, teacher_outputs, 3)
    changed = "copy a part of the teacher that the method trains or changes"
    assert all(p.grad is None for p in teacher_outputs.teacher.parameters()), changed
    after = teacher_outputs.teacher.state_dict()
    assert all(torch.equal(value, after[key]) for key, value in before.items()), changed


@pytest.mark.slow
@every_method
def test_a_resumed_method_goes_on_as_without_a_stop(name: str) -> None:
    method, teacher_outputs = made(name)
    optimizer, some = optimizer_of(method), batches() * 2
    for batch in some[:3]:
        train_step(method, teacher_outputs, batch, optimizer, "float32")
    saved = copy.deepcopy((method.state_dict(), optimizer.state_dict()))

    def go_on(method: Method, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
        for batch in some[3:]:
            train_step(method, teacher_outputs, batch, optimizer, "float32")
        return state(method)

    expected = go_on(method, optimizer)
    torch.manual_seed(99)  # the random state of a fresh method is replaced
    fresh, _ = made(name)
    fresh.load_state_dict(saved[0])
    second = optimizer_of(fresh)
    second.load_state_dict(saved[1])
    found = go_on(fresh, second)
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        assert torch.equal(value, found[key]), (
            f"{key} differs after a resume: keep what a step depends on in parameters or buffers, "
            "and draw random numbers from batch.seeds"
        )


@every_method
def test_auxiliary_parts_learn_and_are_not_deployed(name: str) -> None:
    method, teacher_outputs = made(name)
    student = {id(p) for p in method.student.parameters()}
    extra = {n: p for n, p in method.named_parameters() if p.requires_grad and id(p) not in student}
    before = {key: p.detach().clone() for key, p in extra.items()}
    train(method, teacher_outputs, 3)
    still = [key for key, p in extra.items() if torch.equal(before[key], p)]
    assert not still, "no loss reaches these parameters: use them or leave them out"
    deployed = method.deployed()
    if type(method).assemble.__func__ is not Method.assemble.__func__:  # type: ignore[attr-defined]
        assert set(map(id, deployed.parameters())) > student, "deployed() must hold the student"
    else:
        if type(method).deployed is Method.deployed:  # norm merges a part into a copy
            assert deployed is method.student.module
        plain = list(staged("resnet8").module.state_dict())
        assert list(deployed.state_dict()) == plain, "a larger deployed() needs assemble() too"
    unlearned = [
        key
        for key, p in method.student.named_parameters()
        if p.requires_grad and (p.grad is None or not p.grad.abs().sum() > 0)
    ]
    assert not unlearned, "these parameters of the student get no gradient"


@every_method
def test_the_deployed_student_is_the_one_that_is_evaluated(name: str) -> None:
    method, _ = made(name)
    method.eval()
    images = DATA.test.images[:4]
    with torch.no_grad():
        evaluated = method.classifier_logits(images)["student"]
        shipped = method.deployed()(method.student.normalize(images))
    torch.testing.assert_close(
        shipped,
        evaluated,
        msg=lambda text: f'deployed() must give classifier_logits(images)["student"]: {text}',
    )
    rebuilt = type(method).assemble(staged("resnet8").module, method.deploy_config())
    assert {k: v.shape for k, v in rebuilt.state_dict().items()} == {
        k: v.shape for k, v in method.deployed().state_dict().items()
    }, "assemble() must build the module that deployed() returns, from deploy_config() alone"


@every_method
@pytest.mark.parametrize("size", [2, 5])
def test_small_batches_and_two_classes(name: str, size: int) -> None:
    data = make_dataset(classes=2, per_class=5, size=16)
    method, teacher_outputs = made(name, data)
    batch = batches(data, size)[0]
    output = train_step(method, teacher_outputs, batch, optimizer_of(method), "float32")
    assert output.objective.isfinite()
    broken = [key for key, p in method.named_parameters() if not p.isfinite().all()]
    assert not broken, "a gradient is NaN or Inf: look for 0 / 0, sqrt(0) and log(0)"


@every_method
def test_bfloat16_autocast_gives_losses_in_float32(name: str) -> None:
    method, teacher_outputs = made(name)
    output = train_step(method, teacher_outputs, batches()[0], optimizer_of(method), "bfloat16")
    assert {loss.dtype for loss in output.losses.values()} == {torch.float32}, (
        f"put @in_full_precision above {name}_loss"
    )
    exact, teacher_outputs = made(name)
    expected = train_step(exact, teacher_outputs, batches()[0], optimizer_of(exact), "float32")
    assert output.losses.keys() == expected.losses.keys()


@pytest.mark.slow
@every_method
@pytest.mark.parametrize("pair", [("vgg8", "wrn_16_2"), ("MobileNetV2", "resnet8x4")])
def test_pairs_whose_stages_do_not_match(name: str, pair: tuple[str, str]) -> None:
    data = make_dataset(classes=3, per_class=4, size=32)
    kind = methods.find(name)
    teacher = staged(pair[1], 3) if kind.needs_teacher else None
    given, frozen = make_pair(staged(pair[0], 3), teacher, data)
    method = kind(given, **declared.small(name))
    teacher_outputs = TeacherOutputs(frozen)
    output = train_step(
        method, teacher_outputs, batches(data, 4)[0], optimizer_of(method), "float32"
    )
    assert output.objective.isfinite()


@every_method
def test_the_step_does_not_depend_on_the_random_state(name: str) -> None:
    method, teacher_outputs = made(name)
    twin = copy.deepcopy(method)
    outputs: list[StepOutput] = []
    for one in (method, twin):
        torch.rand(len(outputs) + 1)
        outputs.append(train_step(one, teacher_outputs, batches()[0], optimizer_of(one), "float32"))
    assert torch.equal(outputs[0].objective, outputs[1].objective), (
        "draw random numbers from batch.seeds (draw_below in dskd/data/epoch_plan.py)"
    )


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
        for batch in (*batches()[:2], *batches(size=5, seed=1)[-1:])
    ]
    if method.static_graph:
        assert graphs[0] == graphs[1] == graphs[2], (
            "the steps do not use the same parameters in the same order: set static_graph = False"
        )


def is_refused(name: str, pair: Pair, key: str, value: object) -> bool:
    """Whether the method refuses a setting: at once, or else before its first step."""
    settings = {key: value}
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
            'presets needs an entry "literature" with the weights of the publication'
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


@pytest.mark.parametrize("name", [name for name in NAMES if name not in WITHOUT_TEACHER])
def test_a_method_reads_no_output_of_the_teacher_that_it_does_not_declare(name: str) -> None:
    method, teacher_outputs = made(name)
    batch, needs = batches()[0], method.needs
    whole = teacher_outputs(batch, needs)
    assert whole is not None

    def declared_or_nan(tensor: Tensor, is_declared: bool) -> Tensor:
        return tensor if is_declared else torch.full_like(tensor, torch.nan)

    assert whole.pooled is not None
    assert whole.last is not None
    part = ModelOutput(
        declared_or_nan(whole.logits, needs.logits),
        tuple(declared_or_nan(s, i in needs.stages) for i, s in enumerate(whole.stages)),
        declared_or_nan(whole.pooled, needs.pooled),
        declared_or_nan(whole.last, needs.last),
    )
    before = copy.deepcopy(method)
    expected, found = before(batch, whole).losses, method(batch, part).losses
    assert {key: value.item() for key, value in found.items()} == {
        key: value.item() for key, value in expected.items()
    }
