"""MuCodec's encode: windows, loops, limiters, batches, files in constant memory."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterator

import numpy as np
import pytest

from musicrt.runtime.errors import AudioError, InputError
from musicrt.runtime.models.mucodec.downmix import halve_rate, limit, mix_down, sinc_kernel
from musicrt.runtime.models.mucodec.encoder import find_peak, loop_source
from musicrt.runtime.models.mucodec.lengths import SPAN
from musicrt.runtime.sinc import resample_sinc
from musicrt.runtime.source import AudioSource, SampleReader, open_source
from tests.conftest import refused
from tests.runtime.mucodec_codecs import SIZE, Float, Watched, distance, music, open_light


@pytest.fixture
def light() -> Watched:
    return open_light()


def official_windows(audio: Float) -> Float:
    """SPEC section 3, steps 1 to 3, to the letter: float32 [k, 2, 1966560]."""
    peak = np.abs(audio).max()
    audio = audio / (peak / np.float32(0.8)) if peak > np.float32(0.8) else audio
    while audio.shape[1] < SPAN:
        audio = np.concatenate([audio, audio], axis=1)
    count = audio.shape[1] // 1_966_080 + 1
    audio = np.concatenate([audio, audio], axis=1)[:, : count * SPAN]
    return audio.reshape(len(audio), count, SPAN).transpose(1, 0, 2)


# What MuQ hears


def test_limiter_touches_only_what_is_too_loud() -> None:
    audio = np.array([[[0.5, -1.6], [0.2, 0.1]], [[0.3, 0.3], [0.8, -0.8]]], np.float32)
    joint = limit(audio, np.abs(audio).max(axis=(1, 2), keepdims=True), 0.8)
    np.testing.assert_allclose(joint[0], audio[0] / 2, atol=1e-7)
    np.testing.assert_array_equal(joint[1], audio[1])
    each = limit(audio, np.abs(audio).max(axis=2, keepdims=True), 0.8)
    np.testing.assert_allclose(each[0, 0], audio[0, 0] / 2, atol=1e-7)
    np.testing.assert_array_equal(each[0, 1], audio[0, 1])
    assert not limit(np.zeros((2, 3), np.float32), np.zeros((1, 1), np.float32), 0.8).any()


@pytest.mark.parametrize("samples", [1, 2, 27, 4807, 10_000])
def test_half_the_rate_is_that_of_the_file_resampler(samples: int) -> None:
    """Which computes its weights in float32."""
    audio = music(samples)
    got = halve_rate(audio)
    assert got.shape == (2, -(-samples // 2))
    expected = np.concatenate(list(resample_sinc([audio], 2, 48000, 24000)), axis=1)
    assert np.abs(got - expected).max() < 2e-6
    assert got.dtype == np.float32
    assert abs(float(sinc_kernel().sum()) - 1) < 0.01


def test_channels_are_limited_and_averaged() -> None:
    audio = np.stack([np.full(4000, 1.8, np.float32), np.full(4000, 0.2, np.float32)])
    assert abs(float(mix_down(audio)[1000]) - (0.9 + 0.2) / 2) < 1e-3
    np.testing.assert_array_equal(mix_down(np.stack([audio, audio]))[1], mix_down(audio))


# Windows


@pytest.mark.parametrize(("samples", "windows"), [(1, 1), (1000, 1), (372_917, 1), (SPAN - 1, 2), (SPAN, 2), (2_500_000, 2)])
def test_windows_are_the_official_ones(light: Watched, samples: int, windows: int) -> None:
    """Those of them of which codes are kept."""
    codec, sessions = light
    audio = 1.4 * music(samples)
    codes = codec.encode(audio)
    expected = official_windows(audio)
    assert len(sessions["muq"].calls) == windows <= len(expected)
    for call, window in zip(list(sessions["muq"].calls), expected, strict=False):
        assert distance(call["mel"], codec.windows.analyse(window[None])) < 1e-5
    assert codes.shape == (1, 1, int(samples / 48000 * 25) + 1)
    assert codes.dtype == np.int64
    found = [codec.windows.encode([codec.windows.analyse(window[None])[0]])[0] for window in expected[:windows]]
    assert (np.concatenate(found, axis=1)[:, : codes.shape[2]] == codes[0]).mean() > 0.999


def test_second_window_begins_a_quarter_code_late() -> None:
    """An impulse at code 1024 of the audio is heard 480 samples before the second window's beginning."""
    audio = np.zeros((2, 2_200_000), np.float32)
    audio[:, SPAN + 960 * 50] = 0.5
    codec, sessions = open_light()
    codec.encode(audio)
    first, second = (call["mel"][0] for call in sessions["muq"].calls)
    assert first.max() == first.min()
    assert abs(int(second.max(axis=0).argmax()) - 100) <= 4


def test_all_codebooks_are_kept() -> None:
    """Officially all but the first get lost."""
    codec, _ = open_light(codebooks=4)
    codes = codec.encode(music(SPAN + 100))
    assert codes.shape == (1, 4, 1025)
    assert len({bytes(row.tobytes()) for row in codes[0]}) == 4
    alone, _ = open_light()
    np.testing.assert_array_equal(codes[:, :1], alone.encode(music(SPAN + 100)))
    assert 0 <= codes.min() <= codes.max() < SIZE


