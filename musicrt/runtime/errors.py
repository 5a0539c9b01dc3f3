"""Every error that MusicRT raises on purpose. Messages say what was got, what was expected and what to do next."""

from __future__ import annotations


def one_line(text: object) -> str:
    """What another library says, or a file, as a part of a message: one line, printable, of at most 160 characters."""
    return "".join(letter if letter.isprintable() else "?" for letter in " ".join(str(text).split()))[:160]


class MusicRTError(Exception):
    """Base of all errors of this package. `exit_code` is what the command line ends with."""

    exit_code = 1


class InputError(MusicRTError, ValueError):
    """An argument, array or option has a wrong value, shape or dtype."""

    exit_code = 3


class AudioError(InputError):
    """An audio file can't be read, decoded or written as asked."""


class VideoError(InputError):
    """A video can't be read, or music can't be put into it, as asked."""


class EncodedError(InputError):
    """A file of encoded audio is damaged, of another system, or belongs to another bundle."""


class BundleError(MusicRTError):
    """A bundle is missing, damaged, of an unknown format version, or lacks what was asked of it."""

    exit_code = 4


class CheckpointError(MusicRTError):
    """A checkpoint is missing, unsafe to read, or does not fit the network."""

    exit_code = 5


class ConfigError(MusicRTError, ValueError):
    """Hyper-parameters are unknown, inconsistent or unsupported."""

    exit_code = 5


class BackendError(MusicRTError):
    """A backend was asked for that is not installed, not usable here, or failed while running."""

    exit_code = 6


class EngineError(BackendError):
    """A graph can't be made into an engine, or an engine does not fit this machine."""


class VerificationError(MusicRTError):
    """A stage's outputs differ from the reference by more than its tolerance."""

    exit_code = 7


class OutputError(MusicRTError, OSError):
    """A result can't be written: missing folder, no permission, no space left."""

    exit_code = 8


class Cancelled(MusicRTError):  # noqa: N818 - names a request, not a fault
    """The caller asked a running call to stop."""

    exit_code = 9


class BusyError(MusicRTError):
    """A service takes no more requests now: its queue is full, or it is closed."""

    exit_code = 10


class DeadlineError(Cancelled):
    """The deadline of a request has passed, in the queue or between two steps."""

    exit_code = 11
