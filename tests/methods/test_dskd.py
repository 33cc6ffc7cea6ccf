"""DSKD as a method: where gradients go, the effect of each option, the deployed student."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from dskd.errors import InputError
from dskd.losses.feature_maps import feature_loss, pool_to
from dskd.losses.logits import kd
from dskd.methods.branches import Branch
from dskd.methods.contracts import Pair
from dskd.methods.dskd import DSKD, dskd_loss
from dskd.methods.dskd_branches import teacher_map
from dskd.models.spec import ModelSpec, StageSpec
from dskd.models.staged_model import StagedModel
from dskd.teacher.frozen import FrozenTeacher
from tests.builders import make_dataset, make_pair, staged
from tests.losses.misfits import Arguments
from tests.methods.inputs import DATA, batch_of, first_batch

ARGUMENTS = Arguments(
    {
        "student_logits": "B K",
        "teacher_logits": "B K",
        "labels": "B",
        "branch_logits": "[B K]",
        "branch_maps": "[B C* H* W*]",
        "teacher_maps": "[B C* H* W*]",
    },
    indices={"labels": "K"},
    numbers={
        "ce": -1.0,
        "kd": -1.0,
        "alpha": -1.0,
        "beta": -1.0,
        "gamma": -1.0,
        "temperature": 0.0,
        "tau": 0.0,
        "allocation_smoothing": 1.0,
    },
    choices=(
        "allocation",
        "allocate",
        "allocation_scale",
        "allocation_basis",
        "weight_sum",
        "weights_per",
        "feature_loss",
        "feature_scale",
        "prediction_loss",
        "deep_loss",
    ),
)
DEFAULTS = {
    "temperature": 4.0,
    "ce": 1.0,
    "kd": 1.0,
    "alpha": 1.0,
    "beta": 10.0,
    "gamma": 0.0,
    "allocation": "proportional",
    "tau": 1.0,
    "allocate": "joint",
    "allocation_scale": "relative",
    "allocation_basis": "loss",
    "allocation_smoothing": 0.0,
    "weight_sum": "count",
    "feature_loss": "mse",
    "weights_per": "batch",
    "feature_scale": "relative",
    "prediction_loss": "kl",
    "prediction_options": None,
    "deep_loss": "kd",
    "deep_options": None,
}
UNTUNED = {
    "gamma": 0.0,
    "tau": 1.0,
    "allocation_basis": "loss",
    "allocation_smoothing": 0.0,
    "weights_per": "batch",
    "feature_loss": "mse",
    "feature_target": "last",
    "map_size": None,
    "fuse": False,
    "adapter_width": None,
    "adapter_depth": 1,
    "supervise": None,
    "prediction_loss": "kl",
    "deep_loss": "kd",
}
PRESETS = {
    "paper": {
        "temperature": 2.0,
        "ce": 1.0,
        "kd": 0.0,
        "alpha": 0.5,
        "beta": 0.5,
        "allocation": "hard-first",
        "allocate": "separate",
        "allocation_scale": "raw",
        "weight_sum": "one",
        "feature_scale": "none",
        "deep_stage": "both",
        "adapter": "linear",
        "classifier": "mlp",
        **UNTUNED,
    },
    "paper-abstract": {
        "temperature": 4.0,
        "ce": 1.0,
        "kd": 1.0,
        "alpha": 1.0,
        "beta": 1.0,
        "allocation": "proportional",
        "allocate": "joint",
        "allocation_scale": "relative",
        "weight_sum": "count",
        "feature_scale": "relative",
        "deep_stage": "none",
        "adapter": "pool",
        "classifier": "linear",
        **UNTUNED,
    },
}


def made(**settings: Any) -> tuple[DSKD, FrozenTeacher]:
    pair, teacher = make_pair(staged("resnet8"), staged("resnet14"), DATA)
    assert teacher is not None
    return DSKD(pair, **settings), teacher


def gradients(module: nn.Module) -> list[torch.Tensor]:
    return [p.grad for p in module.parameters() if p.grad is not None]


def test_the_gradient_reaches_shallow_stages_from_the_branches_alone() -> None:
    method, teacher = made(ce=0.0, kd=0.0)
    batch = first_batch()
    method(batch, teacher(batch.images)).objective.backward()
    student = method.student.module
    for part in ("conv1", "layer1", "layer2"):
        assert any(g.abs().sum() > 0 for g in gradients(student.get_submodule(part)))
    # The last stage and the head are the deep layer's alone.
    for part in ("layer3", "fc"):
        assert not any(g.abs().sum() > 0 for g in gradients(student.get_submodule(part)))
    assert all(g.abs().sum() > 0 for g in gradients(method.branches))


def test_the_gradient_never_reaches_the_teacher_and_nothing_in_it_changes() -> None:
    method, teacher = made()
    before = {key: value.clone() for key, value in teacher.state_dict().items()}
    batch = first_batch()
    optimizer = torch.optim.SGD([p for p in method.parameters() if p.requires_grad], 0.1)
    method.train()
    teacher.train()
    for _ in range(3):
        optimizer.zero_grad()
        method(batch, teacher(batch.images)).objective.backward()
        optimizer.step()
    assert not gradients(teacher)
    assert not teacher.training
    assert not any(p.requires_grad for p in teacher.parameters())
    for key, value in teacher.state_dict().items():
        assert torch.equal(value, before[key]), key


def test_each_part_of_the_shallow_loss_works_alone() -> None:
    batch = first_batch()
    predictions, teacher = made(beta=0.0)
    output = predictions(batch, teacher(batch.images))
    weighted = sum(
        output.metrics[f"stage{s}/weight"] * output.metrics[f"stage{s}/prediction"] for s in (1, 2)
    )
    torch.testing.assert_close(output.losses["shallow"].detach(), weighted)
    maps, teacher = made(alpha=0.0, beta=2.0)
    output = maps(batch, teacher(batch.images))
    weighted = sum(
        output.metrics[f"stage{s}/weight"] * 2 * output.metrics[f"stage{s}/feature"] for s in (1, 2)
    )
    torch.testing.assert_close(output.losses["shallow"].detach(), weighted)


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"allocation": "hard-first", "tau": 0.5},
        {"allocation": "easy-first"},
        {"allocation": "ca-mkd"},
        {"allocation": "uniform"},
        {"weights_per": "sample"},
        {"feature_target": "last"},
        {"map_size": 2},
        {"map_size": 2, "fuse": True, "deep_stage": "map"},
        {"feature_scale": "none"},
        {"adapter_width": 8},
        {"adapter": "stride"},
        {"supervise": [1]},
        {"gamma": 0.5},
        {"prediction_loss": "dkd", "prediction_options": {"beta": 2.0}},
        {"prediction_loss": "dist"},
        {"prediction_loss": "kd-standardized"},
        {"deep_loss": "dkd"},
        {"deep_loss": "dist", "deep_options": {"temperature": 1.0}},
        {"deep_loss": "kd-standardized", "temperature": 2.0},
        {"allocate": "separate"},
        {"allocate": "separate", "allocation": "hard-first", "allocation_scale": "raw"},
        {"allocation_basis": "progress"},
        {"allocation_smoothing": 0.9, "allocate": "separate"},
        {"weight_sum": "one"},
        {"feature_loss": "pyramid"},
        {"feature_loss": "cosine"},
        {"feature_loss": "channel"},
        {"feature_loss": "relation"},
        {"deep_stage": "map"},
        {"deep_stage": "both"},
        {"deep_stage": "map", "gamma": 0.5, "weights_per": "sample"},
        {"fuse": True},
        {"fuse": True, "deep_stage": "map", "feature_loss": "pyramid"},
        {"fuse": True, "deep_stage": "both", "adapter_width": 12, "supervise": [1]},
        {"adapter": "linear"},
        {"adapter_depth": 2},
        {"adapter": "stride", "adapter_depth": 3},
        {"classifier": "mlp"},
        {"classifier": "teacher", "feature_target": "last"},
        {"classifier": "teacher", "feature_target": "last", "fuse": True, "deep_stage": "both"},
        DSKD.presets["paper"],
        DSKD.presets["paper-abstract"],
    ],
    ids=str,
)
def test_every_option_works_and_lowers_the_loss(settings: dict[str, Any]) -> None:
    method, teacher = made(**settings)
    batch = first_batch()
    teacher_output = teacher(batch.images)
    optimizer = torch.optim.SGD([p for p in method.parameters() if p.requires_grad], 0.01)
    method.train()
    values = []
    for _ in range(5):
        output = method(batch, teacher_output)
        optimizer.zero_grad()
        output.objective.backward()
        optimizer.step()
        values.append(output.objective.item())
    assert values[-1] < values[0]


@pytest.mark.slow
def test_settings_change_the_losses() -> None:
    batch = first_batch()

    def objective(**settings: Any) -> float:
        torch.manual_seed(0)
        method, teacher = made(**settings)
        return float(method(batch, teacher(batch.images)).objective.detach())

    plain = objective()
    for settings in (
        {"temperature": 2.0},
        {"ce": 0.5},
        {"kd": 0.5},
        {"alpha": 0.5},
        {"beta": 0.5},
        {"gamma": 0.5},
        {"allocation": "uniform"},
        {"weights_per": "sample"},
        {"feature_target": "last"},
        {"map_size": 2},
        {"feature_scale": "none"},
        {"adapter_width": 8},
        {"adapter": "stride"},
        {"supervise": [2]},
        {"prediction_loss": "dkd"},
        {"deep_loss": "dkd"},
        {"allocate": "separate"},
        {"weight_sum": "one"},
        {"feature_loss": "pyramid"},
        {"feature_loss": "cosine"},
        {"feature_loss": "channel"},
        {"feature_loss": "relation"},
        {"deep_stage": "map"},
        {"deep_stage": "both"},
        {"fuse": True},
        {"adapter": "linear"},
        {"adapter_depth": 2},
        {"classifier": "mlp"},
        {"prediction_warmup": 2.0},
    ):
        assert objective(**settings) != plain, settings
    assert objective(allocation="hard-first") != objective(allocation="hard-first", tau=0.3)
    assert objective(allocation="hard-first") != objective(
        allocation="hard-first", allocation_scale="raw"
    )
    last: dict[str, Any] = {"feature_target": "last"}
    assert objective(**last) != objective(**last, classifier="teacher")
    assert objective() == plain


def test_the_deep_stage_s_own_prediction_and_map_are_allocated() -> None:
    batch = first_batch()
    method, teacher = made(deep_stage="both", allocation="hard-first")
    output = method(batch, teacher(batch.images))
    assert {name for name in output.metrics if name.startswith("stage3/")} == {
        "stage3/prediction",
        "stage3/feature",
        "stage3/weight",
    }
    student = method.student(batch.images)
    own = kd(student.logits, teacher(batch.images).logits, 4.0)
    torch.testing.assert_close(output.metrics["stage3/prediction"], own.detach())
    weights = torch.stack([output.metrics[f"stage{stage}/weight"] for stage in (1, 2, 3)])
    torch.testing.assert_close(weights.sum(), torch.tensor(3.0))
    map_alone, teacher = made(deep_stage="map")
    output = map_alone(batch, teacher(batch.images))
    assert output.metrics["stage3/prediction"] == 0
    assert output.metrics["stage3/feature"] > 0


def test_fused_stages_bring_the_gradient_of_shallow_maps_to_the_deep_stage() -> None:
    batch = first_batch()
    method, _ = made(fuse=True, deep_stage="map", ce=0.0, kd=0.0, supervise=[1])
    (shallow,) = method.branch_outputs(method.student(batch.images).stages)
    torch.autograd.backward(shallow.map.sum())
    assert any(g.abs().sum() > 0 for g in gradients(method.student.module.get_submodule("layer3")))


def test_the_teacher_s_classifier_on_a_branch_is_never_trained() -> None:
    batch = first_batch()
    method, teacher = made(classifier="teacher", feature_target="last")
    output = method(batch, teacher(batch.images))
    output.objective.backward()
    expected = teacher.model.linear_classifier
    assert expected is not None
    for branch in method.branches:
        assert isinstance(branch, Branch)
        assert isinstance(branch.classifier, nn.Linear)
        assert torch.equal(branch.classifier.weight, expected.weight)
        assert branch.classifier.weight.grad is None


def test_weights_of_losses_rise_and_fall_with_the_epochs() -> None:
    def shallow(epoch: int, **settings: Any) -> float:
        torch.manual_seed(0)
        method, teacher = made(allocation="uniform", **settings)
        batch = replace(first_batch(), epoch=epoch)
        return float(method(batch, teacher(batch.images)).losses["shallow"].detach())

    whole = shallow(0)
    maps = shallow(0, alpha=0.0)
    logits = shallow(0, beta=0.0)
    assert whole == pytest.approx(maps + logits)
    assert shallow(0, prediction_warmup=4.0) == pytest.approx(maps + logits / 4)
    assert shallow(3, prediction_warmup=4.0) == pytest.approx(whole)
    assert shallow(1, prediction_epochs=4.0) == pytest.approx(maps + 0.75 * logits)
    assert shallow(9, prediction_epochs=4.0) == pytest.approx(maps)
    assert shallow(3, feature_epochs=4.0) == pytest.approx(maps / 4 + logits)
    assert made(feature_epochs=4.0)[0].uncompiled
    assert not made()[0].uncompiled


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"fuse": True, "adapter": "stride"}, "leave out adapter and adapter_depth"),
        ({"fuse": True, "adapter_depth": 2}, "leave out adapter and adapter_depth"),
        ({"adapter": "linear", "adapter_depth": 2}, "leave out adapter_depth"),
        ({"adapter": "linear", "adapter_width": 8}, "leave out adapter_depth and adapter_width"),
        ({"classifier": "teacher"}, "set feature_target=last"),
        ({"weights_per": "sample", "feature_loss": "relation"}, "has one for the batch"),
        ({"weights_per": "sample", "allocation_smoothing": 0.5}, "has one for the batch"),
        ({"weights_per": "sample", "allocation_basis": "progress"}, "has one for the batch"),
        ({"feature_loss": "pyramids"}, "pyramid"),
        ({"allocation_smoothing": 1.0}, "allocation_smoothing"),
    ],
)
def test_settings_that_do_not_fit_together_are_refused(
    settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        made(**settings)


def test_matched_maps_are_those_of_the_same_relative_depth() -> None:
    """Targets by ceil(l L_t / L), for other depths than the teacher's."""

    def spec(depth: int) -> ModelSpec:
        return ModelSpec(4, tuple(StageSpec(8, 8, 8, True) for _ in range(depth)), 8)

    student = staged()
    targets = {
        (depth, teacher): DSKD(
            Pair(student, spec(depth), spec(teacher)), feature_target="matched"
        ).targets
        for depth, teacher in ((3, 3), (5, 3), (3, 5), (2, 4), (4, 1))
    }
    assert targets == {
        (3, 3): [0, 1],
        (5, 3): [0, 1, 1, 2],
        (3, 5): [1, 3],
        (2, 4): [1],
        (4, 1): [0, 0, 0],
    }


