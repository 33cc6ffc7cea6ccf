"""The objective of DSKD against a loop over samples, written from the equations alone."""

from __future__ import annotations

import inspect
import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from dskd.errors import InputError
from dskd.losses import feature_loss
from dskd.losses.logits import bind
from dskd.methods.deep_supervision import AllocationHistory, DSKDObjective
from dskd.methods.dskd import DSKD, dskd_loss
from dskd.settings import signature_settings

BATCH, CLASSES, BRANCHES = 5, 4, 3


def made(seed: int) -> tuple[Any, ...]:
    draw = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=torch.float64, generator=draw)

    labels = torch.randint(CLASSES, (BATCH,), generator=draw)
    maps = [(6, 4, 4), (6, 2, 2), (6, 2, 2)]
    return (
        3 * normal(BATCH, CLASSES),
        3 * normal(BATCH, CLASSES),
        labels,
        [2 * normal(BATCH, CLASSES) for _ in range(BRANCHES)],
        [normal(BATCH, *shape) for shape in maps],
        [normal(BATCH, *shape) for shape in maps],
    )


def softmax(row: list[float], temperature: float = 1.0) -> list[float]:
    largest = max(row)
    powers = [math.exp((x - largest) / temperature) for x in row]
    return [x / sum(powers) for x in powers]


def kl_per_sample(student: Tensor, teacher: Tensor, temperature: float) -> list[float]:
    values = []
    for s, t in zip(student.tolist(), teacher.tolist(), strict=True):
        p, q = softmax(t, temperature), softmax(s, temperature)
        divergence = sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))
        values.append(temperature**2 * divergence)
    return values


def ce_per_sample(logits: Tensor, labels: Tensor) -> list[float]:
    rows = zip(logits.tolist(), labels.tolist(), strict=True)
    return [-math.log(softmax(row)[label]) for row, label in rows]


def maps_per_sample(adapted: Tensor, target: Tensor, relative: bool) -> list[float]:
    every = [x * x for x in target.flatten().tolist()]
    scale = sum(every) / len(every) if relative else 1.0
    values = []
    for a, t in zip(adapted, target, strict=True):
        squares = [
            (x - y) ** 2 for x, y in zip(a.flatten().tolist(), t.flatten().tolist(), strict=True)
        ]
        values.append(sum(squares) / len(squares) / scale)
    return values


def weights_of(losses: list[float], rule: str, tau: float) -> list[float]:
    n = len(losses)
    relative = [x / mean(losses) for x in losses]
    if rule == "uniform":
        return [1.0] * n
    if rule == "proportional":
        return relative
    if rule == "easy-first":
        return [n * p for p in softmax([-r for r in relative], tau)]
    p = softmax(relative, tau)
    return [n * x for x in p] if rule == "hard-first" else [n * (1 - x) / (n - 1) for x in p]


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


def naive(inputs: tuple[Any, ...], s: dict[str, Any]) -> Any:
    z_s, z_t, y, branch_logits, branch_maps, teacher_maps = inputs
    deep = s["ce"] * mean(ce_per_sample(z_s, y)) + s["kd"] * mean(
        kl_per_sample(z_s, z_t, s["temperature"])
    )
    per_branch = []  # S_l of every image
    for z, adapted, target in zip(branch_logits, branch_maps, teacher_maps, strict=True):
        predictions = kl_per_sample(z, z_t, s["temperature"])
        features = maps_per_sample(adapted, target, s["feature_scale"] == "relative")
        labels = ce_per_sample(z, y)
        per_branch.append(
            [
                s["alpha"] * p + s["beta"] * m + s["gamma"] * c
                for p, m, c in zip(predictions, features, labels, strict=True)
            ]
        )
    if s["weights_per"] == "batch":
        losses = [mean(values) for values in per_branch]
        weights = weights_of(losses, s["allocation"], s["tau"])
        return deep + sum(w * x for w, x in zip(weights, losses, strict=True))
    shallow = []
    for b in range(BATCH):
        losses = [values[b] for values in per_branch]
        weights = weights_of(losses, s["allocation"], s["tau"])
        shallow.append(sum(w * x for w, x in zip(weights, losses, strict=True)))
    return deep + mean(shallow)


SETTINGS = st.fixed_dictionaries(
    {
        "temperature": st.floats(0.5, 10),
        "ce": st.floats(0, 3),
        "kd": st.floats(0, 3),
        "alpha": st.floats(0.1, 3),
        "beta": st.floats(0.1, 3),
        "gamma": st.sampled_from([0.0, 0.5, 2.0]),
        "allocation": st.sampled_from(
            ["proportional", "hard-first", "easy-first", "ca-mkd", "uniform"]
        ),
        "tau": st.floats(0.2, 5),
        "weights_per": st.sampled_from(["batch", "sample"]),
        "feature_scale": st.sampled_from(["relative", "none"]),
    }
)


@pytest.mark.slow
@given(st.integers(0, 10_000), SETTINGS)
@settings(max_examples=120, deadline=None)
def test_the_objective_is_the_naive_loop(seed: int, chosen: dict[str, Any]) -> None:
    inputs = made(seed)
    assert dskd_loss(*inputs, **chosen).item() == pytest.approx(naive(inputs, chosen), rel=1e-8)


