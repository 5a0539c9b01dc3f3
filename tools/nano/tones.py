"""Own synthesis in NumPy: instruments of drawn timbre, drums, reverberation; mono at 44.1 kHz."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.signal import fftconvolve, lfilter

from tools.nano.pieces import HAT, KICK, OPEN_HAT, SNARE, Note, Piece

Audio = NDArray[np.float32]
RATE = 44100
KINDS = ("additive", "plucked", "fm")
HELD_OUT_KIND = "hollow"
"""Odd harmonics with a slow attack: a timbre of the held-out pieces only."""


@dataclass(frozen=True)
class Timbre:
    """What makes an instrument; drawn once per part."""

    kind: str
    slope: float
    decay: float
    attack: float
    vibrato: float
    ratio: float
    index: float


def draw_timbre(rng: np.random.Generator, kinds: tuple[str, ...] = KINDS) -> Timbre:
    return Timbre(
        kind=str(rng.choice(kinds)),
        slope=rng.uniform(0.5, 2.2),
        decay=float(np.exp(rng.uniform(np.log(0.3), np.log(6.0)))),
        attack=float(np.exp(rng.uniform(np.log(0.002), np.log(0.08)))),
        vibrato=rng.uniform(0.0, 0.006) if rng.random() < 0.4 else 0.0,
        ratio=float(rng.choice((0.5, 1.0, 2.0, 3.0, 3.5))),
        index=rng.uniform(0.5, 4.0),
    )


def render(piece: Piece, seed: int, *, kinds: tuple[str, ...] = KINDS) -> Audio:
    """A piece by instruments of this module: float32 [seconds * RATE], peak 0.9."""
    rng = np.random.default_rng((9, seed))
    audio = np.zeros(round(piece.seconds * RATE) + RATE, np.float32)
    for part in piece.parts:
        timbre, level = draw_timbre(rng, kinds), rng.uniform(0.5, 1.0) * (1.0 if part.role == "melody" else 0.6)
        for note in part.notes:
            sound = hit(note.pitch, rng) if part.role == "drums" else play(note, timbre)
            first = round(note.start * RATE)
            sound = sound[: len(audio) - first]
            audio[first : first + len(sound)] += np.float32(level * note.velocity) * sound
    if rng.random() < 0.6:
        audio = reverberate(audio, rng)
    return normalise(audio[: round(piece.seconds * RATE)])


def play(note: Note, timbre: Timbre) -> Audio:
    """One note, with 60 ms of release behind it."""
    frequency = 440.0 * 2.0 ** ((note.pitch - 69) / 12.0)
    size = max(round((note.length + 0.06) * RATE), 256)
    time = np.asarray(np.arange(size) / RATE, np.float32)
    if timbre.kind == "plucked":
        return np.asarray(_pluck(frequency, time, timbre) * _envelope(time, 0.001), np.float32)
    phase = frequency * time
    if timbre.vibrato:
        phase += frequency * timbre.vibrato / 5.5 * np.sin(2 * np.pi * 5.5 * time) * np.minimum(time * 4, 1)
    turns = (2 * np.pi * phase).astype(np.float32)
    fade = np.exp(-timbre.decay * time)
    if timbre.kind == "fm":
        sound = np.sin(turns + timbre.index * np.exp(-2 * timbre.decay * time) * np.sin(timbre.ratio * turns)) * fade
    else:
        hollow = timbre.kind == HELD_OUT_KIND
        sound = np.zeros_like(time)
        for harmonic in range(1, min(24, int(14000 / frequency)) + 1, 2 if hollow else 1):
            bright = np.exp(-0.15 * timbre.decay * (harmonic - 1) * time)
            sound += harmonic**-timbre.slope * np.sin(harmonic * turns) * bright
        sound *= 1.0 if hollow else fade
    return np.asarray(sound * _envelope(time, 0.05 if timbre.kind == HELD_OUT_KIND else timbre.attack), np.float32)


def _pluck(frequency: float, time: Audio, timbre: Timbre) -> Audio:
    """Karplus and Strong's string: a burst of noise in a loop that dulls it."""
    period = max(round(RATE / frequency - 0.5), 2)
    burst = np.zeros(len(time))
    noise = np.random.default_rng(period).uniform(-1, 1, period)
    burst[:period] = lfilter([1 - 0.3 * timbre.slope], [1, -0.3 * timbre.slope], noise)[: len(burst)]
    loss = 0.5 * np.exp(-0.5 * timbre.decay / frequency)
    denominator = np.zeros(period + 2)
    denominator[0], denominator[period], denominator[period + 1] = 1.0, -loss, -loss
    return np.asarray(lfilter([1.0], denominator, burst), np.float32)


def _envelope(time: Audio, attack: float) -> Audio:
    return np.asarray(np.clip(np.minimum(time / attack, (time[-1] - time) / 0.05), 0.0, 1.0), np.float32)


def hit(drum: int, rng: np.random.Generator) -> Audio:
    """One stroke of a drum."""
    time = np.arange(round(0.35 * RATE)) / RATE
    noise = rng.standard_normal(len(time))
    if drum == KICK:
        sound = np.sin(2 * np.pi * (50 * time + 8 * (1 - np.exp(-30 * time)))) * np.exp(-12 * time) + 0.1 * noise * np.exp(-200 * time)
    elif drum == SNARE:
        sound = 0.5 * np.sin(2 * np.pi * 190 * time) * np.exp(-20 * time) + 0.4 * noise * np.exp(-18 * time)
    else:
        rate = {HAT: 60.0, OPEN_HAT: 12.0}.get(drum, 40.0)
        sound = 0.3 * lfilter([1, -1], [1, 0.5], noise) * np.exp(-rate * time)
    return np.asarray(sound, np.float32)


def reverberate(audio: Audio, rng: np.random.Generator) -> Audio:
    """A room of drawn size around the sound."""
    seconds = rng.uniform(0.2, 1.2)
    time = np.arange(round(seconds * RATE)) / RATE
    room = rng.standard_normal(len(time)) * np.exp(-6.9 * time / seconds)
    wet = fftconvolve(audio, room)[: len(audio)]
    share = rng.uniform(0.05, 0.35)
    return np.asarray(audio + share * wet * np.abs(audio).max() / (np.abs(wet).max() + 1e-9), np.float32)


def normalise(audio: Audio, peak: float = 0.9) -> Audio:
    return np.asarray(audio * (peak / max(float(np.abs(audio).max()), 1e-6)), np.float32)
