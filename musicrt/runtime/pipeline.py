"""What all codecs share: one model, and the way of whole files through it."""

from __future__ import annotations

import dataclasses
import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar, Self, get_args, get_type_hints

import numpy as np
from numpy.typing import NDArray

import musicrt
from musicrt.runtime.audio import probe_audio
from musicrt.runtime.audio_writer import AudioWriter
from musicrt.runtime.encoded import Encoded, Kind, load_encoded, write_encoded
from musicrt.runtime.errors import EncodedError, InputError
from musicrt.runtime.files import new_file, sha256_of
from musicrt.runtime.model import Model
from musicrt.runtime.noise import choose_seed
from musicrt.runtime.record import Record, Way, as_word, describe_options
from musicrt.runtime.resampling import Resampler
from musicrt.runtime.select import Choice
from musicrt.runtime.source import AudioSource, open_source

WAYS: Mapping[Way, tuple[str, ...]] = {
    "encode": ("encode_source",),
    "decode": ("decode_stream",),
    "generate": ("generate_stream", "compose"),
}
"""What a system can do with files, and the methods that have the options of it."""


def ways_in(pipeline: type) -> list[Way]:
    """What a class of pipelines can do with files."""
    return [way for way, methods in WAYS.items() if hasattr(pipeline, methods[0])]


def options_of(method: Callable[..., Any]) -> list[str]:
    """Names of the options that a system's method has: its keyword-only parameters but `on_progress`, which each of them has."""
    parameters = inspect.signature(method).parameters.values()
    return [one.name for one in parameters if one.kind is one.KEYWORD_ONLY and one.name != "on_progress"]


