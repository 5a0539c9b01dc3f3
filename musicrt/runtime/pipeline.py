"""What all codecs share: one model, and the way of whole files through it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from musicrt.runtime.audio import probe_audio
from musicrt.runtime.audio_writer import AudioWriter
from musicrt.runtime.encoded import Encoded, load_encoded, write_encoded
from musicrt.runtime.errors import EncodedError
from musicrt.runtime.files import new_file
from musicrt.runtime.model import Model
from musicrt.runtime.select import Choice

Progress = Callable[[int, int], None]
"""Called with how many pieces of work are done and how many there are; may raise `Cancelled` to stop."""


def ignore_progress(_done: int, _total: int) -> None:
    """The default `on_progress`."""


class Codec(ABC):
    """A codec on an opened model. Subclasses write `encode_source` and `decode_stream`; files are handled here.

    The command line and the benchmarks also call `encode` and `decode`, with the options `chunking`, `extract_features`, `steps`,
    `seed` and `on_progress` where a system has them, and `axis_sizes`. A codec serves one thread at a time.
    """

    def __init__(self, model: Model) -> None:
        self.model = model

    @property
    def backend(self) -> Choice:
        """What runs, and why not something else."""
        return self.model.backend

    @property
    def sample_rate(self) -> int:
        return self.model.spec.sample_rate

    @property
    @abstractmethod
    def encode_source(self) -> Callable[..., Encoded]:
        """A method (path, **options): encode a file in bounded memory."""

    @property
    @abstractmethod
    def decode_stream(self) -> Callable[..., Iterator[NDArray[np.float32]]]:
        """A method (values, **options): decode in bounded memory, in blocks of float32 [channels, samples]."""

    def encode_file(self, audio: str | Path, target: str | Path, **options: Any) -> Encoded:
        """Encode an audio file into a file of encoded audio. Raises AudioError, OutputError, BackendError."""
        with new_file(Path(target)) as temporary:  # before the work, so that a bad target fails at once
            encoded = self.encode_source(audio, **options)
            write_encoded(temporary, encoded)
        return encoded

    def decode_file(self, source: str | Path, target: str | Path, **options: Any) -> int:
        """Decode a file of encoded audio into an audio file; the number of samples written.

        Raises EncodedError for a damaged file or one of another bundle, OutputError, BackendError.
        """
        return self.decode_encoded(load_encoded(source), target, **options)

    def decode_encoded(self, encoded: Encoded, target: str | Path, **options: Any) -> int:
        """Decode into an audio file of the original length; the number of samples written."""
        self.check_encoded(encoded)
        with AudioWriter(target, self.sample_rate, encoded.values.shape[0]) as writer:
            return self._write(encoded, writer, options)

    def roundtrip_file(
        self, audio: str | Path, target: str | Path, encode_options: Mapping[str, Any], decode_options: Mapping[str, Any]
    ) -> int:
        """Encode an audio file and decode it into another; the number of samples written. Errors as of the two ways."""
        with AudioWriter(target, self.sample_rate, probe_audio(audio).channels) as writer:
            return self._write(self.encode_source(audio, **encode_options), writer, decode_options)

    def _write(self, encoded: Encoded, writer: AudioWriter, options: Mapping[str, Any]) -> int:
        written = 0
        for block in self.decode_stream(encoded.values, **options):
            block = block[:, : max(encoded.samples - written, 0)]
            writer.write(block)
            written += block.shape[1]
        return written

    def check_encoded(self, encoded: Encoded) -> None:
        """Raises EncodedError unless `encoded` was made with the weights and configuration of this codec."""
        spec = self.model.spec
        if encoded.system != spec.system:
            raise EncodedError(f"{encoded.name} holds {encoded.system}, this bundle is {spec.system}; load the bundle it was made with")
        if encoded.sample_rate != spec.sample_rate:
            raise EncodedError(
                f"{encoded.name} says {encoded.sample_rate} Hz, this bundle has {spec.sample_rate} Hz; encode the audio again"
            )
        if not encoded.identity or encoded.identity != self.model.identity:
            raise EncodedError(
                f"{encoded.name} was encoded with other weights ({encoded.identity[:12]}, variant {encoded.variant}), this bundle is "
                f"{(self.model.identity or 'none')[:12]}, variant {spec.variant}; load the bundle it was made with"
            )

    def close(self) -> None:
        """Release the sessions."""
        self.model.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()