def test_no_gradient_passes_through_the_weights() -> None:
    """The gradient of the objective is that of a sum with constant weights."""
    z_s, z_t, y, branch_logits, branch_maps, teacher_maps = made(3)
    leaves = [z.clone().requires_grad_() for z in branch_logits]
    objective = dskd_loss(z_s, z_t, y, leaves, branch_maps, teacher_maps, beta=2.0)
    objective.backward()  # type: ignore[no-untyped-call]
    loss = bind("kl", 4.0, {})
    held = [
        loss(z.detach(), z_t, y, reduction="mean") + 2 * feature_loss(a, t)
        for z, a, t in zip(leaves, branch_maps, teacher_maps, strict=True)
    ]
    weights = torch.stack(held) / torch.stack(held).mean()
    for leaf, weight in zip(leaves, weights, strict=True):
        fresh = leaf.detach().requires_grad_()
        (expected,) = torch.autograd.grad(weight * loss(fresh, z_t, y, reduction="mean"), fresh)
        torch.testing.assert_close(leaf.grad, expected)


def test_the_terms_sum_to_the_objective_and_have_a_value_per_branch() -> None:
    terms = DSKDObjective(beta=1.0, allocation="hard-first", weights_per="sample")(*made(1))
    torch.testing.assert_close(terms.objective, terms.ce + terms.kd + terms.shallow)
    assert terms.predictions.shape == terms.features.shape == terms.weights.shape == (BRANCHES,)
    assert terms.weights.sum().item() == pytest.approx(BRANCHES)


@pytest.mark.parametrize("weights_per", ["batch", "sample"])
def test_only_the_objective_has_a_gradient_and_the_logged_terms_have_none(weights_per: Any) -> None:
    z_s, z_t, y, branch_logits, branch_maps, teacher_maps = made(2)
    leaves = [tensor.requires_grad_() for tensor in (z_s, *branch_logits, *branch_maps)]
    terms = DSKDObjective(weights_per=weights_per)(
        z_s, z_t, y, branch_logits, branch_maps, teacher_maps
    )
    assert all(term.requires_grad for term in (terms.ce, terms.kd, terms.shallow))
    for term in (terms.predictions, terms.features, terms.weights):
        assert not term.requires_grad
    gradients = torch.autograd.grad(terms.objective, leaves)
    assert all(gradient.abs().sum() > 0 for gradient in gradients)


def test_a_loss_without_values_per_image_is_refused_where_weights_are_per_sample() -> None:
    with pytest.raises(InputError, match="needs a loss for every image, which 'dist'"):
        dskd_loss(*made(0), prediction_loss="dist", weights_per="sample")
    assert dskd_loss(*made(0), prediction_loss="dist").isfinite()


@pytest.mark.parametrize(
    "settings", [{"allocation_basis": "progress"}, {"allocation_smoothing": 0.9}]
)
def test_what_needs_earlier_losses_is_refused_for_a_single_call(settings: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="need the losses of earlier steps"):
        dskd_loss(*made(0), **settings)


@pytest.mark.parametrize(
    "wrong",
    [
        {"alpha": -1.0},
        {"ce": -1.0},
        {"temperature": 0.0},
        {"tau": math.inf},
        {"weights_per": "samples"},
        {"feature_scale": "relativ"},
        {"allocation": "best"},
        {"deep_loss": "kdd"},
    ],
    ids=str,
)
def test_settings_out_of_range_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(InputError):
        dskd_loss(*made(0), **wrong)


def test_function_and_method_take_the_settings_of_the_objective() -> None:
    """They are written down once; all three have the same types and defaults."""
    once = signature_settings(DSKDObjective.__init__).model_fields
    own = {
        "feature_target",
        "map_size",
        "deep_stage",
        "fuse",
        "adapter",
        "adapter_width",
        "adapter_depth",
        "classifier",
        "supervise",
        "prediction_warmup",
        "prediction_epochs",
        "feature_epochs",
    }
    assert signature_settings(dskd_loss).model_fields.keys() == once.keys()
    method = signature_settings(DSKD.__init__).model_fields
    assert method.keys() == once.keys() | own
    assert not once.keys() & own
    for name, field in once.items():
        assert method[name].default == field.default
        assert method[name].annotation == field.annotation
        assert method[name].metadata == field.metadata
    assert inspect.signature(dskd_loss).parameters.keys() >= once.keys()
    assert inspect.signature(DSKD).parameters.keys() == {"pair"} | method.keys()
    for preset in DSKD.presets.values():
        assert preset.keys() <= method.keys()


