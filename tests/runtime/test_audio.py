"""Reading of good audio files, whole and in blocks."""

from __future__ import annotations

import gc
import tracemalloc
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from musicrt.runtime.audio import probe_audio, read_audio, stream_audio
from musicrt.runtime.audio_writer import write_audio
from musicrt.runtime.errors import InputError
from tests.runtime.audio_files import SUFFIXES, noise, save, sine


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


@pytest.mark.parametrize("suffix", [".wav", ".flac", ".ogg", ".opus", ".mp3"])
@pytest.mark.parametrize("block", [37, 1000, 65536, 10**6])
def test_stream_equals_whole(tmp_path: Path, suffix: str, block: int) -> None:
    path = save(tmp_path / f"a{suffix}", noise(2, 30_011), 48000)
    whole, _ = soundfile.read(path, dtype="float32", always_2d=True)
    blocks = list(stream_audio(path, block=block))
    assert [b.shape[1] for b in blocks[:-1]] == [block] * (len(blocks) - 1)
    assert (np.concatenate(blocks, axis=1) == whole.T).all()
    assert (read_audio(path)[0] == whole.T).all()


def test_blocks_are_fresh(tmp_path: Path) -> None:
    path = save(tmp_path / "a.wav", noise(1, 30_000), subtype="FLOAT")
    for rate in (None, 48000):
        whole, _ = read_audio(path, rate)
        kept = []
        for block in stream_audio(path, rate, 5000):
            kept.append(block.copy())
            block[:] = np.nan  # must not reach a later block
        assert (np.concatenate(kept, axis=1) == whole).all()


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
