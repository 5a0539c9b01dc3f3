"""Writing that leaves nothing half-written behind: a temporary neighbour first, then one rename."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import struct
import tempfile
from collections.abc import Iterator
from pathlib import Path

from safetensors import SafetensorError

from musicrt.runtime.errors import OutputError

try:
    import fcntl
except ImportError:  # Windows, where two programs that change a folder at once are on their own
    fcntl = None  # type: ignore[assignment]

_UMASK = os.umask(0o077)  # can only be read by setting it, which concerns the whole process: once, at import
os.umask(_UMASK)


@contextlib.contextmanager
def new_file(path: Path) -> Iterator[Path]:
    """Give a temporary path beside `path`; on success rename it to `path`, on any error remove it. Raises OutputError."""
    if path.exists() and not path.is_file():
        raise OutputError(f"can't write {path}: it is a folder or a device; name a file")
    with as_output_error(path):
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=path.suffix, dir=path.parent)
        os.close(handle)
    temporary = Path(name)
    try:
        with as_output_error(path):
            yield temporary
            temporary.chmod(0o666 & ~_UMASK)
            temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """The same for a folder that must not exist yet (an empty one may). Raises OutputError."""
    with as_output_error(path):
        if path.exists() and (not path.is_dir() or any(path.iterdir())):
            raise OutputError(f"{path} exists already; choose another folder or remove it first")
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    try:
        with as_output_error(path):
            yield temporary
            temporary.chmod(0o777 & ~_UMASK)
            temporary.replace(path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextlib.contextmanager
def changing(folder: Path) -> Iterator[None]:
    """Keeps a folder for one program that reads what is there and changes it; another one waits. Not to be nested. Raises OutputError."""
    with as_output_error(folder):
        handle = os.open(folder, os.O_RDONLY) if fcntl else -1
    try:
        if fcntl:
            fcntl.flock(handle, fcntl.LOCK_EX)  # it goes with the handle, also that of a program that is killed
        yield
    finally:
        if fcntl:
            os.close(handle)


@contextlib.contextmanager
def added_files(folder: Path) -> Iterator[None]:
    """Files that are written into a folder which is in use: on any error they go again. Raises OutputError."""
    before = set(folder.iterdir())
    try:
        with as_output_error(folder):
            yield
    except BaseException:
        for path in set(folder.iterdir()) - before:
            path.unlink()
        raise


def sha256_of(path: Path) -> str:
    """Hex SHA-256 of a file's bytes."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def tensor_places(path: Path) -> dict[str, tuple[int, int]]:
    """Where each tensor of a safetensors file begins and ends, in bytes from the start of the file."""
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(length))
    return {
        name: (8 + length + entry["data_offsets"][0], 8 + length + entry["data_offsets"][1])
        for name, entry in header.items()
        if name != "__metadata__"
    }


@contextlib.contextmanager
def as_output_error(path: Path) -> Iterator[None]:
    """Around writing to `path`, which is named in the OutputError."""
    try:
        yield
    except OutputError:
        raise
    except (OSError, SafetensorError) as error:  # the latter is what safetensors makes of a full disk
        reason = error.strerror if isinstance(error, OSError) else None
        raise OutputError(f"can't write {path}: {reason or error}; check the folder, its permissions and the free space") from error
