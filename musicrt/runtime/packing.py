"""Codes of several codebooks in as many bits as they need.

Frame after frame, in a frame codebook after codebook, each code with its most significant bit first and no gap between any of
them; zero bits fill up the last byte.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from musicrt.runtime.errors import InputError

MOST_BITS = 32
"""Of one code."""
_PIECE = 1 << 15  # frames that are unpacked together; a multiple of 8, so that each piece begins with a byte


def bits_of(size: int) -> int:
    """Bits that each code of a codebook with `size` entries takes: 14 for 16384, 1 for 1. Raises InputError."""
    if not 1 <= size <= 1 << MOST_BITS:
        raise InputError(f"got a codebook of {size} entries, expected 1 to 2**{MOST_BITS}")
    return max((size - 1).bit_length(), 1)


def pack_codes(codes: NDArray[np.int64], bits: Sequence[int]) -> NDArray[np.uint8]:
    """Pack int64 codes [..., q], those of codebook i in `bits[i]` bits each: uint8 [ceil(n * sum(bits) / 8)]. Raises InputError."""
    _check_bits(bits)
    if codes.dtype != np.int64 or codes.shape[-1:] != (len(bits),):
        raise InputError(f"got {codes.dtype} codes {list(codes.shape)}, expected int64 [..., {len(bits)}] with bits={list(bits)}")
    columns = []
    for index, count in enumerate(bits):
        column = codes[..., index].reshape(-1)
        if column.size and not 0 <= column.min() <= column.max() < 1 << count:
            raise InputError(
                f"got codes from {column.min()} to {column.max()} in codebook {index}, "
                f"expected 0 to {(1 << count) - 1}, which is what {count} bits hold"
            )
        columns += [(column >> shift & 1).astype(np.uint8) for shift in reversed(range(count))]
    return np.packbits(np.stack(columns, axis=1))


def unpack_codes(payload: NDArray[np.uint8], shape: Sequence[int], bits: Sequence[int]) -> NDArray[np.int64]:
    """The inverse: int64 `shape`, whose last size is the number of codebooks. Raises InputError for a payload that does not fit."""
    _check_bits(bits)
    if not shape or min(shape) < 1 or shape[-1] != len(bits):
        raise InputError(f"got codes of shape {list(shape)}, expected sizes from 1 on and {len(bits)} at the end with bits={list(bits)}")
    frames, width = math.prod(shape[:-1]), sum(bits)
    size = -(-frames * width // 8)  # exact however large, and compared before anything is allocated
    if payload.dtype != np.uint8 or payload.shape != (size,):
        raise InputError(f"got {payload.dtype} {list(payload.shape)}, expected uint8 [{size}] for {list(shape)} with bits={list(bits)}")
    spare = 8 * size - frames * width
    if int(payload[-1]) & (1 << spare) - 1:
        raise InputError(f"got bits beyond the {frames * width} of the codes, expected zeros")
    codes = np.zeros((frames, len(bits)), np.int64)
    for start in range(0, frames, _PIECE):
        piece = codes[start : start + _PIECE]
        unpacked = np.unpackbits(payload[start * width // 8 :], count=len(piece) * width)
        columns = iter(unpacked.reshape(len(piece), width).T)
        for index, count in enumerate(bits):
            for _ in range(count):
                piece[:, index] = piece[:, index] << 1 | next(columns)
    return codes.reshape(shape)


def _check_bits(bits: Sequence[int]) -> None:
    if not bits or not all(1 <= count <= MOST_BITS for count in bits):
        raise InputError(f"got bits={list(bits)}, expected 1 to {MOST_BITS} for each codebook")
