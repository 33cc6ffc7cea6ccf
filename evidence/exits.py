"""How the programs of this folder end if they cannot go on."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from dskd.errors import InputError, NonFiniteError, Stopped


@contextmanager
def exit_codes() -> Iterator[None]:
    """Ends the program with one line: exit code 2 for bad input, 3 for numbers that are not finite.

    After a signal the code is 128 and its number.
    """
    try:
        yield
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except NonFiniteError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(3)
    except Stopped as stopped:
        print(f"{stopped}; the same command continues", file=sys.stderr)
        sys.exit(128 + stopped.signal)
