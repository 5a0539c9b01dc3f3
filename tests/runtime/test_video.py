"""Reading videos: frames by index as displayed, in any container, and clear errors for what is none."""

from __future__ import annotations

import logging
import sys
import tracemalloc
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from musicrt.runtime.errors import InputError, VideoError
from musicrt.runtime.video import Video
from musicrt.runtime.video_decoder import Decoder
from tests.conftest import refused
from tests.runtime.video_files import HEIGHT, RED, WIDTH, av, cut_file, make_song, make_video, shade


def shades_of(video: Video, indices: list[int]) -> list[int]:
    """The brightness of frames at the lower right; neighbours are 37 apart."""
    return [int(np.median(picture[:, -8:, -8:])) for picture in video.read(indices)]


def near(*indices: int) -> Any:
    """The brightness that these frames have, up to what codecs change."""
    return pytest.approx([shade(index) for index in indices], abs=6)


@pytest.mark.parametrize(
    ("name", "codec", "pixels"),
    [
        ("a.mp4", "libx264", "yuv420p"),
        ("a.mov", "mpeg4", "yuv420p"),
        ("a.mkv", "libx264", "yuv444p10le"),
        ("b.mkv", "ffv1", "gray"),
        ("c.mkv", "ffv1", "bgra"),
        ("d.mkv", "ffv1", "yuva420p"),
        ("a.webm", "libvpx", "yuv420p"),
        ("a.avi", "mjpeg", "yuvj420p"),
        ("b.avi", "mpeg4", "yuv420p"),
        ("a.ts", "mpeg2video", "yuv420p"),
        ("a.h264", "libx264", "yuv420p"),
    ],
)
def test_frames_come_by_index(tmp_path: Path, name: str, codec: str, pixels: str) -> None:
    video = Video(make_video(tmp_path / name, 50, codec=codec, pixels=pixels))
    assert (video.frames, video.rate) == (50, 25.0)
    assert video.duration == pytest.approx(2, abs=0.05)
    wanted = [0, 1, 2, 13, 13, 26, 39, 49]
    pictures = list(video.read(wanted))
    assert {picture.shape for picture in pictures} == {(3, HEIGHT, WIDTH)}
    assert {picture.dtype for picture in pictures} == {np.dtype(np.uint8)}
    for index, picture in zip(wanted, pictures, strict=True):
        assert np.abs(picture[:, 30:44, 40:60].astype(int) - shade(index)).max() <= 6
    if pixels != "gray":
        assert np.abs(np.median(pictures[0][:, 4:16, 4:24], axis=(1, 2)) - RED).max() <= 12


def test_all_frames_are_those_of_decoding_in_order(tmp_path: Path) -> None:
    path = make_video(tmp_path / "a.mp4", 30, pixels="yuv420p")
    with av.open(str(path)) as container:
        expected = [frame.to_ndarray(format="rgb24").transpose(2, 0, 1) for frame in container.decode(video=0)]
    np.testing.assert_array_equal(list(Video(path).read(range(30))), expected)


@pytest.mark.parametrize(("angle", "turns"), [(90, 1), (180, 2), (-90, 3), (0, 0), (30, 0)])
def test_frames_are_turned_as_displayed(tmp_path: Path, angle: float, turns: int) -> None:
    """`angle` is counterclockwise; one that is no quarter turn is left out, as decord does."""
    plain, turned = make_video(tmp_path / "a.mp4", 5), make_video(tmp_path / "b.mp4", 5, rotation=angle)
    for before, after in zip(Video(plain).read([0, 3]), Video(turned).read([0, 3]), strict=True):
        np.testing.assert_array_equal(after, np.rot90(before, turns, axes=(1, 2)))
    corner = next(iter(Video(turned).read([0])))
    if angle == 90:  # the red quarter, upper left, comes to the lower left
        assert corner.shape == (3, WIDTH, HEIGHT)
        assert corner[0, -5, 5] > 180 > corner[0, 5, 5]


