"""Arguments that several commands take."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import click

from dskd.config import short_forms
from dskd.errors import InputError, option
from dskd.methods.outside import code_allowed
from dskd.storage.paths import as_path

_OVERRIDE = re.compile(r"[\w.]*=")
"""The start of ``KEY=VALUE``, which the path of a recipe does not have."""


class _PathType(click.ParamType):  # type: ignore[type-arg]  # generic in newer versions only
    """A path; ``~`` is the home folder, as in a recipe."""

    name = "path"

    def convert(
        self, value: str | Path, param: click.Parameter | None, ctx: click.Context | None
    ) -> Path:
        return as_path(value, (param.name if param else None) or "path")


PATH = _PathType()
ROOT = click.option("--root", type=PATH, help="Folder of the data set's files.")
RUN_FOLDER = "Folder of the run.  [default: runs/RECIPE/METHOD-seedN]"
_DATA = "A folder of images, a manifest, tar files, hf/NAME, or a data set."
_FLAGS = {
    "data": click.option("--data", metavar="DATA", help=_DATA),
    "student": click.option("--student", metavar="MODEL", help="The model to train."),
    "teacher": click.option("--teacher", metavar="MODEL", help="The model to learn from."),
    "method": click.option("--method", metavar="METHOD", help="The method of distillation."),
    "epochs": click.option(
        "--epochs",
        type=click.IntRange(1),
        help="Epochs of the student and, unless teacher.epochs is set, of the teacher.",
    ),
    "out": click.option("--out", type=PATH, help=RUN_FOLDER),
    "exits": click.option(
        "--exits", is_flag=True, help="Keep the branches of dskd, dsn or byot as early exits."
    ),
}


def takes_recipe(*flags: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Gives a command a recipe, ``KEY=VALUE`` arguments, and short forms of settings.

    The command gets ``recipe_name``, None without a recipe, and ``overrides``, in which the short
    forms come first.

    Args:
        flags: The short forms, such as ``data``.
    """

    def decorate(function: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(function)
        def command(arguments: tuple[str, ...], **options: Any) -> None:
            given = {flag: options.pop(flag) for flag in flags}
            name, changes = split_arguments(arguments)
            short = {
                option(flag, str(value)): short_forms.overrides(**{flag: value})
                for flag, value in given.items()
            }
            overrides = with_short_forms(short, changes)
            function(recipe_name=name, overrides=overrides, **options)

        for flag in reversed(flags):
            command = _FLAGS[flag](command)
        return click.argument("arguments", nargs=-1, metavar="[RECIPE] [KEY=VALUE]...")(command)

    return decorate


def with_short_forms(short: Mapping[str, Sequence[str]], changes: Sequence[str]) -> list[str]:
    """Overrides of which the short forms come first.

    Args:
        short: What each option sets, as overrides, by the option as it is given.
        changes: The ``KEY=VALUE`` arguments.

    Raises:
        InputError: An option and an argument set the same setting to different values.
    """
    for given, overrides in short.items():
        for override in overrides:
            start = override[: override.index("=") + 1]
            others = [one for one in changes if one.startswith(start) and one != override]
            if others:
                raise InputError(f"{given} and {others[0]} contradict each other; give one of them")
    return [*(one for overrides in short.values() for one in overrides), *changes]


def split_arguments(arguments: Sequence[str]) -> tuple[str | None, list[str]]:
    """The recipe, which may come first, and the overrides."""
    if arguments and not _OVERRIDE.match(arguments[0]):
        return arguments[0], list(arguments[1:])
    return None, list(arguments)


RESUME = click.option(
    "--resume",
    is_flag=True,
    help="Continue an interrupted run; a finished one goes on if train.epochs is larger.",
)


def _allow_code(context: click.Context, option: click.Parameter, value: bool) -> bool:
    """Allows methods ``package.module:Class`` as long as the command runs."""
    context.with_resource(code_allowed(value))
    return value


ALLOW_CODE = click.option(
    "--allow-code",
    is_flag=True,
    callback=_allow_code,
    help="Let a recipe import your code: models as package.module:function, methods as "
    "package.module:Class.",
)
BEST = click.option("--best", is_flag=True, help="Use the weights of the best epoch.")
LAST = click.option("--last", is_flag=True, help="Use the last epoch's weights, not averages.")


def which_weights(best: bool, last: bool) -> Literal["best", "last"] | None:
    """The weights that the flags ask for; None if they ask for none.

    Raises:
        InputError: They ask for both.

    Example:
        >>> which_weights(best=True, last=False)
        'best'
    """
    if best and last:
        raise InputError("--best and --last ask for different weights; drop one of them")
    return "best" if best else "last" if last else None


def takes_launcher(command: Callable[..., None]) -> Callable[..., None]:
    """Gives a command the options that say where its runs are trained.

    The command gets ``jobs``, ``launcher`` and ``launcher_options``, the options as text by name.
    """
    options = (
        click.option(
            "--jobs",
            type=click.IntRange(1),
            help="Number of processes. Each trains students of one seed, or a trial of dskd tune. "
            "With N GPUs, take N.  "
            "[default: 1; no limit on a cluster]",
        ),
        click.option(
            "--launcher",
            type=click.Choice(["processes", "ray", "slurm"]),
            default="processes",
            show_default=True,
            is_eager=True,  # it types its options
            help="Where runs are trained: on this machine, on a Ray cluster, or as Slurm jobs.",
        ),
        click.option(
            "--launcher-option",
            "launcher_options",
            metavar="KEY=VALUE",
            multiple=True,
            callback=_launcher_options,
            help="Setting of ray (address, cpus, gpus, memory) or slurm (partition, account, qos, "
            "constraint, time, cpus, gpus, memory, cluster, more). Repeatable.",
        ),
    )
    for decorate in reversed(options):
        command = decorate(command)
    return command


def _launcher_options(
    context: click.Context, _parameter: click.Parameter, texts: Sequence[str]
) -> dict[str, Any]:
    """The options of the launcher, typed by its settings."""
    if not texts:
        return {}
    from dskd.config.text_values import typed_value
    from dskd.runtime.launchers.choose import OPTIONS

    kind = OPTIONS.get(context.params.get("launcher", "processes"))
    fields = kind.model_fields if kind else {}
    found: dict[str, Any] = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals:
            raise InputError(f"{text!r} is not key=value; write it as in --launcher-option time=60")
        annotation = fields[key].annotation if key in fields else str
        found[key] = typed_value(annotation, value, f"launcher option {key}")
    return found
