"""The commands of `musicrt`, and how they end. Exit codes are those of `musicrt.runtime.errors` (2: wrong usage, 130: interrupted)."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, NoReturn

import typer
from rich.logging import RichHandler
from rich.markup import escape
from typer.core import TyperCommand

import musicrt
from musicrt.cli import batch, bundles, files, machine, serving
from musicrt.cli.options import OptionsCommand
from musicrt.cli.output import console, errors
from musicrt.runtime.errors import MusicRTError, OutputError
from musicrt.termination import tidy_termination

_LOG = logging.getLogger("musicrt")
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
app = typer.Typer(name="musicrt", no_args_is_help=True, add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)


def run() -> None:
    """Read the command line and do what it says: an error of this package becomes one line and its exit code."""
    handler = RichHandler(console=errors, show_time=False, show_path=False)
    handler.addFilter(_is_news)
    logging.basicConfig(level=logging.INFO, format="%(message)s", handlers=[handler])
    try:
        with tidy_termination():
            try:
                app()
            except SystemExit:
                _flush()  # here, where it can still be told that it fails
                raise
    except MusicRTError as error:
        _fail(str(error), error.exit_code)
    except MemoryError:
        _fail("not enough memory; use shorter audio, or, where the system has them, --chunking seamless or a smaller --max-batch-size", 1)
    except BrokenPipeError:  # who read what was printed has enough
        _drop_output()
        sys.exit(1)
    except OSError as error:
        if error.errno not in _NO_SPACE:
            raise
        _drop_output()
        what = error.filename or "what is printed, or a temporary file"
        _fail(f"can't write {what}: {error.strerror}; make room there, or set TMPDIR to a folder with more", OutputError.exit_code)


@app.callback(invoke_without_command=True)
def start(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Log more, such as the opening of every stage.")] = False,
) -> None:
    """Neural music codecs in production: official checkpoints to ONNX, and a lean runtime."""
    if verbose:
        _LOG.setLevel(logging.DEBUG)
    if version:
        console.print(musicrt.__version__, highlight=False)
        raise typer.Exit


_COMMANDS: Mapping[type[TyperCommand], Sequence[Callable[..., None]]] = {
    TyperCommand: [
        bundles.systems,
        bundles.export,
        bundles.add_flavour,
        bundles.calibrate,
        bundles.build,
        bundles.sign,
        bundles.verify,
        bundles.inspect,
        machine.doctor,
        machine.bench,
        machine.web,
        serving.triton,
    ],
    OptionsCommand: [files.encode, files.decode, files.roundtrip, files.generate],
}
for _kind, _commands in _COMMANDS.items():
    for _command in _commands:
        app.command(cls=_kind)(_command)
app.add_typer(batch.app)


def _is_news(record: logging.LogRecord) -> bool:
    """Commands say themselves what they run on."""
    return getattr(record, "event", "") != "bundle_opened" or _LOG.isEnabledFor(logging.DEBUG)


def _flush() -> None:
    if sys.stdout is not None:  # it is where a program without one starts this
        sys.stdout.flush()


def _drop_output() -> None:
    """Of what could not be printed: Python would try once more when it ends."""
    with contextlib.suppress(OSError, AttributeError):  # it is no file, or there is none
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _fail(message: str, code: int) -> NoReturn:
    errors.print(f"[red]error:[/red] {escape(message)}", soft_wrap=True, highlight=False)
    try:
        _flush()
    except OSError:  # what is said already is worse
        _drop_output()
    sys.exit(code)
