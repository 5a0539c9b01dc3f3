"""Codes as callers give them: whole numbers of a codebook, in arrays of any integers or in lists."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from musicrt.runtime.errors import InputError


def read_codes(codes: object, expected: str, remedy: str, name: str = "codes") -> NDArray[Any]:
    """Codes as an array of whole numbers, [1, ...] where they are those of one signal without an axis for signals.

    expected: the shape, in words; what has another is the caller's to refuse. remedy: what to do with several lengths. Raises InputError,
    calling them `name`.
    """
    try:
        array = np.asarray(codes)
    except ValueError:
        raise InputError(f"got {name} of several lengths, expected int64 {expected}; {remedy}") from None
    if array.dtype.kind not in "iu":
        raise InputError(f"got {name} of dtype {array.dtype}, expected whole numbers (int64 {expected})")
    return array[None] if array.ndim == 2 else array


def check_range(codes: NDArray[Any], size: int, name: str = "codes") -> None:
    """Raises InputError, calling them `name`, for codes that a codebook of so many entries has not."""
    if codes.min() < 0 or codes.max() >= size:
        raise InputError(f"got {name} from {codes.min()} to {codes.max()}, expected 0 to {size - 1}; load the bundle they were made with")
