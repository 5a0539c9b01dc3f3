"""Small files that stand for very much, and limits that the environment sets."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import soundfile

from musicrt.runtime.audio import probe_audio, read_audio, stream_audio
from musicrt.runtime.encoded import load_encoded, save_encoded
from musicrt.runtime.errors import AudioError, EncodedError, InputError, VideoError
from musicrt.runtime.limits import DEFAULTS, VARIABLE, check_limit, limit_of
from tests.conftest import refused
from tests.runtime.test_encoded import make_encoded, make_tokens


def test_environment_sets_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "audio_seconds=10, video_pixels=5e8,")
    assert (limit_of("audio_seconds"), limit_of("video_pixels")) == (10, 500_000_000)
    assert limit_of("manifest_bytes") == DEFAULTS["manifest_bytes"]
    check_limit("audio_seconds", 10, "it")
    with refused(InputError, "it, expected at most 10", "MUSICRT_LIMITS=audio_seconds=11"):
        check_limit("audio_seconds", 10.2, "it")
    for size in (float("nan"), float("inf")):
        with refused(InputError, "audio_seconds=N"):
            check_limit("audio_seconds", size, "it")


@pytest.mark.parametrize(
    "text", ["audio_seconds", "audio_hours=1", "audio_seconds=", "audio_seconds=0", "audio_seconds=nan", "=1", "video_pixels=1e999"]
)
def test_environment_that_says_nothing_sensible_is_refused(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv(VARIABLE, text)
    with refused(InputError, VARIABLE, repr(text), "audio_seconds"):
        limit_of("audio_seconds")


def make_bomb(path: Path, minutes: int) -> Path:
    """A FLAC of silence at a rate of 1 kHz, one frame of which is a minute."""
    with soundfile.SoundFile(path, "w", 1000, 1, "PCM_16", format="FLAC") as file:
        for _ in range(minutes):
            file.write(np.zeros(60_000, np.int16))
    return path


def test_file_that_lasts_too_long_is_refused_by_its_header(tmp_path: Path) -> None:
    path = make_bomb(tmp_path / "a.flac", 24 * 60 + 1)
    assert path.stat().st_size < 1 << 19
    for read in (probe_audio, read_audio, stream_audio):
        with refused(AudioError, path, "lasts 86460 s or more", "at most 86400", "MUSICRT_LIMITS=audio_seconds=86460"):
            read(path)


def test_file_that_hides_its_length_is_refused_on_the_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The number of samples stands in 36 bits of FLAC's head; 0 says that it is unknown."""
    path = make_bomb(tmp_path / "a.flac", 20)
    content = bytearray(path.read_bytes())
    assert content[:4] == b"fLaC"
    content[21] &= 0xF0
    content[22:26] = bytes(4)
    path.write_bytes(content)
    assert probe_audio(path).samples == 20 * 60_000
    monkeypatch.setenv(VARIABLE, "audio_seconds=600")
    with refused(AudioError, path, "at most 600"):
        probe_audio(path)
    blocks = stream_audio(path)
    with refused(AudioError, path, "at most 600"):
        assert sum(block.shape[1] for block in blocks) <= 600_000


def test_whole_file_in_memory_has_a_limit_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = make_bomb(tmp_path / "a.flac", 5)
    monkeypatch.setenv(VARIABLE, "audio_values=200000")
    with refused(AudioError, path, "too many to be held at once", "at most 200000"):
        read_audio(path)
    assert sum(block.shape[1] for block in stream_audio(path)) == 300_000


