"""Writes docs/commands.md from the code: ``python docs/write_commands.py``."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import click

from dskd.cli import exit_codes
from dskd.cli.commands import cli

PAGE = Path(__file__).with_name("commands.md")
_INTRO = """# Command line

These are all commands of `dskd`. `dskd COMMAND --help` shows the same text. `RECIPE` is the name of
a shipped recipe (`dskd list recipes`) or a YAML file, `RUN` is the folder of a run, and `KEY=VALUE`
changes a [setting](settings.md), as in `train.epochs=10`.
"""


def page() -> str:
    """Renders the whole page."""
    commands = [part for name, command in cli.commands.items() for part in _parts(name, command)]
    return "\n\n".join([_INTRO.strip(), *commands, _exit_codes()]) + "\n"


def _parts(name: str, command: click.Command) -> list[str]:
    """A command, and those in it if it is a group."""
    within = command.commands.items() if isinstance(command, click.Group) else ()
    inner = [_command(f"{name} {one}", part) for one, part in within]
    return [_command(name, command), *inner]


def _command(name: str, command: click.Command) -> str:
    context = click.Context(command, info_name=f"dskd {name}", **cli.context_settings)
    usage = command.get_usage(context).removeprefix("Usage: ")
    options = [p for p in command.params if isinstance(p, click.Option)]
    parts = [f"## dskd {name}", _prose(command.help or "")]
    if not isinstance(command, click.Group):
        parts.append(f"```text\n{' '.join(usage.split())}\n```")
    if options:
        parts.append("\n".join(["| option | meaning |", "|---|---|", *map(_row, options)]))
    return "\n\n".join(parts)


def _prose(text: str) -> str:
    """The help of a command as Markdown, with its example as a code block."""
    text = inspect.cleandoc(text).replace("\b\n", "")
    return re.sub(r"^    (.+)$", r"```sh\n\1\n```", text, flags=re.MULTILINE)


def _row(option: click.Option) -> str:
    names = " / ".join(f"`{name}`" for name in [*option.opts, *option.secondary_opts])
    if isinstance(option.type, click.Choice):
        names += " " + ", ".join(f"`{choice}`" for choice in option.type.choices)
    elif not option.is_flag:
        number = isinstance(option.type, click.IntRange | click.FloatRange)
        names += f" {'NUMBER' if number else option.type.name.upper()}"
    meaning = re.sub(r" +\[default: (.+)\]$", r" Default: \1.", option.help or "")
    if option.show_default:
        meaning += f" Default: `{_default(option)}`."
    return f"| {names} | {meaning.strip().replace('|', chr(92) + '|')} |"


def _default(option: click.Option) -> str:
    value = option.default
    if option.is_flag:
        value = option.opts[0] if value else option.secondary_opts[0]
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def _exit_codes() -> str:
    """The second paragraph of the module that knows the exit codes."""
    text = (inspect.getdoc(exit_codes) or "").partition("\n\n")[2]
    return f"## Exit codes\n\n{text}"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
