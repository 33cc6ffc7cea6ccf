"""Arguments, facts and files that the programs of single studies have in common."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any

from dskd.runtime import device
from evidence.facts import commit_of_code, machine
from evidence.study import RESULTS


def study_arguments(
    description: str | None, arguments: Sequence[str] | None, seeds: int | None
) -> argparse.Namespace:
    """The arguments ``data``, ``out``, ``changes``, ``seeds`` and ``results`` of a study.

    Args:
        description: Of the program.
        arguments: The command line; None for that of the process.
        seeds: The number of seeds, unless another is asked for; None for those of the protocol.
    """
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("changes", nargs="*", metavar="KEY=VALUE")
    parser.add_argument("--seeds", type=int, default=seeds, help="in place of the protocol's")
    parser.add_argument("--results", type=Path, default=RESULTS, help="the folder of the page")
    return parser.parse_intermixed_args(arguments)


def origin(name: str, changes: Sequence[str]) -> dict[str, Any]:
    """How a study is computed: its command, code and machine.

    Args:
        name: Of the study.
        changes: Settings that depart from the protocol.
    """
    return {
        "study": name,
        "command": f"make reproduce-{name} DATA=...",
        "changes": list(changes),
        "commit": commit_of_code(),
        "date": date.today().isoformat(),
        "environment": machine(device.pick("auto")),
    }


def rules(facts: Mapping[str, Any]) -> str:
    """Names the protocol of a study, and the settings that depart from it.

    Args:
        facts: What `origin` returned.
    """
    changed = f" The recipe was changed: {', '.join(facts['changes'])}." if facts["changes"] else ""
    return f"The rules are in the [protocol](protocol-{facts['study']}.md).{changed}"


def write_results(folder: Path, name: str, facts: Mapping[str, Any], page: str) -> None:
    """Writes the facts of a study as JSON, and its page.

    Args:
        folder: Takes the files; it is made if it is missing.
        name: Of the files, without a suffix.
        facts: What the study found.
        page: In Markdown.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.json").write_text(json.dumps(facts, indent=1) + "\n")
    (folder / f"{name}.md").write_text(page)
