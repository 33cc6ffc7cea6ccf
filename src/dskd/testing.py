"""The contract of a method as checks that its author can run, in pytest or without it.

Each check trains the method for a few steps on random images with small networks, and raises an
AssertionError that says what to change. In pytest::

    @pytest.mark.parametrize("check", dskd.testing.CHECKS)
    def test_my_method(check):
        check(MyMethod, {"weight": 2.0})
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from dskd.data import Dataset, Split
from dskd.data.epoch_plan import draw_plan
from dskd.data.loader import Batch, MemoryLoader
from dskd.engine.optimizer import make_optimizer
from dskd.engine.step import train_step
from dskd.errors import InputError
from dskd.methods.base import Method
from dskd.methods.contracts import Pair
from dskd.models.output import ModelOutput
from dskd.models.spec import describe
from dskd.models.staged_model import StagedModel
from dskd.models.zoo import build
from dskd.teacher.frozen import FrozenTeacher
from dskd.teacher.outputs import TeacherOutputs

Settings = Mapping[str, Any]
"""Settings with which the method trains on a few images in seconds."""
Check = Callable[[type[Method], Settings], None]
"""Takes a method and settings, and raises an AssertionError if the method breaks the contract."""


def check_method(kind: type[Method], settings: Settings | None = None) -> None:
    """Runs all `CHECKS` on a method.

    Args:
        kind: The method.
        settings: Settings with which it trains on a few images; None for its defaults.

    Raises:
        AssertionError: It breaks the contract; the message says what to change.

    Example:
        >>> from dskd.methods.kd import KD
        >>> check_method(KD, {"temperature": 2.0})
    """
    for check in CHECKS:
        check(kind, settings or {})


def sample_images(
    classes: int = 4, per_class: int = 6, size: int = 16, channels: int = 3, seed: int = 0
) -> Dataset:
    """A data set that can be learned: every class has a tint of its own, under noise.

    Args:
        classes: Number of classes.
        per_class: Training images of each class.
        size: Height and width.
        channels: Of the images.
        seed: Of the noise.
    """
    draw = torch.Generator().manual_seed(seed)

    def split(count: int) -> Split:
        labels = torch.arange(classes).repeat_interleave(count)
        tint = torch.linspace(40, 215, classes)[labels].view(-1, 1, 1, 1)
        noise = 40 * torch.randn(len(labels), channels, size, size, generator=draw)
        return Split((tint + noise).clamp(0, 255).to(torch.uint8), labels)

    names = tuple(f"class{label}" for label in range(classes))
    statistics = (0.5,) * channels, (0.25,) * channels
    return Dataset("made", split(per_class), split(5), names, *statistics)


def network(name: str, classes: int = 4, channels: int = 3) -> StagedModel:
    """A fresh network of the zoo, seen through its stages."""
    net = build(name, num_classes=classes, in_channels=channels)
    return StagedModel(net, mean=(0.5,) * channels, std=(0.25,) * channels)


def batches(data: Dataset, size: int = 8, seed: int = 0) -> list[Batch]:
    """The augmented batches of an epoch.

    Args:
        data: The data set.
        size: Images of a batch.
        seed: Of the order and the augmentation.
    """
    plan = draw_plan(seed, 0, len(data.train), 2, True)
    return list(MemoryLoader(data.train, torch.device("cpu")).batches(plan, size))


def make_pair(
    student: StagedModel, teacher: StagedModel | None, data: Dataset, few: int = 8
) -> Pair:
    """What the constructor of a method takes.

    Args:
        student: The student.
        teacher: The teacher; None without one.
        data: Their images.
        few: Images on which the models are measured.
    """
    images, labels = data.train.images[:few], data.train.labels
    return Pair.measured(
        student, teacher, lambda model, _: describe(model, images), labels, len(labels)
    )


def set_up(
    kind: type[Method], settings: Settings, data: Dataset | None = None
) -> tuple[Method, TeacherOutputs]:
    """A method for resnet14 and resnet8, ready to train, and the outputs of its teacher.

    Args:
        kind: The method.
        settings: Its settings.
        data: Images of three channels; None for `sample_images`.
    """
    data = data if data is not None else sample_images()
    classes = len(data.classes)
    frozen = FrozenTeacher(network("resnet14", classes)) if kind.needs_teacher else None
    teacher = frozen.model if frozen is not None else None
    pair = make_pair(network("resnet8", classes), teacher, data)
    method, outputs = kind(pair, **settings), TeacherOutputs(frozen)

    def epochs(count: int) -> Iterator[tuple[Batch, ModelOutput | None]]:
        epoch = [(batch, outputs(batch, method.needs)) for batch in batches(data)]
        return iter(epoch * count)

    method.train()
    method.prepare(epochs)
    return method, outputs


def teacher_stays_as_it_is(kind: type[Method], settings: Settings) -> None:
    """No step changes the teacher or gives it gradients."""
    method, outputs = set_up(kind, settings)
    if outputs.teacher is None:
        return
    assert method.needs, "set needs to the teacher outputs that the method reads"
    before = _state(outputs.teacher)
    _train(method, outputs)
    changed = "copy a part of the teacher that the method trains or changes"
    assert all(p.grad is None for p in outputs.teacher.parameters()), changed
    assert _equal(before, _state(outputs.teacher)), changed


def resume_is_exact(kind: type[Method], settings: Settings) -> None:
    """A method that is saved and loaded goes on as without a stop."""
    method, outputs = set_up(kind, settings)
    optimizer, some = _optimizer(method), batches(sample_images()) * 2
    for batch in some[:3]:
        train_step(method, outputs, batch, optimizer, "float32")
    saved = copy.deepcopy((method.state_dict(), optimizer.state_dict()))
    expected = _go_on(method, outputs, optimizer, some[3:])
    torch.manual_seed(99)  # the random state of a fresh method is replaced
    fresh, _ = set_up(kind, settings)
    fresh.load_state_dict(saved[0])
    second = _optimizer(fresh)
    second.load_state_dict(saved[1])
    found = _go_on(fresh, outputs, second, some[3:])
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        assert torch.equal(value, found[key]), (
            f"{key} differs after a resume: keep what a step depends on in parameters or buffers, "
            "and draw random numbers from batch.seeds"
        )


def parts_learn_and_the_student_ships(kind: type[Method], settings: Settings) -> None:
    """Every parameter learns, and what is deployed is the student, with its own keys."""
    method, outputs = set_up(kind, settings)
    student = {id(p) for p in method.student.parameters()}
    extra = {n: p for n, p in method.named_parameters() if p.requires_grad and id(p) not in student}
    before = {key: p.detach().clone() for key, p in extra.items()}
    _train(method, outputs)
    still = [key for key, p in extra.items() if torch.equal(before[key], p)]
    assert not still, f"no loss reaches {still}: use them or leave them out"
    deployed = method.deployed()
    if type(method).assemble.__func__ is not Method.assemble.__func__:  # type: ignore[attr-defined]
        assert set(map(id, deployed.parameters())) > student, "deployed() must hold the student"
    else:
        if type(method).deployed is Method.deployed:  # norm merges a part into a copy
            assert deployed is method.student.module
        plain = list(network("resnet8").module.state_dict())
        assert list(deployed.state_dict()) == plain, "a larger deployed() needs assemble() too"
    unlearned = [
        key
        for key, p in method.student.named_parameters()
        if p.requires_grad and (p.grad is None or not p.grad.abs().sum() > 0)
    ]
    assert not unlearned, f"these parameters of the student get no gradient: {unlearned}"


def shipped_student_is_the_evaluated_one(kind: type[Method], settings: Settings) -> None:
    """`deployed` gives the logits that are evaluated, and `assemble` builds it again."""
    method, _ = set_up(kind, settings)
    method.eval()
    images = sample_images().test.images[:4]
    with torch.no_grad():
        evaluated = method.classifier_logits(images)["student"]
        shipped = method.deployed()(method.student.normalize(images))
    torch.testing.assert_close(
        shipped,
        evaluated,
        msg=lambda text: f'deployed() must give classifier_logits(images)["student"]: {text}',
    )
    rebuilt = type(method).assemble(network("resnet8").module, method.deploy_config())
    assert {k: v.shape for k, v in rebuilt.state_dict().items()} == {
        k: v.shape for k, v in method.deployed().state_dict().items()
    }, "assemble() must build the module that deployed() returns, from deploy_config() alone"


def small_batches_and_two_classes_work(kind: type[Method], settings: Settings) -> None:
    """Batches of 2 and 5 images of two classes give finite losses and weights.

    A method may refuse two classes with an `InputError`; three are taken then.
    """
    data = sample_images(classes=2, per_class=5)
    try:
        set_up(kind, settings, data)
    except InputError:
        data = sample_images(classes=3, per_class=5)
    for size in (2, 5):
        method, outputs = set_up(kind, settings, data)
        batch = batches(data, size)[0]
        output = train_step(method, outputs, batch, _optimizer(method), "float32")
        assert output.objective.isfinite()
        broken = [key for key, p in method.named_parameters() if not p.isfinite().all()]
        assert not broken, f"{broken}: a gradient is NaN or Inf; look for 0 / 0, sqrt(0) and log(0)"


def losses_stay_in_float32(kind: type[Method], settings: Settings) -> None:
    """Under bfloat16 autocast, losses have the same names and stay in float32."""
    batch, losses = batches(sample_images())[0], []
    for precision in ("bfloat16", "float32"):
        method, outputs = set_up(kind, settings)
        step = train_step(method, outputs, batch, _optimizer(method), precision)
        losses.append(step.losses)
    assert {loss.dtype for loss in losses[0].values()} == {torch.float32}, (
        "put @in_full_precision above the function of the loss"
    )
    assert losses[0].keys() == losses[1].keys()


def steps_do_not_depend_on_the_random_state(kind: type[Method], settings: Settings) -> None:
    """Two steps from the same state are equal, whatever torch's random generator has drawn."""
    method, outputs = set_up(kind, settings)
    batch = batches(sample_images())[0]
    objectives: list[Tensor] = []
    for one in (method, copy.deepcopy(method)):
        torch.rand(len(objectives) + 1)
        step = train_step(one, outputs, batch, _optimizer(one), "float32")
        objectives.append(step.objective)
    assert torch.equal(*objectives), (
        "draw random numbers from batch.seeds (draw_below in dskd/data/epoch_plan.py)"
    )


