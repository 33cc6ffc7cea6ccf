"""A short program that calls an exported student, for its model card."""

from __future__ import annotations

from typing import Any

from dskd.deploy.formats import Format
from dskd.deploy.input_contract import CONTRACT, INPUT, InputContract
from dskd.deploy.student import DeployedStudent
from dskd.models.catalog import TIMM

_LOAD = {
    "onnx": (
        "import onnxruntime",
        """model = onnxruntime.InferenceSession({path!r})
expects = json.loads(model.get_modelmeta().custom_metadata_map[{key!r}])""",
    ),
    "openvino": (
        "import openvino",
        """model = openvino.compile_model({path!r}, "CPU", {{"INFERENCE_PRECISION_HINT": "f32"}})
expects = json.loads(openvino.Core().read_model({path!r}).get_rt_info([{key!r}]).astype(str))""",
    ),
    "torch-export": (
        "import torch",
        """extra = {{"{key}.json": ""}}
model = torch.export.load({path!r}, extra_files=extra).module()
expects = json.loads(extra["{key}.json"])""",
    ),
    "executorch": (
        "import torch\nfrom executorch.runtime import Runtime",
        """program = Runtime.get().load_program({path!r})
model = program.load_method("forward")
expects = json.loads(program.load_method({key!r}).execute([])[0])""",
    ),
}
"""The import of a runtime, and how it loads a file."""
_CALL = {
    "onnx": "model.run(None, {{{name!r}: pixels}})[0]",
    "openvino": "model(pixels)[0]",
    "torch-export": "model(torch.from_numpy(np.ascontiguousarray(pixels))).detach().numpy()",
    "executorch": "model.execute([torch.from_numpy(np.ascontiguousarray(pixels))])[0].numpy()",
    "safetensors": "model(torch.from_numpy(np.ascontiguousarray(pixels))).detach().numpy()",
}
_PROGRAM = """import json
import sys

import numpy as np
{imports}
from PIL import Image, ImageOps

{load}
for path in sys.argv[1:]:
{read}
    pixels = {pixels}
    logits = {call}
    print(path, expects["classes"][logits[0].argmax()])
"""
_IN_DSKD = """import sys

import dskd

student = dskd.load_deployed({path!r}{own})
for path, probabilities in zip(sys.argv[1:], dskd.predict(student, sys.argv[1:])):
    print(path, student.classes[probabilities.argmax()])
"""
_OF_HUB = """import sys

import dskd

student = dskd.DeployedStudent.from_pretrained("."{own})  # or the name of the repository
for path, probabilities in zip(sys.argv[1:], dskd.predict(student, sys.argv[1:])):
    print(path, student.classes[probabilities.argmax()])
"""


def hub_caller(student: DeployedStudent) -> str:
    """A program that loads a folder of ``save_pretrained``, or a repository of the Hub.

    Args:
        student: The student.
    """
    return _OF_HUB.format(own=_own(student))


def _own(student: DeployedStudent) -> str:
    """The further arguments with which a model or a method of the user's own is loaded."""
    given = ", student=module" if student.name.startswith("<") else ""
    method = student.metadata["method"] if student.metadata["deploy_config"] else ""
    # A module that is given needs no code, but the part that a method ships beside it may.
    runs_code = ":" in method or (not given and ":" in student.name)
    return f"{given}, allow_code=True" if runs_code else given


def caller(contract: InputContract, form: Format, path: str) -> str:
    """A program that prints the class of each image file of its command line.

    It needs NumPy, Pillow and the runtime of the format. A file of weights needs the library of the
    model in addition.

    Args:
        contract: What the file expects.
        form: The format of the file.
        path: The file, as the program opens it.
    """
    if form.has_graph:
        imports, load = _LOAD[form.name]
        load = load.format(path=path, key=CONTRACT)
        if contract.int8 and form.name == "torch-export":  # registers the operations
            imports += "\nimport torchao.quantization.pt2e"
    elif contract.student.name.startswith(TIMM) and not contract.student.metadata["deploy_config"]:
        imports, load = (
            "import timm\nimport torch\nfrom safetensors import safe_open",
            _timm(contract, path),
        )
    else:
        return _IN_DSKD.format(path=path, own=_own(contract.student))
    return _PROGRAM.format(
        imports=imports,
        load=load,
        read="\n".join(f"    {line}" for line in _read(contract)),
        pixels=_pixels(contract),
        call=_CALL[form.name].format(name=INPUT),
    )


