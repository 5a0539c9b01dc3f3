"""Packed codes: the layout bit by bit, every width, and what does not fit."""

from __future__ import annotations

import math
import tracemalloc
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from musicrt.runtime.errors import InputError
from musicrt.runtime.packing import MOST_BITS, bits_of, pack_codes, unpack_codes
from tests.conftest import refused


def random_codes(*shape: int, bits: tuple[int, ...]) -> NDArray[np.int64]:
    return np.random.default_rng(0).integers(0, [1 << count for count in bits], (*shape, len(bits)))


def test_layout_is_as_documented() -> None:
    codes = np.array([[[5, 2], [1, 3]], [[7, 0], [0, 1]]])
    # 101 10, 001 11, 111 00, 000 01, and four bits to fill up
    payload = pack_codes(codes, (3, 2))
    assert [f"{byte:08b}" for byte in payload] == ["10110001", "11111000", "00010000"]
    np.testing.assert_array_equal(unpack_codes(payload, (2, 2, 2), (3, 2)), codes)


@pytest.mark.parametrize("bits", [(1,), (13, 13), (14, 13), (15, 13), (8, 16), (3, 5, 7, 11), (MOST_BITS,), (1, MOST_BITS)])
@pytest.mark.parametrize("shape", [(1,), (2, 7), (1, 256), (3, 1, 5)])
def test_codes_come_back(shape: tuple[int, ...], bits: tuple[int, ...]) -> None:
    codes = random_codes(*shape, bits=bits)
    codes[(0,) * len(shape)], codes[(-1,) * len(shape)] = 0, [(1 << count) - 1 for count in bits]
    payload = pack_codes(codes, bits)
    assert payload.dtype == np.uint8
    assert payload.size == math.ceil(math.prod(shape) * sum(bits) / 8)
    unpacked = unpack_codes(payload, codes.shape, bits)
    assert unpacked.dtype == np.int64
    np.testing.assert_array_equal(unpacked, codes)


def test_strided_codes_are_packed_as_they_look() -> None:
    codes = random_codes(4, 6, bits=(9, 4))
    np.testing.assert_array_equal(pack_codes(codes.transpose(1, 0, 2), (9, 4)), pack_codes(codes.transpose(1, 0, 2).copy(), (9, 4)))


@pytest.mark.parametrize(("size", "bits"), [(1, 1), (2, 1), (3, 2), (4096, 12), (8192, 13), (8193, 14), (16384, 14), (1 << 32, 32)])
def test_bits_follow_from_the_size_of_a_codebook(size: int, bits: int) -> None:
    assert bits_of(size) == bits


@pytest.mark.parametrize("size", [0, -1, (1 << 32) + 1])
def test_impossible_codebook_is_refused(size: int) -> None:
    with refused(InputError, f"a codebook of {size} entries"):
        bits_of(size)


@pytest.mark.parametrize(("code", "index"), [(16, 0), (-1, 0), (8, 1), (1 << 40, 1), (-(1 << 63), 1)])
def test_code_that_does_not_fit_is_refused(code: int, index: int) -> None:
    codes = random_codes(2, 5, bits=(4, 3))
    codes[1, 3, index] = code
    with refused(InputError, code, f"in codebook {index}", f"expected 0 to {(15, 7)[index]}"):
        pack_codes(codes, (4, 3))


@pytest.mark.parametrize("codes", [np.zeros((2, 3), np.int64), np.zeros((3, 2), np.int32), np.zeros((3, 2)), np.int64(3)])
def test_other_arrays_are_refused(codes: Any) -> None:
    with refused(InputError, codes.dtype, list(codes.shape), "expected int64 [..., 2]"):
        pack_codes(codes, (4, 3))


@pytest.mark.parametrize("frames", [32767, 32768, 32769, 100_003])
@pytest.mark.parametrize("bits", [(1,), (14, 13)])
def test_codes_of_several_pieces_come_back(frames: int, bits: tuple[int, ...]) -> None:
    codes = random_codes(frames, bits=bits)
    np.testing.assert_array_equal(unpack_codes(pack_codes(codes, bits), codes.shape, bits), codes)


def test_unpacking_takes_little_more_memory_than_its_result() -> None:
    payload = pack_codes(np.zeros((1_000_000, 2), np.int64), (14, 13))
    tracemalloc.start()
    try:
        codes = unpack_codes(payload, (1_000_000, 2), (14, 13))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 1.2 * codes.nbytes


@pytest.mark.parametrize("bits", [(), (0, 3), (-1, 3), (33, 3)])
def test_impossible_bits_are_refused(bits: tuple[int, ...]) -> None:
    with refused(InputError, f"bits={list(bits)}"):
        pack_codes(np.zeros((3, 2), np.int64), bits)
    with refused(InputError, f"bits={list(bits)}"):
        unpack_codes(np.zeros(3, np.uint8), (3, 2), bits)


@pytest.mark.parametrize("shape", [(), (5,), (5, 3), (0, 2), (-5, 2), (-5, -2), (5, 0, 2), (5, -1, 2)])
def test_impossible_shape_is_refused(shape: tuple[int, ...]) -> None:
    with refused(InputError, f"shape {list(shape)}"):
        unpack_codes(np.zeros(5, np.uint8), shape, (4, 4))


@pytest.mark.parametrize("shape", [(4, 2), (6, 2), (1 << 40, 2), (1 << 62, 1 << 62, 2), (5, 5, 2)])
def test_payload_of_another_size_is_refused_before_memory_is_taken(shape: tuple[int, ...]) -> None:
    with refused(InputError, "uint8 [5]", f"expected uint8 [{math.prod(shape[:-1])}]"):
        unpack_codes(np.zeros(5, np.uint8), shape, (4, 4))


@pytest.mark.parametrize("payload", [np.zeros((5, 1), np.uint8), np.zeros(5, np.int8), np.zeros(5, np.float32)])
def test_payload_of_another_kind_is_refused(payload: Any) -> None:
    with refused(InputError, payload.dtype, "expected uint8 [5]"):
        unpack_codes(payload, (5, 2), (4, 4))


def test_surplus_bits_are_refused() -> None:
    payload = pack_codes(np.zeros((3, 2), np.int64), (4, 3))
    payload[-1] = 1
    with refused(InputError, "beyond the 21"):
        unpack_codes(payload, (3, 2), (4, 3))
