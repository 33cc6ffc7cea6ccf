"""The outputs of an exported student are those of the student, or nothing is written."""

from __future__ import annotations

import importlib
import os
from pathlib import Path
from types import ModuleType
from typing import Any

import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from dskd.deploy import onnx as onnx_files
from dskd.deploy.attention import attention
from dskd.deploy.export import export_file
from dskd.deploy.student import DeployedStudent
from dskd.deploy.student_graph import StudentGraph
from dskd.errors import InputError
from dskd.models.staged_model import StagedModel
from dskd.models.zoo import build


def deployed(
    module: nn.Module | str = "resnet8", shape: tuple[int, int, int] = (3, 32, 32), classes: int = 5
) -> DeployedStudent:
    """A student with other BatchNorm statistics than those of a new one."""
    name = module if isinstance(module, str) else type(module).__name__
    if isinstance(module, str):
        module = build(module, num_classes=classes, in_channels=shape[0])
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):
            assert part.running_mean is not None
            part.running_mean.uniform_(-0.2, 0.2)
    channels = shape[0]
    mean, std = [0.2, 0.4, 0.6][:channels], [0.1, 0.3, 0.5][:channels]
    model = StagedModel(module, mean=mean, std=std).eval()
    return DeployedStudent(model, name, tuple(f"class{k}" for k in range(classes)), shape)


class Tiny(nn.Module):
    """A student that takes no time to export."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 5)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.linear(images.mean((2, 3)))
        return logits


def onnx_logits(path: Path, images: Tensor) -> Tensor:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (logits,) = session.run(["logits"], {"images": images.numpy()})
    return torch.from_numpy(logits)


def shallow(name: str) -> nn.Module:
    """A network of the zoo with one unit of a stage, and two of the first that has more.

    Every other unit is like this second one: it keeps the size and the channels of its map.
    """
    net = build(name, num_classes=5, in_channels=3)
    most = 2
    for module in [*net.modules()]:
        for key, part in [*module.named_children()]:
            if isinstance(part, nn.Sequential) and len(part) > 1:
                kinds = {type(unit) for unit in part[1:]}
                if len(kinds) == 1 and kinds.pop().__module__.startswith("dskd."):
                    setattr(module, key, part[:most])
                    most = 1
    return net


@pytest.mark.slow(seconds=2)
@pytest.mark.parametrize(
    "name", ["resnet8", "resnet8x4", "wrn_16_1", "vgg8", "MobileNetV2", "ShuffleV1", "ShuffleV2"]
)
def test_every_family_gives_the_same_logits_for_any_batch(name: str, tmp_path: Path) -> None:
    student = deployed(shallow(name))
    difference = export_file(student, tmp_path / "student.onnx")
    assert difference <= 1e-4
    for batch in (1, 3):
        images = torch.randint(0, 256, (batch, 3, 32, 32), dtype=torch.uint8)
        with torch.no_grad():
            expected = student.model(images).logits
        got = onnx_logits(tmp_path / "student.onnx", images.float() / 255)
        torch.testing.assert_close(got, expected, rtol=1e-3, atol=1e-4)
    assert [path.name for path in tmp_path.iterdir()] == ["student.onnx"]


@pytest.mark.slow
def test_gray_images_that_are_not_square(tmp_path: Path) -> None:
    student = deployed("resnet8", (1, 16, 24))
    export_file(student, tmp_path / "student.onnx")
    images = torch.rand(2, 1, 16, 24)
    with torch.no_grad():
        expected = student.model(images).logits
    torch.testing.assert_close(
        onnx_logits(tmp_path / "student.onnx", images), expected, rtol=1e-3, atol=1e-4
    )
    graph = onnx.load(tmp_path / "student.onnx").graph
    assert [value.name for value in graph.input] == ["images"]
    assert [value.name for value in graph.output] == ["logits"]


@pytest.mark.slow
def test_a_graph_with_other_outputs_is_not_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "student.onnx"
    path.write_text("the one before")
    serialized = onnx_files._serialized

    def other(graph: StudentGraph) -> bytes:
        return serialized(StudentGraph(_Scaled(graph.module), graph.contract))

    monkeypatch.setattr(onnx_files, "_serialized", other)
    with pytest.raises(InputError, match=r"differs .* by 1.0e-03 .* 0.0001 .* nothing was written"):
        export_file(deployed(Tiny()), path)
    assert [there.read_text() for there in tmp_path.iterdir()] == ["the one before"]


class _Scaled(nn.Module):
    """Outputs of another module, larger by a thousandth."""

    def __init__(self, other: nn.Module) -> None:
        super().__init__()
        self.other = other

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.other(images) * 1.001
        return logits


@pytest.mark.slow
def test_outputs_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    student = deployed(Tiny())
    nn.init.constant_(next(student.model.module.parameters()), float("nan"))
    with pytest.raises(InputError, match="differs"):
        export_file(student, tmp_path / "student.onnx")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("package", ["onnx", "onnxscript", "onnxruntime"])
def test_a_missing_package_is_named_with_the_extra(
    package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import_module = importlib.import_module

    def without(name: str, *rest: Any) -> ModuleType:
        if name == package:
            raise ModuleNotFoundError(name)
        return import_module(name, *rest)

    monkeypatch.setattr(importlib, "import_module", without)
    with pytest.raises(InputError) as refused:
        export_file(deployed(), tmp_path / "student.onnx")
    assert str(refused.value) == (
        f"exporting to onnx needs {package}; install it with: pip install 'dskd[onnx]'"
    )
    assert not list(tmp_path.iterdir())


class Fickle(nn.Module):
    """Branches on the values of the images, which no graph can express."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 5)

    def forward(self, images: Tensor) -> Tensor:
        pooled = images.mean((2, 3))
        logits: Tensor = self.linear(pooled if pooled.sum().item() > 0 else -pooled)
        return logits