def test_the_method_needs_only_the_maps_that_it_reads() -> None:
    assert made()[0].needs.stages == (0, 1)
    assert made(feature_target="last")[0].needs.stages == (2,)


@pytest.mark.parametrize("fuse", [False, True])
def test_maps_are_compared_at_the_given_size(fuse: bool) -> None:
    """Every map is average-pooled to it; a smaller map stays as it is."""
    batch, settings = first_batch(), {"fuse": fuse, "deep_stage": "map", "allocation": "uniform"}
    method, teacher = made(map_size=4, **settings)
    assert method.needs.map_size == 4
    whole = teacher(batch.images)
    assert [stage.shape[2] for stage in whole.stages] == [16, 8, 4]
    student = method.student(batch.images)
    branches, deep_map = method._run_branches(student.stages)
    assert deep_map is not None
    maps = [branch.map for branch in branches] + [deep_map]
    assert [own.shape[2:] for own in maps] == [(4, 4)] * 3
    output = method(batch, whole)
    for stage, own in enumerate(maps):
        expected = feature_loss(own, F.adaptive_avg_pool2d(whole.stages[stage], 4))
        torch.testing.assert_close(output.metrics[f"stage{stage + 1}/feature"], expected.detach())
    pooled = whole._replace(stages=tuple(F.adaptive_avg_pool2d(s, 4) for s in whole.stages))
    torch.testing.assert_close(method(batch, pooled).objective, output.objective)


