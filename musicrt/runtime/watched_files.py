"""Whether the files of an opened bundle are still what they were.

Weights are mapped, and stages are opened when they are first needed: a bundle that is replaced in between must not be mixed with the one
before, and of one that somebody writes into results would be wrong.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple, Self

from musicrt.runtime.errors import BackendError, BundleError
from musicrt.runtime.files import sha256_of
from musicrt.runtime.manifest import FileEntry


class Stamp(NamedTuple):
    """What tells a file from another one in its place, and from itself before somebody wrote into it."""

    inode: int
    size: int
    changed: int

    @classmethod
    def of(cls, path: Path) -> Self:
        """That of a file. Raises OSError."""
        found = path.stat()
        return cls(found.st_ino, found.st_size, found.st_mtime_ns)


class WatchedFiles:
    """The files below `root`, as they were when the bundle was opened."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._stamps: dict[str, Stamp] = {}
        self._verdicts: dict[tuple[str, Stamp], bool] = {}

    def note(self, entry: FileEntry) -> int:
        """Take a file as it is now for what it has to stay; gives its size in bytes. Raises OSError."""
        self._stamps[entry.path] = stamp = Stamp.of(self._root / entry.path)
        return stamp.size

    @contextlib.contextmanager
    def unchanged(self, files: Iterable[FileEntry]) -> Iterator[None]:
        """Around reading some of the files. Raises BundleError where one is not, before and behind it, what it was."""
        read = list(files)
        self._compare(read)
        try:
            yield
        except BackendError:
            self._compare(read)  # what another library says of half a file helps nobody
            raise
        self._compare(read)

    def check_in_use(self, files: Iterable[FileEntry]) -> None:
        """Raises BundleError where somebody has written into one of the files, which may be mapped: results would be wrong, or the process
        end. One that was removed or replaced stays mapped as it was.
        """
        for entry in files:
            before = now = self._stamps[entry.path]
            with contextlib.suppress(OSError):
                now = Stamp.of(self._root / entry.path)
            if now != before and now.inode == before.inode:
                self._compare([entry])

    def _compare(self, files: Iterable[FileEntry]) -> None:
        for entry in files:
            path = self._root / entry.path
            try:
                self._check(entry, Stamp.of(path))
            except OSError as error:
                raise BundleError(f"{path} can't be read any more ({error.strerror}); put the bundle back, and load it again") from None

    def _check(self, entry: FileEntry, now: Stamp) -> None:
        """Raises BundleError where a file has another content than it had; OSError where it can't be read."""
        path = self._root / entry.path
        if now == self._stamps.setdefault(entry.path, now):
            return
        if (entry.path, now) not in self._verdicts:
            self._verdicts[entry.path, now] = sha256_of(path) == entry.sha256  # copied once more, perhaps
        if not self._verdicts[entry.path, now]:
            raise BundleError(
                f"{path} has changed since the bundle was opened; load it again, and replace a bundle in use by renaming only"
            )
        self._stamps[entry.path] = now
