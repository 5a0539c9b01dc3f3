"""Windowed-sinc resampling: the formula, exact lengths, blocks that do not matter, bounded memory for any pair of rates."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from musicrt.runtime.audio import read_audio, stream_audio
from musicrt.runtime.errors import InputError
from musicrt.runtime.resampling import join_blocks, resample_audio, resample_blocks, resampled_length
from musicrt.runtime.source import SampleReader, open_source
from musicrt.runtime.waveform import Audio
from tests.conftest import refused
from tests.runtime.audio_files import noise, save, sine

RATE_PAIRS = [(8000, 16000), (11025, 16000), (22050, 16000), (44100, 16000), (48000, 16000), (96000, 16000), (44099, 16000)]
RATE_PAIRS += [(44100, 48000), (16000, 44099), (37, 8000), (192000, 8000)]


def resample_directly(audio: Audio, source: int, target: int) -> NDArray[np.float64]:
    """The sum over all samples that the formula asks for, in float64."""
    cutoff = 0.99 * min(source, target)
    times = np.arange(-(-audio.shape[1] * target // source)) / target
    t = np.clip((np.arange(audio.shape[1])[:, None] / source - times) * cutoff, -6, 6)
    weights: NDArray[np.float64] = np.cos(np.pi * t / 12) ** 2 * np.sinc(t) * cutoff / source
    return audio @ weights


def resample_as_julius(audio: Audio, source: int, target: int) -> NDArray[np.float64]:
    """The sum that julius asks for, in float64."""
    divisor = np.gcd(source, target)
    o, n = source // divisor, target // divisor
    r = min(o, n) * 0.945
    w = int(np.ceil(24 * o / r))
    t = np.clip((np.arange(-w, w + o) / o - np.arange(n)[:, None] / n) * r, -24, 24)
    kernel = np.sinc(t) * np.cos(np.pi * t / 48) ** 2
    kernel /= kernel.sum(axis=1, keepdims=True)
    padded = np.pad(audio.astype(np.float64), ((0, 0), (w, w + o)), mode="edge")
    windows = np.lib.stride_tricks.sliding_window_view(padded, 2 * w + o, axis=1)[:, ::o]
    resampled: NDArray[np.float64] = (windows @ kernel.T).reshape(len(audio), -1)
    return resampled[:, : n * audio.shape[1] // o]


def cut(audio: Audio, size: int) -> Iterator[Audio]:
    return (audio[:, start : start + size] for start in range(0, audio.shape[1], size))


@pytest.mark.parametrize(("source", "target"), RATE_PAIRS)
def test_values_are_those_of_the_formula(source: int, target: int) -> None:
    audio = noise(2, min(2 * source // 30, 3000))
    tolerance = 2e-4 if 44099 in (source, target) else 4e-5  # float32 positions are coarse on 44099 samples
    expected = resample_directly(audio, source, target)
    np.testing.assert_allclose(resample_audio(audio, source, target, "sinc"), expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize(("source", "target"), RATE_PAIRS)
@pytest.mark.parametrize("samples", [0, 1, 2, 3, 99, 5000])
def test_length_is_exact(source: int, target: int, samples: int) -> None:
    expected = (2, -(-samples * target // source))
    assert resample_audio(noise(2, samples), source, target, "sinc").shape == expected
    blocks = list(resample_blocks(cut(noise(2, samples), 777), 2, source, target, "sinc"))
    assert join_blocks(blocks, 2).shape == (2, resampled_length(samples, source, target, "sinc")) == expected
    assert all(block.flags.c_contiguous and block.flags.writeable and block.dtype == np.float32 for block in blocks)


@pytest.mark.parametrize(
    ("samples", "source", "expected"), [(182_020, 44100, 66_039), (182_021, 44100, 66_040), (100_000_000, 44100, 36_281_180)]
)
def test_length_is_rounded_to_float32_first(samples: int, source: int, expected: int) -> None:
    """Exactly they are 66039.0023, 66039.37 and 36281179.14: torchaudio's ceiling sees float32."""
    assert resampled_length(samples, source, 16000, "sinc") == expected


@pytest.mark.parametrize(("source", "target"), [(8000, 16000), (44100, 16000), (48000, 16000), (44099, 16000)])
def test_blocks_change_no_bit(source: int, target: int) -> None:
    audio = noise(2, 300_000)
    whole = resample_audio(audio, source, target, "sinc")
    for size in (999, 65_536, 299_999):
        blocks = list(resample_blocks(cut(audio, size), 2, source, target, "sinc"))
        assert len(blocks) > 1
        np.testing.assert_array_equal(join_blocks(blocks, 2), whole)
    np.testing.assert_array_equal(resample_audio(audio[1], source, target, "sinc")[0], whole[1])