def test_a_map_is_pooled_as_in_a_cache_where_the_student_s_is_smaller() -> None:
    _, teacher = made()
    output = teacher(first_batch().images)
    odd = output._replace(stages=(torch.rand(2, 5, 7, 7), *output.stages[1:]))
    cached = odd._replace(stages=(pool_to(odd.stages[0], 4, 4), *output.stages[1:]))
    live, stored = (teacher_map(one, 0, (3, 3), 4) for one in (odd, cached))
    assert torch.equal(live, stored)


def test_evaluation_covers_every_branch() -> None:
    method, _ = made()
    logits = method.eval().classifier_logits(DATA.test.images)
    assert list(logits) == ["student", "stage1", "stage2"]
    assert all(values.shape == (len(DATA.test), 4) for values in logits.values())


def test_the_deployed_student_is_the_plain_student_bit_for_bit() -> None:
    method, teacher = made()
    batch = first_batch()
    optimizer = torch.optim.SGD([p for p in method.parameters() if p.requires_grad], 0.1)
    method.train()
    method(batch, teacher(batch.images)).objective.backward()
    optimizer.step()
    method.eval()
    deployed = method.deployed()
    assert not any("branch" in key for key in deployed.state_dict())
    fresh = staged("resnet8")
    fresh.module.load_state_dict(deployed.state_dict())
    images = DATA.test.images
    trained = method.classifier_logits(images)["student"]
    assert torch.equal(fresh.eval()(images).logits, trained)
    assert set(method.auxiliary_state_dict()) == {
        key for key in method.state_dict() if key.startswith("branches.")
    }


