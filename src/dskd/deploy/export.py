"""Export a trained student to a file, after its outputs were compared with the student's."""

from __future__ import annotations

import importlib
import logging
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, cast

import torch
from torch import Tensor

from dskd.deploy.difference import exits_difference, relative_difference
from dskd.deploy.early_exits import EarlyExits
from dskd.deploy.formats import DYNAMIC, FORMATS, Format, file_name, find_format
from dskd.deploy.input_contract import InputContract
from dskd.deploy.student import DeployedStudent, file_stem
from dskd.deploy.student_graph import Runner, StudentGraph, in_batches, student_graph
from dskd.errors import InputError, first_line, option
from dskd.models.eval_mode import eval_mode
from dskd.runtime.extras import import_extra
from dskd.storage.atomic import make_folder, refuse_links, replace_file
from dskd.storage.paths import as_path
from dskd.storage.run_files import EXPORT

TOLERANCE, INT8_TOLERANCE = 1e-4, 0.5
"""Largest allowed difference of the outputs, relative to the largest one: in float32, in int8."""
_COMPARED = 64
"""Calibration images of which the outputs are compared."""


class Exporter(Protocol):
    """A module of this package that writes and runs the files of a format."""

    def write(self, graph: StudentGraph, path: Path) -> None:
        """Writes the student."""

    def runner(self, path: Path, graph: StudentGraph, threads: int = 0) -> Runner:
        """Loads a file into its runtime."""


@dataclass
class ExportDraft:
    """An exported student in a temporary folder, before it is moved to its place.

    Attributes:
        path: The file.
        form: Its format.
        graph: The student.
        difference: The largest difference of the outputs, relative to the largest output.
        card: The model card; None for none.
    """

    path: Path
    form: Format
    graph: StudentGraph
    difference: float = 0.0
    card: str | None = None

    def write(self) -> None:
        """Writes the file.

        Raises:
            InputError: The student cannot be exported.
        """
        _exporter(self.form).write(self.graph, self.path)

    def runner(self, threads: int = 0) -> Runner:
        """Loads the file; the runner takes any number of images."""
        loaded = _exporter(self.form).runner(self.path, self.graph, threads)
        return in_batches(loaded, self.graph.contract.batch)

    @property
    def files(self) -> list[Path]:
        """The files of the export, the one with the operations last."""
        others = [path for path in self.path.parent.iterdir() if path != self.path]
        return [*sorted(others), self.path]

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(path.stat().st_size for path in self.files)


def choose_format(form: str | None, out: Path | None) -> Format:
    """The format that was asked for, else that of the file's suffix, else ONNX.

    Raises:
        InputError: There is no such format, or the file has another suffix.
    """
    by_suffix = {one.suffix: one.name for one in FORMATS.values()}
    if form is None:
        form = by_suffix.get(out.suffix, "onnx") if out is not None else "onnx"
    found = find_format(form)
    if out is not None and out.suffix != found.suffix and not out.is_dir():
        raise InputError(f"{out}: a file of {found.name} is named *{found.suffix}; rename it")
    return found


def choose_int8(int8: bool, form: Format) -> None:
    """Refuses 8 bits for a format that has none.

    Raises:
        InputError: The format holds weights only.
    """
    if int8 and not form.has_graph:
        raise InputError(
            f"{form.name} holds weights in float32; for 8 bits choose another format, such as "
            f"{option('format', 'onnx')}"
        )


def choose_exits(form: Format, batch: int | str | None, int8: bool) -> None:
    """Refuses early exits for what has none. A file with early exits takes one image at a time.

    Args:
        form: The format.
        batch: As for `choose_batch`.
        int8: Whether the file has 8 bits.

    Raises:
        InputError: The format has no early exits, or another batch or 8 bits are asked for.
    """
    if form.name != "onnx":
        raise InputError(
            f"{form.name} is exported without early exits; choose {option('format', 'onnx')}"
        )
    if batch not in (None, DYNAMIC, 1, "1"):
        raise InputError(
            f"an early exit predicts for one image at a time; drop {option('batch', str(batch))}"
        )
    if int8:
        raise InputError(f"early exits are exported in float32; drop {option('int8')}")


def choose_batch(batch: int | str | None, form: Format) -> int | None:
    """The images of a call: a number, or None for any number.

    Args:
        batch: A number, ``dynamic``, or None if nothing was asked for.
        form: The format.

    Raises:
        InputError: It is something else, or the format has no batch.

    Example:
        >>> choose_batch("8", find_format("onnx")), choose_batch("dynamic", find_format("onnx"))
        (8, None)
    """
    if batch is None or batch == DYNAMIC:
        return None
    if not str(batch).isascii() or not str(batch).isdigit() or int(batch) < 1:
        raise InputError(f"batch: a number from 1 or {DYNAMIC} is needed, got {batch!r}")
    if not form.has_graph:
        raise InputError(
            f"{form.name} holds weights, which take any batch; drop {option('batch', str(batch))}"
        )
    return int(batch)


