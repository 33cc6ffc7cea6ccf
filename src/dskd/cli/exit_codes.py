"""How a command ends: an error becomes one line on stderr and an exit code.

The codes are 0 for success; 1 if `dskd check` found a reason against a run; 2 for bad input, a
failing disk or too little GPU memory; 3 for NaN or infinite numbers; 4 if another process of the
run is lost; 130 after Ctrl-C and 143 after SIGTERM.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from dskd.errors import InputError, NonFiniteError, ProcessLost, Stopped, printable
from dskd.runtime import launch


def open_streams() -> None:
    """Connects closed streams to the null device.

    A file that is opened next would get the number of a closed stream, and receive its text.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, Path(os.devnull).open(mode))  # noqa: SIM115 (for good)


def exit_code(command: Callable[[], Any]) -> int:
    """Runs a command, prints the message of an error, and returns the exit code.

    Args:
        command: The command. It may return an exit code of its own.
    """
    try:
        outcome = command()
        sys.stdout.flush()
    except Stopped as stopped:
        return say(stopped.message, 128 + stopped.signal)
    except (click.Abort, KeyboardInterrupt):
        return say("stopped", 128 + signal.SIGINT)
    except click.UsageError as error:
        return say(_usage(error), 2)
    except click.ClickException as error:
        return say(str(error), 2)
    except InputError as error:
        return say(str(error), 2, own=error.of_one_process)
    except BrokenPipeError:  # the reader of a list has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:  # such as a full disk, or a folder without write permission
        where = f"cannot read or write {error.filename}: " if error.filename else ""
        return say(f"{where}{error.strerror or error}", 2, own=True)
    except ProcessLost as error:
        return say(str(error), 4, own=True)
    except NonFiniteError as error:
        return say(str(error), 3, own=error.of_one_process)
    except RuntimeError as error:
        if not _is_out_of_memory(error):
            raise
        text = "the GPU has too little memory for this run; lower train.batch_size"
        return say(text, 2, own=True)
    return outcome if isinstance(outcome, int) else 0


def say(message: str, code: int, *, own: bool = False) -> int:
    """Prints why the command ends, and returns the exit code.

    Args:
        message: The reason.
        code: The exit code.
        own: Whether it concerns this process alone. Otherwise all processes end for the same
            reason, and one process per machine prints it.
    """
    if own or launch.local_rank() == 0:
        who = (
            f"dskd, process {launch.launched_rank()}"
            if own and launch.launched_world_size() > 1
            else "dskd"
        )
        print(f"{who}: {printable(' '.join(message.split()))}", file=sys.stderr)
    return code


def _usage(error: click.UsageError) -> str:
    """Click's message in one line, with the help to read."""
    command = error.ctx.command_path if error.ctx else "dskd"
    message = error.format_message().rstrip(".")
    join = " " if message.endswith(("?", ")")) else "; "
    return f"{message}{join}see `{command} --help`"


def _is_out_of_memory(error: RuntimeError) -> bool:
    """Whether a GPU ran out of memory. Without torch, none did."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(error, torch.OutOfMemoryError)