class Codec(ABC):
    """A codec on an opened model. Subclasses write `encode_source` and `decode_stream`; files are handled here.

    The keyword-only parameters of the two are the system's options: the command line offers those of all systems, and one that
    the system has not is refused here by name. `musicrt bench` calls `encode`, `decode` (with `steps` and `seed` where
    `decode_stream` has them), `axis_sizes` and `window_seconds`, for batches `encode_batch` and `decode_batch` where they are there.
    Any number of threads may call one codec: what it keeps between calls does not depend on them. `Service` bounds how many do.
    """

    row_channels: ClassVar[int] = 1
    """Channels that each row of encoded values decodes to."""
    batched: ClassVar[frozenset[str]] = frozenset()
    """Methods whose form for several signals computes them together, `max_batch_size` at once."""

    def __init__(self, model: Model) -> None:
        self.model = model

    @property
    def backend(self) -> Choice:
        """What runs, and why not something else."""
        return self.model.backend

    @property
    def sample_rate(self) -> int:
        """Of the audio that is encoded and decoded, in Hz."""
        return self.model.spec.sample_rate

    @property
    @abstractmethod
    def encode_source(self) -> Callable[..., Encoded]:
        """A method `(path, **options)`: encode a file in bounded memory."""

    @property
    @abstractmethod
    def decode_stream(self) -> Callable[..., Iterator[NDArray[np.float32]]]:
        """A method `(values, **options)`: decode in bounded memory, in blocks of float32 [channels, samples]."""

    @property
    @abstractmethod
    def shortest(self) -> NDArray[Any]:
        """The fewest encoded values that can be decoded, zeros: [1, 64, 1], say. What options are tried on, and a server warms up with."""

    @abstractmethod
    def seconds_of(self, values: NDArray[Any]) -> float:
        """About how much audio such encoded values of one signal decode to, by their shape."""

    def output_channels(self, channels: int, /, **_options: Any) -> int:
        """Channels that a file of so many is decoded to when it was encoded with these options; all of them, unless a system says else."""
        return channels

    def check_decoding(self, **options: Any) -> None:
        """Raises InputError for a value that `decode_stream` would refuse, by a stream of `shortest` that is never read.

        But for `noise`, which has to fit the values.
        """
        self.decode_stream(self.shortest, **{name: value for name, value in options.items() if name != "noise"})

    def batch_key(self, method: str, source: Any, options: Mapping[str, Any]) -> Hashable:
        """What calls of a method on one source have in common where `<method>_batch` computes them together; None: it does not.

        By default sources of one shape are, of the methods in `batched`.
        """
        del options
        return (source.shape, source.dtype) if method in self.batched and isinstance(source, np.ndarray) else None

    def window_seconds(self, seconds: float) -> float:
        """Audio behind one item of a stage whose axes are `axis_sizes(seconds)`: all of it, unless a system has fixed windows."""
        return seconds

    def encode_file(self, audio: str | Path, target: str | Path, **options: Any) -> Encoded:
        """Encode an audio file into a file of encoded audio. Raises AudioError, InputError, OutputError, BackendError."""
        self._check_encoding(options)
        with new_file(Path(target)) as temporary:  # before the work, so that a bad target fails at once
            encoded = self._encode(audio, options)
            write_encoded(temporary, encoded)
        return encoded

    def decode_file(self, source: str | Path, target: str | Path, **options: Any) -> int:
        """Decode a file of encoded audio into an audio file; the number of samples written.

        Raises EncodedError for a damaged file or one of another bundle, InputError, OutputError, BackendError.
        """
        return self._write(load_encoded(source), target, options, Path(source))

    def decode_encoded(self, encoded: Encoded, target: str | Path, **options: Any) -> int:
        """Decode into an audio file of the original length; the number of samples written."""
        return self._write(encoded, target, options)

    def roundtrip_file(
        self, audio: str | Path, target: str | Path, encode_options: Mapping[str, Any], decode_options: Mapping[str, Any]
    ) -> int:
        """Encode an audio file and decode it into another; the number of samples written. Errors as of the two ways."""
        self._check_encoding(encode_options)
        self.check_options(self.decode_stream, decode_options)
        self.check_decoding(**decode_options)
        channels = self.output_channels(probe_audio(audio).channels, **encode_options)
        AudioWriter.check_target(target, self.sample_rate, channels)
        return self._write(self._encode(audio, encode_options), target, decode_options)

    def record(self, way: Way, /, **options: Any) -> Record:
        """What a call with these options is to be made with, and made again: with the `options` of what is returned.

        Where none is given, it draws a seed: `codec.decode(latents, **codec.record("decode", steps=4).options)`. Files that are written
        have such a record in them (`musicrt.read_record`). Raises InputError for a bad seed, or a way that the system has not.
        """
        spec, backend = self.model.spec, self.backend
        ways = ways_in(type(self))
        if way not in ways:
            raise InputError(f"{spec.system} can't {way}; it can {', '.join(ways)}")
        hints = {name: hint for method in WAYS[way] for name, hint in get_type_hints(getattr(self, method)).items()}
        return Record(
            way=way,
            version=musicrt.__version__,
            system=as_word(spec.system),
            variant=as_word(spec.variant),
            identity=self.model.identity,
            backend=as_word(backend.name),
            precision=backend.precision,
            runtime=as_word(backend.description),
            threads=self.model.threads,
            options=describe_options(self._seeded(way, options), [name for name, hint in hints.items() if Path in get_args(hint)]),
        )

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

    def check_options(self, method: Callable[..., Any], options: Iterable[str]) -> None:
        """Raises InputError if a method of this system has not all these options, with those that it has."""
        known = options_of(method)
        unknown = [name for name in options if name not in (*known, "on_progress")]
        if unknown:
            raise InputError(f"{self.model.spec.system} has no option {unknown[0]!r}; it has {', '.join(known) or 'none'}")

    def close(self) -> None:
        """Release the sessions."""
        self.model.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _seeded(self, way: Way, options: Mapping[str, Any]) -> dict[str, Any]:
        """The same with a seed, where there is to be one, so that it is known. Raises InputError for a bad one."""
        takes_seed = any("seed" in options_of(getattr(self, method)) for method in WAYS[way])
        if not takes_seed or options.get("noise") is not None:
            return dict(options)
        return {**options, "seed": choose_seed(options.get("seed"))}

    def _encode(self, audio: str | Path, options: Mapping[str, Any]) -> Encoded:
        """Encoded audio with its record."""
        encoded = self.encode_source(audio, **options)
        record = self.record("encode", **options).model_copy(update={"input": sha256_of(Path(audio))})
        return dataclasses.replace(encoded, record=record)

    def _write(self, encoded: Encoded, target: str | Path, options: Mapping[str, Any], file: Path | None = None) -> int:
        """file: that of the encoded audio, if there is one."""
        self.check_encoded(encoded)
        self.check_options(self.decode_stream, options)
        options = self._seeded("decode", options)
        source = None if encoded.record is None else encoded.record.model_copy(update={"source": None})
        update = {"input": None if file is None else sha256_of(file), "source": source}
        record = self.record("decode", **options).model_copy(update=update)
        written, channels = 0, self.row_channels * encoded.values.shape[0]
        with AudioWriter(target, self.sample_rate, channels, record=record) as writer:
            for block in self.decode_stream(self._values_of(encoded), **options):
                block = block[:, : max(encoded.samples - written, 0)]
                writer.write(block)
                written += block.shape[1]
            if written == encoded.samples - 1:  # some official roundings take one away
                writer.write(np.zeros((channels, 1), np.float32))
                written += 1
        return written

    def _values_of(self, encoded: Encoded) -> NDArray[Any]:
        """What `decode_stream` takes: the values as they are, unless a system has its codes in another order of axes."""
        return encoded.values

    def _open_file(self, audio: str | Path, kernel: Resampler = "soxr") -> AudioSource:
        """What `encode_source` begins with: a file at the model's rate. Raises AudioError, and InputError for a model from no bundle."""
        self._identity()
        return open_source(audio, self.sample_rate, kernel=kernel)

    def _describe(self, values: NDArray[Any], kind: Kind, source_rate: int, samples: int, bits: tuple[int, ...] = ()) -> Encoded:
        """What `encode_source` gives: values with what it takes to decode them. Raises InputError for a model from no bundle.

        samples: where decoding stops, at the model's rate. bits: of a code of each codebook, for tokens.
        """
        spec = self.model.spec
        return Encoded(
            values=values,
            system=spec.system,
            variant=spec.variant,
            kind=kind,
            identity=self._identity(),
            sample_rate=spec.sample_rate,
            source_rate=source_rate,
            samples=samples,
            bits=bits,
        )

    def _identity(self) -> str:
        """What encoded audio is tied to. Raises InputError for a model that comes from no bundle."""
        if self.model.identity is None:
            raise InputError("encoded audio is tied to a bundle, and this model comes from none; export the checkpoint, or use `encode`")
        return self.model.identity

    def _check_encoding(self, options: Iterable[str]) -> None:
        self._identity()
        self.check_options(self.encode_source, options)
