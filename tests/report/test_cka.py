"""Linear CKA against its definition, and against what it must not depend on."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from dskd.errors import InputError
from dskd.models.staged_model import StagedModel
from dskd.report import cka as module
from dskd.report.charts import similarity_map
from dskd.report.cka import LayerSimilarity, gram, layer_similarity, linear_cka
from tests.builders import make_dataset, staged


def naive_cka(one: Tensor, other: Tensor) -> float:
    """``HSIC(K, L) / sqrt(HSIC(K, K) HSIC(L, L))`` as the paper writes it."""
    count = len(one)
    centring = torch.eye(count, dtype=torch.float64) - 1 / count
    kernels = [layer.flatten(1).double() @ layer.flatten(1).double().T for layer in (one, other)]

    def hsic(k: Tensor, m: Tensor) -> Tensor:
        return (k @ centring @ m @ centring).trace() / (count - 1) ** 2

    k, m = kernels
    return float(hsic(k, m) / (hsic(k, k) * hsic(m, m)).sqrt())


def test_it_is_the_paper_s_formula(monkeypatch: pytest.MonkeyPatch) -> None:
    one, other = torch.randn(12, 3, 4, 4), torch.randn(12, 7)
    expected = naive_cka(one, other)
    assert linear_cka(gram(one), gram(other)) == pytest.approx(expected, rel=1e-10)
    monkeypatch.setattr(module, "_COLUMNS", 5)
    assert linear_cka(gram(one), gram(other)) == pytest.approx(expected, rel=1e-10)


def test_rotation_and_scale_change_nothing_and_noise_does() -> None:
    layer = torch.randn(40, 6, dtype=torch.float64)
    rotation = torch.linalg.qr(torch.randn(6, 6, dtype=torch.float64)).Q
    assert linear_cka(gram(layer), gram(3 * layer @ rotation + 5)) == pytest.approx(1)
    unlike = linear_cka(gram(layer), gram(torch.randn(40, 6)))
    assert unlike is not None
    assert 0 <= unlike < 0.5


def test_a_layer_that_says_nothing_has_no_similarity() -> None:
    assert linear_cka(gram(torch.ones(5, 2)), gram(torch.randn(5, 2))) is None
    assert linear_cka(gram(torch.full((5, 2), torch.inf)), gram(torch.randn(5, 2))) is None


def test_rounding_leads_neither_above_one_nor_out_of_the_colours() -> None:
    layers = [gram(torch.randn(10, 3)) for _ in range(200)]
    found = [value for layer in layers if (value := linear_cka(layer, layer)) is not None]
    assert len(found) == len(layers)
    assert max(found) == 1
    below = 0.3 - 1e-17  # what a lowest value of 0.3 may be rounded from
    for value in (max(found), below, 0.0):
        alike = LayerSimilarity("kd", 0, 10, ("a",), ("a",), ((value,),))
        assert similarity_map(alike, 0.3).layout.annotations[0].text == f"{value:.2f}"


def test_every_layer_is_held_against_every_other() -> None:
    data = make_dataset()
    student, teacher = staged("resnet8").eval(), staged("resnet14").eval()
    found = layer_similarity("kd", 3, student, teacher, data.test)
    assert found.student == found.teacher == ("layer1", "layer2", "layer3", "pooled", "logits")
    assert (found.label, found.seed, found.images) == ("kd", 3, 20)
    images = data.test.images
    with torch.no_grad():
        expected = naive_cka(student(images).stages[1], teacher(images).logits)
    assert found.values[1][4] == pytest.approx(expected, rel=1e-5)
    itself = layer_similarity("kd", 3, student, student, data.test)
    assert [itself.values[layer][layer] for layer in range(5)] == pytest.approx([1] * 5)


def test_images_come_from_all_of_a_sorted_split(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "IMAGES", 4)
    assert module._spread(20).tolist() == [0, 5, 10, 15]
    assert module._spread(3).tolist() == [0, 1, 2]


def test_stages_of_any_module_and_their_absence() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 4))
    seen, unseen = (
        StagedModel(net, stages, mean=(0.5,) * 3, std=(0.25,) * 3).eval()
        for stages in (["0"], None)
    )
    found = layer_similarity("kd", 0, seen, staged().eval(), make_dataset().test)
    assert found.student == ("0", "pooled", "logits")
    with pytest.raises(InputError, match=r"the student has no layers .* student={.*\"stages\": "):
        layer_similarity("kd", 0, unseen, staged(), make_dataset().test)