def test_channels_have_a_limit(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", np.zeros((10, 65), np.float32), 8000)
    with refused(AudioError, tmp_path / "a.wav", "65 channels", "at most 64"):
        probe_audio(tmp_path / "a.wav")


def test_encoded_audio_has_limits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Codes of one bit take 64 in memory."""
    few = make_tokens(values=np.zeros((1, 4000, 2), np.int64), bits=(1, 1))
    save_encoded(tmp_path / "a.tok", few)
    save_encoded(tmp_path / "a.m2l", make_encoded())
    monkeypatch.setenv(VARIABLE, "encoded_values=7999")
    with refused(EncodedError, tmp_path / "a.tok", "8000 values", "at most 7999"):
        load_encoded(tmp_path / "a.tok")
    monkeypatch.setenv(VARIABLE, "encoded_values=40")
    with refused(EncodedError, tmp_path / "a.m2l", "48 values", "at most 40"):
        load_encoded(tmp_path / "a.m2l")
    monkeypatch.setenv(VARIABLE, "encoded_header_bytes=100")
    with refused(EncodedError, tmp_path / "a.m2l", "has a header of", "at most 100"):
        load_encoded(tmp_path / "a.m2l")


@pytest.mark.parametrize("place", ["pipe", "/dev/zero"])
def test_what_never_ends_is_not_read(tmp_path: Path, place: str) -> None:
    """Whoever opens a pipe waits until somebody writes into it."""
    path = Path(place) if place.startswith("/") else tmp_path / place
    if place == "pipe":
        os.mkfifo(path)
    with refused(AudioError, path, "not a file"):
        probe_audio(path)
    with refused(EncodedError, path, "no file"):
        load_encoded(path)
    pytest.importorskip("av")
    from musicrt.runtime.video import Video

    with refused(VideoError, path, "not a file"):
        Video(path)


def test_videos_have_limits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("av")
    from musicrt.runtime.video import Video
    from tests.runtime.video_files import make_video

    path = make_video(tmp_path / "a.mp4")
    Video(path)
    for text, words in (
        ("video_seconds=1", "says that it lasts 2 s"),
        ("video_frames=49", "has 50 frames or more"),
        ("video_pixels=3071", "has frames of 64 x 48 pixels"),
    ):
        monkeypatch.setenv(VARIABLE, text)
        with refused(VideoError, path, words, f"set {VARIABLE}={text.partition('=')[0]}="):
            Video(path)


def test_frames_that_grow_on_the_way_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stream may begin with small ones; the decoder itself holds the limit."""
    pytest.importorskip("av")
    from musicrt.runtime.video import Video
    from tests.runtime.video_files import make_video

    parts = [make_video(tmp_path / f"{side}.ts", size=(side, side), frames=25) for side in (64, 256)]
    (tmp_path / "a.ts").write_bytes(b"".join(part.read_bytes() for part in parts))
    monkeypatch.setenv(VARIABLE, "video_pixels=10000")
    try:
        video = Video(tmp_path / "a.ts")
        shapes = {picture.shape for picture in video.read(range(video.frames))}
    except VideoError:
        return
    assert shapes == {(3, 64, 64)}


@pytest.mark.parametrize(
    "text", ["ffconcat version 1.0\nfile b.mp4\n", "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nb.ts\n#EXT-X-ENDLIST\n"]
)
def test_playlists_are_no_videos(tmp_path: Path, text: str) -> None:
    pytest.importorskip("av")
    from musicrt.runtime.video import Video
    from tests.runtime.video_files import make_video

    make_video(tmp_path / "b.mp4")
    make_video(tmp_path / "b.ts")
    (tmp_path / "a.mp4").write_text(text)
    with refused(VideoError, tmp_path / "a.mp4"):
        Video(tmp_path / "a.mp4")


def test_name_of_a_video_is_no_address(tmp_path: Path) -> None:
    pytest.importorskip("av")
    from musicrt.runtime.video import Video
    from tests.runtime.video_files import make_video

    other = make_video(tmp_path / "b.mp4")
    for name in ("concat:b.mp4", "subfile,,start,0,end,0,,:b.mp4", "100%d.mp4"):
        assert Video(other.rename(tmp_path / name)).frames == 50
        other = (tmp_path / name).rename(tmp_path / "b.mp4")
