"""Loudness: numbers of BS.1770, independence from blocks, and what stays as it is."""

from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.typing import NDArray

from musicrt.runtime.errors import InputError
from musicrt.runtime.models.vidmuse.loudness import Meter, apply_gain, normalise
from tests.conftest import refused
from tests.runtime.audio_files import noise

RATE = 32000


def tone(seconds: float, frequency: float = 997, level: float = 1.0, rate: int = RATE) -> NDArray[np.float32]:
    return (level * np.sin(2 * np.pi * frequency * np.arange(round(seconds * rate)) / rate)).astype(np.float32)[None]


def loudness(audio: NDArray[np.float32], rate: int = RATE) -> float:
    meter = Meter(rate, len(audio))
    meter.add(audio)
    return meter.lkfs()


@pytest.mark.parametrize("rate", [16000, 32000, 44100, 48000])
def test_sine_at_half_scale(rate: int) -> None:
    """A sine of 997 Hz is as loud as its level says: -3.01 LKFS at full scale."""
    assert loudness(tone(3, level=0.5, rate=rate), rate) == pytest.approx(-3.01 - 6.02, abs=0.15)


def test_two_channels_are_3_db_louder() -> None:
    one = tone(2, level=0.3)
    assert loudness(np.concatenate([one, one])) == pytest.approx(loudness(one) + 3.01, abs=0.01)


def test_high_tones_are_louder_and_low_ones_hardly_heard() -> None:
    assert loudness(tone(2, 8000, 0.2)) == pytest.approx(loudness(tone(2, 200, 0.2)) + 4, abs=0.5)
    assert loudness(tone(2, 10, 0.2)) < loudness(tone(2, 200, 0.2)) - 15


def test_quiet_parts_do_not_count() -> None:
    loud = tone(2, level=0.4)
    gated = loudness(np.concatenate([loud, np.zeros((1, 6 * RATE), np.float32), 0.001 * tone(4)], axis=1))
    assert gated == pytest.approx(loudness(loud), abs=0.35)  # two blocks lie over the edge


def test_filters_are_clamped() -> None:
    """A square wave at full scale rises above it in the filters."""
    square = np.sign(tone(1, 3000)).astype(np.float32)
    assert loudness(square) < loudness(np.float32(0.25) * square) + 20 * math.log10(4) - 0.5


@pytest.mark.parametrize("size", [1, 3199, 12_800, 33_333])
def test_blocks_do_not_matter(size: int) -> None:
    audio = 0.2 * noise(2, 20_000 if size == 1 else 100_000)
    whole, meter = Meter(RATE, 2), Meter(RATE, 2)
    whole.add(audio)
    for start in range(0, audio.shape[1], size):
        meter.add(audio[:, start : start + size])
    meter.add(audio[:, :0])
    assert meter.lkfs() == whole.lkfs()
    assert meter.rms() == pytest.approx(whole.rms(), rel=1e-12)
    assert meter.gain() == pytest.approx(whole.gain(), rel=1e-12)


def test_normalised_audio_is_soft_and_of_the_loudness() -> None:
    audio = 0.05 * noise(1, 3 * RATE)
    gain = 10 ** ((-16 - loudness(audio)) / 20)
    changed = normalise(audio, RATE)
    assert changed.dtype == np.float32
    np.testing.assert_allclose(changed, np.tanh(gain * audio.astype(np.float64)), rtol=0, atol=1e-6)
    assert loudness(changed) == pytest.approx(-16, abs=0.7)
    assert np.abs(normalise(100 * audio, RATE)).max() <= 1
    assert loudness(normalise(audio, RATE, target=-30)) == pytest.approx(-30, abs=0.2)


def test_what_is_nearly_silent_stays_as_it_is() -> None:
    for audio in (
        0.0019 * np.ones((1, RATE), np.float32),
        np.zeros((1, RATE), np.float32),
        0.5 * tone(2, 0.01),
        np.zeros((1, 10), np.float32),
    ):
        assert normalise(audio, RATE) is audio
    assert loudness(np.zeros((1, RATE), np.float32)) == -math.inf
    assert apply_gain(audio, None) is audio


def test_below_400_ms_there_is_no_loudness() -> None:
    assert math.isfinite(loudness(tone(0.4)))
    with refused(InputError, "0.399 s", "0.4 s"):
        normalise(tone(0.399), RATE)