@pytest.mark.parametrize(("matrix", "expected"), [(1, [204, 43, 55]), (6, [190, 25, 56])])
def test_colours_are_converted_by_the_matrix_of_the_file(tmp_path: Path, matrix: int, expected: list[int]) -> None:
    """Red by BT.601 and by BT.709."""
    with av.open(str(tmp_path / "a.mkv"), "w") as container:
        stream = container.add_stream("ffv1", rate=25)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv444p"
        stream.codec_context.colorspace, stream.codec_context.color_range = matrix, 1
        planes = np.broadcast_to(np.array([83, 117, 198], np.uint8)[:, None, None], (3, HEIGHT, WIDTH))
        for _ in range(30):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(planes), "yuv444p")
            frame.colorspace, frame.color_range = matrix, 1
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    assert next(Video(tmp_path / "a.mkv").read([7]))[:, 20, 20].tolist() == expected


def test_rates(tmp_path: Path) -> None:
    assert Video(make_video(tmp_path / "a.mp4", 25, 10)).rate == 10
    assert Video(make_video(tmp_path / "b.mp4", 60, Fraction(30000, 1001))).rate == pytest.approx(29.97003)


def test_variable_rate_counts_frames(tmp_path: Path) -> None:
    times = [0, 0.04, 0.08, 0.5, 0.6, 1.4, 1.44, 1.48, 2.0, 2.9]
    video = Video(make_video(tmp_path / "a.mkv", 10, 25, times=times, audio=3.5))
    assert video.frames == 10
    assert video.duration == pytest.approx(3.5, abs=0.1)
    assert shades_of(video, list(range(10))) == near(*range(10))


@pytest.mark.parametrize(
    ("name", "codec", "options"),
    [
        ("a.mp4", "libx264", {}),
        ("b.mkv", "libx264", {"x264-params": "open-gop=1:bframes=3:keyint=30:min-keyint=30"}),
        ("c.mkv", "libx264", {"x264-params": "intra-refresh=1:keyint=50:bframes=0"}),
        ("d.ts", "mpeg2video", {"bf": "2"}),
        ("e.webm", "libvpx-vp9", {"deadline": "realtime", "cpu-used": "8"}),
        ("f.avi", "mpeg4", {}),
        ("g.mp4", "libx265", {"x265-params": "log-level=none:keyint=30:open-gop=1", "preset": "ultrafast"}),
    ],
)
def test_leaps_are_exact(tmp_path: Path, name: str, codec: str, options: dict[str, str]) -> None:
    video = Video(make_video(tmp_path / name, 400, codec=codec, keys=30, options=options))
    everything = list(video.read(range(video.frames)))
    for wanted in ([0, 133, 266, 399], [5, 299, 300, 301], [398], [211, 399]):
        for index, picture in zip(wanted, video.read(wanted), strict=True):
            np.testing.assert_array_equal(picture, everything[index])


