"""Representative inputs: the beginnings of audio files, or music that the package synthesises; some to calibrate with, some to judge by."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from musicrt.runtime.audio import stream_audio
from musicrt.runtime.errors import AudioError, InputError
from musicrt.runtime.measure import synthesise_music

SYNTHETIC = "synthetic"
_LEAST = 0.05
"""Seconds of a piece; shorter ones say nothing."""
_VOICES = (55.0, 82.4, 110.0, 146.8, 196.0, 261.6, 329.6, 440.0)


@dataclass(frozen=True)
class Piece:
    """A piece of audio at the model's rate: float32 [samples], mono."""

    name: str
    audio: NDArray[np.float32]


@dataclass(frozen=True)
class Inputs:
    """`calibrating` pieces give ranges, `judging` ones the quality; no piece is both. `words`, `sha256`: what the manifest says of them.

    `seconds`: of a piece, and of what a system generates.
    """

    calibrating: tuple[Piece, ...]
    judging: tuple[Piece, ...]
    words: str
    sha256: str
    seconds: float

    @property
    def pieces(self) -> tuple[Piece, ...]:
        return (*self.calibrating, *self.judging)


def gather_inputs(source: str | Path, sample_rate: int, *, seconds: float = 6.0, most: int = 16) -> Inputs:
    """The pieces of a folder, or of `synthetic`: the first `seconds` of at most `most` files, in the order of their names.

    Every third piece judges; one that is alone is cut in two. Raises InputError: no folder, nothing in it that can be read, too short.
    """
    if not 2 * _LEAST <= seconds < math.inf or most < 1:
        raise InputError(f"got {most} pieces of {seconds} s, expected at least one, of at least {2 * _LEAST} s")
    if str(source) == SYNTHETIC:
        pieces, words = _synthesise(sample_rate, seconds), f"synthetic music, 3 pieces of {seconds:g} s"
    else:
        pieces, left = _read_folder(Path(source), sample_rate, seconds, most)
        words = f"{len(pieces)} audio file{'' if len(pieces) == 1 else 's'}, {seconds:g} s of each" + (f"; {left} not read" if left else "")
    digest = hashlib.sha256()
    for piece in pieces:
        digest.update(piece.audio.tobytes())
    return Inputs(*_share(pieces), words, digest.hexdigest(), seconds)


def _share(pieces: Sequence[Piece]) -> tuple[tuple[Piece, ...], tuple[Piece, ...]]:
    if len(pieces) == 1:
        (piece,) = pieces
        half = len(piece.audio) // 2
        pieces = [Piece(f"{piece.name}, first half", piece.audio[:half]), Piece(f"{piece.name}, second half", piece.audio[half:])]
    judging = tuple(piece for index, piece in enumerate(pieces) if index % 3 == min(2, len(pieces) - 1))
    return tuple(piece for piece in pieces if piece not in judging), judging


def _read_folder(folder: Path, sample_rate: int, seconds: float, most: int) -> tuple[list[Piece], int]:
    """Pieces, and how many files were no audio. Hidden files are left alone."""
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder; expected one with audio files, or {SYNTHETIC!r}")
    files = sorted(path for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))
    pieces: list[Piece] = []
    reasons: list[str] = []
    for path in files:
        if len(pieces) == most:
            break
        try:
            audio = _read_start(path, sample_rate, seconds)
        except AudioError as error:
            reasons.append(str(error))
            continue
        if len(audio) < 2 * _LEAST * sample_rate or not np.any(audio) or not np.isfinite(audio).all():
            reasons.append(f"{path.name} is silent, broken or shorter than {2 * _LEAST} s")
            continue
        pieces.append(Piece(path.name, audio))
    if not pieces:
        why = f"; the first of {len(files)} files: {reasons[0]}" if reasons else ""
        raise InputError(f"{folder} holds no audio to calibrate with{why}; give a folder of audio files, or {SYNTHETIC!r}")
    return pieces, len(reasons)


def _read_start(path: Path, sample_rate: int, seconds: float) -> NDArray[np.float32]:
    """The beginning of a file, its channels averaged; no more of it is held."""
    wanted, blocks, held = round(seconds * sample_rate), [], 0
    for block in stream_audio(path, sample_rate):
        blocks.append(block.mean(axis=0, dtype=np.float32))
        held += block.shape[1]
        if held >= wanted:
            break
    return np.concatenate(blocks)[:wanted] if blocks else np.zeros(0, np.float32)


def _synthesise(sample_rate: int, seconds: float) -> list[Piece]:
    """What `musicrt bench` hears, and two pieces that are louder, busier and wider: notes with overtones, and noise for drums."""
    pieces = [Piece("chords", synthesise_music(seconds, sample_rate)[0])]
    count = round(seconds * sample_rate)
    time = np.arange(count) / sample_rate
    for number, (name, tempo, gain) in enumerate((("band", 2.0, 0.25), ("solo", 3.0, 0.12))):
        random = np.random.default_rng(number)
        audio = np.zeros(count)
        for beat in np.arange(0.0, seconds, 1.0 / tempo):
            after = np.clip(time - beat, 0.0, None)
            decay = np.exp(-4.0 * after) * np.clip(after / 0.005, 0.0, 1.0) * (time >= beat)
            for pitch in random.choice(_VOICES, size=3 - 2 * number, replace=False):
                overtones = sum(np.sin(2 * np.pi * pitch * k * after) / k**1.3 for k in range(1, 9) if pitch * k < sample_rate / 2)
                audio += gain * decay * overtones
            audio += (0.2 - 0.15 * number) * random.standard_normal(count) * np.exp(-40.0 * after) * (time >= beat)
        pieces.append(Piece(name, (audio / max(1.0, float(np.abs(audio).max()))).astype(np.float32)))
    return pieces
