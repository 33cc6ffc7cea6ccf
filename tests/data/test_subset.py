"""Parts of a data set."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dskd.data import Dataset, Split
from dskd.data.dataset import Samples
from dskd.data.subset import choose_classes, split_validation, take_fraction, take_test_fraction
from dskd.errors import InputError


def _dataset(counts: list[int], ids: bool = False) -> Dataset:
    """Images whose pixels hold their own number; the classes are mixed."""
    labels = torch.tensor([label for label, count in enumerate(counts) for _ in range(count)])
    labels = labels[torch.randperm(len(labels), generator=torch.Generator().manual_seed(3))]
    return Dataset(
        name="made",
        train=Split(_numbered(len(labels)), labels),
        test=Split(_numbered(len(counts)), torch.arange(len(counts))),
        classes=tuple(f"class {label}" for label in range(len(counts))),
        mean=(0.5,) * 2,
        std=(0.5,) * 2,
        ids=tuple(f"id{label}" for label in range(len(counts))) if ids else (),
    )


def _numbered(count: int) -> torch.Tensor:
    numbers = torch.arange(count)
    return torch.stack([numbers // 256, numbers % 256], 1).to(torch.uint8)[:, :, None, None]


def _numbers(split: Samples) -> list[int]:
    high, low = split.images[:, 0].flatten().tolist(), split.images[:, 1].flatten().tolist()
    return [256 * a + b for a, b in zip(high, low, strict=True)]


_counts = st.lists(st.integers(1, 40), min_size=2, max_size=6)


@given(_counts, st.floats(0, 0.99), st.floats(0.01, 1))
def test_the_parts_are_stratified_disjoint_and_the_same_every_time(
    counts: list[int], val_fraction: float, fraction: float
) -> None:
    dataset = _dataset(counts)
    held = [min(int(n * val_fraction + 0.5), n - 1) for n in counts]
    if val_fraction > 0 and sum(held) == 0:
        with pytest.raises(InputError, match="holds out no image"):
            split_validation(dataset, val_fraction)
        return
    parts = [take_fraction(split_validation(dataset, val_fraction), fraction) for _ in range(2)]
    assert parts[0].fingerprint() == parts[1].fingerprint()
    part = parts[0]
    chosen = _numbers(part.train)
    assert chosen == sorted(set(chosen))
    assert [dataset.train.labels[n] for n in chosen] == part.train.labels.tolist()
    left = [n - h for n, h in zip(counts, held, strict=True)]
    expected = [max(int(n * fraction + 0.5), 1) if fraction < 1 else n for n in left]
    assert torch.bincount(part.train.labels).tolist() == expected
    if part.validation is None:
        assert sum(held) == 0
        return
    out = _numbers(part.validation)
    assert not set(out) & set(chosen)
    assert torch.bincount(part.validation.labels, minlength=len(counts)).tolist() == held
    assert [dataset.train.labels[n] for n in out] == part.validation.labels.tolist()


@given(_counts, st.floats(0.01, 1), st.floats(0.01, 1))
def test_a_smaller_share_is_part_of_a_larger(counts: list[int], a: float, b: float) -> None:
    dataset = _dataset(counts)
    small, large = (take_fraction(dataset, fraction) for fraction in sorted((a, b)))
    assert set(_numbers(small.train)) <= set(_numbers(large.train))


def test_images_of_a_class_do_not_depend_on_the_others() -> None:
    dataset = _dataset([20, 30, 40])
    whole = take_fraction(split_validation(dataset, 0.2), 0.5)
    part = take_fraction(
        split_validation(choose_classes(dataset, ["class 2", "class 0"]), 0.2), 0.5
    )
    for label, old in ((0, 2), (1, 0)):
        numbers = torch.tensor(_numbers(part.train))[part.train.labels == label]
        expected = torch.tensor(_numbers(whole.train))[whole.train.labels == old]
        assert numbers.tolist() == expected.tolist()


def test_the_first_classes() -> None:
    dataset = choose_classes(_dataset([3, 4, 5], ids=True), 2)
    assert dataset.classes == ("class 0", "class 1")
    assert dataset.ids == ("id0", "id1")
    assert torch.bincount(dataset.train.labels).tolist() == [3, 4]
    assert dataset.test.labels.tolist() == [0, 1]


def test_classes_by_name_or_id_take_the_order_given() -> None:
    whole = split_validation(_dataset([3, 4, 5], ids=True), 0.4)
    dataset = choose_classes(whole, ["class 2", "id0"])
    assert dataset.classes == ("class 2", "class 0")
    assert dataset.ids == ("id2", "id0")
    assert torch.bincount(dataset.train.labels).tolist() == [3, 2]
    assert dataset.validation is not None
    assert torch.bincount(dataset.validation.labels).tolist() == [2, 1]
    assert _numbers(dataset.test) == [0, 2]
    assert dataset.test.labels.tolist() == [1, 0]


def test_all_classes_in_order_is_the_same_data_set() -> None:
    dataset = _dataset([3, 4])
    assert choose_classes(dataset, 2) is dataset
    assert split_validation(dataset, 0) is dataset
    assert take_fraction(dataset, 1) is dataset


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        (4, "asks for 4 classes, but made has 3"),
        (1, "select at least 2"),
        (0, "select at least 2"),
        (-2, "select at least 2"),
        ([], "select at least 2"),
        (["class 1"], "select at least 2"),
        ("class 1", "select at least 2"),
        (["class 1", "clas 2"], "unknown class 'clas 2'; did you mean 'class 2'"),
        (["class 1", "class 0", "class 1"], "names 'class 1' twice"),
        (["class 1", "id1"], "names 'id1' twice"),
    ],
)
def test_refuses_classes(classes: int | list[str] | str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        choose_classes(_dataset([3, 4, 5], ids=True), classes)


@pytest.mark.parametrize("number", [-0.1, 1.0, 2.0, float("nan"), float("inf")])
def test_refuses_a_val_fraction_out_of_range(number: float) -> None:
    with pytest.raises(InputError, match=r"data\.val_fraction must be"):
        split_validation(_dataset([3, 4]), number)


@pytest.mark.parametrize("number", [0.0, -0.1, 1.1, float("nan")])
def test_refuses_a_fraction_out_of_range(number: float) -> None:
    with pytest.raises(InputError, match=r"data\.fraction must be"):
        take_fraction(_dataset([3, 4]), number)


def test_one_image_a_class_stays_in_training() -> None:
    dataset = split_validation(_dataset([1, 10]), 0.9)
    assert torch.bincount(dataset.train.labels).tolist() == [1, 1]
    assert dataset.validation is not None
    assert dataset.validation.labels.tolist() == [1] * 9


def test_a_fraction_of_the_evaluated_splits_is_taken_of_each_class() -> None:
    dataset = _dataset([20, 40])
    dataset = replace(dataset, test=dataset.train, validation=dataset.train)
    part = take_test_fraction(dataset, 0.1)
    assert part.train is dataset.train
    for split in (part.test, part.validation):
        assert split is not None
        assert torch.bincount(split.labels).tolist() == [2, 4]
    assert take_test_fraction(dataset, 1) is dataset
    assert torch.bincount(take_test_fraction(dataset, 0.001).test.labels).tolist() == [1, 1]


@pytest.mark.parametrize("number", [0, -0.1, 1.1])
def test_a_test_fraction_out_of_range_is_refused(number: float) -> None:
    with pytest.raises(InputError, match=r"data\.test_fraction must be above 0 and at most 1"):
        take_test_fraction(_dataset([3, 4]), number)