@pytest.mark.slow
def test_a_module_that_no_graph_can_say_is_refused_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(InputError, match="torch cannot export Fickle to ONNX: ") as refused:
        export_file(deployed(Fickle()), tmp_path / "student.onnx")
    assert len(str(refused.value)) < 400
    assert capsys.readouterr().out == ""
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_where_nothing_can_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match=r"there is no folder .*gone; create it first"):
        export_file(deployed(), tmp_path / "gone" / "student.onnx")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    line = r"cannot write .*student.onnx: No space left on device; [\d,]{5,} bytes were needed"
    with pytest.raises(InputError, match=line):
        export_file(deployed(Tiny()), tmp_path / "student.onnx")
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_links_are_replaced_and_what_they_lead_to_stays(tmp_path: Path) -> None:
    run, victim = tmp_path / "run", tmp_path / "victim"
    run.mkdir()
    victim.write_text("mine")
    for name in ("student.onnx", ".student.onnx.part"):
        (run / name).symlink_to(victim)
    export_file(deployed(Tiny()), run / "student.onnx")
    assert victim.read_text() == "mine"
    assert not (run / "student.onnx").is_symlink()


class Windows(nn.Module):
    """Attention over five dimensions."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Linear(3, 4), nn.Linear(4, 5)

    def forward(self, images: Tensor) -> Tensor:
        tokens = self.embed(images.flatten(2).transpose(1, 2)).unflatten(1, (2, 4, -1))
        mixed = scaled_dot_product_attention(tokens, tokens, tokens, is_causal=True)
        logits: Tensor = self.head(mixed.mean((1, 2, 3)))
        return logits


@pytest.mark.slow
def test_attention_over_five_dimensions_is_exported(tmp_path: Path) -> None:
    student = deployed(Windows(), (3, 8, 8))
    export_file(student, tmp_path / "student.onnx")
    images = torch.rand(3, 3, 8, 8)
    with torch.no_grad():
        expected = student.model(images).logits
    torch.testing.assert_close(
        onnx_logits(tmp_path / "student.onnx", images), expected, rtol=1e-3, atol=1e-4
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "size", "options"),
    [
        (
            "nest.Nest",
            32,
            {"num_levels": 2, "embed_dims": (8, 16), "num_heads": (1, 2), "depths": (1, 1)},
        ),
        (
            "hiera.Hiera",
            64,
            {"embed_dim": 8, "num_heads": 1, "stages": (1, 1), "q_pool": 1}
            | {"mask_unit_attn": (True, False)},
        ),
    ],
)
def test_transformers_of_timm_with_windows_are_exported(
    name: str, size: int, options: dict[str, Any], tmp_path: Path
) -> None:
    family, kind = name.split(".")
    build = getattr(importlib.import_module(f"timm.models.{family}"), kind)
    shape = size if family == "nest" else (size, size)
    module = build(num_classes=5, img_size=shape, **options)
    for part in module.modules():
        if isinstance(part, nn.Linear):  # Hiera's classifier begins at zero
            nn.init.normal_(part.weight, std=0.3)
    fused = {n: getattr(part, "fused_attn", None) for n, part in module.named_modules()}
    assert True in fused.values()
    student = deployed(module, (3, size, size))
    with torch.no_grad():
        assert student.model(torch.rand(2, 3, size, size)).logits.abs().min() > 1e-3
    assert export_file(student, tmp_path / "student.onnx") <= 1e-4
    assert fused == {n: getattr(part, "fused_attn", None) for n, part in module.named_modules()}


@pytest.mark.parametrize("mask", [None, "bool", "float"])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("shape", [(2, 6, 8), (2, 2, 2, 6, 8)])
def test_plain_attention_is_that_of_torch(
    mask: str | None, causal: bool, shape: tuple[int, ...]
) -> None:
    if mask and causal:
        pytest.skip("torch allows one of them")
    query, key, value = (torch.rand(shape) for _ in range(3))
    bias = {
        None: None,
        "bool": torch.eye(6, dtype=torch.bool).roll(1) | torch.eye(6, dtype=torch.bool),
        "float": torch.rand(6, 6),
    }[mask]
    found = attention(query, key, value, bias, is_causal=causal, scale=0.3)
    expected = scaled_dot_product_attention(query, key, value, bias, is_causal=causal, scale=0.3)
    torch.testing.assert_close(found, expected)


def test_plain_attention_shares_heads_as_torch_does() -> None:
    query, key = torch.rand(2, 4, 6, 8), torch.rand(2, 2, 6, 8)
    torch.testing.assert_close(
        attention(query, key, key, enable_gqa=True),
        scaled_dot_product_attention(query, key, key, enable_gqa=True),
    )


def test_the_innermost_cause_of_a_failed_export_is_one_line_without_colours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        try:
            try:
                raise AssertionError("\x1b[1;31monly 4D\x1b[0m keys\nmore")
            except AssertionError as error:
                raise RuntimeError("translation") from error
        except RuntimeError as error:
            raise ValueError("Failed. \x1b[96mThis is step 3/3\x1b[0m\nNext steps:") from error

    monkeypatch.setattr(torch.onnx, "export", fail)
    with pytest.raises(InputError) as refused:
        export_file(deployed(), tmp_path / "student.onnx")
    assert str(refused.value) == "torch cannot export resnet8 to ONNX: only 4D keys"
    assert not list(tmp_path.iterdir())
