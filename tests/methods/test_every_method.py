"""What every method keeps to, whatever it does."""

from __future__ import annotations

import copy
import inspect
import math
from typing import Any, get_type_hints

import pytest
import torch
from torch import Tensor, nn

from dskd import methods
from dskd.data.epoch_plan import draw_plan
from dskd.data.loader import Batch, MemoryLoader
from dskd.engine.optimizer import make_optimizer
from dskd.engine.trainer import train_step
from dskd.errors import InputError
from dskd.methods.base import Method, StepOutput
from dskd.settings import Count, Positive, Share, Weight, signature_settings
from dskd.teacher.outputs import TeacherOutputs
from tests.conftest import make_dataset, make_pair, staged

NAMES = methods.names()
every_method = pytest.mark.parametrize("name", NAMES)
DATA = make_dataset(classes=4, per_class=6, size=16)
WITHOUT_TEACHER = {"byot", "ce", "dsn"}
LARGER = {"simkd"}
"""Methods whose deployed student is more than the student."""

# Settings that make a method fit for a few images and seconds; none of them is a loss's weight.
SMALL: dict[str, dict[str, Any]] = {"sskd": {"head_epochs": 1}, "crd": {"negatives": 16}}
# Published weights belong to 32x32 images and hundreds of epochs: 20 steps on 8 small ones are
# about the direction, not the size.
GENTLE: dict[str, float] = {
    "crd": 0.1,
    "at": 10.0,
    "sp": 10.0,
    "pkt": 100.0,
    "fitnet": 1.0,
    "semckd": 1.0,
}


def batches(data: Any = DATA, size: int = 8, seed: int = 0) -> list[Batch]:
    plan = draw_plan(seed, 0, len(data.train), 2, True)
    return list(MemoryLoader(data.train, torch.device("cpu")).batches(plan, size))


def made(name: str, data: Any = DATA, **settings: Any) -> tuple[Method, TeacherOutputs]:
    kind = methods.find(name)
    channels, classes = data.shape[0], len(data.classes)
    teacher = staged("resnet14", classes, channels) if kind.needs_teacher else None
    pair, frozen = make_pair(staged("resnet8", classes, channels), teacher, data)
    method = kind(pair, **SMALL.get(name, {}) | settings)
    teacher_outputs = TeacherOutputs(frozen)
    asked = [(batch, teacher_outputs(batch, method.needs)) for batch in batches(data)]
    method.train()
    method.prepare(lambda epochs: iter(asked * epochs))
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


def test_every_method_that_the_field_compares_is_there() -> None:
    expected = (
        "at byot cc ce crd dist dkd dskd dsn fitnet kd nst pkt reviewkd rkd semckd simkd sp srrl "
        "sskd vid"
    )
    assert expected.split() == NAMES


@every_method
def test_twenty_steps_on_one_batch_lower_the_loss(name: str) -> None:
    gentle = {"weight": GENTLE[name]} if name in GENTLE else {}
    losses = train(*made(name, **gentle), 20)
    assert all(math.isfinite(loss) for loss in losses)
    assert sum(losses[-3:]) / 3 < losses[0]


@every_method
def test_the_teacher_never_changes(name: str) -> None:
    method, teacher_outputs = made(name)
    if teacher_outputs.teacher is None:
        assert name in WITHOUT_TEACHER
        return
    before = state(teacher_outputs.teacher)
    train(method, teacher_outputs, 3)
    assert all(p.grad is None for p in teacher_outputs.teacher.parameters())
    after = teacher_outputs.teacher.state_dict()
    assert all(torch.equal(value, after[key]) for key, value in before.items())


