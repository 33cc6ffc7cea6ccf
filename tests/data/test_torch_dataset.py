"""Data sets of torch and torchvision, read into memory once."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image, ImageOps
from torch import Tensor
from torch.utils.data import (
    ConcatDataset,
    DataLoader,
    Dataset,
    IterableDataset,
    Subset,
    TensorDataset,
)

import dskd
from dskd.config.contradictions import check_augmentation
from dskd.config.schema import DataSettings
from dskd.data.pixels import PixelForm
from dskd.data.sample_pixels import Traits, sample_pixels
from dskd.data.torch_dataset import TorchSplits
from dskd.engine.build_data import load_data
from dskd.engine.given_data import split_data
from dskd.errors import InputError
from dskd.settings import validate
from tests.builders import make_dataset


class Pairs(Dataset[Any]):
    """Samples from a list, or computed anew at every access."""

    def __init__(self, samples: list[Any] | Callable[[int], Any], count: int = 0) -> None:
        self.samples, self.count = samples, count or len(samples)  # type: ignore[arg-type]

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Any:
        return self.samples(index) if callable(self.samples) else self.samples[index]


class Named(Pairs):
    def __init__(self, samples: list[Any], classes: Any) -> None:
        super().__init__(samples)
        self.classes = classes


def read(train: Any, test: Any = None, **changes: Any) -> dskd.Dataset:
    options = {"size": None, "channels": None, "test_split": None}
    return TorchSplits(train, test).read(**(options | changes))


def pixels(count: int = 8, shape: tuple[int, ...] = (3, 8, 8)) -> Tensor:
    draw = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, *shape), dtype=torch.uint8, generator=draw)


LABELS = torch.arange(8) % 2


def test_a_tensor_dataset_is_taken_as_it_is() -> None:
    images = pixels()
    data = read(TensorDataset(images, LABELS), TensorDataset(images[:4], LABELS[:4]))
    assert torch.equal(data.train.images, images)
    assert torch.equal(data.train.labels, LABELS)
    assert torch.equal(data.test.images, images[:4])
    assert (data.classes, data.notes, data.test_is_held_out) == (("0", "1"), (), False)
    mean, _ = dskd.data.channel_statistics(images)
    assert data.mean == mean


FORMS: dict[str, Callable[[Tensor], Any]] = {
    "uint8 tensor": lambda image: image,
    "float tensor, as ToTensor gives it": lambda image: image.float() / 255,
    "double": lambda image: image.double() / 255,
    "array": lambda image: image.permute(1, 2, 0).numpy(),
    "array with the channels first": lambda image: image.numpy(),
    "float array": lambda image: image.permute(1, 2, 0).numpy().astype(np.float32) / 255,
    "Pillow": lambda image: Image.fromarray(image.permute(1, 2, 0).numpy()),
}


@pytest.mark.parametrize("form", FORMS)
def test_an_image_in_any_form_gives_the_same_bytes(form: str) -> None:
    image = pixels(1)[0]
    found, traits = sample_pixels(FORMS[form](image))
    assert torch.equal(found, image)
    assert traits == Traits()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_floats_of_half_precision_are_within_one_level(dtype: torch.dtype) -> None:
    image = pixels(1)[0]
    found, _ = sample_pixels((image.float() / 255).to(dtype))
    assert (found.int() - image.int()).abs().max() <= (1 if dtype == torch.bfloat16 else 0)


def test_gray_stays_gray_unless_channels_are_set() -> None:
    gray = pixels(1, (8, 8))[0]
    for image in (gray, gray.numpy(), Image.fromarray(gray.numpy())):
        assert torch.equal(sample_pixels(image)[0], gray[None])
        assert torch.equal(sample_pixels(image, channels=3)[0], gray.expand(3, 8, 8))
    assert sample_pixels(pixels(1)[0], channels=1)[0].shape == (1, 8, 8)


def test_size_crops_and_resizes_as_for_folders() -> None:
    wide = pixels(1, (3, 8, 12))[0]
    found, _ = sample_pixels(wide, size=4)
    blocks = wide[:, :, 2:10].double().unfold(1, 2, 2).unfold(2, 2, 2).mean((3, 4))
    assert (found.double() - blocks).abs().max() <= 1  # each direction is rounded
    array = wide.permute(1, 2, 0).numpy()
    assert torch.equal(sample_pixels(Image.fromarray(array), size=4)[0], found)


def test_interpolation_is_for_images_that_are_resized() -> None:
    given = TorchSplits(TensorDataset(pixels(), LABELS))
    found = []
    for mode in (None, "bilinear"):
        values = {"name": "<TensorDataset>", "size": 4, "interpolation": mode}
        settings = validate(DataSettings, values)
        check_augmentation(settings, None)
        found.append(load_data(settings, given).train.images)
    assert not torch.equal(*found)
    whole = validate(DataSettings, {"name": "<Dataset>", "interpolation": "bilinear"})
    with pytest.raises(InputError, match=r"data\.interpolation does nothing without data\.crop_sc"):
        load_data(whole, make_dataset(size=8))
    for key, value in (("interpolation", "bilinear"), ("crop_pct", 0.875)):
        unused = validate(DataSettings, {"name": "<TensorDataset>", key: value})
        with pytest.raises(InputError, match=rf"data\.{key} .*data\.size"):
            load_data(unused, given)
    cropped = whole.model_copy(update={"crop_scale": (0.5, 1.0)})
    assert len(load_data(cropped, make_dataset(size=8)).train)


def test_a_range_of_values_becomes_0_to_255_and_many_levels_are_told() -> None:
    values = torch.tensor([[0.0, 4095.0], [2047.5, 5000.0]])
    found, traits = sample_pixels(values, form=PixelForm(value_range=(0.0, 4095.0)))
    assert found.tolist() == [[[0, 255], [128, 255]]]
    assert traits.depth == 65535
    fine = [(torch.full((1, 4, 4), 0.5013), label) for label in (0, 1)]
    (note,) = read(Pairs(fine), Pairs(fine)).notes
    assert note == "some images have more than 256 levels; they are rounded to 8 bits"


def of_mode_i(values: np.ndarray[Any, Any]) -> Pairs:
    return Pairs([(Image.fromarray(values + index), index % 2) for index in range(4)])


@pytest.mark.parametrize("loading", ["memory", "stream"])
@pytest.mark.parametrize("dtype", [np.int32, np.uint16])
def test_twelve_bits_in_sixteen_are_told_with_their_range(dtype: Any, loading: Any) -> None:
    given = of_mode_i(np.linspace(0, 4092, 64).reshape(8, 8).astype(dtype))
    data = read(given, given, loading=loading)
    said = "the images with 16 bits have values up to 4095 of 65535, and few levels are left"
    assert any(note.startswith(said) for note in data.notes)
    assert {*data.train.images.flatten().tolist()} == {*range(16)}
    scaled = read(given, given, loading=loading, form=PixelForm(value_range=(0.0, 4095.0)))
    assert len({*scaled.train.images.flatten().tolist()}) > 60
    assert not any("levels" in note for note in scaled.notes)
    full = of_mode_i(np.linspace(0, 65532, 64).reshape(8, 8).astype(dtype))
    many = "some images have more than 256 levels; they are rounded to 8 bits"
    assert many in read(full, full, loading=loading).notes


@pytest.mark.parametrize("loading", ["memory", "stream"])
def test_bytes_in_images_of_mode_i_are_refused(loading: Any) -> None:
    given = of_mode_i(np.arange(64, dtype=np.int32).reshape(8, 8))
    said = r"modes I and I;16 have no value above 66 of .* would become black; give uint8 .mode L.,"
    with pytest.raises(InputError, match=said):
        read(given, given, loading=loading)
    good = TensorDataset(pixels(4, (1, 8, 8)), LABELS[:4])
    with pytest.raises(InputError, match=said):
        TorchSplits(good, good, unlabelled=given).read(
            size=None, channels=None, test_split=None, loading=loading
        )
    found = read(given, given, loading=loading, form=PixelForm(value_range=(0.0, 255.0)))
    assert found.train.images[0].flatten().tolist() == [*range(64)]


@pytest.mark.parametrize("loading", ["memory", "stream"])
def test_images_that_exif_turns_are_told(loading: Any, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    array = pixels(1)[0].permute(1, 2, 0).numpy()
    Image.fromarray(array).save(tmp_path / "a.png", exif=exif)

    def opened(index: int) -> Any:
        return Image.open(tmp_path / "a.png"), index % 2

    def converted(index: int) -> Any:  # as torchvision's ImageFolder gives it
        return opened(index)[0].convert("RGB"), index % 2

    def upright(index: int) -> Any:
        return ImageOps.exif_transpose(opened(index)[0]), index % 2

    expected = torch.rot90(pixels(1)[0], -1, (1, 2))
    for sample, is_told in ((opened, False), (converted, True), (upright, False)):
        data = read(Pairs(sample, 4), Pairs(sample, 4), loading=loading)
        assert torch.equal(data.train.images[0], expected)
        assert any("let it use PIL.ImageOps.exif_transpose" in one for one in data.notes) == is_told


BAD: dict[str, tuple[Any, str]] = {
    "normalised": (
        (torch.linspace(-2, 2.5, 192).view(3, 8, 8), 0),
        r"has values from -2 to 2.5; give floats from 0 to 1, without Normalize, since a model",
    ),
    "floats to 255": (
        (pixels(1)[0].float(), 0),
        r"has floats from \d+ to 25\d; give uint8, floats from 0 to 1, or data=.*\[0, 25",
    ),
    "int64": ((pixels(1)[0].long(), 0), "has values of the type int64 from"),
    "bool": ((torch.ones(3, 8, 8, dtype=torch.bool), 0), "has values of the type bool; give uint8"),
    "nan": ((torch.full((3, 8, 8), float("nan")), 0), "has values that are not finite"),
    "a batch": ((pixels(2), 0), r"has the shape \[2, 3, 8, 8\]; give \[C, H, W\]"),
    "channels last": (
        (torch.zeros(32, 24, 3, dtype=torch.uint8), 0),
        r"has the shape \[32, 24, 3\], as if channels came last; give \[C, H, W\], as image.perm",
    ),
    "a path": (("a.png", 0), "is a str; give an image of Pillow, an array or a tensor"),
    "no label": ((pixels(1)[0],), r"is a tuple of 1, not a pair \(image, label\)"),
    "an image alone": (pixels(1)[0], r"is a Tensor of shape \[3, 8, 8\], not a pair"),
    "a mapping": (
        {"image": pixels(1)[0], "label": 0},
        r"is a dict with the keys \['image', 'label'\], not a pair",
    ),
    "a float label": ((pixels(1)[0], 0.5), r"has as label 0.5 \(float\); give the number of its"),
    "one-hot": ((pixels(1)[0], torch.eye(2)[0]), r"has as label a Tensor of shape \[2\]; give the"),
    "a name": ((pixels(1)[0], "cat"), r"has as label 'cat' \(str\)"),
    "below 0": ((pixels(1)[0], -1), "has the label -1; give a number from 0"),
    "huge": ((pixels(1)[0], 2**40), "has the label 1099511627776; give a number from 0 to 999,999"),
    "another size": ((pixels(1, (3, 8, 9))[0], 0), "is 9x8, and the first image 8x8; .*data.size"),
    "other channels": ((pixels(1, (1, 8, 8))[0], 0), "has 1 channels, .* 3; set data.channels"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_cannot_be_used_is_told_with_its_index(case: str) -> None:
    sample, said = BAD[case]
    good = (pixels(1)[0], 0)
    with pytest.raises(InputError, match=rf"^image 1 of the training images \(Pairs\) {said}"):
        read(Pairs([good, sample, good]), test_split=0.5)


def test_an_image_that_raises_is_named_with_the_reason() -> None:
    def sample(index: int) -> Any:
        return (pixels(1)[0], 0) if index != 2 else 1 / 0

    with pytest.raises(InputError, match=r"image 2 of .* cannot be read: .*division by zero"):
        read(Pairs(sample, 4), test_split=0.5)


def test_random_transforms_are_refused() -> None:
    def sample(index: int) -> Any:
        return torch.rand(3, 8, 8), index % 2

    with pytest.raises(InputError, match=r"another one when it is read again.*data\.flip"):
        read(Pairs(sample, 8), test_split=0.5)


def test_what_is_drawn_at_random_is_the_same_in_each_process() -> None:
    """Few images are random, so none of those that are read twice is."""

    def sample(index: int) -> Any:
        image = pixels(1)[0]
        if index == 5:
            image = image + torch.randint(0, 9, (1,)).to(torch.uint8)
        return image, index % 2

    state = torch.get_rng_state()
    found = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        before = torch.get_rng_state()
        found.append(read(Pairs(sample, 64), Pairs(sample, 4)).train.images)
        assert torch.equal(torch.get_rng_state(), before)
    torch.set_rng_state(state)
    assert torch.equal(*found)


def test_names_of_classes_are_found_also_in_subsets_and_chains() -> None:
    named = Named([(image, 1 - index % 2) for index, image in enumerate(pixels())], ["cat", "dog"])
    given: Any
    for given in (named, Subset(named, [0, 1, 4, 5]), ConcatDataset([named, named])):
        assert read(given, named).classes == ("cat", "dog")
    others = Named(named.samples, ["dog", "cat"])  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"\(Named\) have the classes \['dog', 'cat'\], the"):
        read(named, others)
    with pytest.raises(InputError, match="the parts of a ConcatDataset have different classes"):
        read(ConcatDataset([named, others]), named)
    few = Named(named.samples, ["cat"])  # type: ignore[arg-type]
    with pytest.raises(InputError, match="labels out of range in the training split: 0 to 1"):
        read(few, few)


def test_labels_that_count_from_1_are_told() -> None:
    data = TensorDataset(pixels(), LABELS + 1)
    (note,) = read(data, data).notes
    assert note == "no training image has the class [0]; labels count from 0"


def test_without_test_images_a_part_is_held_out_and_listed() -> None:
    data = read(TensorDataset(pixels(20), torch.arange(20) % 2))
    assert (len(data.train), len(data.test), data.test_is_held_out) == (16, 4, True)
    assert sorted([*map(int, data.train.names), *map(int, data.test.names)]) == list(range(20))
    assert not data.names_are_files
    assert "4 of the 20 training images are held out (data.test_split=0.2)" in data.notes[-1]


class Endless(IterableDataset[Any]):
    def __iter__(self) -> Iterator[Any]:
        yield pixels(1)[0], 0


def test_a_data_set_alone_is_the_training_images() -> None:
    named = Named([(Image.new("RGB", (4, 4)), 0)], ["cat", "dog"])
    values, images = split_data(named)
    assert (values, images) == ({"name": "<Named>"}, TorchSplits(named))
    values, images = split_data({"dataset": named, "test": named, "size": 8})
    assert (values, images) == ({"name": "<Named>", "size": 8}, TorchSplits(named, named))


@pytest.mark.parametrize("setting", ["test_split", "val_fraction"])
def test_a_split_that_is_given_is_not_held_out(setting: str) -> None:
    data = TensorDataset(pixels(), LABELS)
    settings = validate(DataSettings, {"name": "<TensorDataset>", setting: 0.5})
    what = "test" if setting == "test_split" else "validation"
    with pytest.raises(InputError, match=rf"has a {what} split of its own; drop data\.{setting}"):
        load_data(settings, TorchSplits(data, data, data))


def test_what_is_no_data_set_is_refused_with_the_form_that_is_needed() -> None:
    data = TensorDataset(pixels(), LABELS)
    for given, said in (
        (DataLoader(data), "data is a DataLoader; give its data set, loader.dataset"),
        (Endless(), "Endless can only be iterated"),
        (3, "a data set of .image, label. pairs or a mapping of settings is needed, got int"),
        (pixels(), "is needed, got Tensor"),
        ({"test": data}, "data: test is given without dataset"),
    ):
        with pytest.raises(InputError, match=said):
            split_data(given)


def test_a_folder_is_taken_as_a_path_or_as_text(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "photos").mkdir()
    monkeypatch.chdir(tmp_path)
    for given in (tmp_path / "photos", str(tmp_path / "photos"), Path("photos"), "photos"):
        values, images = split_data(given)
        assert values["name"] == "folder"
        assert Path(values["root"]).resolve() == (tmp_path / "photos").resolve()
        assert images is None
    (tmp_path / "digits").mkdir()
    assert split_data("digits")[0] == {"name": "digits"}
    for gone in ("digts", "gone/photos"):
        with pytest.raises(InputError, match=r"unknown data set|is not there; check the path"):
            split_data(gone)


@pytest.mark.slow
def test_an_image_folder_trains_and_is_evaluated_as_it_was_given(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    datasets = pytest.importorskip("torchvision.datasets")
    draw = np.random.default_rng(0)
    for part, count in (("train", 6), ("test", 4)):
        for name, brightness in (("dark", 60), ("light", 190)):
            (tmp_path / part / name).mkdir(parents=True)
            for index in range(count):
                image = draw.normal(brightness, 20, (12, 10, 3)).clip(0, 255).astype(np.uint8)
                Image.fromarray(image).save(tmp_path / part / name / f"{index}.png")
    data = {
        "dataset": datasets.ImageFolder(tmp_path / "train"),
        "test": datasets.ImageFolder(tmp_path / "test"),
        "size": 8,
    }
    with caplog.at_level(logging.INFO, "dskd"):
        result = dskd.train(
            student="resnet8",
            data=data,
            train={"epochs": 1, "batch_size": 4},
            out=tmp_path / "run",
        )
    assert "reading the 12 training images of ImageFolder" in caplog.text
    given = {key: data[key] for key in ("dataset", "test")}
    assert dskd.evaluate(result.path, data=given).accuracy == result.test_accuracy
    assert dskd.load_deployed(result.path).classes == ("dark", "light")
    held_out = dskd.train(
        student="resnet8",
        data={"dataset": data["dataset"], "size": 8, "test_split": 0.3},
        train={"epochs": 1, "batch_size": 4},
        out=tmp_path / "held-out",
    )
    assert len((held_out.path / "test_images.txt").read_text().splitlines()) == 4
    again = dskd.evaluate(held_out.path, data=data["dataset"])
    assert again.accuracy == held_out.test_accuracy


def test_settings_of_files_do_not_apply(tmp_path: Path) -> None:
    data = {"dataset": TensorDataset(pixels(), LABELS), "skip_bad": True, "test_split": 0.5}
    with pytest.raises(InputError, match=r"data\.skip_bad does not apply to images given in"):
        dskd.train(student="resnet8", data=data, out=tmp_path / "run")