def test_a_teacher_with_the_larger_map_is_pooled_to_the_branch() -> None:
    pair, teacher = make_pair(staged("vgg8"), staged("resnet14"), make_dataset(size=32))
    assert teacher is not None
    method = DSKD(pair)
    images = make_dataset(size=32).train.images[:4]
    assert method(batch_of(images), teacher(images)).objective.isfinite()


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"temperature": 0}, "temperature: input should be greater than 0, got 0"),
        ({"temperature": True}, "temperature: a number is needed"),
        ({"ce": -1}, "ce: input should be greater than or equal to 0"),
        ({"alpha": float("inf")}, "alpha: input should be a finite number"),
        ({"tau": 0.0}, "tau: input should be greater than 0"),
        ({"adapter": "strid"}, "adapter: "),
        ({"adapter_width": 0}, "adapter_width: input should be greater than or equal to 1"),
        ({"allocation": "best"}, "allocation: input should be 'proportional'"),
        ({"supervise": [3]}, "supervise must name shallow stages from 1 to 2"),
        ({"supervise": []}, "supervise must name shallow stages"),
        ({"supervise": [1, 1]}, "each once"),
        ({"betta": 1.0}, "unknown setting 'betta'; did you mean 'beta'"),
        ({"prediction_loss": "dist", "weights_per": "sample"}, "'dist' does not have"),
        ({"deep_loss": "kdd"}, "unknown logit loss 'kdd'; did you mean 'kd'"),
        ({"deep_options": {"betta": 1}}, "unknown option of the logit loss 'kd'"),
    ],
    ids=str,
)
def test_settings_out_of_range_are_refused(settings: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError, match=says.replace("(", r"\(")):
        made(**settings)


