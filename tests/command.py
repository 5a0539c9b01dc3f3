"""Runs the command `musicrt` for tests, in this process or in one of its own."""

from __future__ import annotations

import contextlib
import io
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import pytest

from musicrt import cli

CPU = ("--backend", "onnxruntime-cpu")


@dataclass(frozen=True)
class Outcome:
    """What a call printed. `notes`: what it said on stderr beside the error."""

    out: str
    error: str
    notes: list[str]


def call(*arguments: str | Path, status: int = 0) -> Outcome:
    """Run the command in this process; it has to end with `status`, and with one line of error if that is one of ours."""
    out, err = io.StringIO(), io.StringIO()
    with (
        mock.patch.object(sys, "argv", ["musicrt", *map(str, arguments)]),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        pytest.raises(SystemExit) as ended,
    ):
        cli.main()
    lines = err.getvalue().splitlines()
    errors = [line for line in lines if line.startswith("error: ")]
    assert (ended.value.code or 0) == status, err.getvalue()
    assert len(errors) == (status == 1 or 3 <= status <= 9), err.getvalue()
    return Outcome(out.getvalue(), "".join(errors), [line for line in lines if line not in errors])


def fails(status: int, *arguments: str | Path, says: tuple[object, ...]) -> None:
    """Run a command that prints nothing but one line of error, which holds all of `says`, and what it was running on."""
    ended = call(*arguments, status=status)
    assert [str(word) for word in says if str(word) not in ended.error] == [], ended.error
    assert all(note.startswith("running on ") for note in ended.notes), ended.notes
    assert ended.out == ""


def spawn(*arguments: str | Path, without: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    """Run the command in a process of its own, which can't import the modules `without`."""
    code = f"import sys; sys.modules.update(dict.fromkeys({without!r})); from musicrt.cli import main; main()"
    return subprocess.run([sys.executable, "-c", code, *map(str, arguments)], capture_output=True, text=True, check=False)
