"""MuCodec's two mel spectrograms on the host: against the recorded runs, against their graphs, and by what is known of signals."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import load_file

from musicrt.runtime.models.mucodec.mel import MuqMel, PromptMel, dft_basis, hann_window, muq_filters, prompt_filters
from musicrt.runtime.models.mucodec.muq_config import MelStatistics
from tests.reference import signals
from tests.reference.case import load_case
from tests.reference.runner import DATA

Float = NDArray[np.float32]

STATISTICS = MelStatistics()
MUQ = MuqMel(STATISTICS.melspec_2048_mean, STATISTICS.melspec_2048_std)
PROMPT = PromptMel()
GIVEN = load_file(DATA / "mucodec" / "given-tiny.safetensors")


def frames_by_hand(samples: Float, hop: int, count: int) -> NDArray[np.float64]:
    """Magnitudes of the transform of centred, mirrored frames: [count, 1025], by the definition."""
    mirrored = np.pad(samples.astype(np.float64), 1024, mode="reflect")
    basis = np.exp(-2j * np.pi * np.outer(np.arange(1025), np.arange(2048)) / 2048) * (0.5 - 0.5 * np.cos(np.pi * np.arange(2048) / 1024))
    magnitudes: NDArray[np.float64] = np.abs(np.stack([basis @ mirrored[hop * i : hop * i + 2048] for i in range(count)]))
    return magnitudes


def test_prompt_as_recorded() -> None:
    case = load_case(DATA / "mucodec" / "cases" / "tiny-prompt-mel.safetensors")
    verdicts = case.compare({"mel": PROMPT.analyse(case.inputs["audio"])})
    assert [verdict.detail for verdict in verdicts if not verdict.ok] == []


def test_muq_hears_power_in_decibels() -> None:
    samples = signals.audio("mel", 0.1, 24000, 1)[0]
    expected = 10 * np.log10(np.maximum(np.square(frames_by_hand(samples, 240, 8)) @ muq_filters().astype(np.float64), 1e-10))
    expected = (expected - 6.768444971712967) / 18.417922652295623
    mel = MUQ.analyse(samples[None])[0]
    assert mel.shape == (128, 8)  # 2400 samples hold two whole codes of 960
    whole = frames_by_hand(samples[:1920], 240, 8)
    exact = (10 * np.log10(np.square(whole) @ muq_filters().astype(np.float64)) - 6.768444971712967) / 18.417922652295623
    np.testing.assert_allclose(mel.T, exact, atol=1e-4)
    np.testing.assert_allclose(mel.T[:3], expected[:3], atol=1e-4)  # where the cut is not yet heard


def test_prompts_are_logarithms_of_magnitudes_and_clipped() -> None:
    samples = 3 * signals.audio("prompt", 0.05, 48000, 1)
    mel = PROMPT.analyse(samples)
    assert mel.shape == (1, 6, 256)
    expected = np.log(np.maximum(frames_by_hand(np.clip(samples[0], -1, 1), 480, 6) @ prompt_filters().astype(np.float64), 1e-5))
    np.testing.assert_allclose(mel[0], expected, atol=1e-3)


def test_silence_is_the_floor() -> None:
    np.testing.assert_allclose(MUQ.analyse(np.zeros((1, 1920), np.float32)), (-100 - 6.768444971712967) / 18.417922652295623, rtol=1e-6)
    np.testing.assert_allclose(PROMPT.analyse(np.zeros((2, 1500), np.float32)), np.log(1e-5), rtol=1e-6)


def test_lengths() -> None:
    assert [MUQ.analyse(np.zeros((1, n), np.float32)).shape[2] for n in (1920, 2879, 2880, 2881)] == [8, 8, 12, 12]
    assert [PROMPT.analyse(np.zeros((1, n), np.float32)).shape[1] for n in (1439, 1440, 1441)] == [3, 4, 4]


@pytest.mark.parametrize("frequency", [200.0, 1000.0, 6000.0])
def test_loudest_band_is_where_the_tone_is(frequency: float) -> None:
    for rate, analyse, filters, axis in ((24000, MUQ.analyse, muq_filters(), 2), (48000, PROMPT.analyse, prompt_filters(), 1)):
        tone = np.sin(2 * np.pi * frequency * np.arange(rate // 5) / rate).astype(np.float32)[None]
        loudest = np.bincount(analyse(tone).mean(axis=axis).argmax(axis=-1)).argmax()
        heard = np.flatnonzero(filters[:, loudest]) * rate / 2048
        assert heard.min() - rate / 2048 <= frequency <= heard.max() + rate / 2048


def test_constants_are_those_of_the_checkpoint() -> None:
    prefix = "model.preprocessor_melspec_2048.mel_stft."
    np.testing.assert_allclose(hann_window(), GIVEN[f"{prefix}spectrogram.window"], rtol=0, atol=1e-6)
    np.testing.assert_allclose(muq_filters(), GIVEN[f"{prefix}mel_scale.fb"], rtol=0, atol=2e-5)


def test_filters_of_the_prompt_have_the_same_area() -> None:
    filters = prompt_filters()
    assert filters.shape == (1025, 256)
    wide = filters[:, 128:].astype(np.float64)  # narrow ones hold too few bins for a sum to be an area
    np.testing.assert_allclose(wide.sum(axis=0) * 48000 / 2048, 1.0, rtol=0.1)


def test_basis_is_the_transform() -> None:
    samples = signals.unit("basis", (2048,))
    real, imaginary = np.split(dft_basis() @ samples, 2)
    spectrum = np.fft.rfft(samples * hann_window())
    np.testing.assert_allclose(real + 1j * imaginary, spectrum, atol=1e-4)


def test_items_are_independent_and_memory_is_bounded() -> None:
    """For five minutes: 31 MB of result, and a few of one piece."""
    samples = np.zeros((1, 14_400_000), np.float32)
    tracemalloc.start()
    try:
        size = PROMPT.analyse(samples).nbytes
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < size + 2 * samples.nbytes + 50e6
    two = signals.audio("two", 0.3, 24000, 2)
    np.testing.assert_array_equal(MUQ.analyse(two)[1:], MUQ.analyse(two[1:]))
