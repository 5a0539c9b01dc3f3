"""What several commands are asked, and what they do with it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape

import musicrt
from musicrt.cli.output import errors
from musicrt.runtime.bundle import EMBEDDED
from musicrt.runtime.errors import InputError
from musicrt.runtime.precision import Precision

BundleArgument = Annotated[Path, typer.Argument(help="A bundle folder, or `embedded` for the small one inside the package.")]
BackendOption = Annotated[str, typer.Option(help="auto, or a backend that `musicrt doctor` lists.")]
PrecisionOption = Annotated[
    Precision | None,
    typer.Option(help="What networks are computed in, see `musicrt doctor`; by default what the backend takes: float32 on a CPU."),
]
ThreadsOption = Annotated[int | None, typer.Option(help="CPU threads inside an operator; all by default.")]
TrustedKeyOption = Annotated[
    Path | None, typer.Option(help="The public key (PEM, Ed25519) that the bundle has to be signed with; needs the extra `sign`.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]


def bundle_path(bundle: Path) -> Path:
    """The folder that a `BundleArgument` means."""
    return EMBEDDED if bundle == Path("embedded") else bundle


def split_names(text: str | None) -> list[str]:
    """Those in a list with commas."""
    return [name.strip() for name in (text or "").split(",") if name.strip()]


def split_counts(text: str | None) -> list[int]:
    """The whole numbers in a list with commas. Raises InputError."""
    try:
        return [int(name) for name in split_names(text)]
    except ValueError:
        raise InputError(f"got {text!r}, expected whole numbers with commas between them, such as 1,2,4") from None


def split_sizes(text: str | None) -> dict[str, int]:
    """Sizes by name, in a list such as `rows=128,batch=2`. Raises InputError."""
    pairs = [name.partition("=") for name in split_names(text)]
    if not all(equal and value.strip().isdecimal() for _, equal, value in pairs):
        raise InputError(f"got {text!r}, expected names of axes and sizes, such as rows=128,batch=2")
    return {name.strip(): int(value) for name, _, value in pairs}


def open_codec(bundle: Path, backend: str, precision: Precision | None, threads: int | None) -> Any:
    """The pipeline of a bundle; says on stderr what it runs on."""
    codec = musicrt.load(bundle_path(bundle), backend=backend, threads=threads, precision=precision)
    errors.print(f"running on {escape(str(codec.backend))}", highlight=False, soft_wrap=True)
    return codec


@contextmanager
def needing(extra: str) -> Iterator[None]:
    """Around the import of what an extra installs."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise InputError(f"{extra} needs {error.name}, which is not installed: pip install 'musicrt[{extra}]'") from None
