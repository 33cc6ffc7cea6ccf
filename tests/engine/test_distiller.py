"""A method as a module in a loop of the user's own."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import dskd
from dskd import methods
from dskd.engine.distiller import Distiller
from dskd.errors import InputError
from dskd.losses import kd
from dskd.methods.base import Method
from tests.methods import declared

CLASSES, BATCH = 4, 8
IMAGES = torch.randn(BATCH, 3, 32, 32, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(BATCH) % CLASSES
PREPARED = [name for name in methods.names() if methods.find(name).prepare is not Method.prepare]


def models() -> tuple[nn.Module, nn.Module]:
    torch.manual_seed(0)
    return (
        dskd.load_model("resnet8", num_classes=CLASSES),
        dskd.load_model("resnet14", num_classes=CLASSES),
    )


def made(method: Any = "dskd") -> Distiller:
    student, teacher = models()
    return Distiller(student, teacher, IMAGES, method=method)


@pytest.mark.parametrize("name", [name for name in methods.names() if name not in PREPARED])
def test_every_method_trains_the_very_student_that_was_given(name: str) -> None:
    student, teacher = models()
    kind = methods.find(name)
    settings = {"name": name, **declared.small(name)}
    labels = LABELS if kind.remembers_images else None
    distiller = Distiller(student, teacher, IMAGES, method=settings, labels=labels)
    taught = {key: value.clone() for key, value in teacher.state_dict().items()}
    before = next(student.parameters()).clone()
    optimizer = torch.optim.SGD(distiller.parameters(), lr=0.01)
    indices = {"indices": torch.arange(BATCH)} if kind.remembers_images else {}
    output = distiller(IMAGES, LABELS, **indices)
    output.objective.backward()
    optimizer.step()
    assert not torch.equal(before, next(student.parameters()))
    assert all(torch.equal(value, taught[key]) for key, value in teacher.state_dict().items())


def test_kd_has_the_losses_of_its_formula() -> None:
    student, teacher = models()
    settings = {"name": "kd", "ce": 0.5, "kd": 2.0, "temperature": 3.0}
    output = Distiller(student, teacher, IMAGES, method=settings)(IMAGES, LABELS)
    logits, taught = student(IMAGES), teacher.eval()(IMAGES)
    torch.testing.assert_close(
        output.losses["ce"], 0.5 * nn.functional.cross_entropy(logits, LABELS)
    )
    torch.testing.assert_close(output.losses["kd"], 2 * kd(logits, taught, 3.0))


def test_a_class_is_a_method_as_for_distill() -> None:
    named = made({"name": "kd", "temperature": 3.0})(IMAGES, LABELS)
    given = made({"name": methods.find("kd"), "temperature": 3.0})(IMAGES, LABELS)
    assert given.losses == named.losses
    assert made(methods.find("kd")).method.needs.logits
    with pytest.raises(InputError, match="method: a name, an object or a mapping"):
        made(3)


def test_the_classifier_of_the_teacher_is_copied() -> None:
    student, teacher = models()
    distiller = Distiller(student, teacher, IMAGES, method="simkd")
    own = {id(parameter) for parameter in teacher.parameters()}
    assert not own & {id(parameter) for parameter in distiller.parameters()}


def test_the_teacher_is_no_part_of_parameters_and_state_but_moves_along() -> None:
    distiller = made()
    teacher = models()[1]
    alone = sum(p.numel() for p in distiller.method.parameters())
    assert sum(p.numel() for p in distiller.parameters()) == alone
    assert not any("teacher" in key for key in distiller.state_dict())
    moved = distiller.to(torch.float64)
    (frozen,) = moved._teacher
    assert frozen is not None
    assert {p.dtype for p in frozen.parameters()} == {torch.float64}
    assert len(list(frozen.parameters())) == len(list(teacher.parameters()))
    moved(IMAGES.double(), LABELS).objective.backward()


def test_the_teacher_stays_in_evaluation_mode() -> None:
    student, teacher = models()
    distiller = Distiller(student, teacher, IMAGES, method="kd").train()
    assert student.training
    assert not teacher.training
    distiller.eval()
    assert not student.training


def test_the_teacher_can_have_images_of_its_own() -> None:
    distiller = made("kd")
    same, other = distiller(IMAGES, LABELS), distiller(IMAGES, LABELS, teacher_images=IMAGES * 2)
    assert same.losses["ce"] == other.losses["ce"]
    assert same.losses["kd"] != other.losses["kd"]


def test_the_epoch_is_that_of_the_loop() -> None:
    student, teacher = models()
    distiller = Distiller(student, teacher, IMAGES, method={"name": "dkd", "warmup": 4})
    first = distiller(IMAGES, LABELS).losses["dkd"]
    distiller.epoch = 3
    torch.testing.assert_close(distiller(IMAGES, LABELS).losses["dkd"], 4 * first)


def test_what_a_method_has_to_say_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    student, teacher = models()
    Distiller(student, teacher, IMAGES, method="at")
    assert not caplog.messages
    Distiller(student, teacher, IMAGES[:, :, :4, :4], method="at")
    assert "has one in stage 3, which teaches nothing" in caplog.text


def test_the_student_that_ships_is_the_one_that_was_given() -> None:
    student, teacher = models()
    assert Distiller(student, teacher, IMAGES).deployed() is student


@pytest.mark.parametrize("settings", [{"cost": "classifier"}, {"kd": 0.0, "feature": 1.0}])
def test_a_method_is_refused_only_if_its_settings_prepare_something(
    settings: dict[str, Any],
) -> None:
    student, teacher = models()
    labels = torch.arange(len(IMAGES)) % 4
    distiller = Distiller(
        student, teacher, IMAGES, method={"name": "wkd", **settings}, labels=labels
    )
    output = distiller(IMAGES, labels, indices=torch.arange(len(IMAGES)))
    assert output.objective.isfinite()


@pytest.mark.parametrize(
    ("name", "images", "message"),
    [
        *((name, IMAGES, "prepares itself before the student trains") for name in PREPARED),
        ("crd", IMAGES, "crd remembers each image; give the labels"),
        ("kd", (IMAGES * 9).to(torch.uint8), r"must be floating point .* got uint8 \[8, 3, 32"),
        ("kd", IMAGES[0], r"must be floating point \[B, C, H, W\]"),
    ],
)
def test_what_a_loop_cannot_train_is_refused(name: str, images: Tensor, message: str) -> None:
    student, teacher = models()
    with pytest.raises(InputError, match=message):
        Distiller(student, teacher, images, method=name)


def test_a_missing_teacher_and_missing_indices_are_refused() -> None:
    student, teacher = models()
    with pytest.raises(InputError, match="kd needs a teacher"):
        Distiller(student, None, IMAGES, method="kd")
    with pytest.raises(InputError, match=r"indices=indices"):
        Distiller(student, teacher, IMAGES, method="crd", labels=LABELS)(IMAGES, LABELS)
    assert Distiller(student, None, IMAGES, method="ce")(IMAGES, LABELS).losses.keys() == {"ce"}


@pytest.mark.parametrize("name", methods.names())
def test_a_method_says_that_it_remembers_images(name: str) -> None:
    kind = methods.find(name)
    assert issubclass(kind, Method)
    reads = "batch.indices" in inspect.getsource(inspect.getmodule(kind))  # type: ignore[arg-type]
    assert kind.remembers_images == reads
