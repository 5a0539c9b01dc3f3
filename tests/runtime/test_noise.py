"""Noise by position: the published random words, a normal distribution, no trace of windows, the same values for ever."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from musicrt.runtime.errors import InputError
from musicrt.runtime.models.music2latent.noise import Place, SeededNoise
from musicrt.runtime.noise import check_seed, normal_columns, philox
from tests.conftest import refused

# Counter, key and result of philox4x32-10 in the known-answer tests of Random123; the key's low word comes first.
KNOWN_ANSWERS = [
    ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
]


def words(text: str) -> list[int]:
    return [int(word, 16) for word in text.split()]


def random_words(counter: list[int], seed: int) -> list[int]:
    return [int(word[0]) for word in philox(tuple(np.array([word], np.uint32) for word in counter), seed)]


@pytest.mark.parametrize(("counter", "key", "answer"), KNOWN_ANSWERS)
def test_philox_gives_the_published_words(counter: str, key: str, answer: str) -> None:
    low, high = words(key)
    assert random_words(words(counter), low | high << 32) == words(answer)


def test_normals_are_the_box_muller_transform_of_those_words() -> None:
    seed, channel, draw = 0x299F31D0A4093822, 5, 3
    columns = normal_columns(seed, 12, range(7, 9), channel=channel, draw=draw)
    for quad in range(3):
        for column, frame in enumerate((7, 8)):
            u = [(word + 0.5) / 2**32 for word in random_words([quad, frame, channel, draw], seed)]
            radii = [math.sqrt(-2 * math.log(u[0])), math.sqrt(-2 * math.log(u[2]))]
            angles = [2 * math.pi * u[1], 2 * math.pi * u[3]]
            expected = [f(angle) * radius for radius, angle in zip(radii, angles, strict=True) for f in (math.cos, math.sin)]
            np.testing.assert_allclose(columns[4 * quad : 4 * quad + 4, column], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("seed", "frames", "channel", "draw", "expected"),
    [
        (0, range(2), 0, 0, [[0.99113768, 1.13636732], [-0.92466259, -0.67588300], [-0.61760896, 1.24059176], [-0.48206860, 0.22425114]]),
        (1234567890123456789, range(5, 6), 1, 2, [[0.50908554], [-0.60069722], [1.92736137], [0.27441329]]),
        (2**64 - 1, range(2**32 - 1, 2**32), 3, 7, [[-0.80624413], [1.09355688], [0.99523175], [-0.30783394]]),
    ],
)
def test_seed_keeps_its_meaning(seed: int, frames: range, channel: int, draw: int, expected: list[list[float]]) -> None:
    """Stored values: users keep seeds, so these must never change."""
    columns = normal_columns(seed, 4, frames, channel=channel, draw=draw)
    assert columns.dtype == np.float32
    np.testing.assert_allclose(columns, expected, rtol=2e-6, atol=1e-7)


def test_values_are_standard_normal() -> None:
    values = normal_columns(42, 2048, range(500), channel=0, draw=0).astype(np.float64).ravel()
    count = values.size
    assert abs(values.mean()) < 4 / math.sqrt(count)
    assert abs(values.var() - 1) < 4 * math.sqrt(2 / count)
    assert abs((values**3).mean()) < 4 * math.sqrt(15 / count)
    assert abs((values**4).mean() - 3) < 4 * math.sqrt(96 / count)
    for limit, share in ((1, 0.682689), (2, 0.954500), (3, 0.997300)):
        assert abs((np.abs(values) < limit).mean() - share) < 4 * math.sqrt(share * (1 - share) / count)
    assert 4.3 < np.abs(values).max() < 6.8


@pytest.mark.parametrize("shift", [1, 2, 4])
def test_neighbours_are_independent(shift: int) -> None:
    """Along frames, along rows (the four of one counter among them), and between squares: none is a function of the other."""
    values = normal_columns(42, 1024, range(300), channel=0, draw=0).astype(np.float64)
    others: dict[str, tuple[NDArray[Any], NDArray[Any]]] = {
        "frames": (values[:, shift:], values[:, :-shift]),
        "rows": (values[shift:], values[:-shift]),
        "channels": (values, normal_columns(42, 1024, range(300), channel=shift, draw=0)),
        "draws": (values, normal_columns(42, 1024, range(300), channel=0, draw=shift)),
        "seeds": (values, normal_columns(42 + shift, 1024, range(300), channel=0, draw=0)),
        "high halves of seeds": (values, normal_columns(42 + (shift << 32), 1024, range(300), channel=0, draw=0)),
    }
    for name, (one, other) in others.items():
        for power in (1, 2):
            assert abs(np.corrcoef((one**power).ravel(), (other**power).ravel())[0, 1]) < 5 / math.sqrt(one.size), name


@pytest.mark.parametrize("part", [range(1), range(63, 65), range(64, 128), range(100, 201), range(200, 201)])
def test_columns_do_not_depend_on_the_window(part: range) -> None:
    whole = normal_columns(7, 256, range(201), channel=1, draw=2)
    np.testing.assert_array_equal(normal_columns(7, 256, part, channel=1, draw=2), whole[:, part.start : part.stop])


def test_empty_range_gives_no_columns() -> None:
    assert normal_columns(7, 8, range(0), channel=0, draw=0).shape == (8, 0)


@pytest.mark.parametrize("seed", [0, 1, 2**32, 2**64 - 1, np.int64(5), np.uint64(2**64 - 1)])
def test_legal_seeds(seed: Any) -> None:
    assert check_seed(seed) == int(seed)
    assert type(check_seed(seed)) is int


@pytest.mark.parametrize("seed", [-1, 2**64, 1.0, np.float32(1), True, "1", None, np.int64(-1)])
def test_illegal_seeds_are_refused(seed: Any) -> None:
    with refused(InputError, repr(seed), "0 to 2**64 - 1"):
        check_seed(seed)


def test_batches_put_the_noise_of_each_place_side_by_side() -> None:
    noise = SeededNoise(11)
    places = [Place(channel=0, frame=0), Place(channel=1, frame=0), Place(channel=0, frame=40)]
    drawn: NDArray[np.float32] = noise.at(places, (2, 16, 8))(2)
    assert drawn.shape == (3, 2, 16, 8)
    for place, item in zip(places, drawn, strict=True):
        frames = range(place.frame, place.frame + 8)
        np.testing.assert_array_equal(item.reshape(32, 8), normal_columns(11, 32, frames, channel=place.channel, draw=2))


def test_fresh_seeds_differ_and_can_be_read_back() -> None:
    seeds = {SeededNoise().seed for _ in range(20)}
    assert len(seeds) == 20
    assert max(seeds) > 2**32
    assert SeededNoise(5).seed == 5
