"""Keeps the results of runs, so that a study goes on on another machine.

``python -m evidence.records pack DATA OUT FILE FOLDER...`` writes recipe, environment and result of
every run that has ended in these folders of OUT, and the weights of finished teachers, to a .tar.xz
file. ``python -m evidence.records unpack DATA OUT FILE`` puts them back. The command of the study
then trains what is missing. In the file, ``{DATA}`` and ``{OUT}`` stand for the two folders.
"""

from __future__ import annotations

import argparse
import io
import json
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from dskd.errors import InputError
from dskd.storage.atomic import replacing
from dskd.storage.run_files import COMPARISON, ENVIRONMENT, FAILED, LAST, RECIPE, RESULT
from evidence.exits import exit_codes

TEXTS = (RECIPE, ENVIRONMENT, RESULT, FAILED)
"""What is kept of each run."""
TEACHERS = ("teacher", "teachers")
"""Folders whose runs are those of teachers; their weights are kept, too."""


def pack(data: Path, out: Path, archive: Path, folders: Sequence[str]) -> int:
    """Writes the results of all ended runs to an archive.

    Args:
        data: The folder of the images or graphs.
        out: The folder of all studies.
        archive: The file to write.
        folders: Which folders of ``out``.

    Returns:
        The number of runs.

    Raises:
        InputError: A folder is missing or has no ended run.
    """
    runs = []
    for name in folders:
        found = sorted(_ended(out / name))
        if not found:
            raise InputError(f"{out / name} holds no run that has ended; name a folder of {out}")
        runs += found
    grids = {one / COMPARISON for run in runs for one in run.parents}
    files = [*sorted(filter(Path.is_file, grids))]
    files += [file for run in runs for file in _kept(run, out)]
    named = {str(folder.resolve()): name for name, folder in _folders(data, out).items()}
    archive.parent.mkdir(parents=True, exist_ok=True)
    with replacing(archive) as written, tarfile.open(None, "w:xz", written, preset=9) as tar:
        for file in files:
            content = _replaced(_content(file), file, named)
            member = tarfile.TarInfo(file.relative_to(out).as_posix())
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return len(runs)


def unpack(data: Path, out: Path, archive: Path) -> int:
    """Writes the files of an archive, except those that are there.

    Args:
        data: The folder of the images or graphs.
        out: The folder of all studies.
        archive: A file of `pack`.

    Returns:
        The number of files that were written.

    Raises:
        InputError: The archive is missing or damaged.
    """
    written = 0
    named = {name: str(folder.resolve()) for name, folder in _folders(data, out).items()}
    try:
        with tarfile.open(archive) as tar:
            for member in tar:
                file, content = out / member.name, tar.extractfile(member)
                if file.exists() or content is None:
                    continue
                tar.extract(member, out, filter="data")
                file.write_bytes(_replaced(content.read(), file, named))
                written += 1
    except (OSError, tarfile.TarError, EOFError) as error:
        raise InputError(f"{archive} cannot be read ({error}); give a file of `pack`") from error
    return written


def _ended(folder: Path) -> Iterator[Path]:
    """The folders of all runs that are finished or have failed."""
    for name in (RESULT, FAILED):
        yield from (file.parent for file in folder.rglob(name))


def _kept(run: Path, out: Path) -> list[Path]:
    of_teacher = set(run.relative_to(out).parts) & set(TEACHERS)
    names = (*TEXTS, LAST) if of_teacher else TEXTS
    return [run / name for name in names if (run / name).is_file()]


def _content(file: Path) -> bytes:
    """The content of a file that is kept; commands name folders of the machine, and are not."""
    content = file.read_bytes()
    if file.name != ENVIRONMENT:
        return content
    facts = json.loads(content)
    facts["command"] = facts["command"][:1]
    facts.pop("commands", None)
    return json.dumps(facts, indent=2).encode()


def _folders(data: Path, out: Path) -> dict[str, Path]:
    return {"{OUT}": out, "{DATA}": data}


def _replaced(content: bytes, file: Path, names: Mapping[str, str]) -> bytes:
    if file.name == LAST:
        return content
    for old, new in names.items():
        content = content.replace(old.encode(), new.encode())
    return content


def main(arguments: Sequence[str] | None = None) -> None:
    """Packs or unpacks results.

    Args:
        arguments: The command line; None for that of the process.
    """
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    for name in ("pack", "unpack"):
        command = commands.add_parser(name)
        for argument in ("data", "out", "file"):
            command.add_argument(argument, type=Path)
        if name == "pack":
            command.add_argument("folders", nargs="+")
    chosen = parser.parse_args(arguments)
    with exit_codes():
        if chosen.command == "pack":
            print(pack(chosen.data, chosen.out, chosen.file, chosen.folders), "runs")
        else:
            print(unpack(chosen.data, chosen.out, chosen.file), "files")


if __name__ == "__main__":
    main()
