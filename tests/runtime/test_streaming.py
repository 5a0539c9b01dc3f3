"""Streaming: the same lengths as whole calls, no seams, errors before the first block, one window at a time."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from numpy.typing import NDArray

from musicrt.runtime import noise as noise_module
from musicrt.runtime.errors import AudioError, InputError
from musicrt.runtime.fake_session import FakeSession
from musicrt.runtime.model import Model
from musicrt.runtime.models.music2latent.pipeline import Pipeline
from tests.conftest import refused
from tests.reference import signals

Float = NDArray[np.float32]

STEP, EDGE = 512, 192
LATENT = STEP / 44100  # seconds


def join(blocks: Iterator[Float]) -> Float:
    return np.concatenate(list(blocks), axis=-1)


def stationary_latents(length: int) -> Float:
    return 3.0 * signals.normal("stationary", (1, 8, length))


def rms(values: Float) -> float:
    return float(np.sqrt(np.mean(np.square(values, dtype=np.float64))))


@pytest.fixture
def make_fake(codec: Pipeline, monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[Float], Float] | None], Pipeline]:
    """The real windows and the real synthesis around networks that give zeros, without noise.

    The one-step decoder may be given: from the noisy spectrum, all zeros, to the spectrum.
    """
    monkeypatch.setattr(noise_module, "normal_columns", lambda _, rows, frames, **__: np.zeros((rows, len(frames)), np.float32))
    spec = codec.model.spec

    def make(decoder: Callable[[Float], Float] | None = None) -> Pipeline:
        def open_session(stage: str) -> FakeSession:
            given = decoder if stage == "decoder" else None
            return FakeSession(spec.stage(stage), given and (lambda feeds: {"output": given(feeds["x"])}))

        return Pipeline(Model(spec, open_session, codec.backend))

    return make


@pytest.fixture
def fake_codec(make_fake: Callable[[], Pipeline]) -> Pipeline:
    return make_fake()


@pytest.fixture
def small_chunks(codec: Pipeline) -> Pipeline:
    """Official chunks of eight latents by default."""
    spec = codec.model.spec
    config = {**spec.config, "max_waveform_length_encode": 8 * STEP, "max_waveform_length_decode": 8 * STEP}
    return Pipeline(Model(dataclasses.replace(spec, config=config), codec.model.session, codec.backend))


# Lengths


@pytest.mark.parametrize("overlap", [0, 1, 5, 10])
def test_decoded_stream_is_as_long_as_the_whole(fake_codec: Pipeline, overlap: int) -> None:
    for length in [*range(1, 90), 100, 119, 120, 121, 160, 199, 200]:
        blocks = list(fake_codec.decode_stream(np.ones((1, 8, length), np.float32), window=20 * LATENT, overlap=overlap * LATENT))
        assert sum(block.shape[1] for block in blocks) == length * STEP + EDGE
        assert {block.shape[0] for block in blocks} == {1}


@pytest.mark.parametrize("overlap", [0, 3, 10])
@pytest.mark.parametrize("tail", ["crop", "pad"])
def test_encoded_stream_is_as_long_as_the_whole(fake_codec: Pipeline, overlap: int, tail: Any) -> None:
    for samples in [704, 705, *(latents * STEP + EDGE + more for latents in (19, 20, 21, 39, 40, 41, 60) for more in (-1, 0, 1))]:
        audio = np.zeros((2, samples), np.float32)
        values = join(fake_codec.encode_stream(audio, tail=tail, window=20 * LATENT, overlap=overlap * LATENT))
        assert values.shape == (2, 8, fake_codec.latent_length(samples, tail))


# One window


@pytest.mark.parametrize("length", [1, 7, 20])
def test_latents_of_one_window_decode_as_a_whole(codec: Pipeline, length: int) -> None:
    latents = stationary_latents(length)
    for steps in (1, 2):
        whole = codec.decode(latents, seed=4, steps=steps)
        np.testing.assert_array_equal(join(codec.decode_stream(latents, seed=4, steps=steps, window=20 * LATENT, overlap=0.0)), whole)
        np.testing.assert_array_equal(join(codec.decode_stream(latents, seed=4, steps=steps)), whole)


def test_audio_of_one_window_encodes_as_a_whole(codec: Pipeline, tmp_path: Path) -> None:
    audio = signals.audio("stream", 0.2, 44100, 2)
    np.testing.assert_array_equal(join(codec.encode_stream(audio)), codec.encode(audio))
    features = codec.encode(audio, extract_features=True, tail="pad")
    np.testing.assert_array_equal(join(codec.encode_stream(audio, extract_features=True, tail="pad")), features)
    soundfile.write(tmp_path / "a.wav", audio.T, 44100, subtype="FLOAT")
    np.testing.assert_array_equal(join(codec.encode_stream(tmp_path / "a.wav")), codec.encode(audio))
    resampled = codec.encode(audio, sample_rate=48000)
    np.testing.assert_array_equal(join(codec.encode_stream(audio, sample_rate=48000)), resampled)


# Several windows


def test_stream_is_a_pure_function_of_its_arguments(codec: Pipeline) -> None:
    latents = np.concatenate([stationary_latents(50)] * 2)
    first = join(codec.decode_stream(latents, seed=4, window=20 * LATENT, overlap=5 * LATENT))
    np.testing.assert_array_equal(join(codec.decode_stream(latents, seed=4, window=20 * LATENT, overlap=5 * LATENT)), first)
    alone = join(codec.decode_stream(latents[:1], seed=4, window=20 * LATENT, overlap=5 * LATENT))
    np.testing.assert_array_equal(first[:1], alone)
    assert rms(first[0] - first[1]) > 0.01, "channels get different noise"


def test_file_streams_as_the_array(codec: Pipeline, tmp_path: Path) -> None:
    """The file comes in blocks that have nothing to do with the windows."""
    audio = signals.audio("stream", 2.0, 44100, 2)
    soundfile.write(tmp_path / "a.wav", audio.T, 44100, subtype="FLOAT")
    expected = join(codec.encode_stream(audio, window=40 * LATENT, overlap=8 * LATENT))
    np.testing.assert_array_equal(join(codec.encode_stream(tmp_path / "a.wav", window=40 * LATENT, overlap=8 * LATENT)), expected)


@pytest.mark.parametrize("length", [5, 8, 9, 15, 16, 17, 24])
def test_official_chunks_stream_as_they_decode(small_chunks: Pipeline, length: int) -> None:
    latents = np.concatenate([stationary_latents(length)] * 2)
    whole = small_chunks.decode(latents, seed=4)
    blocks = list(small_chunks.decode_stream(latents, seed=4, chunking="official"))
    np.testing.assert_array_equal(np.concatenate(blocks, axis=-1), whole)
    assert len(blocks) == math.ceil(length / 8) + 1  # the last one is the end of the overlap-add


@pytest.mark.parametrize("overlap", [0, 3, 10])
def test_frames_that_do_not_depend_on_the_window_give_whole_audio(make_fake: Callable[..., Pipeline], overlap: int) -> None:
    """Overlap-add runs across the borders of windows and of official chunks."""
    codec = make_fake(lambda x: x + np.float32(0.3))
    latents = np.zeros((1, 8, 47), np.float32)
    whole = codec.decode(latents)
    assert rms(whole) > 0.001
    streamed = join(codec.decode_stream(latents, window=20 * LATENT, overlap=overlap * LATENT))
    np.testing.assert_allclose(streamed, whole, atol=1e-6)
    np.testing.assert_allclose(codec.decode(latents, max_waveform_length=20 * STEP), whole, atol=1e-6)


def test_edges_of_windows_are_not_heard(make_fake: Callable[..., Pipeline]) -> None:
    """Two latents at each inner edge of a window saw its zero padding."""

    def loud_edges(x: Float) -> Float:
        output = np.zeros_like(x)
        output[..., :16] = output[..., -16:] = 1.0
        return output

    audio = join(make_fake(loud_edges).decode_stream(np.zeros((1, 8, 100), np.float32), window=20 * LATENT, overlap=6 * LATENT))
    assert rms(audio[:, : 2 * STEP]) > 0.01, "the edges of the whole signal have no other window"
    assert rms(audio[:, -2 * STEP :]) > 0.01
    assert np.abs(audio[:, 2 * STEP + EDGE : -2 * STEP - EDGE]).max() < 1e-9


def test_windows_leave_no_seams_where_official_chunks_do(codec: Pipeline) -> None:
    """Deviation from a whole decode: official chunks deviate twice as much at their borders, streamed windows no more than elsewhere."""
    window, overlap, length = 24, 6, 240
    latents = stationary_latents(length)
    whole = codec.decode(latents, seed=3)
    streamed = join(codec.decode_stream(latents, seed=3, window=window * LATENT, overlap=overlap * LATENT)) - whole
    official = codec.decode(latents, seed=3, max_waveform_length=window * STEP) - whole
    middles = [start + overlap // 2 for start in range(window - overlap, length - window, window - overlap)]
    near_streamed, far_streamed = split_error(streamed, middles)
    near_official, far_official = split_error(official, range(window, length, window))
    assert near_official > 1.5 * far_official
    assert near_streamed < 1.2 * far_streamed
    assert near_streamed < 0.6 * near_official


def test_windows_leave_no_seams_in_latents(codec: Pipeline) -> None:
    window, overlap, length = 24, 6, 240
    audio = 0.2 * signals.normal("stationary", (1, length * STEP + EDGE))
    whole = codec.encode(audio)
    streamed = join(codec.encode_stream(audio, window=window * LATENT, overlap=overlap * LATENT)) - whole
    official = codec.encode(audio, max_waveform_length=window * STEP) - whole
    middles = [start + overlap // 2 for start in range(window - overlap, length - window, window - overlap)]
    near_streamed, far_streamed = split_error(streamed, middles, step=1)
    near_official, _ = split_error(official, range(window, length, window), step=1)
    assert near_streamed < 1.2 * far_streamed
    assert near_streamed < 0.5 * near_official


def split_error(error: Float, borders: Sequence[int], step: int = STEP) -> tuple[float, float]:
    """RMS within one latent of the borders, and elsewhere."""
    near = np.zeros(error.shape[-1], bool)
    for border in borders:
        near[(border - 1) * step : (border + 1) * step] = True
    return rms(error[..., near]), rms(error[..., ~near])


# One at a time


def test_blocks_come_as_they_are_computed(codec: Pipeline) -> None:
    done: list[int] = []
    stream = codec.decode_stream(
        stationary_latents(100), steps=2, window=20 * LATENT, overlap=4 * LATENT, on_progress=lambda now, _: done.append(now)
    )
    assert done == [], "nothing runs before the first block is asked for"
    next(stream)
    assert done == [1, 2, 3, 4], "two windows of two steps: the second one tells how the first one ends"
    next(stream)
    assert done == [1, 2, 3, 4, 5, 6]
    total = len(list(stream)) + 2
    assert done[-1] == 2 * (total - 1)


@pytest.mark.parametrize("kind", ["decode", "encode"])
@pytest.mark.parametrize(
    ("window", "overlap"),
    [(0.0, 0.0), (-1.0, 0.0), (1.0, -0.1), (1.0, 0.6), (math.nan, 0.0), (1.0, math.nan), (math.inf, 1.0), (1.0, math.inf), (0.001, 0.0)],
)
def test_impossible_windows_are_refused_before_the_first_block(codec: Pipeline, kind: str, window: float, overlap: float) -> None:
    with refused(InputError, f"windows of {window} s", f"overlap of {overlap} s"):
        if kind == "decode":
            codec.decode_stream(stationary_latents(4), window=window, overlap=overlap)
        else:
            codec.encode_stream(np.zeros(5000, np.float32), window=window, overlap=overlap)


@pytest.mark.parametrize("latents", [2, 3, 4.5, 5, 11, 21.7])
def test_half_a_window_is_a_legal_overlap_however_it_rounds(codec: Pipeline, latents: float) -> None:
    window = latents * LATENT
    audio = join(codec.decode_stream(stationary_latents(24), seed=1, window=window, overlap=window / 2))
    assert audio.shape == (1, 24 * STEP + EDGE)


def test_errors_come_before_the_first_block(codec: Pipeline, tmp_path: Path) -> None:
    with refused(InputError, "704"):
        codec.encode_stream(np.zeros(100, np.float32))
    with refused(AudioError, "missing.wav"):
        codec.encode_stream(tmp_path / "missing.wav")
    with refused(InputError, "'wrap'"):
        codec.encode_stream(np.zeros(5000, np.float32), tail="wrap")  # type: ignore[arg-type]
    with refused(InputError, "seed -1"):
        codec.decode_stream(stationary_latents(4), seed=-1)
    with refused(InputError, "'sideways'", "'seamless'", "'official'"):
        codec.decode_stream(stationary_latents(4), chunking="sideways")  # type: ignore[arg-type]
