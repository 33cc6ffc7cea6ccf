"""How a command ends in one of several processes."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from dskd.cli.exit_codes import exit_code
from dskd.errors import InputError, NonFiniteError
from dskd.runtime import distributed


@pytest.fixture
def second_of_two(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "LOCAL_RANK"):
        monkeypatch.setenv(name, "1")
    for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE"):
        monkeypatch.setenv(name, "2")
    for name in ("MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.setenv(name, "0")


def batches() -> Iterator[int]:
    yield 1
    raise InputError("cannot read a.png")


@pytest.mark.usefixtures("second_of_two")
def test_what_one_process_cannot_read_is_said_by_that_process(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert exit_code(lambda: list(batches())) == 2
    assert not capsys.readouterr().err  # all processes meet it, and the first one says it
    assert exit_code(lambda: list(distributed.of_this_process(batches()))) == 2
    assert capsys.readouterr().err == "dskd, process 1: cannot read a.png\n"


@pytest.mark.usefixtures("second_of_two")
def test_a_number_of_one_process_is_said_by_that_process(
    capsys: pytest.CaptureFixture[str],
) -> None:
    error = NonFiniteError("the teacher's output is not finite")
    error.of_one_process = True

    def command() -> None:
        raise error

    assert exit_code(command) == 3
    assert capsys.readouterr().err == f"dskd, process 1: {error}\n"
