"""What reading and writing of audio files share: libsndfile, with its habits tamed."""

from __future__ import annotations

import contextlib
import io

import soundfile


class OneWayFile(soundfile.SoundFile):  # type: ignore[misc]  # soundfile is untyped
    """Goes front to back only: soundfile seeks after every block of a seekable file, which garbles Opus and slows MP3."""

    def seekable(self) -> bool:
        return False


class Disk(io.FileIO):
    """Keeps the first OSError in `error`: libsndfile's callbacks would lose it, and its encoders ignore the last failed write."""

    error: OSError | None = None

    def __del__(self) -> None:
        self.close()  # else a stream that nobody started to read would end in a ResourceWarning

    def seek(self, offset: int, whence: int = 0) -> int:
        with contextlib.suppress(OSError):  # a damaged header can send libsndfile to before the start: stay, as lseek does
            super().seek(offset, whence)
        return self.tell()

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        try:
            return super().readinto(buffer) or 0
        except OSError as error:
            self.error = self.error or error
            return 0

    def write(self, data: bytes) -> int:  # type: ignore[override]
        rest = memoryview(data)
        try:
            while rest and not self.error:
                rest = rest[super().write(rest) :]
        except OSError as error:
            self.error = error
        return len(data)


def reason_of(error: OSError | soundfile.LibsndfileError) -> str:
    """What an error says, without the prefixes and full stops of libsndfile."""
    text = error.error_string if isinstance(error, soundfile.LibsndfileError) else error.strerror or str(error)
    return " ".join(text.split()).removeprefix("Error : ").rstrip(".")
