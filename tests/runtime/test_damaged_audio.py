"""Reading of files that are no audio, damaged, cut short or of wrong content: said in one line, never swallowed."""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from musicrt.runtime import audio as audio_module
from musicrt.runtime.audio import probe_audio, read_audio, stream_audio
from musicrt.runtime.audio_writer import write_audio
from musicrt.runtime.errors import AudioError
from tests.runtime.audio_files import SUFFIXES, noise, save, wave_file


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
