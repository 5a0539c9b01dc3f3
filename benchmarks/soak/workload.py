"""What a soak asks for, and what each call gives alone."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from musicrt.runtime.audio_writer import write_audio
from musicrt.runtime.bench.calls import decoding_options
from musicrt.runtime.errors import InputError, VerificationError
from musicrt.runtime.generator import Generator
from musicrt.runtime.measure import synthesise_music
from musicrt.runtime.pipeline import Codec

_SEEDS = (7, 8)
_RATE, _SIZE = 2.0, 64
"""Frames a second, and the pixels of a side, of videos that are made up."""


@dataclass(frozen=True)
class Piece:
    """A call of a pipeline's method. expected: the bytes of each array that it gives alone; seconds: what it takes alone."""

    method: str
    source: Any
    options: Mapping[str, Any]
    expected: Sequence[bytes] = ()
    seconds: float = 0.0

    @property
    def streams(self) -> bool:
        """Whether it gives its result in blocks."""
        return self.method.endswith("_stream")

    def run(self, codec: Codec, **options: Any) -> list[bytes]:
        """Make the call in this thread. Raises what it raises."""
        return bits(getattr(codec, self.method)(self.source, **self.options, **options))

    def solve(self, codec: Codec) -> Piece:
        """The same with what it gives alone. Raises VerificationError where it gives something else the next time."""
        expected, begun = self.run(codec), time.perf_counter()
        if self.run(codec) != expected:
            raise VerificationError(f"{self.method} gives something else the second time, alone: a soak can't tell what is right")
        return replace(self, expected=expected, seconds=time.perf_counter() - begun)


@dataclass(frozen=True)
class Workload:
    """wholes and streams: calls that give a result, and blocks. bad: calls that raise InputError. encoded: a file that `decode_file` makes
    another file of, with the bytes `sound`.
    """

    wholes: Sequence[Piece]
    streams: Sequence[Piece]
    bad: Sequence[Piece]
    encoded: Path
    sound: bytes

    @classmethod
    def prepare(cls, codec: Codec, lengths: Sequence[float], steps: int | None, folder: Path) -> Workload:
        """lengths: seconds of the signals. steps: of the sampler, where the system has them. folder: for files of its own.

        Raises VerificationError where a call does not give the same twice, or a bad one is not refused, MusicRTError.
        """
        pieces = [piece.solve(codec) for piece in (*_coding(codec, lengths, steps, folder), *_generating(codec, lengths))]
        encoded, target = folder / "alone.mrt", folder / "alone.wav"
        codec.encode_file(folder / "0.wav", encoded)
        codec.decode_file(encoded, target, **decoding_options(codec, steps))
        bad = _bad(codec, folder)
        for piece in bad:
            try:
                piece.run(codec)
            except InputError:
                continue
            raise VerificationError(f"{piece.method} of a wrong input gives a result, alone: a soak can't tell what is right")
        wholes, streams = [one for one in pieces if not one.streams], [one for one in pieces if one.streams]
        return cls(wholes, streams, bad, encoded, target.read_bytes())


def bits(result: Any) -> list[bytes]:
    """The bytes of an array, or of each of several."""
    return [one.tobytes() for one in ([result] if isinstance(result, np.ndarray) else result)]


def _coding(codec: Any, lengths: Sequence[float], steps: int | None, folder: Path) -> Iterable[Piece]:
    """Of arrays and files, alone and several at once, to and from encoded values."""
    options = decoding_options(codec, steps)
    sounds = [synthesise_music(length, codec.sample_rate) for length in lengths]
    for number, sound in enumerate(sounds):
        write_audio(path := folder / f"{number}.wav", sound, codec.sample_rate)
        yield Piece("encode", sound, {})
        yield Piece("encode", path, {})
        values = codec.encode(sound)
        for seed in _SEEDS if "seed" in options else _SEEDS[:1]:
            seeded = {**options, "seed": seed} if "seed" in options else options
            yield Piece("decode", values, seeded)
            yield Piece("decode_stream", values, seeded)
        for method, source in (("encode_batch", sound), ("decode_batch", values)):
            if hasattr(codec, method):
                yield Piece(method, [source, source], options if method == "decode_batch" else {})


def _generating(codec: Codec, lengths: Sequence[float]) -> Iterable[Piece]:
    """Of systems that make music for videos."""
    if not isinstance(codec, Generator):
        return
    for length in lengths:
        frames = np.random.default_rng(0).integers(0, 256, (max(round(length * _RATE), 1), _SIZE, _SIZE, 3), np.uint8)
        for method in ("generate", "generate_stream"):
            yield Piece(method, codec.clip(frames, _RATE), {"seed": _SEEDS[0], "duration": length})


def _bad(codec: Codec, folder: Path) -> list[Piece]:
    sound = synthesise_music(1.0, codec.sample_rate)
    damaged = folder / "damaged.wav"
    damaged.write_bytes((folder / "0.wav").read_bytes()[:20])
    return [
        Piece("encode", np.full_like(sound, np.nan), {}),
        Piece("encode", sound[:, :0], {}),
        Piece("encode", folder / "missing.wav", {}),
        Piece("encode", damaged, {}),
        Piece("decode", codec.shortest[..., 0, 0], {}),
        Piece("decode", np.full(codec.shortest.shape, np.nan, np.float32), {}),
        Piece("decode_stream", codec.shortest[..., :0], {}),
    ]