@pytest.mark.parametrize("scale", ["relative", "raw"])
@pytest.mark.parametrize("weight_sum", ["count", "one"])
def test_separate_weights_are_those_of_predictions_and_of_maps(scale: Any, weight_sum: Any) -> None:
    """Against the equations: w from the divergences without T^2 if raw, v from the maps."""
    z_s, z_t, y, logits, maps, targets = made(3)
    found = dskd_loss(
        z_s,
        z_t,
        y,
        logits,
        maps,
        targets,
        temperature=2.0,
        kd=0.0,
        alpha=0.5,
        beta=0.25,
        allocation="hard-first",
        allocate="separate",
        allocation_scale=scale,
        weight_sum=weight_sum,
        feature_scale="none",
    )
    p = [mean(kl_per_sample(z, z_t, 2.0)) for z in logits]
    m = [float((a - f).square().mean()) for a, f in zip(maps, targets, strict=True)]
    w_basis = [x / 4 for x in p] if scale == "raw" else [x / mean(p) for x in p]
    v_basis = m if scale == "raw" else [x / mean(m) for x in m]
    factor = 1 if weight_sum == "one" else BRANCHES
    w, v = ([factor * x for x in softmax(basis)] for basis in (w_basis, v_basis))
    expected = mean(ce_per_sample(z_s, y))
    expected += sum(0.5 * a * b for a, b in zip(w, p, strict=True))
    expected += sum(0.25 * a * b for a, b in zip(v, m, strict=True))
    assert found.item() == pytest.approx(expected, rel=1e-9)


def test_raw_weights_divide_by_the_temperature_of_the_prediction_loss() -> None:
    z_s, z_t, y, logits, maps, targets = made(3)
    objective = DSKDObjective(
        temperature=4.0,
        prediction_options={"temperature": 2.0},
        allocation="hard-first",
        allocate="separate",
        allocation_scale="raw",
        weight_sum="one",
    )
    weights = objective(z_s, z_t, y, logits, maps, targets).weights
    p = [mean(kl_per_sample(z, z_t, 2.0)) / 4 for z in logits]
    assert weights.tolist() == pytest.approx(softmax(p))


@pytest.mark.parametrize("scale", ["relative", "raw"])
def test_labels_have_the_weights_of_their_losses_if_no_predictions_are_learned(scale: Any) -> None:
    z_s, z_t, y, logits, maps, targets = made(3)
    settings: dict[str, Any] = {
        "alpha": 0.0,
        "gamma": 0.5,
        "allocation": "hard-first",
        "allocate": "separate",
        "allocation_scale": scale,
        "weight_sum": "one",
    }
    found = DSKDObjective(**settings)(z_s, z_t, y, logits, maps, targets).weights
    losses = [mean(ce_per_sample(z, y)) for z in logits]
    basis = losses if scale == "raw" else [x / mean(losses) for x in losses]
    assert found.tolist() == pytest.approx(softmax(basis))
    other = DSKDObjective(**settings)(z_s, torch.zeros_like(z_t), y, logits, maps, targets).weights
    assert torch.equal(other, found)


def test_progress_divides_by_the_first_losses_and_smoothing_averages() -> None:
    progress = AllocationHistory(2, "progress", 0.0)
    assert progress(torch.tensor([2.0, 8.0])).tolist() == [1, 1]
    assert progress(torch.tensor([1.0, 8.0])).tolist() == [0.5, 1]
    smoothed = AllocationHistory(2, "loss", 0.75)
    assert smoothed(torch.tensor([4.0, 8.0])).tolist() == [4, 8]
    assert smoothed(torch.tensor([8.0, 8.0])).tolist() == [5, 8]
    smoothed.eval()
    assert smoothed(torch.tensor([9.0, 8.0])).tolist() == [6, 8]
    smoothed.train()
    assert smoothed(torch.tensor([5.0, 8.0])).tolist() == [5, 8]  # eval left no trace


@pytest.mark.parametrize("allocation", ["proportional", "hard-first", "easy-first", "uniform"])
@pytest.mark.parametrize("settings", [{}, {"weight_sum": "one"}, {"allocation_smoothing": 0.5}])
def test_a_map_without_a_prediction_takes_no_weight_from_predictions(
    allocation: Any, settings: dict[str, Any]
) -> None:
    """The weights of the predictions are those of a student without that map."""
    z_s, z_t, y, logits, maps, targets = made(3)
    settings = {"allocation": allocation, "allocate": "separate", "gamma": 0.5} | settings
    alone = DSKDObjective(**settings)(z_s, z_t, y, logits[:-1], maps[:-1], targets[:-1])
    both = DSKDObjective(**settings)(z_s, z_t, y, logits[:-1], maps, targets, last_map_alone=True)
    assert both.weights[:-1].tolist() == alone.weights.tolist()
    assert both.weights[-1] == 0
    assert len(both.feature_weights) == len(maps)
    assert both.feature_weights[-1] > 0


def test_the_history_of_the_losses_is_part_of_the_state() -> None:
    objective = DSKDObjective(allocate="separate", allocation_smoothing=0.5)
    objective.remember(BRANCHES, BRANCHES)
    objective(*made(0))
    other = DSKDObjective(allocate="separate", allocation_smoothing=0.5)
    other.remember(BRANCHES, BRANCHES)
    other.load_state_dict(objective.state_dict())
    assert objective(*made(1)).shallow == other(*made(1)).shallow
    assert not DSKDObjective().state_dict()
