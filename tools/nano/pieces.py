"""Algorithmic pieces: scales, chords and rhythm as notes, every one a function of its seed."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

SCALES = {
    "major": (0, 2, 4, 5, 7, 9, 11),
    "minor": (0, 2, 3, 5, 7, 8, 10),
    "dorian": (0, 2, 3, 5, 7, 9, 10),
    "mixolydian": (0, 2, 4, 5, 7, 9, 10),
    "harmonic": (0, 2, 3, 5, 7, 8, 11),
}
PROGRESSIONS = ((0, 4, 5, 3), (0, 3, 4, 4), (5, 3, 0, 4), (0, 5, 1, 4), (0, 0, 3, 4), (1, 4, 0, 0), (0, 2, 3, 4), (5, 4, 3, 4))
RHYTHMS = ((1, 1, 1, 1), (0.5, 0.5, 1, 0.5, 0.5, 1), (1.5, 0.5, 1, 1), (0.5,) * 8, (2, 1, 1), (0.75, 0.75, 0.5, 1, 1), (1, 0.5, 0.5, 2))
KICK, SNARE, HAT, OPEN_HAT = 36, 38, 42, 46
DRUMS = (
    {KICK: (0, 2), SNARE: (1, 3), HAT: (0, 0.5, 1, 1.5, 2, 2.5, 3, 3.5)},
    {KICK: (0, 1.5, 2), SNARE: (1, 3), HAT: (0, 1, 2, 3), OPEN_HAT: (3.5,)},
    {KICK: (0, 1, 2, 3), SNARE: (1, 3), HAT: (0.5, 1.5, 2.5, 3.5)},
    {KICK: (0, 2.5), SNARE: (1, 2.75, 3), HAT: (0, 0.25, 0.5, 1, 1.5, 2, 2.25, 2.5, 3, 3.5)},
)
MELODIC = tuple(range(80))
"""General MIDI programs, without effects and percussion."""
HELD_OUT = (6, 11, 21, 25, 40, 56, 65, 68, 73, 79)
"""Programs that training never hears: harpsichord, vibraphone, accordion, steel guitar, violin, trumpet, alto sax, oboe, flute, ocarina."""
BASSES = (32, 33, 34, 35, 36, 38, 39, 43)


@dataclass(frozen=True)
class Note:
    """One note; times in seconds, pitch in semitones (of drums: what is hit), velocity from 0 to 1."""

    start: float
    length: float
    pitch: int
    velocity: float


@dataclass
class Part:
    """Notes of one instrument; `program` is General MIDI's, `role` one of melody, chords, bass, drums."""

    role: str
    program: int
    notes: list[Note] = field(default_factory=list)


@dataclass
class Piece:
    seconds: float
    parts: list[Part]


def compose(seed: int, seconds: float, *, programs: tuple[int, ...], roles: tuple[str, ...] | None = None) -> Piece:
    """A piece of a given length. programs: to draw instruments from; roles: None draws them, too."""
    rng = np.random.default_rng((8, seed))
    scale = SCALES[str(rng.choice(list(SCALES)))]
    key, beat = int(rng.integers(0, 12)), 60.0 / rng.uniform(70, 160)
    if roles is None:
        chosen = [role for role, share in (("melody", 0.85), ("chords", 0.6), ("bass", 0.5), ("drums", 0.4)) if rng.random() < share]
        roles = tuple(chosen) or ("melody",)
    progression = PROGRESSIONS[rng.integers(len(PROGRESSIONS))]
    bars = int(np.ceil(seconds / (4 * beat)))
    parts = []
    for role in roles:
        program = int(rng.choice([p for p in BASSES if p in programs] or programs)) if role == "bass" else int(rng.choice(programs))
        part = Part(role, program)
        beats = _WRITERS[role](rng, bars, key, scale, progression)
        part.notes = [
            Note(start * beat, min(length * beat, seconds - start * beat), pitch, velocity)
            for start, length, pitch, velocity in beats
            if start * beat < seconds - 0.1
        ]
        parts.append(part)
    return Piece(seconds, parts)


_Beats = list[tuple[float, float, int, float]]


def _pitch(key: int, scale: tuple[int, ...], degree: int, octave: int) -> int:
    return 12 * (octave + 1 + degree // 7) + key + scale[degree % 7]


def _melody(rng: np.random.Generator, bars: int, key: int, scale: tuple[int, ...], progression: tuple[int, ...]) -> _Beats:
    """A walk along the scale that meets the chord on strong beats; now and then a plain scale."""
    octave = int(rng.integers(3, 6))
    plain, degree, legato = rng.random() < 0.15, int(rng.integers(0, 7)), rng.uniform(0.5, 1.1)
    rhythms = [RHYTHMS[i] for i in rng.integers(len(RHYTHMS), size=2)]
    notes: _Beats = []
    direction = 1
    for bar in range(bars):
        beat = 0.0
        for length in rhythms[bar % 2]:
            if plain:
                direction = -direction if not 0 <= degree + direction <= 10 else direction
                degree += direction
            elif beat % 2 == 0:
                degree = progression[bar % 4] + int(rng.choice((0, 2, 4)))
            else:
                degree = int(np.clip(degree + rng.integers(-2, 3), -3, 11))
            if plain or rng.random() > 0.1:
                notes.append((4 * bar + beat, length * legato, _pitch(key, scale, degree, octave), rng.uniform(0.5, 1.0)))
            beat += length
    return notes


def _chords(rng: np.random.Generator, bars: int, key: int, scale: tuple[int, ...], progression: tuple[int, ...]) -> _Beats:
    """Held or repeated triads, or broken ones."""
    style, octave, level = int(rng.integers(3)), int(rng.integers(3, 5)), rng.uniform(0.35, 0.75)
    notes: _Beats = []
    for bar in range(bars):
        triad = [_pitch(key, scale, progression[bar % 4] + third, octave) for third in (0, 2, 4)]
        if style == 2:
            order = [0, 1, 2, 1] * 2
            notes += [(4 * bar + 0.5 * i, 0.7, triad[note], level * rng.uniform(0.8, 1.0)) for i, note in enumerate(order)]
        else:
            hits = (0.0,) if style == 0 else (0.0, 1.0, 2.0, 3.0)
            length = 3.9 if style == 0 else 0.6
            notes += [(4 * bar + hit, length, pitch, level) for hit in hits for pitch in triad]
    return notes


def _bass(rng: np.random.Generator, bars: int, key: int, scale: tuple[int, ...], progression: tuple[int, ...]) -> _Beats:
    hits = ((0.0, 2.0), (0.0, 1.0, 2.0, 3.0), (0.0, 1.5, 2.0, 3.5))[rng.integers(3)]
    notes: _Beats = []
    for bar in range(bars):
        for index, hit in enumerate(hits):
            degree = progression[bar % 4] + (4 if index % 2 and rng.random() < 0.4 else 0)
            notes.append((4 * bar + hit, 0.9, _pitch(key, scale, degree, 1), rng.uniform(0.6, 1.0)))
    return notes


def _drums(rng: np.random.Generator, bars: int, _key: int, _scale: tuple[int, ...], _progression: tuple[int, ...]) -> _Beats:
    pattern = DRUMS[rng.integers(len(DRUMS))]
    return [(4 * bar + hit, 0.2, drum, rng.uniform(0.5, 1.0)) for bar in range(bars) for drum, hits in pattern.items() for hit in hits]


_WRITERS = {"melody": _melody, "chords": _chords, "bass": _bass, "drums": _drums}
