"""Which frames VidMuse sees of a video, and as what pixels: numbers of the official rule, of torch and of Pillow."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from musicrt.runtime.errors import InputError, VideoError
from musicrt.runtime.models.vidmuse import frames as module
from musicrt.runtime.models.vidmuse.frames import Clip
from musicrt.runtime.models.vidmuse.pixels import SIZE, black_pixels, pixel_values, resize
from musicrt.runtime.models.vidmuse.sampling import global_ids, local_ids, pad_ids
from musicrt.runtime.video import Video
from tests.conftest import refused

RNG = np.random.default_rng(7)


def pictures(*shape: int) -> NDArray[np.uint8]:
    return RNG.integers(0, 256, shape, np.uint8)


@pytest.mark.parametrize(
    ("frames", "rate", "seconds", "expected"),
    [
        (110, 25.0, 4, [0, 13, 26, 39, 52, 65, 78, 91]),  # every 13th: 1.92 a second
        (70, 30000 / 1001, 3, [0, 15, 30, 45, 60]),
        (12, 10.0, 1, [0, 5]),
        (6, 1.0, 6, [0, 1, 2, 3, 4, 5]),
        (1000, 0.5, 2, [0, 1, 2, 3]),
        (300, 120.0, 2, [0, 60, 120, 180]),
    ],
)
def test_local_frames_are_every_so_many(frames: int, rate: float, seconds: int, expected: list[int]) -> None:
    assert local_ids(frames, rate, seconds).tolist() == expected


def test_local_frames_may_begin_later_and_lie_closer() -> None:
    assert local_ids(500, 25.0, 2, start=3.1).tolist() == [77, 90, 103, 116]
    assert local_ids(500, 25.0, 2, frame_rate=4).tolist() == [0, 7, 14, 21, 28, 35, 42, 49]


def test_ids_are_padded_by_the_last_or_cut() -> None:
    assert pad_ids(np.array([0, 5, 9]), 5).tolist() == [0, 5, 9, 9, 9]
    assert pad_ids(np.array([0, 5, 9]), 2).tolist() == [0, 5]


def test_global_frames_are_even_steps() -> None:
    assert global_ids(125, 5).tolist() == [0, 31, 62, 93, 124]
    assert global_ids(3, 6).tolist() == [0, 0, 0, 1, 1, 2]
    assert global_ids(1, 4).tolist() == [0, 0, 0, 0]
    assert global_ids(99, 1).tolist() == [0]
    assert global_ids(40_000_001, 3).tolist() == [0, 20_000_000, 40_000_000]


@pytest.mark.parametrize("count", [2, 32, 64])
def test_global_frames_are_those_of_torch(count: int) -> None:
    torch = pytest.importorskip("torch")
    for frames in range(1, 1500):
        np.testing.assert_array_equal(global_ids(frames, count), torch.linspace(0, frames - 1, count).to(torch.int64).numpy())


@pytest.mark.parametrize("antialias", [False, True])
@pytest.mark.parametrize(("height", "width"), [(180, 320), (96, 128), (480, 224), (1, 1), (720, 405)])
def test_resizing_is_that_of_torch(height: int, width: int, antialias: bool) -> None:
    torch = pytest.importorskip("torch")
    picture = pictures(3, height, width)
    tensor = torch.from_numpy(picture)[None].float().contiguous(memory_format=torch.channels_last)
    kwargs: dict[str, Any] = {"mode": "bilinear", "align_corners": False, "antialias": antialias}
    expected = torch.nn.functional.interpolate(tensor, (SIZE, SIZE), **kwargs)[0].round().numpy()
    resized = resize(picture, antialias)
    assert resized.dtype == np.uint8
    difference = np.abs(resized - expected)
    assert difference.max() <= 1
    assert np.count_nonzero(difference) < 0.003 * difference.size  # the last bit of float32 decides, and torch's varies with the machine


def test_frame_of_the_right_size_is_untouched() -> None:
    picture = pictures(3, SIZE, SIZE)
    assert resize(picture) is picture
    assert resize(picture, antialias=True) is picture


def test_without_antialiasing_only_four_pixels_count() -> None:
    picture = np.zeros((3, 896, 896), np.uint8)
    picture[:, 2::4, 2::4] = 255  # each of the 224 places lies between pixels 1 and 2 of four
    assert set(np.unique(resize(picture))) == {64}
    assert resize(picture, antialias=True).max() < 40


def test_pixels_are_normalised_by_channel() -> None:
    frames = np.zeros((3, 2, SIZE, SIZE), np.uint8)
    frames[:, 1] = 255
    values = pixel_values(frames)
    assert values.shape == (2, 3, SIZE, SIZE)
    assert values.dtype == np.float32
    np.testing.assert_allclose(values[0, :, 0, 0], [-1.7922626, -1.7520971, -1.4802198], rtol=1e-6)
    np.testing.assert_allclose(values[1, :, 5, 9], [1.9303361, 2.0748837, 2.1458968], rtol=1e-6)
    np.testing.assert_array_equal(black_pixels(1), values[:1])


@pytest.mark.parametrize(("height", "width"), [(300, 400), (400, 300), (100, 150), (224, 500), (1080, 607)])
def test_other_sizes_are_resized_as_pillow_does_and_cropped(height: int, width: int) -> None:
    image = pytest.importorskip("PIL.Image")
    frame = pictures(3, 1, height, width)
    shorter = min(height, width)
    size = tuple(SIZE if length == shorter else int(SIZE * length / shorter) for length in (width, height))
    resized = np.asarray(image.fromarray(frame[:, 0].transpose(1, 2, 0)).resize(size, image.Resampling.BICUBIC))
    top, left = (resized.shape[0] - SIZE) // 2, (resized.shape[1] - SIZE) // 2
    cropped = resized[top : top + SIZE, left : left + SIZE].transpose(2, 0, 1)
    np.testing.assert_array_equal(pixel_values(frame), pixel_values(np.ascontiguousarray(cropped[:, None])))


def test_clip_of_an_array() -> None:
    frames = pictures(110, 48, 64, 3)
    clip = Clip.from_frames(frames, 25.0, global_frames=5)
    assert (clip.seconds, clip.local_count, clip.global_count) == (4, 8, 5)
    assert clip.local_ids().tolist() == [0, 13, 26, 39, 52, 65, 78, 91]
    assert clip.local_ids(2, 4).tolist() == [26, 39]
    local = clip.local_frames(2, 4)
    assert local.shape == (3, 2, SIZE, SIZE)
    np.testing.assert_array_equal(local[:, 1], resize(frames[39].transpose(2, 0, 1)))
    np.testing.assert_array_equal(clip.global_frames()[:, 4], resize(frames[109].transpose(2, 0, 1)))
    same = Clip.from_frames(frames.transpose(0, 3, 1, 2), 25.0, global_frames=5)
    np.testing.assert_array_equal(same.local_frames(2), clip.local_frames(2))
    np.testing.assert_array_equal(same.global_frames(), clip.global_frames())
    with refused(InputError, "local frame 0", "2 to 7", "forwards"):
        clip.local_frames(0, 4)


def test_clip_pads_with_the_last_frame() -> None:
    clip = Clip.from_frames(pictures(70, 8, 8, 3), 30000 / 1001, seconds=3)
    assert clip.local_ids().tolist() == [0, 15, 30, 45, 60, 60]
    local = clip.local_frames()
    np.testing.assert_array_equal(local[:, 4], local[:, 5])


def test_clip_of_ready_made_frames_knows_what_is_alike() -> None:
    local, overall = pictures(3, 4, 60, 80), pictures(3, 3, 60, 80)
    local[:, 2], overall[:, 1] = local[:, 0], local[:, 1]
    clip = Clip.from_tensors(local, overall.astype(np.float32))
    assert clip.seconds is None
    assert clip.local_ids().tolist() == [0, 1, 0, 3]
    assert clip.global_ids.tolist() == [4, 1, 6]
    np.testing.assert_array_equal(clip.local_frames(1, 3), local[:, 1:3])
    np.testing.assert_array_equal(clip.global_frames(), overall)


@pytest.mark.parametrize("held", [1000, 0])
@pytest.mark.parametrize("name", ["a.mp4", "a.mkv"])
def test_clip_of_a_file_is_that_of_its_frames(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, held: int, name: str) -> None:
    """Whether all is held or not."""
    video_files = pytest.importorskip("tests.runtime.video_files")
    monkeypatch.setattr(module, "_HELD", held)
    path = video_files.make_video(tmp_path / name, 260)
    frames = np.stack(list(Video(path).read(range(260))))
    expected = Clip.from_frames(frames, 25.0)
    clip = Clip.open(path)
    assert clip.name == name
    assert clip.seconds == expected.seconds == 10
    np.testing.assert_array_equal(clip.global_frames(), expected.global_frames())
    for start, stop in ((0, 12), (0, 3), (5, 14), (14, 20), (18, 20)):
        np.testing.assert_array_equal(clip.local_frames(start, stop), expected.local_frames(start, stop))
    clip.close()
    np.testing.assert_array_equal(clip.local_frames(19, 20), expected.local_frames(19, 20))
    assert Clip.open(clip) is clip


def test_long_clip_holds_a_window_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    video_files = pytest.importorskip("tests.runtime.video_files")
    monkeypatch.setattr(module, "_HELD", 0)
    clip = Clip.open(video_files.make_video(tmp_path / "a.mp4", 300, 2, codec="mpeg4"))
    assert clip.local_count == 300
    clip.global_frames()
    for start in range(0, 300, 59):
        clip.local_frames(start, min(start + 60, 300))
        assert len(clip._pictures._held) <= 60  # type: ignore[attr-defined]


def test_short_clip_decodes_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    video_files = pytest.importorskip("tests.runtime.video_files")
    clip = Clip.open(video_files.make_video(tmp_path / "a.mp4", 100))
    reads: list[int] = []
    read = Video.read

    def counted(self: Video, indices: Sequence[int]) -> Iterator[NDArray[np.uint8]]:
        reads.append(len(indices))
        return read(self, indices)

    monkeypatch.setattr(Video, "read", counted)
    clip.global_frames()
    clip.local_frames()
    assert reads == [len(set(clip.global_ids.tolist()) | set(clip.local_ids().tolist()))]


def test_clip_of_less_than_a_second_is_refused(tmp_path: Path) -> None:
    video_files = pytest.importorskip("tests.runtime.video_files")
    with refused(VideoError, "a.mp4", "0.80 s", "at least 1 s"):
        Clip.open(video_files.make_video(tmp_path / "a.mp4", 20))
    with refused(InputError, "20 frames", "at least one second"):
        Clip.from_frames(pictures(20, 8, 8, 3), 25)


@pytest.mark.parametrize(
    ("frames", "rate", "options", "words"),
    [
        (np.zeros((30, 8, 8, 3), np.float32), 25, {}, ["float32", "uint8"]),
        ([[1]], 25, {}, ["list", "uint8"]),
        (np.zeros((30, 8, 8), np.uint8), 25, {}, ["[30, 8, 8]", "[frames, height, width, 3]"]),
        (np.zeros((0, 8, 8, 3), np.uint8), 25, {}, ["[0, 8, 8, 3]"]),
        (np.zeros((30, 8, 8, 3), np.uint8), 0, {}, ["rate", "0"]),
        (np.zeros((30, 8, 8, 3), np.uint8), math.nan, {}, ["rate", "nan"]),
        (np.zeros((30, 8, 8, 3), np.uint8), "25", {}, ["rate", "'25'"]),
        (np.zeros((30, 8, 8, 3), np.uint8), 25, {"seconds": 0}, ["seconds", "0"]),
        (np.zeros((30, 8, 8, 3), np.uint8), 25, {"seconds": 1.5}, ["seconds", "1.5"]),
        (np.zeros((30, 8, 8, 3), np.uint8), 25, {"global_frames": 0}, ["global_frames", "0"]),
    ],
)
def test_bad_frames_are_refused(frames: Any, rate: Any, options: dict[str, Any], words: list[str]) -> None:
    with refused(InputError, *words):
        Clip.from_frames(frames, rate, **options)


@pytest.mark.parametrize(
    ("local", "overall", "words"),
    [
        (np.zeros((4, 3, 8, 8), np.uint8), np.zeros((3, 4, 8, 8), np.uint8), ["local", "[4, 3, 8, 8]", "[3, frames"]),
        (np.zeros((3, 4, 8, 8), np.uint8), np.zeros((3, 0, 8, 8), np.uint8), ["global", "[3, 0, 8, 8]", "at least one"]),
        (np.zeros((3, 4, 8, 8), np.uint8), np.zeros((3, 4, 8, 9), np.uint8), ["[3, 4, 8, 9]", "one height and width"]),
        (np.full((3, 4, 8, 8), 0.5, np.float32), np.zeros((3, 4, 8, 8), np.uint8), ["local", "whole numbers"]),
        (np.full((3, 4, 8, 8), 256, np.int32), np.zeros((3, 4, 8, 8), np.uint8), ["local", "whole numbers"]),
        (np.full((3, 4, 8, 8), np.nan, np.float32), np.zeros((3, 4, 8, 8), np.uint8), ["local", "whole numbers"]),
        (np.zeros((3, 4, 8, 8), bool), np.zeros((3, 4, 8, 8), np.uint8), ["bool", "uint8"]),
    ],
)
def test_bad_tensors_are_refused(local: Any, overall: Any, words: list[str]) -> None:
    with refused(InputError, *words):
        Clip.from_tensors(local, overall)
