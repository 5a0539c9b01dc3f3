"""Reading, writing and resampling of real audio files, good and bad ones."""

from __future__ import annotations

import contextlib
import errno
import gc
import itertools
import logging
import os
import resource
import struct
import subprocess
import sys
import tempfile
import tracemalloc
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from musicrt.runtime import audio as audio_module
from musicrt.runtime.audio import (
    Audio,
    AudioWriter,
    check_audio,
    probe_audio,
    read_audio,
    resample_audio,
    resample_blocks,
    stream_audio,
    write_audio,
)
from musicrt.runtime.errors import AudioError, InputError, OutputError

RATE_PAIRS = [(44100, 48000), (48000, 44100), (96000, 44100), (8000, 44100), (44100, 44101), (192000, 8000), (2, 3), (37, 8000)]
SUFFIXES = [".wav", ".flac", ".ogg", ".opus", ".mp3", ".aiff", ".aif", ".caf", ".w64", ".rf64"]


def noise(channels: int, samples: int, seed: int = 0) -> Audio:
    return np.random.default_rng(seed).uniform(-0.5, 0.5, (channels, samples)).astype(np.float32)


def sine(frequency: float, rate: int, seconds: float = 1.0) -> Audio:
    return (0.5 * np.sin(2 * np.pi * frequency * np.arange(round(rate * seconds)) / rate)).astype(np.float32)[None]


def save(path: Path, audio: Audio, rate: int = 44100, subtype: str | None = None) -> Path:
    """Write with soundfile alone, so that reading is not tested against our own writer."""
    kind = {".opus": "OGG", ".aif": "AIFF"}.get(path.suffix, path.suffix[1:].upper())
    soundfile.write(path, audio.T, rate, format=kind, subtype=subtype or ("OPUS" if path.suffix == ".opus" else None))
    return path


def wave_file(path: Path, data: bytes, promised: int, riff: int | None = None) -> Path:
    """A stereo 16-bit WAV file whose header promises `promised` bytes of samples."""
    form = struct.pack("<4sIHHIIHH", b"fmt ", 16, 1, 2, 44100, 176400, 4, 16)
    head = struct.pack("<4sI4s", b"RIFF", 36 + promised if riff is None else riff, b"WAVE")
    path.write_bytes(head + form + struct.pack("<4sI", b"data", promised) + data)
    return path


