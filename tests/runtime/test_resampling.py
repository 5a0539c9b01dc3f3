"""Sample rates: exact lengths, pure tones, streams that equal the whole."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from musicrt.runtime.audio import probe_audio, read_audio, stream_audio
from musicrt.runtime.audio_writer import AudioWriter
from musicrt.runtime.errors import InputError
from musicrt.runtime.resampling import resample_audio, resample_blocks, resampled_length
from tests.runtime.audio_files import noise, save, sine

RATE_PAIRS = [(44100, 48000), (48000, 44100), (96000, 44100), (8000, 44100), (44100, 44101), (192000, 8000), (2, 3), (37, 8000)]


@pytest.mark.parametrize(("source", "target"), RATE_PAIRS[:4])
@pytest.mark.parametrize("block", [100, 4096, 65536])
def test_resampled_stream_equals_whole(tmp_path: Path, source: int, target: int, block: int) -> None:
    path = save(tmp_path / "a.wav", noise(2, 30_011), source, "FLOAT")
    whole, rate = read_audio(path, target)
    blocks = list(stream_audio(path, target, block))
    assert rate == target
    assert all(b.flags.c_contiguous and b.flags.writeable and b.dtype == np.float32 and b.shape[1] for b in blocks)
    joined = np.concatenate(blocks, axis=1)
    assert joined.shape == whole.shape == (2, -(-30_011 * target // source))
    np.testing.assert_allclose(joined, whole, rtol=0, atol=1e-6)


@pytest.mark.parametrize(("source", "target"), RATE_PAIRS)
@pytest.mark.parametrize("samples", [0, 1, 2, 3, 99, 1000, 20_001])
def test_resampled_length_is_exact(source: int, target: int, samples: int) -> None:
    audio = noise(2, samples)
    expected = (2, -(-samples * target // source))
    whole = resample_audio(audio, source, target)
    assert whole.shape == expected
    assert whole.dtype == np.float32
    blocks = resample_blocks((audio[:, i : i + 777] for i in range(0, samples, 777)), 2, source, target)
    joined = np.concatenate([np.zeros((2, 0), np.float32), *blocks], axis=1)
    assert joined.shape == (2, resampled_length(samples, source, target)) == expected
    np.testing.assert_allclose(joined, whole, rtol=0, atol=1e-6)


@pytest.mark.parametrize(("source", "target"), RATE_PAIRS[:4])
@pytest.mark.parametrize("frequency", [50, 997, 3000])
def test_resampling_keeps_frequency_level_and_phase(source: int, target: int, frequency: float) -> None:
    audio = resample_audio(sine(frequency, source), source, target)
    expected = sine(frequency, target)
    inside = slice(target // 20, -target // 20)
    assert audio.shape == expected.shape
    np.testing.assert_allclose(audio[0, inside], expected[0, inside], rtol=0, atol=5e-5)  # 0.001 dB


def test_resampling_removes_what_the_lower_rate_can_not_hold() -> None:
    audio = resample_audio(sine(30_000, 96000), 96000, 44100)
    assert np.abs(audio[0, 2000:-2000]).max() < 1e-6


def test_silence_stays_silence_and_constants_stay_constant() -> None:
    assert not resample_audio(np.zeros((2, 5000), np.float32), 44100, 48000).any()
    constant = resample_audio(np.full((1, 48000), 0.25, np.float32), 48000, 44100)
    np.testing.assert_allclose(constant[0, 2000:-2000], 0.25, rtol=0, atol=1e-6)


def test_equal_rates_change_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    audio = noise(2, 100)
    assert resample_audio(audio, 44100, 44100) is audio
    assert next(resample_blocks([audio], 2, 44100, 44100)) is audio
    with caplog.at_level(logging.INFO, "musicrt"):
        read_audio(save(tmp_path / "a.wav", audio), 44100)
    assert not caplog.records


def test_resampling_of_a_file_is_said_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = save(tmp_path / "song.flac", noise(2, 100_000), 48000)
    with caplog.at_level(logging.INFO, "musicrt"):
        list(stream_audio(path, 44100, 1000))
    assert [r.message for r in caplog.records] == ["song.flac: resampled from 48000 Hz to 44100 Hz"]


@pytest.mark.parametrize("rate", [0, -1, 768_001, 44100.0, "44100", True, None])
def test_wrong_rates_are_refused(tmp_path: Path, rate: Any) -> None:
    path = save(tmp_path / "a.wav", noise(1, 10))
    calls: list[Callable[[], object]] = [
        lambda: resample_audio(noise(1, 10), 44100, rate),
        lambda: resample_audio(noise(1, 10), rate, 44100),
        lambda: resample_blocks([], 1, 44100, rate),
        lambda: resampled_length(10, rate, 44100),
        lambda: resampled_length(10, 44100, rate),
        lambda: AudioWriter(tmp_path / "b.wav", rate, 1),
    ]
    if rate is not None:
        calls += [lambda: read_audio(path, rate), lambda: stream_audio(path, rate)]
    for call in calls:
        with pytest.raises(InputError, match=r"sample rate: got .* from 1 to 768000"):
            call()
    assert [p.name for p in tmp_path.iterdir()] == ["a.wav"]


def test_numpy_integers_are_accepted(tmp_path: Path) -> None:
    with AudioWriter(tmp_path / "a.wav", np.int64(44100), np.int32(1)) as writer:  # type: ignore[arg-type]
        writer.write(noise(1, 10))
    assert probe_audio(tmp_path / "a.wav").sample_rate == 44100
    assert resample_audio(noise(1, 441), np.int64(44100), np.int32(48000)).shape == (1, 480)  # type: ignore[arg-type]
