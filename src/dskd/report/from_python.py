"""`dskd.write_report`: the report of runs from Python."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from torch import nn

from dskd.engine.given_data import DataArgument, given_images
from dskd.engine.progress import python_output
from dskd.engine.user_objects import UserObjects
from dskd.report.build import make_report


def write_report(
    runs: str | Path | Sequence[str | Path],
    out: str | Path | None = None,
    *,
    root: str | Path | None = None,
    data: DataArgument | None = None,
    student: nn.Module | None = None,
    teacher: nn.Module | None = None,
    beside: str | Path | Sequence[str | Path] = (),
    allow_code: bool = False,
    verbose: int = 1,
) -> tuple[Path, ...]:
    """Writes the report of finished runs, as ``dskd report`` does. The runs are only read.

    Args:
        runs: The folder of a run or of a comparison, or the folders of several runs.
        out: The HTML page. Tables of the same name are written next to it: ``.csv``, ``.json`` and
            ``.tex``. None takes ``report.html`` in the folder of the run or of the comparison, or
            in the folder that holds all of the runs.
        root: The folder of the data set, if it is not where the recipe says.
        data: The data set, if it was given in Python, in the same form.
        student: The student's module, if it was given in Python. Its weights are those of the run.
        teacher: The teacher's module, if it was given in Python, with its weights.
        beside: Finished runs of other students on the same images, which are shown beside the early
            exits of the reported runs.
        allow_code: As for `dskd.distill`.
        verbose: As for `dskd.distill`.

    Returns:
        The files: the page, then the tables.

    Raises:
        InputError: The runs are missing or do not share one recipe, no exits are there to show a
            run beside, the data cannot be loaded, or a file would be replaced that is no report of
            these runs.

    Example:
        >>> import dskd, tempfile
        >>> where = tempfile.mkdtemp()
        >>> result = dskd.train(
        ...     "resnet8", data={"name": "digits", "fraction": 0.1}, epochs=1, out=where, verbose=0
        ... )
        >>> [path.name for path in dskd.write_report(result.path, verbose=0)]
        ['report.html', 'report.csv', 'report.json', 'report.tex']
    """
    with python_output(verbose):
        given = UserObjects(given_images(data), student, teacher, allow_code)
        with given.available():
            return make_report(runs, out, root=root, given=given, beside=beside)