def reads_only_what_it_declares(kind: type[Method], settings: Settings) -> None:
    """Teacher outputs that `needs` does not name have no effect."""
    method, outputs = set_up(kind, settings)
    batch, needs = batches(sample_images())[0], method.needs
    whole = outputs(batch, needs)
    if whole is None:
        return

    def declared_or_nan(tensor: Tensor | None, is_declared: bool) -> Tensor:
        assert tensor is not None
        return tensor if is_declared else torch.full_like(tensor, torch.nan)

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
    }, "needs must name every output of the teacher that the method reads"


CHECKS: tuple[Check, ...] = (
    teacher_stays_as_it_is,
    resume_is_exact,
    parts_learn_and_the_student_ships,
    shipped_student_is_the_evaluated_one,
    small_batches_and_two_classes_work,
    losses_stay_in_float32,
    steps_do_not_depend_on_the_random_state,
    reads_only_what_it_declares,
)
"""All checks."""


def _optimizer(method: Method) -> torch.optim.Optimizer:
    return make_optimizer(method, "sgd", lr=0.01, momentum=0.9, nesterov=False, weight_decay=0.0)


def _train(method: Method, outputs: TeacherOutputs) -> None:
    """Takes three steps on one batch."""
    optimizer, batch = _optimizer(method), batches(sample_images())[0]
    for _ in range(3):
        train_step(method, outputs, batch, optimizer, "float32")


def _go_on(
    method: Method,
    outputs: TeacherOutputs,
    optimizer: torch.optim.Optimizer,
    some: list[Batch],
) -> dict[str, Tensor]:
    for batch in some:
        train_step(method, outputs, batch, optimizer, "float32")
    return _state(method)


def _state(module: nn.Module) -> dict[str, Tensor]:
    return {key: value.clone() for key, value in module.state_dict().items()}


def _equal(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    return all(torch.equal(value, other[key]) for key, value in one.items())
