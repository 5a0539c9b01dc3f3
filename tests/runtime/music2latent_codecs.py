"""What the tests of Music2Latent's pipeline share: sizes of the tiny network and signals."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from tests.reference import signals

Float = NDArray[np.float32]

HOP, STEP = 64, 512  # samples in a hop and behind a latent of the tiny network
EDGE = 3 * HOP
CHUNK = 8 * STEP  # eight latents


def music(samples: int, channels: int = 1) -> Float:
    return signals.audio("music", samples / 44100, 44100, channels)


def random_latents(length: int, channels: int = 1, seed: int = 0) -> Float:
    return 4.0 * np.random.default_rng(seed).standard_normal((channels, 8, length), np.float32)


def assert_close(got: Float, expected: Float, tolerance: float = 1e-5) -> None:
    assert got.shape == expected.shape
    assert np.linalg.norm(got - expected) <= tolerance * np.linalg.norm(expected)