def _timm(contract: InputContract, path: str) -> str:
    """How timm builds the network and loads the file."""
    student = contract.student
    channels, height, _ = student.shape
    arguments = {
        "num_classes": len(student.classes),
        "in_chans": channels,
        **student.metadata["options"],
    }
    plain = student.name.removeprefix(TIMM)
    if _takes_size(plain, height, arguments):
        arguments = {"img_size": height, **arguments}
    listed = ", ".join(f"{key}={value!r}" for key, value in arguments.items())
    return f"""with safe_open({path!r}, "pt") as file:
    expects = json.loads(file.metadata()[{CONTRACT!r}])
model = timm.create_model({plain!r}, checkpoint_path={path!r}, {listed}).eval()"""


def _takes_size(name: str, size: int, arguments: dict[str, Any]) -> bool:
    """Whether a model of timm is built for images of one size, as transformers are."""
    import timm

    try:
        timm.create_model(name, **{"img_size": size, **arguments})
    except TypeError:
        return False
    return True


def _read(contract: InputContract) -> list[str]:
    """The lines that read an image file, as the run did."""
    channels, height, width = contract.student.shape
    form, mode = contract.student.form, "RGB" if channels == 3 else "L"
    lines = ["image = ImageOps.exif_transpose(Image.open(path))", *_to_8_bits(form.value_range)]
    if mode == "L":  # Pillow rounds otherwise on the direct way from a palette
        lines.append('image = image if image.mode in ("1", "L") else image.convert("RGB")')
    lines.append(f"image = image.convert({mode!r})")
    if height != width:
        return [*lines, f"assert image.size == ({width}, {height})"]
    if form.crop_pct == 1 and form.interpolation is None:
        return [
            *lines,
            "side = min(image.size)",
            "left, top = (image.width - side) // 2, (image.height - side) // 2",
            f"rule = Image.Resampling.BICUBIC if side % {height} else Image.Resampling.BOX",
            "box = (left, top, left + side, top + side)",
            f"image = image.resize(({height}, {height}), rule, box)",
        ]
    rule = f"Image.Resampling.{(form.interpolation or 'bicubic').upper()}"
    short = int(height / form.crop_pct)
    return [
        *lines,
        "width, height = image.size",
        f"w, h = (int({short} * side / min(image.size)) for side in image.size)",
        f"left, top = round((w - {height}) / 2), round((h - {height}) / 2)",
        "x, y = width / w, height / h",
        f"box = (left * x, top * y, (left + {height}) * x, (top + {height}) * y)",
        f"image = image.resize(({height}, {height}), {rule}, box)",
    ]


def _to_8_bits(value_range: tuple[float, float] | None) -> list[str]:
    """The lines that do what `dskd.data.pixels.convert` does with bit depth and transparency."""
    on_white = [
        'image = image.convert("RGBA")',
        'image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)',
    ]
    if value_range is None:
        return [
            'assert image.mode != "F", "32-bit floats have no fixed range"',
            'if image.mode.startswith("I"):  # of 16 bits the upper 8 count',
            "    levels = np.clip(np.asarray(image) >> 8, 0, 255).astype(np.uint8)",
            "    image = Image.fromarray(levels)",
            "elif image.has_transparency_data:",
            *(f"    {line}" for line in on_white),
        ]
    low, high = value_range
    return [
        'deep = image.mode.startswith(("I", "F"))  # more than 8 bits',
        "if not deep and image.has_transparency_data:",
        *(f"    {line}" for line in on_white),
        "if not deep:",
        '    image = image.convert("L" if image.mode in ("1", "L") else "RGB")',
        f"values, spread = np.asarray(image, np.float64) - {low!r}, {high - low!r}",
        "values = values * (255 / spread) if deep else values * 255 / spread",
        "values = np.nan_to_num(np.clip(values, 0, 255)).round()",
        "image = Image.fromarray(values.astype(np.uint8))",
    ]


def _pixels(contract: InputContract) -> str:
    """The expression for the input of the model."""
    rgb = contract.student.shape[0] == 3
    text = "np.asarray(image, np.float32)"
    text += ".transpose(2, 0, 1)[None] / 255" if rgb else "[None, None] / 255"
    if not contract.normalizes:
        mean, std = (
            f"np.array({values}, np.float32)[:, None, None]"
            for values in (contract.mean, contract.std)
        )
        text = f"({text} - {mean}) / {std}"
    if contract.batch not in (None, 1):
        text = f"np.repeat({text}, {contract.batch}, axis=0)"
    return text