@contextlib.contextmanager
def disk_of(size: int) -> Iterator[None]:
    """Let no file grow beyond `size` bytes, as on a disk that fills up."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


# Reading


@pytest.mark.parametrize("subtype", ["PCM_U8", "PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE"])
def test_wav_of_every_width_is_read_to_its_own_precision(tmp_path: Path, subtype: str) -> None:
    expected = noise(2, 1000)
    audio, rate = read_audio(save(tmp_path / "a.wav", expected, 96000, subtype))
    step = {"PCM_U8": 2**-7, "PCM_16": 2**-15, "PCM_24": 2**-23}.get(subtype, 1e-7)
    assert (audio.dtype.name, audio.shape, rate) == ("float32", (2, 1000), 96000)
    assert audio.flags.c_contiguous
    np.testing.assert_allclose(audio, expected, rtol=0, atol=step)


def test_integer_pcm_is_scaled_to_minus_one_up_to_one(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", np.array([-32768, -16384, 0, 1, 32767], np.int16), 44100)
    audio, _ = read_audio(tmp_path / "a.wav")
    assert audio.tolist() == [[-1.0, -0.5, 0.0, 2**-15, 1 - 2**-15]]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_every_format_keeps_length_rate_and_level(tmp_path: Path, suffix: str) -> None:
    expected = np.concatenate([sine(440, 48000), 0.5 * sine(880, 48000)])
    path = tmp_path / f"a{suffix.upper()}"
    write_audio(path, expected, 48000)
    audio, rate = read_audio(path)
    info = probe_audio(str(path))
    assert (info.path, info.sample_rate, info.channels, info.samples) == (path, 48000, 2, 48000)
    assert (audio.shape, rate) == ((2, 48000), 48000)
    lossy = suffix in (".ogg", ".opus", ".mp3")
    np.testing.assert_allclose(audio[:, 2000:-2000], expected[:, 2000:-2000], rtol=0, atol=0.03 if lossy else 2**-23)
    assert info.subtype == {".ogg": "VORBIS", ".opus": "OPUS", ".mp3": "MPEG_LAYER_III"}.get(suffix, "PCM_24")


@pytest.mark.parametrize(("channels", "samples"), [(1, 0), (2, 0), (1, 1), (6, 1), (6, 5000), (64, 100)])
def test_any_shape_is_read(tmp_path: Path, channels: int, samples: int) -> None:
    expected = noise(channels, samples)
    path = save(tmp_path / "a.wav", expected, subtype="FLOAT")
    audio, _ = read_audio(str(path))
    assert audio.shape == (channels, samples)
    assert (audio == expected).all()
    assert read_audio(path, 48000)[0].shape == (channels, -(-samples * 48000 // 44100))


def test_flac_of_unknown_length_is_read_and_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = save(tmp_path / "a.flac", noise(2, 70_000))
    data = bytearray(path.read_bytes())
    data[21] &= 0xF0  # the 36 bits of the sample count in STREAMINFO
    data[22:26] = bytes(4)
    path.write_bytes(data)
    assert probe_audio(path).samples == 70_000
    assert read_audio(path)[0].shape == (2, 70_000)
    assert not caplog.records


# Bad files


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("missing.wav", None, "no such file"),
        ("empty.wav", b"", "empty"),
        ("text.wav", b"hello, this is no audio\n" * 50, "not recognised"),
        ("noise.flac", bytes(range(256)) * 8, "not recognised"),
        ("gsm.vox", bytes(range(256)) * 8, "not recognised"),  # a suffix alone makes no audio
        ("samples.RAW", bytes(1000), "raw samples"),
        ("nul\0.wav", None, "no such file"),
    ],
)
def test_what_is_no_audio_is_refused_in_one_line(tmp_path: Path, name: str, content: bytes | None, reason: str) -> None:
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    for call in (probe_audio, read_audio, stream_audio):  # stream_audio too fails before the first `next`
        with pytest.raises(AudioError, match=reason) as caught:
            call(path)
        assert str(path) in str(caught.value)
        assert "\n" not in str(caught.value)


def test_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(AudioError, match=f"{tmp_path}: not a file"):
        read_audio(tmp_path)


@pytest.mark.parametrize("length", [1, 11, 20, 30])
def test_truncated_header_is_refused(tmp_path: Path, length: int) -> None:
    path = save(tmp_path / "a.wav", noise(2, 100))
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(AudioError, match=r"a\.wav"):
        read_audio(path)


def test_absurd_sample_rate_is_refused(tmp_path: Path) -> None:
    path = save(tmp_path / "a.wav", noise(1, 100))
    data = bytearray(path.read_bytes())
    data[24:28] = struct.pack("<I", 2_000_000_000)
    path.write_bytes(data)
    with pytest.raises(AudioError, match="2000000000 Hz"):
        read_audio(path)


def test_resampling_that_would_blow_up_a_file_is_refused(tmp_path: Path) -> None:
    path = save(tmp_path / "a.wav", noise(1, 100), 44)
    assert read_audio(path)[1] == 44
    with pytest.raises(AudioError, match="header says 44 Hz"):
        stream_audio(path, 44100)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_damaged_bytes_give_audio_or_an_audio_error(tmp_path: Path, capfd: pytest.CaptureFixture[str], suffix: str) -> None:
    write_audio(tmp_path / f"a{suffix}", noise(2, 2000), 48000)
    whole = (tmp_path / f"a{suffix}").read_bytes()
    rng = np.random.default_rng(0)
    path = tmp_path / f"b{suffix}"
    for _ in range(100):
        data = bytearray(whole)
        for place in rng.integers(0, min(100, len(data)), 4):
            data[place] = rng.integers(0, 256)
        path.write_bytes(data)
        with contextlib.suppress(AudioError):
            assert np.isfinite(read_audio(path)[0]).all()
    assert "Traceback" not in capfd.readouterr().err


@pytest.mark.parametrize(("subtype", "width"), [("PCM_U8", 1), ("PCM_16", 2), ("PCM_24", 3), ("FLOAT", 4)])
@pytest.mark.parametrize("kept", [0, 1, 600])
def test_cut_wav_is_read_as_far_as_it_goes(tmp_path: Path, caplog: pytest.LogCaptureFixture, subtype: str, width: int, kept: int) -> None:
    path = save(tmp_path / "cut.wav", noise(2, 1000), subtype=subtype)
    whole, _ = read_audio(path)
    data = path.read_bytes()
    path.write_bytes(data[: data.index(b"data") + 8 + kept * 2 * width])
    assert not caplog.records
    audio, _ = read_audio(path)
    assert (audio == whole[:, :kept]).all()
    assert audio.shape == (2, kept)
    assert [(r.levelno, r.message) for r in caplog.records] == [
        (logging.WARNING, f"cut.wav: expected 1000 samples as its header says, got {kept}; the file was cut short")
    ]


@pytest.mark.parametrize("promised", [2**32 - 1, 2**31 - 1, 0x7FFFF000])
def test_wav_written_to_a_pipe_is_not_called_cut(tmp_path: Path, caplog: pytest.LogCaptureFixture, promised: int) -> None:
    path = wave_file(tmp_path / "piped.wav", bytes(4000), promised, riff=2**32 - 1)
    assert read_audio(path)[0].shape == (2, 1000)
    assert not caplog.records


def test_cut_flac_names_the_damaged_sample(tmp_path: Path) -> None:
    path = save(tmp_path / "cut.flac", noise(1, 100_000))
    path.write_bytes(path.read_bytes()[:150_000])
    blocks = stream_audio(path, block=4096)
    good = next(blocks)
    assert good.shape == (1, 4096)
    with pytest.raises(AudioError, match=r"cut\.flac: damaged at or after sample \d{5}"):
        list(blocks)


def test_cut_mp3_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = save(tmp_path / "cut.mp3", noise(1, 100_000))
    path.write_bytes(path.read_bytes()[:10_000])
    audio, _ = read_audio(path)
    assert 0 < audio.shape[1] < 90_000
    assert f"expected 100000 samples as its header says, got {audio.shape[1]}" in caplog.text


@pytest.mark.parametrize("mode", ["CONSTANT", "VARIABLE"])
def test_mp3_without_length_header(tmp_path: Path, caplog: pytest.LogCaptureFixture, mode: str) -> None:
    loudness = np.repeat([0, 1], 220_500)  # silence takes small frames, so that the first ones mislead about the length
    loudness = loudness[::-1] if mode == "VARIABLE" else loudness
    with soundfile.SoundFile(tmp_path / "a.mp3", "w", 44100, 1, bitrate_mode=mode, compression_level=0.3) as file:
        file.write((noise(1, 441_000) * loudness)[0])
    data = (tmp_path / "a.mp3").read_bytes()
    header = max(data.find(b"Xing"), data.find(b"Info"))
    (tmp_path / "a.mp3").write_bytes(data[data.index(data[:2], header) :])
    audio, _ = read_audio(tmp_path / "a.mp3")
    if mode == "CONSTANT":
        assert 441_000 <= audio.shape[1] <= 441_000 + 3 * 1152
        assert not caplog.records
    else:  # libsndfile stops early here, which must not go unsaid
        assert audio.shape[1] < 441_000
        assert "part of the file left over" in caplog.text


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_not_finite_samples_are_refused(tmp_path: Path, value: float) -> None:
    audio = noise(2, 200_000)
    audio[1, 70_000] = audio[0, 70_001] = audio[0, 199_999] = value
    path = save(tmp_path / "a.wav", audio, subtype="FLOAT")
    with pytest.raises(AudioError, match=r"a\.wav: got 3 NaN or infinite values, the first at channel 1, sample 70000;"):
        read_audio(path)
    good = list(itertools.islice(stream_audio(path, block=10_000), 7))
    assert np.concatenate(good, axis=1).shape == (2, 70_000)


def test_read_error_of_the_disk_is_not_taken_for_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save(tmp_path / "a.wav", noise(2, 200_000))
    open_source = audio_module._open_source

    def open_and_break(path: Path) -> tuple[Any, Any]:
        file, disk = open_source(path)
        folder = os.open(tmp_path, os.O_RDONLY)  # the operating system refuses to read from a folder
        os.dup2(folder, disk.fileno())
        os.close(folder)
        return file, disk

    monkeypatch.setattr(audio_module, "_open_source", open_and_break)
    with pytest.raises(AudioError, match=r"a\.wav: reading stopped at sample 0: Is a directory"):
        read_audio(path)


# Streams and sample rates


@pytest.mark.parametrize("suffix", [".wav", ".flac", ".ogg", ".opus", ".mp3"])
@pytest.mark.parametrize("block", [37, 1000, 65536, 10**6])
def test_stream_equals_whole(tmp_path: Path, suffix: str, block: int) -> None:
    path = save(tmp_path / f"a{suffix}", noise(2, 30_011), 48000)
    whole, _ = soundfile.read(path, dtype="float32", always_2d=True)
    blocks = list(stream_audio(path, block=block))
    assert [b.shape[1] for b in blocks[:-1]] == [block] * (len(blocks) - 1)
    assert (np.concatenate(blocks, axis=1) == whole.T).all()
    assert (read_audio(path)[0] == whole.T).all()


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


def test_blocks_are_fresh(tmp_path: Path) -> None:
    path = save(tmp_path / "a.wav", noise(1, 30_000), subtype="FLOAT")
    for rate in (None, 48000):
        whole, _ = read_audio(path, rate)
        kept = []
        for block in stream_audio(path, rate, 5000):
            kept.append(block.copy())
            block[:] = np.nan  # must not reach a later block
        assert (np.concatenate(kept, axis=1) == whole).all()


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
    assert joined.shape == expected
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


@pytest.mark.parametrize("block", [0, -5, 1.5])
def test_wrong_block_is_refused(tmp_path: Path, block: Any) -> None:
    with pytest.raises(InputError, match="block: got"):
        stream_audio(save(tmp_path / "a.wav", noise(1, 10)), block=block)


@pytest.mark.parametrize("rate", [None, 48000])
def test_stream_takes_the_same_memory_for_a_longer_file(tmp_path: Path, rate: int | None) -> None:
    def peak(seconds: int) -> int:
        path = save(tmp_path / "a.wav", np.tile(noise(2, 44100), seconds))
        tracemalloc.start()
        total = sum(block.shape[1] for block in stream_audio(path, rate, 8192))
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert total == seconds * (rate or 44100)
        return peak

    peak(1)  # one-time imports and caches
    assert peak(60) <= 1.3 * peak(6)


def test_dropped_streams_close_their_file(tmp_path: Path) -> None:
    path = save(tmp_path / "a.wav", noise(1, 1000))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        stream_audio(path)
        next(stream_audio(path, 48000, 100))
        gc.collect()
    assert not caught


# Arrays of users


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


# Writing


@pytest.mark.parametrize("suffix", [".wav", ".flac"])
def test_blocks_are_written_one_after_the_other(tmp_path: Path, suffix: str) -> None:
    audio = noise(3, 150_000)
    path = tmp_path / f"a{suffix}"
    with AudioWriter(str(path), 44100, 3) as writer:
        for start in range(0, 150_000, 70_000):
            assert not path.exists()
            writer.write(audio[:, start : start + 70_000])
        writer.write(audio[:, :0])
    np.testing.assert_allclose(read_audio(path)[0], audio, rtol=0, atol=2**-23)
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize(("subtype", "top"), [(None, 1 - 2**-23), ("PCM_16", 1 - 2**-15), ("FLOAT", 1.0)])
def test_values_beyond_full_scale_are_clipped(tmp_path: Path, caplog: pytest.LogCaptureFixture, subtype: str | None, top: float) -> None:
    with caplog.at_level(logging.INFO, "musicrt"):
        write_audio(tmp_path / "a.wav", np.array([1.5, -3, 0.5, 1, -1]), 44100, subtype)
    assert read_audio(tmp_path / "a.wav")[0][0] == pytest.approx([top, -1, 0.5, top, -1], abs=1e-7)
    assert [r.message for r in caplog.records] == ["a.wav: 2 samples beyond full scale were clipped"]


def test_writing_does_not_touch_the_array(tmp_path: Path) -> None:
    audio = np.full((2, 100), 2, np.float32)
    write_audio(tmp_path / "a.wav", audio, 44100)
    assert (audio == 2).all()


def test_long_ogg_is_written(tmp_path: Path) -> None:
    write_audio(tmp_path / "a.ogg", np.zeros((1, 3_000_000), np.float32), 44100)  # in one piece this overruns libvorbis's stack
    assert probe_audio(tmp_path / "a.ogg").samples == 3_000_000


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_empty_audio_is_written_or_refused_but_never_unreadable(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    if suffix in (".flac", ".opus", ".mp3"):
        with pytest.raises(AudioError, match="got no samples"):
            write_audio(path, np.zeros((2, 0), np.float32), 48000)
        assert not list(tmp_path.iterdir())
    else:
        write_audio(path, np.zeros((2, 0), np.float32), 48000)
        assert read_audio(path)[0].shape == (2, 0)


@pytest.mark.parametrize(
    ("name", "rate", "channels", "subtype", "reason"),
    [
        ("a.xyz", 44100, 1, None, r"got suffix '\.xyz', expected one of \.wav, \.flac, \.ogg, .*\.mp3"),
        ("a", 44100, 1, None, r"got suffix ''"),
        ("a.raw", 44100, 1, None, r"got suffix '\.raw'"),
        ("a.mp3", 44100, 3, None, "got 3 channels, expected 1 to 2 in MP3"),
        ("a.flac", 44100, 9, None, "got 9 channels, expected 1 to 8 in FLAC"),
        ("a.wav", 44100, 0, None, "got 0 channels"),
        ("a.wav", 44100, 65, None, "got 65 channels, expected 1 to 64"),
        ("a.wav", 44100, 1.5, None, r"got 1\.5 channels"),
        ("a.mp3", 96000, 2, None, "MP3 MPEG_LAYER_III at 96000 Hz.*only supports sample rates"),
        ("a.opus", 44100, 2, None, "Opus only supports sample rates"),
        ("a.ogg", 200_001, 2, None, "got 200001 Hz, expected at most 200000 Hz in OGG"),
        ("a.flac", 768_000, 2, None, "does not support this sample rate"),
        ("a.wav", 44100, 2, "PCM_12", "got subtype 'PCM_12', expected one of PCM_16, PCM_24"),
        ("a.flac", 44100, 2, "FLOAT", "got subtype 'FLOAT', expected one of"),
    ],
)
def test_what_a_format_can_not_hold_is_refused(
    tmp_path: Path, name: str, rate: int, channels: Any, subtype: str | None, reason: str
) -> None:
    with pytest.raises(AudioError, match=reason) as caught:
        AudioWriter(tmp_path / name, rate, channels, subtype)
    assert str(tmp_path / name) in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_formats_missing_in_this_libsndfile_are_not_offered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(soundfile, "available_formats", lambda: {"WAV": "", "FLAC": ""})
    with pytest.raises(AudioError, match=r"got suffix '\.mp3', expected one of \.wav, \.flac$"):
        write_audio(tmp_path / "a.mp3", noise(1, 10), 44100)


def test_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"can't write .*a\.wav"):
        write_audio(tmp_path / "none" / "a.wav", noise(1, 10), 44100)
    assert not list(tmp_path.iterdir())


def test_folder_as_target(tmp_path: Path) -> None:
    (tmp_path / "a.wav").mkdir()
    with pytest.raises(OutputError, match=r"can't write .*a\.wav"):
        write_audio(tmp_path / "a.wav", noise(1, 10), 44100)
    assert [p.name for p in tmp_path.iterdir()] == ["a.wav"]


@pytest.mark.skipif(os.geteuid() == 0, reason="nothing is read-only for root")
def test_read_only_folder(tmp_path: Path) -> None:
    folder = tmp_path / "locked"
    folder.mkdir(mode=0o500)
    with pytest.raises(OutputError, match="Permission denied"):
        write_audio(folder / "a.wav", noise(1, 10), 44100)


def test_refused_permission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(**_: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(tempfile, "mkstemp", refuse)
    with pytest.raises(OutputError, match=r"can't write .*a\.wav: Permission denied"):
        write_audio(tmp_path / "a.wav", noise(1, 10), 44100)


@pytest.mark.parametrize("suffix", [".wav", ".flac", ".ogg", ".opus", ".mp3", ".caf"])
@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9, 0.995])
def test_full_disk_is_said_and_leaves_the_old_file_alone(tmp_path: Path, suffix: str, share: float) -> None:
    path = tmp_path / f"a{suffix}"
    write_audio(path, noise(1, 50_000, seed=1), 48000)
    before = path.read_bytes()
    with disk_of(int(share * len(before))), pytest.raises(OutputError, match=r"can't write .*: File too large; check the free space"):
        write_audio(path, noise(1, 50_000, seed=1), 48000)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_wav_beyond_its_size_limit_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = audio_module._FORMATS[".wav"]._replace(size=1_000_000)
    monkeypatch.setitem(audio_module._FORMATS, ".wav", small)
    write_audio(tmp_path / "good.wav", np.zeros((2, 150_000), np.float32), 44100)
    with pytest.raises(AudioError, match=r"big\.wav: WAV can't hold more than 4 GiB; write \.flac"):
        write_audio(tmp_path / "big.wav", np.zeros((2, 200_000), np.float32), 44100)
    assert [p.name for p in tmp_path.iterdir()] == ["good.wav"]


@pytest.mark.parametrize("error", [RuntimeError("mine"), FileNotFoundError(2, "mine"), KeyboardInterrupt()])
def test_error_in_the_with_block_comes_through_and_leaves_nothing(tmp_path: Path, error: BaseException) -> None:
    def write_and_fail() -> None:
        with AudioWriter(tmp_path / "a.wav", 44100, 1) as writer:
            writer.write(noise(1, 100_000))
            raise error

    with pytest.raises(type(error)) as caught:
        write_and_fail()
    assert caught.value is error
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("block", "reason"),
    [
        (noise(1, 10), "got 1 channels, expected the 2"),
        (np.zeros((2, 10), np.int16), "divide by 32768"),
        (np.array([[0.0, np.nan], [0.0, 0.0]]), "1 NaN"),
    ],
)
def test_wrong_block_to_write_is_refused(tmp_path: Path, block: Any, reason: str) -> None:
    with AudioWriter(tmp_path / "a.wav", 44100, 2) as writer:
        writer.write(noise(2, 10))
        with pytest.raises(InputError, match=f"^block: .*{reason}"):
            writer.write(block)
        writer.write(noise(2, 10))
    assert probe_audio(tmp_path / "a.wav").samples == 20  # nothing of the refused block


def test_close_without_a_with_block(tmp_path: Path) -> None:
    writer = AudioWriter(tmp_path / "a.wav", 44100, 1)
    writer.write(noise(1, 10))
    writer.close()
    writer.close()
    assert probe_audio(tmp_path / "a.wav").samples == 10
    with pytest.raises(InputError, match="closed already"):
        writer.write(noise(1, 10))
    assert [p.name for p in tmp_path.iterdir()] == ["a.wav"]


def test_dropped_writer_leaves_nothing(tmp_path: Path) -> None:
    writer = AudioWriter(tmp_path / "a.wav", 44100, 1)
    writer.write(noise(1, 10))
    del writer
    gc.collect()
    assert not list(tmp_path.iterdir())


def test_import_is_light() -> None:
    code = "import sys, musicrt.runtime.audio; print(sorted({'torch', 'scipy', 'onnxruntime', 'tensorrt'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout == "[]\n"
