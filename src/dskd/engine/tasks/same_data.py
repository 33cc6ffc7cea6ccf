"""Whether the data of a run is still that which it was trained on."""

from __future__ import annotations

import logging
from pathlib import Path

from dskd.errors import InputError
from dskd.storage.json_file import read_json
from dskd.storage.run_files import RESULT, ResultFile

log = logging.getLogger("dskd")


def check_same_data(run: Path, fingerprint: str) -> None:
    """Refuses data that has changed: a split that is drawn again may test what was trained on.

    Args:
        run: The folder of a finished run.
        fingerprint: Of its data as it is now.

    Raises:
        InputError: The data has changed.
    """
    result = read_json(run / RESULT, ResultFile, "train the run anew")
    if result.fingerprints.get("data") not in (None, fingerprint):
        raise InputError(
            f"the data of {run} is not what it was when the run was trained, so the student may "
            "have learned from what is the test split now: files were changed, added or removed; "
            "restore them, or train anew"
        )


def warn_of_other_data(run: Path, fingerprint: str) -> None:
    """Warns of what `check_same_data` refuses.

    Args:
        run: As for `check_same_data`.
        fingerprint: As for `check_same_data`.
    """
    try:
        check_same_data(run, fingerprint)
    except InputError as error:
        log.warning("%s", error)