def test_models_that_do_not_fit_are_refused() -> None:
    data = make_dataset()
    few = StagedModel(staged().module, ["layer3"], mean=(0.5,) * 3, std=(0.5,) * 3)
    pair, _ = make_pair(few, staged("resnet14"), data)
    with pytest.raises(InputError, match=r"the student has 1; .* parts: conv1, bn1, layer1"):
        DSKD(pair)
    pair, _ = make_pair(staged(), staged("resnet14", classes=7), data)
    with pytest.raises(InputError, match="the teacher has 7 classes, the student 4"):
        DSKD(pair)
    pair, _ = make_pair(staged(), None, data)
    with pytest.raises(InputError, match="needs a teacher"):
        DSKD(pair)


def test_the_loss_is_the_pure_function_of_the_branches() -> None:
    method, teacher = made(beta=2.0, gamma=0.5, temperature=3.0)
    method.eval()
    batch = first_batch()
    student, teacher_output = method.student(batch.images), teacher(batch.images)
    branches = method.branch_outputs(student.stages)
    expected = dskd_loss(
        student.logits,
        teacher_output.logits,
        batch.labels,
        [branch.logits for branch in branches],
        [branch.map for branch in branches],
        teacher_output.stages[:2],
        beta=2.0,
        gamma=0.5,
        temperature=3.0,
    )
    torch.testing.assert_close(method(batch, teacher_output).objective, expected)
