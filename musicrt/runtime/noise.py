"""Standard normal noise that is a pure function of seed and position, the same on every machine and device.

Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011) followed by the Box-Muller transform.
The key is the 64-bit seed. The counter of four normals is

    word 0: which four of the column        word 2: the channel
    word 1: the frame                       word 3: the draw (0: initial noise, k: after step k)

and they are, from the random words r0..r3 with u = (r + 0.5) / 2**32,

    sqrt(-2 ln u0) cos(2 pi u1), sqrt(-2 ln u0) sin(2 pi u1), and the same of u2, u3.

So a frame's noise depends neither on the window nor on the batch in which it is computed: windows that overlap see the same
noise, and a seed means the same noise whatever the chunking.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from musicrt.runtime.errors import InputError

_MULTIPLIERS = (np.uint64(0xD2511F53), np.uint64(0xCD9E8D57))
_WEYL = (0x9E3779B9, 0xBB67AE85)
_MASK = np.uint64(0xFFFFFFFF)
_FRAMES_AT_ONCE = 64
_UNIFORM = 0xFFFFFFFF  # in the place of a draw


def philox(counter: tuple[NDArray[np.uint32], ...], seed: int) -> tuple[NDArray[np.uint32], ...]:
    """Ten rounds of Philox4x32 on four counter words (arrays of one shape) -> four random words."""
    a, b, c, d = (word.astype(np.uint64) for word in counter)
    key0, key1 = seed & 0xFFFFFFFF, seed >> 32
    shift = np.uint64(32)
    for _ in range(10):
        first, second = a * _MULTIPLIERS[0], c * _MULTIPLIERS[1]
        a, b, c, d = (second >> shift) ^ b ^ np.uint64(key0), second & _MASK, (first >> shift) ^ d ^ np.uint64(key1), first & _MASK
        key0, key1 = (key0 + _WEYL[0]) & 0xFFFFFFFF, (key1 + _WEYL[1]) & 0xFFFFFFFF
    return tuple(word.astype(np.uint32) for word in (a, b, c, d))


def normal_columns(seed: int, rows: int, frames: range, *, channel: int, draw: int) -> NDArray[np.float32]:
    """Noise of some frames: float32 [rows, len(frames)]. `rows` is the size of a column (planes x bins), a multiple of 4."""
    out = np.empty((rows, len(frames)), np.float32)
    quads = np.arange(rows // 4, dtype=np.uint32)
    for start in range(0, len(frames), _FRAMES_AT_ONCE):  # bounds the temporaries
        part = np.array(frames[start : start + _FRAMES_AT_ONCE], dtype=np.uint32)
        shape = (rows // 4, len(part))
        counter = (
            np.broadcast_to(quads[:, None], shape),
            np.broadcast_to(part, shape),
            np.full(shape, channel, np.uint32),
            np.full(shape, draw, np.uint32),
        )
        uniform = [(word.astype(np.float64) + 0.5) * 2.0**-32 for word in philox(counter, seed)]
        for pair in (0, 2):
            radius, angle = np.sqrt(-2.0 * np.log(uniform[pair])), 2.0 * np.pi * uniform[pair + 1]
            out[pair::4, start : start + len(part)] = radius * np.cos(angle)
            out[pair + 1 :: 4, start : start + len(part)] = radius * np.sin(angle)
    return out


@dataclass(frozen=True)
class PlacedNoise:
    """The noise of a batch by position: `noise(k)` is draw k, float32 [len(places), *shape]. The samplers on a GPU draw it there.

    places: channel and first frame of each item. shape: [planes, bins, frames], or [planes, frames, bins] where not `frames_last`.
    """

    seed: int
    places: tuple[tuple[int, int], ...]
    shape: tuple[int, int, int]
    frames_last: bool = True

    def __call__(self, draw: int) -> NDArray[np.float32]:
        planes, *inner = self.shape
        bins, frames = inner if self.frames_last else reversed(inner)
        columns = [
            normal_columns(self.seed, planes * bins, range(start, start + frames), channel=channel, draw=draw)
            for channel, start in self.places
        ]
        drawn = np.stack(columns).reshape(len(self.places), planes, bins, frames)
        return drawn if self.frames_last else np.ascontiguousarray(drawn.transpose(0, 1, 3, 2))


def uniform_numbers(seed: int, count: int, *, draw: int) -> NDArray[np.float64]:
    """The numbers of one draw, uniform in [0, 1) with 53 bits: float64 [count]. No normals have their counters."""
    columns = np.arange(count, dtype=np.uint32)
    words = philox((columns, np.full_like(columns, draw), np.zeros_like(columns), np.full_like(columns, _UNIFORM)), seed)
    high, low = (word.astype(np.uint64) for word in words[:2])
    return ((high << np.uint64(21)) | (low >> np.uint64(11))).astype(np.float64) * 2.0**-53


def check_seed(seed: object) -> int:
    """A seed from 0 to 2**64 - 1. Raises InputError."""
    if isinstance(seed, bool) or not isinstance(seed, int | np.integer) or not 0 <= int(seed) < 1 << 64:
        raise InputError(f"got seed {seed!r}, expected a whole number from 0 to 2**64 - 1")
    return int(seed)


def choose_seed(seed: object) -> int:
    """The given seed; for None a fresh one from the operating system. Raises InputError."""
    return int(np.random.SeedSequence().generate_state(1, np.uint64)[0]) if seed is None else check_seed(seed)


def refuse_seed(seed: object) -> None:
    """Raises InputError for a seed beside noise that is given."""
    if seed is not None:
        raise InputError("got a seed and noise, expected one of the two")
