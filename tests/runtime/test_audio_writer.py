"""Writing of audio files: formats, limits, full disks, and nothing half-written."""

from __future__ import annotations

import errno
import gc
import logging
import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from musicrt.runtime import audio_writer as writer_module
from musicrt.runtime.audio import probe_audio, read_audio
from musicrt.runtime.audio_writer import AudioWriter, write_audio
from musicrt.runtime.errors import AudioError, InputError, OutputError
from tests.runtime.audio_files import SUFFIXES, disk_of, noise


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
    small = writer_module._FORMATS[".wav"]._replace(size=1_000_000)
    monkeypatch.setitem(writer_module._FORMATS, ".wav", small)
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


def test_good_target_is_left_as_it_is(tmp_path: Path) -> None:
    write_audio(tmp_path / "a.wav", noise(1, 100), 44100)
    before = (tmp_path / "a.wav").read_bytes()
    AudioWriter.check_target(tmp_path / "a.wav", 44100, 2)
    AudioWriter.check_target(tmp_path / "b.flac", 44100, 2)
    assert (tmp_path / "a.wav").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["a.wav"]


def test_bad_target_is_refused_by_the_check(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="No such file"):
        AudioWriter.check_target(tmp_path / "none" / "a.wav", 44100, 1)
    with pytest.raises(AudioError, match="got 3 channels"):
        AudioWriter.check_target(tmp_path / "a.mp3", 44100, 3)
    assert not list(tmp_path.iterdir())


def test_discarded_writer_leaves_nothing_and_can_be_closed(tmp_path: Path) -> None:
    writer = AudioWriter(tmp_path / "a.wav", 44100, 1)
    writer.write(noise(1, 100))
    writer.discard()
    writer.close()
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
