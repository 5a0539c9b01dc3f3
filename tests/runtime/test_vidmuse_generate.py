"""Music for videos: windows, frames, seeds, batches, prompts, blocks as they come, files and folders."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from musicrt.runtime.audio import read_audio
from musicrt.runtime.audio_writer import write_audio
from musicrt.runtime.errors import InputError, VideoError
from musicrt.runtime.models.vidmuse import language as language_module
from musicrt.runtime.models.vidmuse.chunks import Chunk, plan_chunks
from musicrt.runtime.models.vidmuse.conditioner import Conditioner, Scene
from musicrt.runtime.models.vidmuse.frames import Clip
from musicrt.runtime.models.vidmuse.loudness import Meter
from musicrt.runtime.models.vidmuse.pipeline import Pipeline
from musicrt.runtime.noise import uniform_numbers
from musicrt.runtime.session import Array
from tests.conftest import ForSystem, refused
from tests.reference import signals
from tests.runtime.vidmuse_codecs import CARD, Codes, Watched, clip, distance, frames, open_light, open_tiny, picture, uniforms


@pytest.fixture(scope="module")
def tiny(tiny_checkpoints: ForSystem) -> Iterator[Pipeline]:
    with open_tiny(tiny_checkpoints("vidmuse")) as pipeline:
        yield pipeline


@pytest.fixture
def light() -> Watched:
    return open_light()


def official_plan(duration: float, stride: float, frame_count: int, prompt: int = 0) -> list[tuple[int, int, int, list[int]]]:
    """SPEC section 8, word by word, on lists: offset, timesteps, length of the prompt, local frames."""
    local, total, offset, done = list(range(frame_count)), int(duration * 50), 0, []
    while offset + prompt < total:
        chunk = min(duration - offset / 50, 30)
        done.append((offset, int(chunk * 50), prompt, local[: int(chunk * 2)]))
        prompt = len(range(int(chunk * 50))[int(50 * stride) :])
        local = local[-60:] if len(local) - int(2 * stride) < 60 else local[int(2 * stride) :]
        offset += int(50 * stride)
    return done


# Windows


@pytest.mark.parametrize(
    ("duration", "stride", "frame_count"),
    [
        (33, 29.5, 66),
        (47, 18, 94),
        (59.5, 29.5, 119),
        (60, 29.5, 120),
        (100, 29.5, 200),
        (100.02, 29.5, 200),
        (61.7, 13.3, 123),
        (45, 1, 90),
        (90, 25, 40),
        (90, 25, 1),
        (200, 29.98, 400),
        (3600, 29.5, 7200),
    ],
)
def test_windows_are_the_official_ones(duration: float, stride: float, frame_count: int) -> None:
    chunks = plan_chunks(duration, stride, frame_count)
    assert [(one.offset, one.timesteps, one.known, list(one.local)) for one in chunks] == official_plan(duration, stride, frame_count)
    assert all(one.known < one.timesteps <= 1500 for one in chunks)
    assert sum(one.timesteps - one.known for one in chunks) in (int(duration * 50), int(duration * 50) - 1)


def test_last_window_sees_an_earlier_moment() -> None:
    assert plan_chunks(33, 29.5, 66)[1] == Chunk(1475, 175, 25, range(6, 13))


def test_a_window_sees_at_least_one_frame() -> None:
    assert [len(chunk.local) for chunk in plan_chunks(30.1, 29.9, 60)] == [60, 1]
    assert official_plan(30.1, 29.9, 60)[1][3] == []


@pytest.mark.parametrize(("duration", "timesteps"), [(0.5, 25), (1.3, 65), (2, 100), (0.029, 1), (30, 1500)])
def test_up_to_a_window_all_frames_are_seen(duration: float, timesteps: int) -> None:
    assert plan_chunks(duration, 29.5, 77) == [Chunk(0, timesteps, 0, range(77))]


def test_a_prompt_is_the_beginning_of_the_first_window() -> None:
    assert plan_chunks(33, 29.5, 66, 40) == [Chunk(0, 1500, 40, range(60)), Chunk(1475, 175, 25, range(6, 13))]
    for duration, known in ((2.0, 100), (33.0, 1500), (2.0, 101)):
        with refused(InputError, f"got a prompt of {known} timesteps"):
            plan_chunks(duration, 29.5, 66, known)


# Frames


def test_every_picture_is_encoded_once(light: Watched) -> None:
    pipeline, sessions = light
    local, around = frames(1, 2, 1, 2, 3, 3, 4, 1), frames(3, 3, 9)
    pipeline.generate_tokens(Clip.from_tensors(local, around), duration=0.1, seed=0)
    pictures = [size[0] for size in sessions["visual"].sizes]
    assert sum(pictures) == 5 + 1  # 3 and 9 for the global frames, 1, 2 and 4, a black one
    assert sum(size[0] for size in sessions["local"].sizes) == 4 + 1
    assert sum(size[0] for size in sessions["global"].sizes) == 2 + 1
    pipeline.generate_tokens(Clip.from_tensors(local, around), duration=0.1, seed=0)
    assert sum(size[0] for size in sessions["visual"].sizes) == 6 + 5  # the black one is known


def test_few_pictures_are_encoded_together(light: Watched) -> None:
    pipeline, sessions = light
    pipeline.generate_tokens(Clip.from_tensors(frames(*range(20)), frames(*range(40, 59))), duration=0.1, seed=0)
    assert [size[0] for size in sessions["visual"].sizes] == [8, 8, 3, 8, 8, 4, 1]


def test_windows_share_what_they_see_and_forget_the_rest(light: Watched) -> None:
    pipeline, sessions = light
    long = clip(75, around=2)
    scene = Scene(Conditioner(pipeline.model), [long])
    held = []
    for start, stop in ((0, 60), (20, 80), (79, 139), (90, 150)):
        condition = scene.condition(range(start, stop))
        assert condition.shape == (1, 3000, 64)
        held.append(len(scene._local))
    assert sum(size[0] for size in sessions["visual"].sizes) == 150 + 2
    assert held == [60, 60, 60, 60]


def test_condition_is_that_of_the_frames_in_order(light: Watched) -> None:
    conditioner = Conditioner(light[0].model)
    around, local = frames(7, 8), frames(3, 1, 3)
    got = Scene(conditioner, [Clip.from_tensors(local, around)]).condition(range(3))
    from musicrt.runtime.models.vidmuse.pixels import pixel_values

    parts = [conditioner.encode(kind, conditioner.see(pixel_values(part))) for kind, part in (("local", local), ("global", around))]
    np.testing.assert_allclose(got, conditioner.fuse(*parts), rtol=1e-6, atol=1e-6)


def test_past_the_end_the_last_frame_stays(light: Watched) -> None:
    pipeline = light[0]
    video = np.stack([picture(number) for number in (0, 1, 2, 3)])
    longer = np.stack([picture(number) for number in (0, 1, 2, 3, 3, 3)])
    one, other = [pipeline.generate_tokens(Clip.from_frames(part, 2, global_frames=1), duration=3, seed=1) for part in (video, longer)]
    np.testing.assert_array_equal(one, other)


def test_condition_without_video_is_a_black_frame(light: Watched) -> None:
    keys = Conditioner(light[0].model).null_keys()
    assert {name: values.shape for name, values in keys.items()} == {
        f"null_{part}_{layer}": (1, 4, 50, 16) for layer in (0, 1) for part in ("key", "value")
    }


# The language model


def test_caches_are_kept_where_they_fit(light: Watched) -> None:
    language, null = light[0].composer.language, light[0].composer.conditioner.null_keys()

    def cache(columns: int, batch: int = 1) -> Array:
        keys = {name.replace("null_", "cross_"): np.repeat(values, batch, axis=0) for name, values in null.items()}
        with language.open(keys, null, columns):
            assert not language._caches  # the window has them
        return language._caches["key_0"]

    first = cache(1503)
    assert first.shape == (2, 4, 1503, 16)
    assert cache(1503) is first
    assert cache(900) is first
    assert cache(100).shape == (2, 4, 100, 16)
    assert cache(3).shape == (2, 4, 16, 16)
    assert cache(3, batch=3).shape == (6, 4, 16, 16)


def test_windows_take_over_caches_of_closed_ones(light: Watched) -> None:
    language, null = light[0].composer.language, light[0].composer.conditioner.null_keys()
    keys = {name.replace("null_", "cross_"): values for name, values in null.items()}
    windows = [language.open(keys, null, 100) for _ in range(3)]
    caches = []
    for window in windows:
        window.close()
        caches.append(language._caches["key_0"])
    assert not any(np.shares_memory(one, other) for one, other in itertools.combinations(caches, 2))
    with language.open(keys, null, 90):
        windows[0].close()  # again, which gives nothing back
        assert not language._caches
    assert language._caches["key_0"] is caches[2]


def test_long_prompts_may_be_fed_in_parts(light: Watched, monkeypatch: pytest.MonkeyPatch) -> None:
    pipeline, sessions = light
    prompt = np.random.default_rng(0).integers(0, CARD, (1, 4, 30))
    expected = pipeline.generate_tokens(clip(), duration=1, seed=0, prompt=prompt)
    assert sessions["lm"].sizes[0] == (1, 4, 31)
    sessions["lm"].sizes.clear()
    monkeypatch.setattr(language_module, "_SCORES", 4 * (100 + 53) * 7)
    np.testing.assert_array_equal(pipeline.generate_tokens(clip(), duration=1, seed=0, prompt=prompt), expected)
    assert [size[2] for size in sessions["lm"].sizes[:3]] == [7, 1, 1]


def test_caches_and_keys_are_what_the_graphs_have() -> None:
    """Those of engines: float16, of one size, and few columns at a time."""
    pipeline, sessions = open_light(flavour="trt", limits={"capacity": (1504, 1504), "columns": (1, 2)})
    prompt = np.random.default_rng(0).integers(0, CARD, (1, 4, 5))
    tokens = pipeline.generate_tokens(clip(), duration=1, seed=0, prompt=prompt)
    np.testing.assert_array_equal(tokens[:, :, :5], prompt)
    assert tokens.shape == (1, 4, 50)
    assert [size[2] for size in sessions["lm"].sizes[:3]] == [2, 1, 1]
    caches = pipeline.composer.language._caches
    assert {(cache.shape, str(cache.dtype)) for cache in caches.values()} == {((2, 4, 1504, 16), "float16")}
    assert {str(keys.dtype) for keys in pipeline.composer.conditioner.null_keys().values()} == {"float16"}


def test_tiny_network_with_prompt_and_without_give_the_same_music(tiny: Pipeline) -> None:
    """What was made is a prompt from which the same music goes on: cached steps and a prefill agree."""
    options = {"duration": 0.4, "temperature": 0.0}
    tokens = tiny.generate_tokens(clip(), **options)  # type: ignore[arg-type]
    again = tiny.generate_tokens(clip(), prompt=tokens[:, :, :11], **options)  # type: ignore[arg-type]
    np.testing.assert_array_equal(again[:, :, :12], tokens[:, :, :12])


# Seeds, noise, batches


def test_seeds(light: Watched) -> None:
    pipeline = light[0]
    first = pipeline.generate(clip(), duration=1, seed=5)
    assert first.shape == (1, 32000)
    assert first.dtype == np.float32
    np.testing.assert_array_equal(pipeline.generate(clip(), duration=1, seed=5), first)
    others = [pipeline.generate_tokens(clip(), duration=1, seed=seed) for seed in (6, None, None)]
    assert len({one.tobytes() for one in others}) == 3


def test_uniform_numbers_are_a_function_of_seed_draw_and_column() -> None:
    numbers = np.stack([uniform_numbers(3, 4, draw=draw) for draw in range(2000)])
    assert numbers.dtype == np.float64
    assert ((numbers >= 0) & (numbers < 1)).all()
    assert len(np.unique(numbers)) == numbers.size
    assert np.abs(numbers.mean(axis=0) - 0.5).max() < 0.02
    assert abs(numbers.var() - 1 / 12) < 0.002
    np.testing.assert_array_equal(uniform_numbers(3, 2, draw=7), numbers[7, :2])
    assert not np.isin(uniform_numbers(4, 4, draw=7), numbers).any()


def test_videos_of_a_batch_have_the_music_they_have_alone(light: Watched) -> None:
    pipeline, sessions = light
    videos = [Clip.from_frames(np.stack([picture(9 * i + j) for j in range(4 + 2 * (i == 1))]), 2, global_frames=2) for i in range(4)]
    alone = [pipeline.generate(video, seed=3) for video in videos]
    sessions["lm"].sizes.clear()
    together = pipeline.generate_batch(videos, seed=3, max_batch_size=2)
    assert [one.shape[1] for one in together] == [64000, 96000, 64000, 64000]
    for one, other in zip(alone, together, strict=True):
        assert distance(other, one) < 1e-6
    batches = [size[0] for size in sessions["lm"].sizes]
    assert [batches.count(size) for size in (1, 2)] == [153 + 103, 103]
    assert len({one.tobytes() for one in together}) == 4


def test_given_numbers_choose_the_tokens(light: Watched) -> None:
    pipeline = light[0]
    noise = uniforms(8, 8)
    both = pipeline.generate_token_batch([clip(), clip(first=50)], duration=0.1, noise=noise)
    for row, video in enumerate((clip(), clip(first=50))):
        part = [numbers[4 * row : 4 * row + 4] for numbers in noise]
        np.testing.assert_array_equal(pipeline.generate_tokens(video, duration=0.1, noise=part), both[row])


def test_draws_are_counted_over_all_windows(light: Watched) -> None:
    pipeline = light[0]
    noise = uniforms(1503 + 1503 - 25 + 22 - 22, seed=2)[: 1503 + 178 - 25]
    tokens = pipeline.generate_tokens(clip(33, around=1), duration=33, noise=noise, top_k=0)
    changed = [*noise[:-1], (noise[-1] + 0.5) % 1]
    other = pipeline.generate_tokens(clip(33, around=1), duration=33, noise=changed, top_k=0)
    np.testing.assert_array_equal(np.argwhere(tokens != other)[:, 1:], [[3, 1649]])


# Long music, and blocks as they come


def test_windows_go_on_from_the_end_of_the_one_before(light: Watched) -> None:
    pipeline, sessions = light
    tokens = pipeline.generate_tokens(clip(33, around=1), duration=33, seed=0, extend_stride=29)
    prefills = [number for number, size in enumerate(sessions["lm"].sizes) if size[2] > 1]
    assert tokens.shape == (1, 4, 1650)
    assert [sessions["lm"].sizes[number][2] for number in prefills] == [51]
    assert [size[1] for size in sessions["cross"].sizes] == [3000, 50, 400]


def test_greedy_long_music_is_that_of_its_windows(light: Watched) -> None:
    pipeline, video = light[0], clip(31, around=1)
    tokens = pipeline.generate_tokens(video, duration=31, temperature=0)
    first = Clip.from_tensors(video.local_frames(0, 60), video.global_frames())
    np.testing.assert_array_equal(pipeline.generate_tokens(first, duration=30, temperature=0), tokens[:, :, :1500])
    last = Clip.from_tensors(video.local_frames(2, 5), video.global_frames())
    rest = pipeline.generate_tokens(last, duration=1.5, temperature=0, prompt=tokens[:, :, 1475:1500])
    np.testing.assert_array_equal(rest, tokens[:, :, 1475:])


def test_blocks_come_while_tokens_are_made(light: Watched) -> None:
    pipeline, done = light[0], [0]
    stream = pipeline.generate_stream(clip(31, around=1), duration=31, seed=4, on_progress=lambda now, _total: done.__setitem__(0, now))
    assert done == [0]
    first = next(stream)
    assert first.shape == (1, 640 * 45)
    assert done == [53]
    blocks = [first, *stream]
    assert done == [1503 + 78 - 25]
    assert distance(np.concatenate(blocks, axis=1), pipeline.generate(clip(31, around=1), duration=31, seed=4)) < 2e-6
    assert max(block.shape[1] for block in blocks) <= 640 * 60


def test_tiny_stream_is_what_the_whole_gives(tiny: Pipeline) -> None:
    blocks = list(tiny.generate_stream(clip(2), duration=1.5, seed=4))
    whole = tiny.generate(clip(2), duration=1.5, seed=4)
    assert distance(np.concatenate(blocks, axis=1), whole) < 2e-6
    assert np.abs(whole).max() > 1e-3


@pytest.mark.parametrize("ends", ["together", "abandoned"])
def test_streams_may_take_turns(tiny: Pipeline, ends: str) -> None:
    videos = [clip(2), clip(2, first=40)]
    alone = [tiny.generate(video, duration=1.5, seed=seed) for seed, video in enumerate(videos)]
    streams = [tiny.generate_stream(video, duration=1.5, seed=seed) for seed, video in enumerate(videos)]
    blocks = [[next(stream)] for stream in streams]
    if ends == "abandoned":
        del streams[1]
    for stream, parts in zip(streams, blocks, strict=False):
        parts.extend(stream)
        assert distance(np.concatenate(parts, axis=1), alone[streams.index(stream)]) < 2e-6


def test_a_clip_serves_twice(light: Watched) -> None:
    video = clip(31, around=1)
    first = light[0].generate_tokens(video, duration=31, seed=0)
    np.testing.assert_array_equal(light[0].generate_tokens(video, duration=31, seed=0), first)


# Prompts


def test_prompt_of_audio_is_encoded(light: Watched, tmp_path: Path) -> None:
    pipeline = light[0]
    audio = signals.audio("vidmuse-prompt", 0.3, 32000, 1)
    codes: Codes = pipeline.encode(audio)
    expected = pipeline.generate_tokens(clip(), duration=1, seed=0, prompt=codes)
    np.testing.assert_array_equal(expected[:, :, :15], codes)
    np.testing.assert_array_equal(pipeline.generate_tokens(clip(), duration=1, seed=0, prompt=audio), expected)
    np.testing.assert_array_equal(pipeline.generate_tokens(clip(), duration=1, seed=0, prompt=codes[0]), expected)
    write_audio(tmp_path / "a.wav", audio, 32000, "FLOAT")
    np.testing.assert_array_equal(pipeline.generate_tokens(clip(), duration=1, seed=0, prompt=tmp_path / "a.wav"), expected)


def test_prompts_of_a_batch(light: Watched) -> None:
    pipeline, codes = light[0], np.random.default_rng(0).integers(0, CARD, (2, 4, 5))
    tokens = pipeline.generate_token_batch([clip(), clip(first=9)], duration=0.4, seed=0, prompt=codes)
    np.testing.assert_array_equal(np.concatenate(tokens)[:, :, :5], codes)
    tokens = pipeline.generate_token_batch([clip(), clip(first=9)], duration=0.4, seed=0, prompt=codes[1])
    np.testing.assert_array_equal(np.concatenate(tokens)[:, :, :5], codes[[1, 1]])
    nothing = light[0].generate_token_batch([clip(), clip(first=9)], duration=0.4, seed=0)
    for prompt in (codes[:, :, :0], codes[0, :, :0]):
        np.testing.assert_array_equal(pipeline.generate_token_batch([clip(), clip(first=9)], duration=0.4, seed=0, prompt=prompt), nothing)
    with refused(InputError, "got a prompt of 2 rows of codes for 3 videos"):
        pipeline.generate_batch([clip()] * 3, duration=1, prompt=codes)


# Files


def test_files_have_the_loudness_of_the_demo(light: Watched, tmp_path: Path) -> None:
    pipeline = light[0]
    options: dict[str, Any] = {"duration": 2, "seed": 3}
    raw = pipeline.generate(clip(2), **options)
    assert pipeline.generate_file(clip(2), tmp_path / "raw.wav", loudness=False, **options) == 64000
    np.testing.assert_allclose(read_audio(tmp_path / "raw.wav")[0], raw, atol=2**-22)
    assert pipeline.generate_file(clip(2), tmp_path / "a.flac", **options) == 64000
    finished = read_audio(tmp_path / "a.flac")[0]
    meter = Meter(32000, 1)
    meter.add(raw)
    gain = meter.gain()
    assert gain is not None
    np.testing.assert_allclose(finished, np.tanh(gain * raw), atol=1e-5)


def test_frames_have_no_video_to_copy(light: Watched, tmp_path: Path) -> None:
    with refused(InputError, "a.mp4, a video, and frames"):
        light[0].generate_file(clip(), tmp_path / "a.mp4", duration=1)
    with refused(VideoError, "none.mp4"):
        light[0].generate_file(tmp_path / "none.mp4", tmp_path / "a.wav")
    assert list(tmp_path.iterdir()) == []
