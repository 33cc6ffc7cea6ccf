"""The runs of a comparison or a study read the same images, and have the same teacher."""

from __future__ import annotations

from collections.abc import Mapping

from dskd.errors import InputError


def check_inputs(
    found: Mapping[str, str | None], expected: Mapping[str, str | None], whole: str
) -> None:
    """Refuses a run that reads other images, or has another teacher, than the others.

    Args:
        found: The fingerprints of the run's images (``data``) and ``teacher``; None for no teacher.
        expected: Those that it must have; empty for any.
        whole: What the run belongs to, as in ``comparison``.

    Raises:
        InputError: It does, as on a machine that has other files.
    """
    for name, fingerprint in expected.items():
        if found[name] not in (None, fingerprint):
            raise InputError(
                f"the {name} that this run reads is not that of the {whole}; have all machines "
                "read the same files"
            )
