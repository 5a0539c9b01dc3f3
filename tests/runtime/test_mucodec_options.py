"""MuCodec's options: progress and cancelling, benchmarks' sizes, and what encode and decode refuse."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from musicrt.runtime.errors import AudioError, Cancelled, InputError, MusicRTError
from musicrt.runtime.models.mucodec.lengths import SPAN
from musicrt.runtime.models.mucodec.pipeline import Pipeline
from musicrt.runtime.pipeline import options_of
from tests.conftest import refused
from tests.runtime.mucodec_codecs import music, noise_arrays, open_light, random_codes
from tests.runtime.progress import Recorder


@pytest.fixture(scope="module")
def codec() -> Pipeline:
    return open_light()[0]


# Progress


def test_progress_counts_windows(codec: Pipeline) -> None:
    progress = Recorder()
    codec.encode_batch([music(SPAN), music(7)], fit="length", on_progress=progress)
    assert progress.calls == [(1, 3), (2, 3), (3, 3)]
    progress = Recorder()
    codec.encode_batch([music(7), music(9)], fit="length", max_batch_size=2, on_progress=progress)
    assert progress.calls == [(2, 2)]


def test_progress_counts_evaluations(codec: Pipeline) -> None:
    progress = Recorder()
    codec.decode(random_codes(1100), steps=3, seed=0, on_progress=progress)
    assert progress.calls == [(done, 6) for done in range(1, 7)]
    progress = Recorder()
    codec.decode_batch([random_codes(1100), random_codes(9)], steps=2, seed=0, fit="length", on_progress=progress)
    progress.assert_complete(6)


def test_cancelling_stops_at_once(codec: Pipeline) -> None:
    for cancel_at in (1, 4):
        progress = Recorder(cancel_at)
        with pytest.raises(Cancelled):
            codec.decode(random_codes(1100), steps=3, seed=0, on_progress=progress)
        assert len(progress.calls) == cancel_at
    with pytest.raises(Cancelled):
        codec.encode(music(SPAN), fit="length", on_progress=Recorder(1))


def test_options_that_the_command_line_can_offer(codec: Pipeline) -> None:
    assert options_of(codec.encode_source) == ["fit", "max_batch_size"]
    assert options_of(codec.decode_stream) == ["steps", "guidance", "prompt", "seed", "noise", "fit"]


def test_sizes_for_a_benchmark(codec: Pipeline) -> None:
    sizes = codec.axis_sizes(3.0)
    assert (sizes["codes"], sizes["frames"], sizes["rows"], sizes["guidance"], sizes["steps"]) == (1024, 512, 256, 2, 20)
    assert codec.axis_sizes(60, steps=7) == {**sizes, "steps": 7}
    assert codec.window_seconds(3.0) == 40.96
    for stage in codec.model.spec.stages:
        assert {axis.name for axis in stage.axes} <= set(sizes)
    for seconds in (0, -1.0, float("inf"), float("nan")):
        with refused(InputError, repr(seconds), "positive"):
            codec.axis_sizes(seconds)


def test_decoding_is_checked_before_there_are_codes(codec: Pipeline) -> None:
    """Of noise, nothing can be said without them."""
    codec.check_decoding(steps=2, guidance=1.5, seed=3, fit="length", prompt=music(9000))
    codec.check_decoding(steps=1, noise=noise_arrays(0, 3))
    wrong: list[dict[str, Any]] = [{"fit": "foo"}, {"steps": 0}, {"guidance": -2.0}, {"seed": -1}]
    for options in wrong:
        with refused(InputError, *options.values()):
            codec.check_decoding(**options)


def test_roundtrip_checks_how_to_decode_before_it_encodes() -> None:
    codec, sessions = open_light()
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"step": 2}, "no option 'step'"),
        ({"steps": 0}, "0"),
        ({"seed": -1}, "-1"),
        ({"prompt": music(9)}, "9 samples"),
    ]
    for options, word in wrong:
        with refused(InputError, word):
            codec.roundtrip(music(9000), **options)
    assert sessions["muq"].calls == []


def test_roundtrip_is_both_ways_with_fifty_steps() -> None:
    codec, sessions = open_light()
    audio = music(60_000)
    sound = codec.roundtrip(audio, seed=2, fit="length")
    assert len(sessions["estimator"].calls) == 50
    assert sound.shape == (2, 32 * 1920), "up to a code longer"
    codes = codec.encode(audio, fit="length")
    np.testing.assert_array_equal(sound, codec.decode(codes, steps=50, seed=2, fit="length"))
    half = codec.roundtrip(audio[:, ::2], sample_rate=24_000, steps=2, seed=2, fit="length")
    assert half.shape == sound.shape
    assert len(sessions["estimator"].calls) == 102


# What is refused


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"fit": "clip"}, ["'clip'", "'window'"]),
        ({"max_batch_size": 0}, ["max_batch_size 0"]),
        ({"max_batch_size": 65}, ["from 1 to 64"]),
        ({"sample_rate": 0}, ["0"]),
    ],
)
def test_wrong_encode_options_are_refused(codec: Pipeline, options: dict[str, Any], words: list[str]) -> None:
    with refused(InputError, *words):
        codec.encode(music(100), **options)


@pytest.mark.parametrize(
    ("audio", "kind"),
    [
        (np.zeros(2000, np.int16), InputError),
        (np.zeros((1, 2, 2000), np.float32), InputError),
        (np.full(2000, np.nan, np.float32), InputError),
        (np.zeros((2000, 2), np.float32), InputError),
        (np.zeros((2, 0), np.float32), InputError),
        (np.zeros((0, 100), np.float32), InputError),
        ("no such file.wav", AudioError),
    ],
    ids=["integers", "three axes", "NaN", "samples first", "no samples", "no channels", "missing file"],
)
def test_wrong_audio_is_refused(codec: Pipeline, audio: Any, kind: type[MusicRTError]) -> None:
    with refused(kind):
        codec.encode(audio)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"steps": 0}, ["0 sampling steps", "1000"]),
        ({"steps": 1001}, ["1001"]),
        ({"steps": 2.0}, ["2.0"]),
        ({"guidance": float("nan")}, ["nan"]),
        ({"guidance": "2"}, ["'2'"]),
        ({"guidance": 1e9}, ["1000000000.0"]),
        ({"seed": -1}, ["-1"]),
        ({"seed": 1.0}, ["1.0"]),
        ({"fit": None}, ["None"]),
    ],
)
def test_wrong_decode_options_are_refused(codec: Pipeline, options: dict[str, Any], words: list[str]) -> None:
    """By the call itself, before anything is iterated."""
    with refused(InputError, *words):
        codec.decode_stream(random_codes(5), **options)


@pytest.mark.parametrize(
    ("codes", "words"),
    [
        (np.full((1, 1, 9), 512), [512, "0 to 511", "load the bundle"]),
        (np.full((1, 1, 9), -1), [-1]),
        (np.full((1, 1, 3), 2**64 - 1, np.uint64), [2**64 - 1]),
        (np.zeros((1, 1, 9), np.float32), ["float32", "int64"]),
        (np.zeros((1, 1, 9), bool), ["bool"]),
        (np.zeros((1, 2, 9), np.int64), ["2 codebooks", "up to 1"]),
        (np.zeros((1, 9, 1), np.int64), ["9 codebooks"]),
        (np.zeros((2, 1, 9), np.int64), ["2 signals", "decode_batch"]),
        (np.zeros(9, np.int64), ["[9]"]),
        (np.zeros((1, 1, 0), np.int64), ["[1, 1, 0]"]),
        (np.zeros((1, 0, 9), np.int64), ["[1, 0, 9]"]),
        ([[[1, 2]], [[5]]], ["several lengths"]),
    ],
)
def test_wrong_codes_are_refused(codec: Pipeline, codes: Any, words: list[object]) -> None:
    for call in (codec.decode, codec.decode_stream, lambda one: codec.decode_batch([random_codes(5), one])):
        with refused(InputError, *words):
            call(codes)


def test_unknown_options_of_a_batch_are_refused_by_name(codec: Pipeline) -> None:
    wrong: Any = {"step": 2}
    with refused(InputError, "mucodec has no option 'step'", "it has steps, guidance"):
        codec.decode_batch([random_codes(5)], **wrong)


def test_small_integers_and_lists_are_codes_too(codec: Pipeline) -> None:
    codes = random_codes(10) % 128
    options: Any = {"steps": 1, "seed": 0, "fit": "length"}
    expected = codec.decode(codes, **options)
    for same in (codes.astype(np.uint8), codes.astype(np.int32), codes.tolist(), codes[0], codes[:, :, ::-1][:, :, ::-1]):
        np.testing.assert_array_equal(codec.decode(same, **options), expected)


def test_wrong_noise_is_refused(codec: Pipeline) -> None:
    codes, arrays = random_codes(1100), noise_arrays(0, 2)
    with refused(InputError, "1 noise arrays", "expected 2", "each of 2 windows"):
        codec.decode(codes, steps=1, noise=arrays[:1])
    with refused(InputError, "2 noise arrays", "expected 4", "two for the prompt"):
        codec.decode(codes, steps=1, noise=arrays, prompt=music(9000))
    with refused(InputError, [1, 32, 512, 32], [1, 32, 192, 32]):
        codec.decode(codes, steps=1, noise=arrays, fit="length")
    with refused(InputError, "NaN"):
        codec.decode(codes, steps=1, noise=[arrays[0], arrays[1] * np.float32("inf")])
    with refused(InputError, "noise of type int64", "float32"):
        codec.decode(codes, steps=1, noise=[np.zeros((1, 32, 512, 32), np.int64)] * 2)
    others: list[Any] = [3, "abc", ["abc"] * 2, np.stack(arrays)]
    for noise in others:
        with refused(InputError, "noise"):
            codec.decode(codes, steps=1, noise=noise)
    with refused(InputError, "a seed and noise"):
        codec.decode(codes, steps=1, noise=arrays, seed=0)
    with refused(InputError, "noise for 2 code arrays"):
        codec.decode_batch([codes, codes], steps=1, noise=arrays)
