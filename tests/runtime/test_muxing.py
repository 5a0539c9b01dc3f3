"""Music in a copy of a video: pictures bit by bit, sound as given, the shorter of both."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from musicrt.runtime.errors import InputError, OutputError, VideoError
from musicrt.runtime.muxing import check_mux_target, is_video_target, mux_audio
from musicrt.runtime.video import Video
from tests.conftest import refused
from tests.runtime.video_files import av, make_song, make_video, packets_of

RATE = 32000


def tone(seconds: float, rate: int = RATE) -> NDArray[np.float32]:
    return (0.3 * np.sin(2 * np.pi * 440 * np.arange(round(seconds * rate)) / rate)).astype(np.float32)[None]


def cut(audio: NDArray[np.float32], size: int = 5000) -> Iterator[NDArray[np.float32]]:
    return (audio[:, start : start + size] for start in range(0, audio.shape[1], size))


def sound_of(path: Path) -> tuple[NDArray[np.float32], int]:
    with av.open(str(path)) as container:
        blocks = [frame.to_ndarray() for frame in container.decode(audio=0)]
        return np.concatenate(blocks, axis=1), container.streams.audio[0].rate


@pytest.mark.parametrize(
    ("name", "codec", "target"),
    [
        ("a.mp4", "libx264", "b.mp4"),
        ("a.mp4", "libx264", "b.mkv"),
        ("a.mkv", "libx264", "b.mp4"),
        ("a.mkv", "libx264", "b.mov"),
        ("a.avi", "mpeg4", "b.MP4"),
        ("a.webm", "libvpx-vp9", "b.webm"),
        ("a.mov", "mpeg4", "b.m4v"),
        ("b.mov", "mjpeg", "c.mov"),
    ],
)
def test_pictures_are_copied_and_the_sound_is_new(tmp_path: Path, name: str, codec: str, target: str) -> None:
    options = {"deadline": "realtime"} if "vpx" in codec else {}
    pixels = "yuvj420p" if codec == "mjpeg" else "yuv420p"
    source = make_video(tmp_path / name, 75, codec=codec, pixels=pixels, audio=0 if "vpx" in codec else 3, options=options)
    music = tone(3)
    mux_audio(source, tmp_path / target, cut(music), RATE, 1)
    before, after = packets_of(source), packets_of(tmp_path / target)
    assert [data for data, _ in after] == [data for data, _ in before]
    assert [time for _, time in after] == pytest.approx([time for _, time in before], abs=0.001)
    sound, rate = sound_of(tmp_path / target)
    assert rate == (48000 if target == "b.webm" else RATE)
    assert sound.shape[1] == pytest.approx(3 * rate, abs=2048)
    np.testing.assert_allclose(sound[0, 2000 : 2 * rate], tone(2, rate)[0, 2000:], rtol=0, atol=0.02)
    with av.open(str(tmp_path / target)) as container:
        assert [stream.type for stream in container.streams] == ["video", "audio"]


def test_rotation_and_title_are_kept(tmp_path: Path) -> None:
    source = make_video(tmp_path / "a.mp4", 25, rotation=90, title="Über uns")
    for name in ("b.mp4", "b.mkv"):
        mux_audio(Video(source), tmp_path / name, [tone(1)], RATE, 1)
        with av.open(str(tmp_path / name)) as container:
            assert next(container.decode(video=0)).rotation == 90
            assert {key.lower(): value for key, value in container.metadata.items()}["title"] == "Über uns"
        np.testing.assert_array_equal(next(Video(tmp_path / name).read([20])), next(Video(source).read([20])))


def test_shorter_sound_ends_the_pictures(tmp_path: Path) -> None:
    source = make_video(tmp_path / "a.mp4", 75, options={"bf": "2"})
    mux_audio(source, tmp_path / "b.mp4", cut(tone(2)), RATE, 1)
    before, after = packets_of(source), packets_of(tmp_path / "b.mp4")
    assert after == before[: len(after)]
    assert 50 <= len(after) <= 53  # whole in the order of decoding: a frame that is shown later may be needed for one before
    assert Video(tmp_path / "b.mp4").duration == pytest.approx(2, abs=0.15)


def test_shorter_pictures_end_the_sound(tmp_path: Path) -> None:
    source, blocks = make_video(tmp_path / "a.mp4", 30), cut(tone(60))
    mux_audio(source, tmp_path / "b.mp4", blocks, RATE, 1)
    assert len(packets_of(tmp_path / "b.mp4")) == 30
    assert sound_of(tmp_path / "b.mp4")[0].shape[1] == pytest.approx(1.2 * RATE, abs=1024)
    assert sum(1 for _ in blocks) > 350  # were not asked for


def test_first_frame_comes_with_the_first_sample(tmp_path: Path) -> None:
    """A transport stream begins later than at zero."""
    source = make_video(tmp_path / "a.ts", 50)
    assert packets_of(source)[0][1] > 0
    mux_audio(source, tmp_path / "b.mp4", cut(tone(2)), RATE, 1)
    assert min(time for _, time in packets_of(tmp_path / "b.mp4")) == 0
    np.testing.assert_array_equal(next(Video(tmp_path / "b.mp4").read([31])), next(Video(source).read([31])))


@pytest.mark.parametrize(("given", "written", "channels"), [(32000, 32000, 2), (20000, 22050, 1), (200_000, 96000, 1), (44100, 44100, 2)])
def test_rates_and_channels(tmp_path: Path, given: int, written: int, channels: int) -> None:
    source = make_video(tmp_path / "a.mp4", 50)
    music = np.repeat(tone(2, given), channels, axis=0)
    mux_audio(source, tmp_path / "b.mp4", cut(music), given, channels)
    sound, rate = sound_of(tmp_path / "b.mp4")
    assert rate == written
    assert len(sound) == channels
    assert sound.shape[1] == pytest.approx(2 * rate, abs=1024)
    np.testing.assert_allclose(sound[-1, 4000 : int(1.9 * rate)], tone(2, rate)[0, 4000 : int(1.9 * rate)], rtol=0, atol=0.03)


def test_too_loud_sound_is_clipped(tmp_path: Path) -> None:
    mux_audio(make_video(tmp_path / "a.mp4", 25), tmp_path / "b.mp4", [20 * tone(1)], RATE, 1)
    assert np.abs(sound_of(tmp_path / "b.mp4")[0]).max() < 3  # it was 6


def test_memory_is_bounded(tmp_path: Path) -> None:
    source = make_video(tmp_path / "a.mp4", 1200, 4, codec="mpeg4")
    block = np.zeros((1, RATE), np.float32)
    tracemalloc.start()
    try:
        mux_audio(source, tmp_path / "b.mp4", (block for _ in range(300)), RATE, 1)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 4e6  # the sound has 38 MB


def test_targets_are_told_by_their_suffix() -> None:
    assert [is_video_target(name) for name in ("a.mp4", "a.MKV", Path("a.webm"), "a.wav", "a.avi", "mp4")] == [True] * 3 + [False] * 3


def test_bad_targets_fail_before_the_work(tmp_path: Path) -> None:
    source = make_video(tmp_path / "a.mp4", 25)
    check_mux_target(source, tmp_path / "b.mp4", RATE, 1)
    (tmp_path / "folder.mp4").mkdir()
    for target, kind, words in (
        ("b.avi", VideoError, ["'.avi'", ".mp4", ".webm"]),
        ("b.webm", VideoError, ["b.webm", "h264", ".mkv"]),
        ("a.mp4", VideoError, ["the video itself"]),
        ("none/b.mp4", OutputError, ["No such file"]),
        ("folder.mp4", OutputError, ["folder"]),
    ):
        with refused(kind, *words):
            check_mux_target(source, tmp_path / target, RATE, 1)
    with refused(InputError, "3 channels"):
        check_mux_target(source, tmp_path / "b.mp4", RATE, 3)
    with refused(VideoError, "no times", "b.h264"):
        check_mux_target(make_video(tmp_path / "b.h264", 25), tmp_path / "b.mp4", RATE, 1)
    with refused(VideoError, "cover art"):
        check_mux_target(make_song(tmp_path / "c.mp3"), tmp_path / "b.mp4", RATE, 1)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.mp4", "b.h264", "c.mp3", "folder.mp4"]


def test_what_fails_leaves_nothing_behind(tmp_path: Path) -> None:
    source = make_video(tmp_path / "a.mp4", 50)
    (tmp_path / "b.mp4").write_text("before")

    def failing() -> Iterator[NDArray[np.float32]]:
        yield tone(0.5)
        raise KeyError("stop")

    with pytest.raises(KeyError, match="stop"):
        mux_audio(source, tmp_path / "b.mp4", failing(), RATE, 1)
    with refused(InputError, "2 channels", "expected 1"):
        mux_audio(source, tmp_path / "b.mp4", [np.zeros((2, 100), np.float32)], RATE, 1)
    assert (tmp_path / "b.mp4").read_text() == "before"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.mp4", "b.mp4"]
