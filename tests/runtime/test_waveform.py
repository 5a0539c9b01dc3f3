"""Arrays of users: which are taken, and what is said of the others."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from musicrt.runtime.errors import InputError
from musicrt.runtime.waveform import check_audio
from tests.runtime.audio_files import noise


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", ">f4"])
@pytest.mark.parametrize("shape", [(100,), (2, 100), (1, 1), (0,), (2, 0), (64, 3), (100, 65)])
def test_float_arrays_are_accepted(dtype: str, shape: tuple[int, ...]) -> None:
    array = np.random.default_rng(0).uniform(-1, 1, shape).astype(dtype)
    audio = check_audio(array)
    assert audio.dtype == np.float32
    assert audio.dtype.isnative
    assert audio.flags.c_contiguous
    assert audio.shape == (shape if len(shape) == 2 else (1, *shape))
    assert (audio.reshape(shape) == array.astype(np.float32)).all()


def test_good_array_is_not_copied_and_strided_one_is() -> None:
    audio = noise(2, 100)
    assert check_audio(audio) is audio
    reversed_audio = check_audio(audio[:, ::-1])
    assert reversed_audio.flags.c_contiguous
    assert (reversed_audio == audio[:, ::-1]).all()


@pytest.mark.parametrize(
    ("array", "reason"),
    [
        (np.zeros((2, 10), np.int16), "int16.*divide by 32768"),
        (np.zeros((2, 10), np.int32), "int32.*divide by 2147483648"),
        (np.zeros((2, 10), np.uint8), "uint8.*subtract 128, then divide by 128"),
        (np.zeros((2, 10), bool), "got dtype bool"),
        (np.zeros((2, 10), np.complex64), "got dtype complex64"),
        (np.zeros((2, 10), object), "got dtype object"),
        (np.zeros((1, 2, 10), np.float32), r"got shape \(1, 2, 10\)"),
        (np.float32(1), "got float32, expected a numpy array"),
        (np.zeros((), np.float32), r"got shape \(\)"),
        ([0.0, 1.0], "got list, expected a numpy array"),
        (np.zeros((0, 10), np.float32), "at least one channel"),
        (np.zeros((65, 64), np.float32), r"got shape \(65, 64\).*pass stem\.T"),
        (np.zeros((48000, 2), np.float32), r"pass stem\.T"),
        (np.array([[0, 1, 2], [0, np.nan, np.inf]]), "got 2 NaN or infinite values, the first at channel 1, sample 1"),
        (np.array([[0, 0, -np.inf], [0, np.nan, 0]]), "got 2 NaN or infinite values, the first at channel 1, sample 1"),
        (np.array([0, 1e300]), "got 1 NaN or infinite values, the first at channel 0, sample 1"),
    ],
)
def test_wrong_arrays_are_refused(array: Any, reason: str) -> None:
    with pytest.raises(InputError, match=f"^stem: {reason if reason.startswith('got') else '.*' + reason}"):
        check_audio(array, "stem")