def default_path(
    deployed: DeployedStudent, form: Format, int8: bool = False, exits: bool = False
) -> Path:
    """The file of an export that has no other name, in the folder ``export`` of the run.

    Raises:
        InputError: The student is of no run, or the folder is a link.
    """
    if deployed.run is None:
        raise InputError(f"name the file to write, with {option('out', 'FILE')}")
    refuse_links(deployed.run / EXPORT)
    make_folder(deployed.run / EXPORT)
    stem = file_stem(deployed.which) + ("_int8" if int8 else "") + ("_exits" if exits else "")
    return deployed.run / EXPORT / file_name(stem, form)


def check_place(path: Path, form: Format, int8: bool) -> None:
    """Refuses an export for which a package or the folder is missing, before any work.

    Args:
        path: The file to write.
        form: The format.
        int8: Whether the file has 8 bits.

    Raises:
        InputError: Something is missing, or the path is a folder.
    """
    for package, extra in form.requirements(int8):
        _require(package, extra, form)
    if not path.parent.is_dir():
        raise InputError(f"there is no folder {path.parent}; create it first")
    if path.is_dir():
        raise InputError(f"{path} is a folder; name a file in it")


@contextmanager
def exporting(
    deployed: DeployedStudent,
    path: str | Path,
    form: str = "onnx",
    *,
    batch: int | None = None,
    tolerance: float | None = None,
    calibration: Tensor | None = None,
    exits: EarlyExits | None = None,
) -> Iterator[ExportDraft]:
    """Exports a student; the files get their place when the block ends.

    Args:
        deployed: The student.
        path: The file to write; its folder must exist.
        form: The name of the format.
        batch: Images of a call; None for any number.
        tolerance: The largest allowed difference of the outputs, relative to the largest output;
            None for `TOLERANCE` or `INT8_TOLERANCE`.
        calibration: Images from 0 to 1, by which the student is quantized to 8 bits; None for
            float32.
        exits: The early exits of an ONNX file for one image; None for the plain student.

    Yields:
        The export, whose card may be set.

    Raises:
        InputError: A package or the folder is missing, the student cannot be exported, or its
            outputs differ too much. Then nothing is written.
    """
    path, found = as_path(path, "out"), find_format(form)
    int8 = calibration is not None
    check_place(path, found, int8)
    if tolerance is None:
        tolerance = INT8_TOLERANCE if int8 else TOLERANCE
    contract = InputContract(deployed, batch, found.has_graph, int8, exits)
    graph = student_graph(contract, calibration)
    with eval_mode(deployed.model), tempfile.TemporaryDirectory(prefix="dskd-export-") as folder:
        draft = ExportDraft(Path(folder) / path.name, found, graph)
        draft.write()
        draft.difference = _difference(draft)
        if not draft.difference <= tolerance:
            raise InputError(
                f"the exported student differs from the student by {draft.difference:.1e} "
                f"relative (at most {tolerance:g} is allowed); nothing was written"
            )
        yield draft
        contents = {path.with_name(file.name): file.read_bytes() for file in draft.files}
    if draft.card is not None:
        contents = {card_path(path): draft.card.encode(), **contents}
    for place, content in contents.items():
        try:
            replace_file(place, content)
        except OSError as error:
            raise InputError(f"cannot write {place}: {error.strerror or error}") from None


def export_file(
    deployed: DeployedStudent,
    path: str | Path,
    form: str = "onnx",
    *,
    batch: int | None = None,
    tolerance: float | None = None,
    calibration: Tensor | None = None,
    exits: EarlyExits | None = None,
) -> float:
    """Exports a student to a file, without a model card.

    The arguments are those of `exporting`.

    Returns:
        The largest difference of the outputs, relative to the largest output.

    Raises:
        InputError: As `exporting`.
    """
    with exporting(
        deployed,
        path,
        form,
        batch=batch,
        tolerance=tolerance,
        calibration=calibration,
        exits=exits,
    ) as draft:
        pass
    return draft.difference


def card_path(path: Path) -> Path:
    """The model card of an exported file.

    Example:
        >>> card_path(Path("student.onnx")).name
        'student.onnx.md'
    """
    return path.with_name(f"{path.name}.md")


def _exporter(form: Format) -> Exporter:
    return cast(Exporter, importlib.import_module(form.module))


def _require(package: str, extra: str, form: Format) -> None:
    # torchao's import notes a call of its own that a later torch will refuse.
    logging.getLogger("torch.utils._pytree").setLevel(logging.ERROR)
    import_extra(package, extra, f"exporting to {form.name} needs {package}; install it with:")


@torch.no_grad()
def _difference(draft: ExportDraft) -> float:
    """The largest relative difference, over a batch and a single image.

    The numbers of an int8 file are chosen for real images, so these are compared.
    """
    if draft.graph.contract.exits is not None:
        return exits_difference(draft.graph.contract.exits, draft.path, draft.graph.example())
    student, example = draft.graph.contract.student, draft.graph.example()
    if draft.graph.calibration is not None:
        example = draft.graph.calibration[:_COMPARED]
    try:
        runner = draft.runner()
        found = [torch.from_numpy(runner(x.numpy())) for x in (example, example[:1])]
    except Exception as error:  # every runtime has its own types
        raise InputError(
            f"{draft.form.runtime} does not run the exported student: {first_line(error)}"
        ) from error
    expected = student.model(example).logits
    pairs = zip(found, (expected, student.model(example[:1]).logits), strict=True)
    return torch.stack([relative_difference(a, b) for a, b in pairs]).max().item()