@pytest.mark.parametrize(("source", "limit"), [(44100, 8), (44099, 16), (191_999, 48)])
def test_memory_is_bounded(source: int, limit: int) -> None:
    """In MB. The matrix of all phases would have 2.8 GB for 44099 Hz."""
    silence = np.zeros((1, 4096), np.float32)
    tracemalloc.start()
    try:
        given = sum(block.shape[1] for block in resample_blocks((silence for _ in range(300)), 1, source, 16000, "sinc"))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert given == resampled_length(300 * 4096, source, 16000, "sinc")
    assert peak < limit * 1e6


@pytest.mark.parametrize("source", [8000, 44100, 96000])
@pytest.mark.parametrize("frequency", [50, 997, 2000])
def test_frequency_level_and_phase_are_kept(source: int, frequency: float) -> None:
    audio = resample_audio(sine(frequency, source), source, 16000, "sinc")
    np.testing.assert_allclose(audio[0, 100:-100], sine(frequency, 16000)[0, 100:-100], rtol=0, atol=2e-3)  # a short filter ripples


def test_what_the_lower_rate_can_not_hold_is_removed() -> None:
    assert np.abs(resample_audio(sine(12_000, 48000), 48000, 16000, "sinc")[0, 100:-100]).max() < 1e-3


def test_default_is_the_other_kernel() -> None:
    audio = noise(1, 5000)
    plain = resample_audio(audio, 44100, 16000)
    np.testing.assert_array_equal(plain, resample_audio(audio, 44100, 16000, "soxr"))
    assert np.abs(plain - resample_audio(audio, 44100, 16000, "sinc")).max() > 0.01


def test_equal_rates_change_nothing() -> None:
    audio = noise(2, 100)
    assert resample_audio(audio, 16000, 16000, "sinc") is audio
    assert next(resample_blocks([audio], 2, 16000, 16000, "sinc")) is audio


def test_files_and_sources_pass_the_kernel_on(tmp_path: Path) -> None:
    audio = noise(2, 100_001)
    path = save(tmp_path / "a.wav", audio, 44100, "FLOAT")
    expected = resample_audio(audio, 44100, 16000, "sinc")
    np.testing.assert_array_equal(read_audio(path, 16000, "sinc")[0], expected)
    np.testing.assert_array_equal(join_blocks(stream_audio(path, 16000, 1000, "sinc"), 2), expected)
    for source in (open_source(path, 16000, kernel="sinc"), open_source(audio, 16000, 44100, "sinc")):
        assert source.samples == expected.shape[1]
        np.testing.assert_array_equal(SampleReader(source).read(0, source.samples), expected)


def test_empty_file_gives_no_samples(tmp_path: Path) -> None:
    path = save(tmp_path / "a.wav", noise(2, 0), 44100)
    assert read_audio(path, 16000, "sinc")[0].shape == (2, 0)


def test_unknown_kernel_is_refused(tmp_path: Path) -> None:
    path, audio = save(tmp_path / "a.wav", noise(1, 10)), noise(1, 10)
    unknown: Any = "cubic"
    calls: list[Callable[[], object]] = [
        lambda: resample_audio(audio, 44100, 44100, unknown),
        lambda: resample_blocks([audio], 1, 44100, 16000, unknown),
        lambda: read_audio(path, kernel=unknown),
        lambda: stream_audio(path, 16000, kernel=unknown),
        lambda: open_source(path, 16000, kernel=unknown),
        lambda: open_source(audio, 16000, kernel=unknown),
    ]
    for call in calls:
        with refused(InputError, "'cubic'", "soxr", "sinc"):
            call()


@pytest.mark.parametrize(("source", "target"), [(16000, 32000), (44100, 32000), (48000, 32000), (22050, 32000), (11025, 8000), (37, 80)])
@pytest.mark.parametrize("samples", [0, 1, 7, 5000])
def test_julius_is_its_formula(source: int, target: int, samples: int) -> None:
    audio = noise(2, samples)
    resampled = resample_audio(audio, source, target, "julius")
    assert resampled.shape == (2, samples * target // source) == (2, resampled_length(samples, source, target, "julius"))
    if samples:
        np.testing.assert_allclose(resampled, resample_as_julius(audio, source, target), rtol=0, atol=4e-5)


@pytest.mark.parametrize("source", [16000, 44100])
def test_julius_does_not_depend_on_blocks(source: int) -> None:
    audio = noise(2, 400_000)
    whole = resample_audio(audio, source, 32000, "julius")
    for size in (999, 65_536, 399_999):
        np.testing.assert_array_equal(join_blocks(resample_blocks(cut(audio, size), 2, source, 32000, "julius"), 2), whole)


def test_julius_keeps_a_constant() -> None:
    """To its very ends, other than the kernel of torchaudio."""
    constant = np.full((1, 3000), 0.5, np.float32)
    np.testing.assert_allclose(resample_audio(constant, 44100, 32000, "julius"), 0.5, rtol=0, atol=1e-6)
    assert abs(resample_audio(constant, 44100, 32000, "sinc")[0, 0] - 0.5) > 0.05
