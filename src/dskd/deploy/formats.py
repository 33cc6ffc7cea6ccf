"""The formats of an exported student. Nothing here imports torch or a runtime."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from dskd.errors import unknown

DYNAMIC = "dynamic"
"""A batch of any size."""


@dataclass(frozen=True)
class Format:
    """A format of an exported student.

    Attributes:
        name: As the user writes it.
        suffix: Of the file.
        module: The module of this package that writes and runs such files.
        packages: What must be installed.
        extra: The extra of this package that installs them; None if they are always there.
        runtime: The program that runs the file, for tables and the model card.
        has_graph: Whether the file holds the operations. Otherwise it holds weights only.
        for_int8: What must be installed in addition to quantize to 8 bits, and the extra of it.
        takes_threads: Whether the runtime can be told to use one thread. If not, it uses all cores.
    """

    name: str
    suffix: str
    module: str
    packages: tuple[str, ...]
    extra: str | None
    runtime: str
    has_graph: bool = True
    for_int8: tuple[tuple[str, str], ...] = ()
    takes_threads: bool = True

    def requirements(self, int8: bool) -> list[tuple[str, str]]:
        """The packages that an export needs, each with the extra that installs it."""
        own = [(package, self.extra or "") for package in self.packages]
        return [*own, *(self.for_int8 if int8 else ())]


_ONNX = ("onnx", "onnxscript", "onnxruntime")
_ALL = (
    Format("safetensors", ".safetensors", "dskd.deploy.weights_file", (), None, "PyTorch", False),
    Format(
        "torch-export",
        ".pt2",
        "dskd.deploy.torch_export",
        (),
        None,
        "PyTorch",
        for_int8=(("torchao", "torchao"),),
    ),
    Format(
        "onnx",
        ".onnx",
        "dskd.deploy.onnx",
        _ONNX,
        "onnx",
        "ONNX Runtime",
    ),
    Format(
        "openvino",
        ".xml",
        "dskd.deploy.openvino",
        ("openvino",),
        "openvino",
        "OpenVINO",
        for_int8=tuple((package, "onnx") for package in _ONNX),
    ),
    Format(
        "executorch",
        ".pte",
        "dskd.deploy.executorch",
        ("executorch",),
        "executorch",
        "ExecuTorch",
        for_int8=(("torchao", "torchao"),),
        takes_threads=False,
    ),
)
FORMATS = {form.name: form for form in _ALL}
"""The formats by name."""


def find_format(name: str) -> Format:
    """The format of a name.

    Raises:
        InputError: There is none.

    Example:
        >>> find_format("onnx").suffix
        '.onnx'
    """
    if name not in FORMATS:
        raise unknown("format", name, FORMATS)
    return FORMATS[name]


def file_name(stem: str, form: Format) -> str:
    """The name of an exported file.

    Args:
        stem: The name of the weights, as in ``student_best``.
        form: The format.

    Example:
        >>> file_name("student_best", find_format("openvino"))
        'student_best.xml'
    """
    return f"{stem}{form.suffix}"


def names(forms: Iterable[Format] = _ALL) -> list[str]:
    """The names of formats, in the order of their description."""
    return [form.name for form in forms]
