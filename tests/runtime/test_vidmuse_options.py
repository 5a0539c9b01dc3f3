"""VidMuse's options: progress and cancelling, benchmarks' sizes, and what is refused before any work."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from musicrt.runtime.errors import AudioError, Cancelled, InputError, MusicRTError, VideoError
from musicrt.runtime.models.vidmuse.frames import Clip
from musicrt.runtime.models.vidmuse.pipeline import Pipeline
from musicrt.runtime.pipeline import options_in, options_of
from tests.conftest import refused
from tests.runtime.progress import Recorder
from tests.runtime.vidmuse_codecs import CARD, Watched, clip, frames, open_light, picture, uniforms

OPTIONS = [
    "duration",
    "top_k",
    "top_p",
    "temperature",
    "guidance",
    "extend_stride",
    "prompt",
    "seed",
    "noise",
    "global_frames",
    "antialias",
]


@pytest.fixture
def light() -> Watched:
    return open_light()


@pytest.fixture(scope="module")
def idle() -> Watched:
    """One whose stages must not run."""
    return open_light()


def filmed(seconds: int, first: int = 0) -> Clip:
    return Clip.from_frames(np.stack([picture(first + number) for number in range(2 * seconds)]), 2, global_frames=1)


# Progress


def test_progress_counts_columns_of_all_windows_and_groups(light: Watched) -> None:
    progress = Recorder()
    light[0].generate(clip(31, around=1), duration=31, seed=0, on_progress=progress)
    progress.assert_complete(1503 + 78 - 25)
    progress = Recorder()
    light[0].generate_batch([filmed(1), filmed(2), filmed(1, 9)], seed=0, on_progress=progress)
    progress.assert_complete(53 + 103)


@pytest.mark.parametrize("at", [1, 40])
def test_cancelling_stops_at_once(light: Watched, at: int) -> None:
    pipeline, sessions = light
    progress = Recorder(at)
    with pytest.raises(Cancelled):
        pipeline.generate(clip(), duration=1, seed=0, on_progress=progress)
    assert len(progress.calls) == at
    assert len(sessions["lm"].sizes) == at
    assert pipeline.generate(clip(), duration=1, seed=0).shape == (1, 32000)


def test_cancelled_file_leaves_nothing(light: Watched, tmp_path: Path) -> None:
    with pytest.raises(Cancelled):
        light[0].generate_file(clip(), tmp_path / "a.wav", duration=1, on_progress=Recorder(5))
    assert list(tmp_path.iterdir()) == []


def test_options_that_the_command_line_can_offer(light: Watched) -> None:
    pipeline = light[0]
    assert options_of(pipeline.generate_stream) == OPTIONS
    assert options_of(pipeline.compose) == ["loudness", "max_batch_size"]
    assert options_in(pipeline, "generate") == [*OPTIONS, "loudness", "max_batch_size"]
    assert options_of(pipeline.encode_source) == options_of(pipeline.decode_stream) == []


def test_sizes_for_a_benchmark(light: Watched) -> None:
    pipeline = light[0]
    sizes = pipeline.axis_sizes(1.5)
    axes = {axis.name for stage in pipeline.model.spec.stages for axis in stage.axes}
    assert set(sizes) == axes
    assert (sizes["samples"], sizes["tokens"], sizes["local"], sizes["capacity"]) == (48000, 150, 3, 78)
    assert pipeline.axis_sizes(100)["tokens"] == 3000
    for seconds in (0, -1, math.inf, math.nan):
        with refused(InputError, f"got {seconds!r} s"):
            pipeline.axis_sizes(seconds)


# What is refused


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"duration": 0}, "got a duration of 0 s, expected 0.02 to 360000"),
        ({"duration": -1}, "got a duration of -1 s"),
        ({"duration": 0.019}, "got a duration of 0.019 s"),
        ({"duration": math.inf}, "got a duration of inf s"),
        ({"duration": math.nan}, "got a duration of nan s"),
        ({"duration": "3"}, "got a duration of '3' s"),
        ({"duration": 1e9}, "got a duration of 1000000000.0 s"),
        ({"top_k": -1}, f"got top_k -1, expected a whole number from 1 to {CARD}"),
        ({"top_k": CARD + 1}, f"got top_k {CARD + 1}"),
        ({"top_p": 1.5}, "got top_p 1.5, expected a number from 0 to 1"),
        ({"temperature": -0.1}, "got temperature -0.1"),
        ({"guidance": math.nan}, "got guidance nan"),
        ({"guidance": math.inf}, "got guidance inf"),
        ({"extend_stride": 30}, "got extend_stride 30, expected less than the 30 s"),
        ({"extend_stride": 0}, "got extend_stride 0"),
        ({"extend_stride": 0.01}, "got extend_stride 0.01"),
        ({"extend_stride": -5}, "got extend_stride -5"),
        ({"extend_stride": math.nan}, "got extend_stride nan"),
        ({"seed": -1}, "got seed -1"),
        ({"seed": 1.5}, "got seed 1.5"),
        ({"seed": 1, "noise": uniforms(53)}, "got a seed and noise"),
        ({"noise": uniforms(52)}, "got noise for 52 draws, expected 53"),
        ({"noise": uniforms(53, 8)}, "got noise of shape [8], expected [4]"),
        ({"noise": [one * 2 - 1 for one in uniforms(53)]}, "got noise outside of [0, 1)"),
        ({"noise": [np.full(4, np.nan)] * 53}, "got noise outside of [0, 1)"),
        ({"noise": [np.zeros(4, int)] * 53}, "got noise of type int64"),
        ({"noise": 3}, "got noise of type int"),
        ({"prompt": np.zeros((1, 4, 50), int)}, "got a prompt of 50 timesteps"),
        ({"prompt": np.zeros((1, 3, 5), int)}, "got codes of shape [1, 3, 5]"),
        ({"prompt": np.full((1, 4, 5), CARD)}, f"expected 0 to {CARD - 1}"),
        ({"prompt": [[1], [2, 3]]}, "got list, expected a numpy array"),
        ({"prompt": np.zeros(0, np.float32)}, "the array holds no samples"),
        ({"prompt": "none.wav"}, "none.wav: no such file"),
        ({"global_frames": 0}, "got global_frames 0"),
        ({"global_frames": 2.5}, "got global_frames 2.5"),
        ({"antialias": "no"}, "got antialias 'no'"),
        ({"steps": 3}, "vidmuse has no option 'steps'; it has duration, top_k,"),
    ],
)
def test_wrong_options(idle: Watched, options: dict[str, Any], says: str) -> None:
    pipeline, sessions = idle
    options = {"duration": 1, **options}
    for call in (pipeline.generate, pipeline.generate_tokens, pipeline.generate_stream):
        if call == pipeline.generate_stream and "steps" in options:
            continue
        with refused(InputError, says):
            call(clip(), **options)
    assert not any(session.sizes for session in sessions.values())


@pytest.mark.parametrize("size", [0, -1, 65, 1.5, True])
def test_wrong_batch_sizes(idle: Watched, size: Any) -> None:
    with refused(InputError, f"got max_batch_size {size!r}, expected a whole number from 1 to 64"):
        idle[0].generate_batch([clip()], duration=1, max_batch_size=size)


@pytest.mark.parametrize(
    ("videos", "says"),
    [([], "got [], expected a list"), ("clip.mp4", "got 'clip.mp4', expected a list"), ([3], "got a video of type int"), (3, "got 3,")],
)
def test_wrong_videos(idle: Watched, videos: Any, says: str) -> None:
    with refused(InputError, says):
        idle[0].generate_batch(videos, duration=1)
    with refused(InputError, says):
        idle[0].generate_window(videos, 50)


def test_tensors_do_not_say_how_long_the_music_is(idle: Watched) -> None:
    with refused(InputError, "nothing says how long the music is to be; pass duration"):
        idle[0].generate(clip())


def test_noise_of_videos_that_do_not_run_together(idle: Watched) -> None:
    with refused(InputError, "got noise for 2 videos that do not run together"):
        idle[0].generate_batch([filmed(1), filmed(2)], noise=uniforms(53))


def test_wrong_video_among_others_is_found_before_any_work(idle: Watched, tmp_path: Path) -> None:
    (tmp_path / "b.mp4").write_bytes(b"no video")
    pipeline, sessions = idle
    with refused(VideoError, "b.mp4"):
        pipeline.generate_batch([filmed(1), tmp_path / "b.mp4"])
    assert not any(session.sizes for session in sessions.values())


@pytest.mark.parametrize(
    ("name", "options", "kind", "says"),
    [
        ("a.xyz", {}, AudioError, "got suffix '.xyz'"),
        ("none/a.wav", {}, MusicRTError, "none"),
        ("a.wav", {"loudness": "yes"}, InputError, "got loudness 'yes'"),
        ("a.wav", {"duration": 0.3}, InputError, "got 0.30 s of music, too little to have a loudness"),
        ("a.wav", {"fit": "length"}, InputError, "vidmuse has no option 'fit'; it has duration, top_k,"),
    ],
)
def test_wrong_files(idle: Watched, tmp_path: Path, name: str, options: dict[str, Any], kind: type[MusicRTError], says: str) -> None:
    pipeline, sessions = idle
    with refused(kind, says):
        pipeline.generate_file(clip(), tmp_path / name, **{"duration": 1, **options})
    assert not any(session.sizes for session in sessions.values())
    assert list(tmp_path.iterdir()) == []


def test_short_music_as_it_is_made(light: Watched, tmp_path: Path) -> None:
    assert light[0].generate_file(clip(), tmp_path / "a.wav", duration=0.3, loudness=False) == 9600
    prompt = np.zeros((1, 4, 15), int)  # is part of it
    assert light[0].generate_file(clip(), tmp_path / "b.wav", duration=0.4, prompt=prompt) == 12800


def test_wrong_folders(idle: Watched, tmp_path: Path) -> None:
    pipeline: Pipeline = idle[0]
    with refused(InputError, "none is not a folder"):
        pipeline.generate_folder(tmp_path / "none", tmp_path / "out")
    with refused(InputError, "holds no video"):
        pipeline.generate_folder(tmp_path, tmp_path / "out")
    (tmp_path / "a.mp4").touch()
    (tmp_path / "a.mkv").touch()
    with refused(InputError, "holds a.mkv and a.mp4, whose music would have one name"):
        pipeline.generate_folder(tmp_path, tmp_path / "out")
    (tmp_path / "a.mkv").unlink()
    with refused(VideoError, "a.mp4"):
        pipeline.generate_folder(tmp_path, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    with refused(MusicRTError, "a.mp4: it is not a folder"):
        pipeline.generate_folder(tmp_path, tmp_path / "a.mp4")


def test_frames_of_other_sizes(light: Watched) -> None:
    """They are resized and cropped, as officially."""
    wide = np.repeat(frames(0, 1), 2, axis=3)
    assert light[0].generate_tokens(Clip.from_tensors(wide, wide), duration=0.1, seed=0).shape == (1, 4, 5)