def test_leaps_leave_out_most_of_a_long_video(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    video = Video(make_video(tmp_path / "a.mp4", 600, keys=25, options={"preset": "ultrafast"}))
    decoded: list[Any] = []
    following = Decoder._next

    def noted(self: Decoder) -> Any:
        decoded.append(following(self))
        return decoded[-1]

    monkeypatch.setattr(Decoder, "_next", noted)
    assert shades_of(video, [0, 300, 599]) == near(0, 300, 599)
    assert len(decoded) < 100


def test_memory_is_bounded(tmp_path: Path) -> None:
    video = Video(make_video(tmp_path / "a.mp4", 500, size=(320, 240), options={"preset": "ultrafast"}))
    tracemalloc.start()
    try:
        assert sum(1 for _ in video.read(range(500))) == 500
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 4e6  # all frames have 115 MB


def test_stream_is_that_of_a_player(tmp_path: Path) -> None:
    video = Video(make_video(tmp_path / "a.mkv", 30, streams=2))
    assert video.frames == 30
    assert shades_of(video, [0, 29]) == near(0, 29)


def test_file_is_not_held_open(tmp_path: Path) -> None:
    path = make_video(tmp_path / "a.mp4")
    video = Video(path)
    frames = video.read([0, 40])
    next(frames)
    frames.close()  # type: ignore[attr-defined]
    path.unlink()
    with refused(VideoError, "a.mp4", "no such file"):
        next(video.read([0]))


@pytest.mark.parametrize("indices", [[50], [-1], [3, 2]])
def test_frames_that_are_not_there_are_refused(tmp_path: Path, indices: list[int]) -> None:
    with refused(VideoError, "a.mp4", indices, "0 to 49"):
        Video(make_video(tmp_path / "a.mp4")).read(indices)


def test_what_is_no_video_is_refused(tmp_path: Path) -> None:
    (tmp_path / "text.mp4").write_text("no video at all\n" * 100)
    (tmp_path / "empty.mp4").touch()
    for path, words in (
        (tmp_path / "none.mp4", ["no such file"]),
        (tmp_path, ["not a file"]),
        (tmp_path / "text.mp4", ["no video"]),
        (tmp_path / "empty.mp4", ["no video"]),
        (make_song(tmp_path / "a.m4a", cover=False), ["holds audio", "expected a video"]),
        (make_song(tmp_path / "a.mp3"), ["audio and cover art", "expected a video"]),
    ):
        with refused(VideoError, path, *words):
            Video(path)
    assert issubclass(VideoError, InputError)


def test_video_without_frames_is_refused(tmp_path: Path) -> None:
    with refused(VideoError, "no frames"):
        Video(make_video(tmp_path / "a.mkv", 0, audio=1))


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("a.mp4", {}, ["not a whole one"]),  # the description of all frames is at the end
        ("b.mkv", {}, ["of 8.00 s", "whole file"]),
        ("c.avi", {}, ["of 8.00 s", "whole file"]),
    ],
)
def test_files_that_end_early_are_refused(tmp_path: Path, name: str, options: dict[str, str], words: list[str]) -> None:
    path = make_video(tmp_path / name, 200, codec="mpeg4", options=options)
    with refused(VideoError, f"cut-{name}", *words):
        Video(cut_file(path, 0.6))


def test_mp4_that_promises_more_is_refused(tmp_path: Path) -> None:
    path = make_video(tmp_path / "a.mp4", 200)
    with av.open(str(path)) as source, av.open(str(tmp_path / "b.mp4"), "w", options={"movflags": "faststart"}) as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.size:
                packet.stream = stream
                target.mux(packet)
    with refused(VideoError, "of 8.00 s", "whole file"):
        Video(cut_file(tmp_path / "b.mp4", 0.7))


def test_damage_is_covered_up_to_a_second_and_refused_beyond(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = make_video(tmp_path / "a.avi", 100, codec="mjpeg", pixels="yuvj420p")
    data = bytearray(path.read_bytes())
    starts = [position for position in range(len(data) - 1) if data[position : position + 4] == b"\xff\xd8\xff\xe0"] or [
        position for position in range(len(data) - 1) if data[position : position + 3] == b"\xff\xd8\xff"
    ]
    assert len(starts) == 100
    for index in range(40, 45):
        data[starts[index] : starts[index + 1] - 16] = bytes(starts[index + 1] - 16 - starts[index])
    (tmp_path / "b.avi").write_bytes(data)
    video = Video(tmp_path / "b.avi")
    with caplog.at_level(logging.WARNING, "musicrt"):
        assert shades_of(video, [39, 42, 50]) == near(39, 45, 50)
    assert "1 frames can't be decoded" in caplog.text
    for index in range(45, 90):
        data[starts[index] : starts[index + 1] - 16] = bytes(starts[index + 1] - 16 - starts[index])
    (tmp_path / "c.avi").write_bytes(data)
    with refused(VideoError, "frame 42 of 100"):
        list(Video(tmp_path / "c.avi").read([39, 42]))


def test_without_pyav_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = make_video(tmp_path / "a.mp4", 5)
    monkeypatch.setitem(sys.modules, "av", None)
    with refused(VideoError, "PyAV", "pip install 'musicrt[video]'"):
        Video(path)