def test_mono_is_both_channels(light: Watched) -> None:
    codec, _ = light
    audio = music(30_000, 1)
    expected = codec.encode(np.repeat(audio, 2, axis=0))
    np.testing.assert_array_equal(codec.encode(audio), expected)
    np.testing.assert_array_equal(codec.encode(audio[0]), expected)


# fit="length"


@pytest.mark.parametrize(
    ("samples", "codes"), [(1, [64]), (100_000, [64]), (130_000, [128]), (1_850_000, [1024]), (SPAN + 9000, [1024, 64])]
)
def test_fit_length_takes_the_smallest_bucket(light: Watched, samples: int, codes: list[int]) -> None:
    codec, sessions = light
    audio = music(samples)
    got = codec.encode(audio, fit="length")
    assert [call["mel"].shape for call in sessions["muq"].calls] == [(1, 128, 4 * count) for count in codes]
    assert got.shape == (1, 1, int(samples / 48000 * 25) + 1)
    if samples > 100_000:  # what the light stages make of a code depends on little but the code itself
        assert (got == codec.encode(audio)).mean() > 0.98


def test_fit_length_is_the_official_way_for_full_windows(light: Watched) -> None:
    codec, _ = light
    audio = music(1_950_000)
    np.testing.assert_array_equal(codec.encode(audio, fit="length"), codec.encode(audio))


# Batches


def test_batches_of_windows_change_nothing(light: Watched) -> None:
    codec, sessions = light
    audio = [music(SPAN + 5000), music(7), music(60_000, 1)]
    results = {size: codec.encode_batch(audio, max_batch_size=size, fit="length") for size in (1, 2)}
    assert [len(call["mel"]) for call in sessions["muq"].calls] == [1, 1, 1, 1, 2, 1, 1]
    for one, two, single in zip(results[1], results[2], audio, strict=True):
        np.testing.assert_array_equal(one, two)
        np.testing.assert_array_equal(one, codec.encode(single, fit="length"))
    assert codec.encode_batch([]) == []


# Sources


def counted(audio: Float, opened: list[int], claimed: int | None = None) -> AudioSource:
    def read() -> Iterator[Float]:
        opened.append(1)
        return (audio[:, start : start + 30_000] for start in range(0, audio.shape[1], 30_000))

    return AudioSource("song.wav", len(audio), audio.shape[1] if claimed is None else claimed, 48000, read)


def test_a_source_is_looped_sample_by_sample() -> None:
    for samples in (1, 7, 100_000, SPAN + 70_000):
        audio = music(samples)
        reader = SampleReader(loop_source(counted(audio, [])))
        for start, stop in (
            (0, 1000),
            (1000, 2500),
            (samples + 3000, samples + 90_000),
            (3 * samples + 1_000_000, 3 * samples + 1_000_100),
        ):
            np.testing.assert_array_equal(reader.read(start, stop), np.take(audio, range(start, stop), axis=1, mode="wrap"))


def test_a_long_source_is_read_twice_and_its_beginning_again(light: Watched) -> None:
    codec, _ = light
    opened: list[int] = []
    audio = music(SPAN + 70_000)
    codes = codec.encode(counted(audio, opened))
    np.testing.assert_array_equal(codes, codec.encode(audio))
    assert len(opened) == 3


def test_memory_does_not_grow_with_the_audio(light: Watched) -> None:
    codec, _ = light
    block = music(30_000)

    def long(minutes: int) -> AudioSource:
        count = minutes * 96
        return AudioSource("long", 2, 30_000 * count, 48000, lambda: (block for _ in range(count)))

    peaks = []
    for minutes in (2, 6):
        tracemalloc.start()
        codec.model.session("muq").calls.clear()  # type: ignore[attr-defined]
        for _job in codec.windows.plan(0, long(minutes), "window"):
            pass
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.1 * peaks[0]


def test_loudest_sample_of_all_counts(light: Watched) -> None:
    audio = music(SPAN + 50_000) * np.float32(0.5)
    audio[1, -1] = -1.6
    assert find_peak(open_source(audio, 48000)).item() == np.float32(1.6)
    codec, sessions = light
    codec.encode(audio)
    loud = codec.windows.analyse(np.float32(0.5) * audio[None, :, :SPAN])
    assert distance(sessions["muq"].calls[0]["mel"], loud) < 1e-5


def test_a_source_that_ends_early_is_refused(light: Watched) -> None:
    codec, _ = light
    with refused(AudioError, "song.wav ends after 100000 of 100001 samples"):
        codec.encode(counted(music(100_000), [], claimed=100_001))


@pytest.mark.parametrize("channels", [3, 6])
def test_more_than_two_channels_are_refused(light: Watched, channels: int) -> None:
    codec, _ = light
    with refused(InputError, f"{channels} channels", "one or two"):
        codec.encode(np.zeros((channels, 5000), np.float32))
