"""SemantiCodec's options: progress and cancelling, and what encode and decode refuse."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from musicrt.runtime.errors import AudioError, Cancelled, InputError, MusicRTError
from musicrt.runtime.models.semanticodec.config import LATENT_SHAPE
from musicrt.runtime.models.semanticodec.lengths import SEGMENT
from musicrt.runtime.models.semanticodec.pipeline import Pipeline
from musicrt.runtime.pipeline import options_of
from tests.conftest import ForSystem, refused
from tests.runtime.progress import Recorder
from tests.runtime.semanticodec_codecs import lighten, music, noise_arrays, open_tiny, random_tokens


@pytest.fixture(scope="module")
def codec(tiny_checkpoints: ForSystem) -> Iterator[Pipeline]:
    """The tiny network with cheap functions in place of what decodes."""
    with open_tiny(tiny_checkpoints("semanticodec")) as pipeline:
        yield lighten(pipeline)[0]


# Progress


def test_progress_counts_segments(codec: Pipeline) -> None:
    progress = Recorder()
    codec.encode(music(2 * SEGMENT + 5, 2), channels="each", max_batch_size=4, on_progress=progress)
    assert progress.calls == [(4, 6), (6, 6)]
    progress = Recorder()
    codec.encode_batch([music(SEGMENT + 5), music(7)], max_batch_size=1, on_progress=progress)
    assert progress.calls == [(1, 3), (2, 3), (3, 3)]


def test_progress_counts_evaluations(codec: Pipeline) -> None:
    """Three steps are four, as officially; of two windows with two rows."""
    progress = Recorder()
    codec.decode(random_tokens(300, 2), steps=3, seed=0, on_progress=progress)
    assert progress.calls == [(done, 16) for done in range(1, 17)]
    progress = Recorder()
    codec.decode_batch([random_tokens(300), random_tokens(9)], steps=2, seed=0, max_batch_size=2, on_progress=progress)
    assert progress.calls == [(2, 6), (4, 6), (5, 6), (6, 6)]
    progress = Recorder()
    list(codec.decode_stream(random_tokens(300), steps=5, sampler="dpm-solver++", seed=0, on_progress=progress))
    progress.assert_complete(10)


def test_cancelling_stops_at_once(codec: Pipeline) -> None:
    for cancel_at in (1, 3):
        progress = Recorder(cancel_at)
        with pytest.raises(Cancelled):
            codec.decode(random_tokens(300), steps=5, seed=0, on_progress=progress)
        assert len(progress.calls) == cancel_at
    with pytest.raises(Cancelled):
        codec.encode(music(2 * SEGMENT), max_batch_size=1, on_progress=Recorder(2))
    expected = codec.decode(random_tokens(20), steps=2, seed=0)
    np.testing.assert_array_equal(codec.decode(random_tokens(20), steps=2, seed=0), expected)


def test_options_that_the_command_line_can_offer(codec: Pipeline) -> None:
    assert options_of(codec.encode_source) == ["channels", "max_batch_size"]
    assert options_of(codec.decode_stream) == ["steps", "guidance", "eta", "sampler", "seed", "noise", "max_batch_size"]


def test_sizes_for_a_benchmark(codec: Pipeline) -> None:
    expected = {"batch": 1, "frames": 1024, "tokens": 256, "guidance": 2, "steps": 50}
    assert codec.axis_sizes(3.0) == expected
    assert codec.axis_sizes(60, steps=7) == {**expected, "steps": 8}, "as many as DDIM takes"
    assert codec.window_seconds(3.0) == 10.24  # seconds of a whole segment or window
    for seconds in (0, -1.0, float("inf"), float("nan")):
        with refused(InputError, repr(seconds), "positive"):
            codec.axis_sizes(seconds)


def test_decoding_is_checked_before_there_are_tokens(codec: Pipeline) -> None:
    """Of noise, nothing can be said without them."""
    codec.check_decoding(steps=2, guidance=1.5, sampler="dpm-solver++", seed=3, max_batch_size=64)
    codec.check_decoding(steps=1, noise=noise_arrays(0, 2, 3, 1))
    wrong: list[dict[str, Any]] = [{"sampler": "foo"}, {"steps": 0}, {"guidance": None, "eta": 2.0}, {"seed": -1}, {"max_batch_size": 65}]
    for options in wrong:
        with refused(InputError, *list(options.values())[-1:]):
            codec.check_decoding(**options)


def test_channels_that_come_out_are_known_before(codec: Pipeline) -> None:
    assert [codec.output_channels(3), codec.output_channels(3, channels="first"), codec.output_channels(3, channels="each")] == [1, 1, 3]


# What is refused


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"channels": "both"}, "'both'"),
        ({"channels": None}, "None"),
        ({"max_batch_size": 0}, "max_batch_size 0"),
        ({"max_batch_size": 65}, "from 1 to 64"),
        ({"max_batch_size": True}, "True"),
        ({"max_batch_size": 2.0}, "2.0"),
        ({"sample_rate": 0}, "0"),
        ({"sample_rate": "16000"}, "'16000'"),
    ],
)
def test_wrong_encode_options_are_refused(codec: Pipeline, options: dict[str, Any], word: str) -> None:
    with refused(InputError, word):
        codec.encode(music(100), **options)


@pytest.mark.parametrize(
    ("audio", "kind"),
    [
        (np.zeros(2000, np.int16), InputError),
        (np.zeros((1, 1, 2000), np.float32), InputError),
        (np.full(2000, np.nan, np.float32), InputError),
        (np.zeros((2000, 2), np.float32).tolist(), InputError),
        (np.zeros((1, 0), np.float32), InputError),
        (np.zeros((0, 100), np.float32), InputError),
        ("no such file.wav", AudioError),
    ],
    ids=["integers", "three axes", "NaN", "list", "no samples", "no channels", "missing file"],
)
def test_wrong_audio_is_refused(codec: Pipeline, audio: Any, kind: type[MusicRTError]) -> None:
    with refused(kind):
        codec.encode(audio)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"steps": 0}, ["0 sampling steps", "1000"]),
        ({"steps": 1001}, ["1001", "1000"]),
        ({"steps": 2.0}, ["2.0"]),
        ({"steps": True}, ["True"]),
        ({"steps": 1000, "sampler": "dpm-solver++"}, ["1000", "999"]),
        ({"sampler": "euler"}, ["'euler'", "'ddim'", "'dpm-solver++'"]),
        ({"eta": -0.1}, ["-0.1"]),
        ({"eta": 1.5}, ["1.5"]),
        ({"guidance": float("nan")}, ["nan"]),
        ({"guidance": "2"}, ["'2'"]),
        ({"seed": -1}, ["-1"]),
        ({"seed": 2**64}, [2**64]),
        ({"seed": 1.0}, ["1.0"]),
        ({"max_batch_size": 0}, ["max_batch_size 0"]),
        ({"max_batch_size": 65}, ["from 1 to 64"]),
    ],
)
def test_wrong_decode_options_are_refused(codec: Pipeline, options: dict[str, Any], words: list[str]) -> None:
    """By the call itself, before anything is iterated."""
    with refused(InputError, *words):
        codec.decode_stream(random_tokens(5), **options)


def changed(row: int, code: int, value: int) -> Any:
    tokens = random_tokens(10, 2)
    tokens[row, 3, code] = value
    return tokens


@pytest.mark.parametrize(
    ("tokens", "words"),
    [
        (changed(1, 0, 512), ["semantic", 512, "0 to 511", "load the bundle"]),
        (changed(1, 1, 256), ["acoustic", 256, "0 to 255"]),
        (changed(0, 0, -1), ["semantic", -1]),
        (changed(0, 1, -7), ["acoustic", -7]),
        (changed(0, 1, 2**62), ["acoustic", 2**62]),
        (np.full((1, 3, 2), 2**64 - 1, np.uint64), ["semantic", 2**64 - 1]),
        (np.zeros((1, 10, 2), np.float32), ["float32", "int64"]),
        (np.zeros((1, 10, 2), bool), ["bool"]),
        (np.zeros((1, 10, 3), np.int64), ["[1, 10, 3]", "[batch, frames, 2]"]),
        (np.zeros((1, 2, 10), np.int64), ["[1, 2, 10]"]),
        (np.zeros(10, np.int64), ["[10]"]),
        (np.zeros((1, 1, 10, 2), np.int64), ["[1, 1, 10, 2]"]),
        (np.zeros((1, 0, 2), np.int64), ["[1, 0, 2]"]),
        (np.zeros((0, 4, 2), np.int64), ["[0, 4, 2]"]),
        ([], ["float64"]),
        ([[[1, 2], [3, 4]], [[5, 6]]], ["several lengths", "decode_batch"]),
    ],
)
def test_wrong_tokens_are_refused(codec: Pipeline, tokens: Any, words: list[object]) -> None:
    with refused(InputError, *words):
        codec.decode(tokens, steps=1)


def test_unknown_options_of_a_batch_are_refused_by_name(codec: Pipeline) -> None:
    wrong: Any = {"step": 2}
    with refused(InputError, "semanticodec has no option 'step'", "it has steps, guidance"):
        codec.decode_batch([random_tokens(5)], **wrong)


def test_small_integers_and_lists_are_tokens_too(codec: Pipeline) -> None:
    tokens = random_tokens(10) % 128
    expected = codec.decode(tokens, steps=1, seed=0)
    for same in (tokens.astype(np.uint8), tokens.astype(np.int32), tokens.tolist(), tokens[0], tokens[:, ::-1][:, ::-1]):
        np.testing.assert_array_equal(codec.decode(same, steps=1, seed=0), expected)


def test_wrong_noise_is_refused(codec: Pipeline) -> None:
    tokens, arrays = random_tokens(300, 2), noise_arrays(0, batch=2, windows=2, steps=2)
    codec.decode(tokens, steps=2, noise=arrays)
    with refused(InputError, "5 noise arrays", "expected 6", "3 for each of 2 windows"):
        codec.decode(tokens, steps=2, noise=arrays[:-1])
    with refused(InputError, "6 noise arrays", "expected 10", "5 for each of 2 windows"):  # three steps are four
        codec.decode(tokens, steps=3, noise=arrays)
    wrong: list[Any] = [arrays[0][:1], arrays[0][0], np.zeros((2, *LATENT_SHAPE[::-1]), np.float32), np.zeros(2, np.float32)]
    for array in wrong:
        with refused(InputError, list(array.shape), "[2, 8, 256, 16]"):
            codec.decode(tokens, steps=2, noise=[*arrays[:4], array, arrays[5]])
    with refused(InputError, "NaN"):
        codec.decode(tokens, steps=2, noise=[*arrays[:4], arrays[4] * np.float32("inf"), arrays[5]])
    with refused(InputError, "noise of type int64", "float32"):
        codec.decode(tokens, steps=2, noise=[np.zeros((2, *LATENT_SHAPE), np.int64)] * 6)
    others: list[Any] = [3, "abc", ["abc"] * 6, np.float32(1), [[[1.0], [2.0, 3.0]]] * 6]
    for noise in others:
        with refused(InputError, "noise"):
            codec.decode(tokens, steps=2, noise=noise)
    with refused(InputError, "a seed and noise"):
        codec.decode(tokens, steps=2, noise=arrays, seed=0)
    with refused(InputError, "noise for 2 token arrays"):
        codec.decode_batch([tokens, tokens], steps=2, noise=arrays)