@every_method
def test_a_resumed_method_goes_on_as_if_nothing_had_happened(name: str) -> None:
    method, teacher_outputs = made(name)
    optimizer, some = optimizer_of(method), batches() * 2
    for batch in some[:3]:
        train_step(method, teacher_outputs, batch, optimizer, "float32")
    kept = copy.deepcopy((method.state_dict(), optimizer.state_dict()))

    def go_on(method: Method, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
        for batch in some[3:]:
            train_step(method, teacher_outputs, batch, optimizer, "float32")
        return state(method)

    expected = go_on(method, optimizer)
    torch.manual_seed(99)  # whatever a fresh method draws is replaced
    fresh, _ = made(name)
    fresh.load_state_dict(kept[0])
    second = optimizer_of(fresh)
    second.load_state_dict(kept[1])
    found = go_on(fresh, second)
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        assert torch.equal(value, found[key]), key


@every_method
def test_what_is_trained_beside_the_student_learns_and_is_not_deployed(name: str) -> None:
    method, teacher_outputs = made(name)
    student = {id(p) for p in method.student.parameters()}
    extra = {n: p for n, p in method.named_parameters() if p.requires_grad and id(p) not in student}
    before = {key: p.detach().clone() for key, p in extra.items()}
    train(method, teacher_outputs, 3)
    still = [key for key, p in extra.items() if torch.equal(before[key], p)]
    assert not still, "the optimizer has parameters that no loss reaches"
    deployed = method.deployed()
    if name in LARGER:
        assert set(map(id, deployed.parameters())) > student
    else:
        assert deployed is method.student.module
        assert list(deployed.state_dict()) == list(staged("resnet8").module.state_dict())
    unlearned = [
        key
        for key, p in method.student.named_parameters()
        if p.requires_grad and (p.grad is None or not p.grad.abs().sum() > 0)
    ]
    assert not unlearned


@every_method
def test_the_deployed_student_is_the_one_that_is_evaluated(name: str) -> None:
    method, _ = made(name)
    method.eval()
    images = DATA.test.images[:4]
    with torch.no_grad():
        evaluated = method.classifier_logits(images)["student"]
        shipped = method.deployed()(method.student.normalize(images))
    torch.testing.assert_close(shipped, evaluated)
    rebuilt = type(method).assemble(staged("resnet8").module, method.deploy_config())
    assert {k: v.shape for k, v in rebuilt.state_dict().items()} == {
        k: v.shape for k, v in method.deployed().state_dict().items()
    }


@every_method
@pytest.mark.parametrize("size", [2, 5])
def test_small_batches_and_two_classes(name: str, size: int) -> None:
    data = make_dataset(classes=2, per_class=5, size=16)
    method, teacher_outputs = made(name, data)
    batch = batches(data, size)[0]
    output = train_step(method, teacher_outputs, batch, optimizer_of(method), "float32")
    assert output.objective.isfinite()
    assert all(p.isfinite().all() for p in method.parameters())


@every_method
def test_bfloat16_autocast_gives_losses_in_float32(name: str) -> None:
    method, teacher_outputs = made(name)
    output = train_step(method, teacher_outputs, batches()[0], optimizer_of(method), "bfloat16")
    assert {loss.dtype for loss in output.losses.values()} == {torch.float32}
    exact, teacher_outputs = made(name)
    expected = train_step(exact, teacher_outputs, batches()[0], optimizer_of(exact), "float32")
    assert output.losses.keys() == expected.losses.keys()


@every_method
@pytest.mark.parametrize("pair", [("vgg8", "wrn_16_2"), ("MobileNetV2", "resnet8x4")])
def test_pairs_whose_stages_do_not_match(name: str, pair: tuple[str, str]) -> None:
    data = make_dataset(classes=3, per_class=4, size=32)
    kind = methods.find(name)
    teacher = staged(pair[1], 3) if kind.needs_teacher else None
    given, frozen = make_pair(staged(pair[0], 3), teacher, data)
    method = kind(given, **SMALL.get(name, {}))
    teacher_outputs = TeacherOutputs(frozen)
    output = train_step(
        method, teacher_outputs, batches(data, 4)[0], optimizer_of(method), "float32"
    )
    assert output.objective.isfinite()


@every_method
def test_the_same_batch_gives_the_same_step_whatever_was_drawn_before(name: str) -> None:
    method, teacher_outputs = made(name)
    twin = copy.deepcopy(method)
    outputs: list[StepOutput] = []
    for one in (method, twin):
        torch.rand(len(outputs) + 1)
        outputs.append(train_step(one, teacher_outputs, batches()[0], optimizer_of(one), "float32"))
    assert torch.equal(outputs[0].objective, outputs[1].objective)


@every_method
def test_settings_out_of_range_are_refused(name: str) -> None:
    kind = methods.find(name)
    hints = get_type_hints(kind.__init__, include_extras=True)
    for key in signature_settings(kind.__init__).model_fields:
        bad: list[Any] = ["many", [], {"a": 1}]
        if hints[key] in (Weight, Positive, Share, Count):
            bad += [-1, float("nan"), float("inf"), True]
        if hints[key] in (Positive, Share, Count):
            bad.append(0)
        for value in bad:
            if hints[key] is str and isinstance(value, str):
                continue
            if hints[key] == dict[str, Any] | None and isinstance(value, dict):
                continue
            with pytest.raises(InputError):
                made(name, **{key: value})
    with pytest.raises(InputError, match="unknown setting"):
        methods.resolve(name, {"no_such_setting": 1})


@every_method
def test_published_weights_are_settings_of_the_method(name: str) -> None:
    kind = methods.find(name)
    for preset in kind.presets:
        assert methods.resolve(name, {"preset": preset})
    if name not in ("ce", "dskd"):
        assert "literature" in kind.presets


@every_method
def test_every_method_says_its_formula_its_source_and_its_settings(name: str) -> None:
    kind = methods.find(name)
    doc = inspect.getdoc(kind) or ""
    assert "``" in doc.splitlines()[0]
    if name != "ce":
        assert "Source:" in doc
        assert "arXiv" in doc or "20" in doc
    arguments = doc.partition("Args:\n")[2]
    for key in signature_settings(kind.__init__).model_fields:
        assert f"    {key}: " in arguments, key


@every_method
def test_a_method_that_learns_from_a_teacher_says_so(name: str) -> None:
    kind = methods.find(name)
    assert kind.needs_teacher is (name not in WITHOUT_TEACHER)
    keys = signature_settings(kind.__init__).model_fields
    assert "ce" in keys
    if kind.needs_teacher:
        assert "kd" in keys
        pair, _ = make_pair(staged("resnet8"), None, DATA)
        with pytest.raises(InputError, match="needs a teacher"):
            kind(pair)


def test_a_teacher_of_other_classes_is_refused_by_all() -> None:
    for name in set(NAMES) - WITHOUT_TEACHER:
        pair, _ = make_pair(staged("resnet8", 4), staged("resnet14", 5), DATA)
        with pytest.raises(InputError, match="the teacher has 5 classes, the student 4"):
            methods.find(name)(pair)


def test_the_prepared_part_is_not_the_optimizer_s() -> None:
    for name in NAMES:
        if methods.find(name).prepare is Method.prepare:
            continue
        method, _ = made(name)
        held = {id(p) for g in optimizer_of(method).param_groups for p in g["params"]}
        frozen = [p for p in method.parameters() if not p.requires_grad]
        assert frozen
        assert not held & set(map(id, frozen))
