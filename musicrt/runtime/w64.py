"""The comment of a W64 file, which libsndfile neither writes nor reads: a "summary list" before the samples, where FFmpeg reads it too.

Behind the samples it can't stand: libsndfile takes for samples what comes there.
"""

from __future__ import annotations

import io
import os
import struct
from pathlib import Path
from uuid import UUID

from musicrt.runtime.soundfiles import Disk

_SUMMARY_LIST = UUID("925f94bc-525a-11d2-86dc-00c04f8edb8a").bytes_le
_COMMENT = b"ICMT"
_SIZE = slice(16, 24)  # where the file's own size stands
_PLACE = 40  # behind the file's names and size, which come first in every W64 file
_LARGEST = 1 << 16  # bytes of a list that is read


class CommentedDisk(Disk):
    """A new W64 file with a comment at `_PLACE`. libsndfile, which writes all else, does not see it."""

    def __init__(self, path: Path, comment: str) -> None:
        """Raises OSError."""
        super().__init__(path, "wb")
        value = comment.encode("utf-16-le")
        content = struct.pack("<I4sI", 1, _COMMENT, len(value)) + value
        content += bytes(-len(content) % 8)
        self._hidden, self._at = 24 + len(content), 0
        io.FileIO.seek(self, _PLACE)
        super().write(_SUMMARY_LIST + struct.pack("<Q", self._hidden) + content)

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = 0) -> int:
        start = (0, self._at, max(os.fstat(self.fileno()).st_size - self._hidden, 0))[whence]
        self._at = max(start + offset, 0)
        return self._at

    def write(self, data: bytes) -> int:  # type: ignore[override]
        content = bytearray(data)
        if self._at == 0 and len(content) >= _SIZE.stop:  # the header, as a whole
            content[_SIZE] = struct.pack("<Q", struct.unpack("<Q", content[_SIZE])[0] + self._hidden)
        before = max(_PLACE - self._at, 0)
        for part in filter(None, (content[:before], content[before:])):
            io.FileIO.seek(self, self._at + (self._hidden if self._at >= _PLACE else 0))
            self._at += super().write(bytes(part))
        return len(data)


def read_comment(disk: Disk) -> str:
    """The comment where a `CommentedDisk` has it, empty where there is none."""
    disk.seek(_PLACE)
    head = _read(disk, 24)
    if len(head) < 24 or head[:16] != _SUMMARY_LIST:
        return ""
    (size,) = struct.unpack("<Q", head[16:])
    content = _read(disk, min(max(size - 24, 0), _LARGEST))
    place = 4
    while place + 8 <= len(content):
        name, length = struct.unpack_from("<4sI", content, place)
        if name == _COMMENT:
            return content[place + 8 : place + 8 + length].decode("utf-16-le", "replace").rstrip("\0")
        place += 8 + length
    return ""


def _read(disk: Disk, count: int) -> bytes:
    """So many bytes, or those that are left."""
    buffer = bytearray(count)
    return bytes(buffer[: disk.readinto(memoryview(buffer))])
