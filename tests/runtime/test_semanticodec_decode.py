"""SemantiCodec's decode: shapes, seeds, noise, guidance, samplers, batches, streams."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from musicrt.runtime.fake_session import FakeSession
from musicrt.runtime.loops.ddim import DdimSchedule
from musicrt.runtime.models.semanticodec.lengths import WINDOW_HOP, WINDOW_SAMPLES, decoded_samples
from musicrt.runtime.models.semanticodec.noise import Place, SeededNoise
from musicrt.runtime.models.semanticodec.pipeline import Pipeline
from tests.conftest import ForSystem
from tests.runtime.semanticodec_codecs import (
    Float,
    assert_close,
    light_vae,
    light_vocoder,
    lighten,
    noise_arrays,
    open_tiny,
    random_tokens,
    rewire,
)

Watched = tuple[Pipeline, dict[str, FakeSession]]


@pytest.fixture(scope="module")
def codec(tiny_checkpoints: ForSystem) -> Iterator[Pipeline]:
    with open_tiny(tiny_checkpoints("semanticodec")) as pipeline:
        yield pipeline


@pytest.fixture
def light(codec: Pipeline) -> Watched:
    return lighten(codec)


def distance(a: Float, b: Float) -> float:
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))


# The whole network


def test_decoded_audio_has_the_official_shape(codec: Pipeline) -> None:
    audio = codec.decode(random_tokens(50, 2), steps=1, seed=1)
    assert audio.shape == (2, 1, 32000)
    assert audio.dtype == np.float32
    assert np.isfinite(audio).all()
    assert 0.05 < audio.std() < 1.0
    assert np.abs(audio).max() <= 1.0
    alone = codec.decode(random_tokens(50, 2)[0], steps=1, seed=1)
    assert_close(alone, audio[:1])


def test_batches_of_windows_change_nothing(codec: Pipeline) -> None:
    """The denoiser is the true one: three windows, and one of another signal."""
    watched, sessions = rewire(codec, vae=light_vae, vocoder=light_vocoder)
    tokens = [random_tokens(600), random_tokens(40, seed=1)]
    results = {size: watched.decode_batch(tokens, steps=1, seed=3, max_batch_size=size) for size in (1, 3)}
    for one, three in zip(results[1], results[3], strict=True):
        assert_close(three, one)
    assert [len(call["x"]) for call in sessions["denoiser"].calls] == [1, 1, 1, 1, 3, 1]
    for signal, expected in zip(tokens, results[1], strict=True):
        assert_close(watched.decode(signal, steps=1, seed=3, max_batch_size=2), expected)


@pytest.mark.parametrize("samples", [1, 640, 10240, 163_000, WINDOW_SAMPLES])
def test_vocoder_sees_all_that_is_kept(codec: Pipeline, samples: int) -> None:
    watched, sessions = rewire(codec, vae=lambda feeds: {"mel": 4 * light_vae(feeds)["mel"] - 4})
    latent = np.random.default_rng(0).standard_normal((8, 256, 16), np.float32)
    got = watched.decoder.synthesise(latent, samples)
    (call,) = sessions["vocoder"].calls
    assert call["mel"].shape[1] == min(-(-samples // 160) + 32, 1024)
    whole = codec.model.session("vocoder").run({"mel": 4 * light_vae({"latent": latent[None]})["mel"] - 4})["waveform"]
    assert whole.shape == (1, WINDOW_SAMPLES)
    assert_close(got, whole[0, :samples])


# Lengths and streams


@pytest.mark.parametrize(("frames", "windows"), [(1, 1), (255, 1), (256, 1), (257, 2), (496, 2), (497, 3)])
def test_lengths_are_the_official_ones(light: Watched, frames: int, windows: int) -> None:
    codec, sessions = light
    assert codec.decode(random_tokens(frames), steps=1, seed=0).shape == (1, 1, decoded_samples(frames, 2))
    assert len(sessions["vae"].calls) == windows


def test_missing_tokens_of_a_window_are_marked(light: Watched) -> None:
    codec, sessions = light
    tokens = random_tokens(257, 2)
    codec.decode(tokens, steps=1, seed=0)
    known = codec.decoder.embed(tokens)
    for call, (row, start) in zip(sessions["conditioning"].calls, [(0, 0), (None, 0), (1, 0), (0, 240), (1, 240)], strict=True):
        (feature,) = call["feature"]
        if row is None:  # of the unconditional row, once
            assert not feature.any()
            continue
        count = min(257 - start, 256)
        np.testing.assert_array_equal(feature[:count], known[row, start : start + count])
        assert (feature[count:] == -1).all()


def test_stream_gives_the_same_one_window_late(light: Watched) -> None:
    codec, sessions = light
    tokens = random_tokens(900, 2)
    whole = codec.decode(tokens, steps=2, seed=5)
    sessions["vae"].calls.clear()
    stream = codec.decode_stream(tokens, steps=2, seed=5)
    assert sessions["vae"].calls == []
    blocks = [next(stream)]
    assert len(sessions["vae"].calls) == 4, "two rows of two windows"
    blocks += stream
    assert [block.shape for block in blocks] == [(2, WINDOW_HOP)] * 3 + [(2, 900 * 640 - 3 * WINDOW_HOP)]
    np.testing.assert_array_equal(np.concatenate(blocks, axis=1)[:, None], whole)


# Noise


def test_seed_gives_one_result(light: Watched) -> None:
    codec, _ = light
    tokens = random_tokens(300)
    first = codec.decode(tokens, steps=2, seed=7)
    np.testing.assert_array_equal(codec.decode(tokens, steps=2, seed=7), first)
    for other in (8, None, None):
        assert distance(codec.decode(tokens, steps=2, seed=other), first) > 0.1


def test_rows_and_windows_have_noise_of_their_own() -> None:
    def noise(row: int, window: int, draw: int, seed: int = 3) -> Float:
        drawn: Float = SeededNoise(seed).at([Place(row, window)], 3)(draw)[0]
        return drawn

    first = noise(0, 0, 0)
    assert first.shape == (8, 256, 16)
    assert abs(first.mean()) < 0.02
    assert abs(first.std() - 1) < 0.02
    for other in (noise(1, 0, 0), noise(0, 0, 1), noise(0, 0, 0, seed=4)):
        assert abs((first * other).mean()) < 0.02
    following = noise(0, 1, 0)
    np.testing.assert_array_equal(following[:, :16], first[:, 240:])
    assert abs((first * following).mean()) < 0.02


def test_given_noise_is_taken_in_the_official_order(light: Watched) -> None:
    """For each window the initial noise, then one for each step; those of a seed give what the seed gives."""
    codec, sessions = light
    tokens = random_tokens(500, 2)
    arrays = noise_arrays(7, batch=2, windows=3, steps=4)
    assert len(arrays) == 15
    expected = codec.decode(tokens, steps=4, seed=7)
    sessions["denoiser"].calls.clear()
    np.testing.assert_array_equal(codec.decode(tokens, steps=4, noise=arrays), expected)
    np.testing.assert_array_equal(codec.decode(tokens, steps=4, noise=np.stack(arrays)), expected)
    starts = [call["x"][0] for call in sessions["denoiser"].calls[:24:4]]
    for start, (window, row) in zip(starts, [(w, r) for w in range(3) for r in range(2)], strict=True):
        np.testing.assert_array_equal(start, arrays[5 * window][row])
    np.testing.assert_array_equal(codec.decode(tokens, steps=4, noise=SeededNoise(7)), expected)


def test_last_noise_counts_unless_eta_is_zero(light: Watched) -> None:
    codec, _ = light
    tokens, arrays = random_tokens(20), noise_arrays(1, batch=1, windows=1, steps=3 + 1)
    changed = [*arrays[:-1], arrays[0]]
    first_only = [arrays[0], *([np.zeros_like(arrays[0])] * 4)]
    official = codec.decode(tokens, steps=3, noise=arrays)
    assert distance(codec.decode(tokens, steps=3, noise=changed), official) > 1e-3
    still = codec.decode(tokens, steps=3, noise=arrays, eta=0)
    np.testing.assert_array_equal(codec.decode(tokens, steps=3, noise=first_only, eta=0.0), still)
    assert distance(still, official) > 1e-3
    half = codec.decode(tokens, steps=3, noise=arrays, eta=0.5)
    assert min(distance(half, still), distance(half, official)) > 1e-3


# Guidance and samplers


@pytest.mark.parametrize(("guidance", "rows", "contexts"), [(None, 2, 3), (2.0, 2, 3), (3.5, 2, 3), (1.0, 1, 2), (1, 1, 2)])
def test_guidance_costs_a_second_row(light: Watched, guidance: Any, rows: int, contexts: int) -> None:
    """The context of the unconditional row is computed once for all windows."""
    codec, sessions = light
    codec.decode(random_tokens(257), steps=2, seed=0, guidance=guidance)
    assert [call["key0"].shape[:2] for call in sessions["denoiser"].calls] == [(rows, 1)] * 4
    assert len(sessions["conditioning"].calls) == contexts
    assert len(sessions["timesteps"].calls) == 1
    codec.decode(random_tokens(30), steps=2, seed=0, guidance=guidance)
    assert len(sessions["conditioning"].calls) == contexts + 1
    assert len(sessions["timesteps"].calls) == 1


def test_guidance_says_how_far_tokens_are_followed(light: Watched) -> None:
    codec, sessions = light
    for guidance in (0.0, 1.0, 3.0):
        for seed in (0, 1):
            codec.decode(random_tokens(30, seed=seed), steps=1, seed=0, guidance=guidance)
    latents = [call["latent"] for call in sessions["vae"].calls]
    nothing, once, thrice = (float(np.linalg.norm(a - b)) for a, b in zip(latents[::2], latents[1::2], strict=True))
    assert nothing == 0
    assert once > 0.01
    assert abs(thrice / once - 3) < 1e-3


@pytest.mark.parametrize(("steps", "evaluations", "last"), [(1, 1, 1), (3, 4, 999), (4, 4, 751), (30, 31, 991), (None, 50, 981)])
def test_steps_are_the_official_ones(light: Watched, steps: int | None, evaluations: int, last: int) -> None:
    """Three steps ask for timestep 1000, where the official code fails."""
    codec, sessions = light
    assert np.isfinite(codec.decode(random_tokens(5), steps=steps, seed=0)).all()
    assert len(sessions["denoiser"].calls) == evaluations
    (call,) = sessions["timesteps"].calls
    assert (call["timestep"][0], call["timestep"][-1]) == (1, last)
    shifts = codec.model.session("timesteps").run(call)["shift"]
    np.testing.assert_array_equal([call["shift"][0] for call in sessions["denoiser"].calls], shifts[::-1])


def test_a_few_schedules_are_kept(light: Watched) -> None:
    """What depends on timesteps only is computed once, but is not kept for every step count that was ever asked for."""
    codec, sessions = light
    for steps in (1, 2, 3, 4, 5, 5, 3, 2, 1, 1):
        codec.sampler.prepare("ddim", steps, 1.0, None)
    assert [len(call["timestep"]) for call in sessions["timesteps"].calls] == [1, 2, 4, 4, 5, 1]
    assert len(codec.sampler._shifts) == 4


def test_one_step_is_the_formula(light: Watched) -> None:
    """SPEC section 3.3 in float64, at timestep 1, where both shares of the signal's power differ."""
    codec, sessions = light
    arrays = noise_arrays(2, batch=1, windows=1, steps=1)
    codec.decode(random_tokens(5), steps=1, noise=arrays, guidance=2.0)
    (call,) = sessions["denoiser"].calls
    conditional, unconditional = codec.model.session("denoiser").run(call)["v"].astype(np.float64)
    a, before = (float(codec.sampler.alphas[t]) for t in (1, 0))
    x, v = arrays[0].astype(np.float64), unconditional + 2.0 * (conditional - unconditional)
    sigma = np.sqrt((1 - before) / (1 - a) * (1 - a / before))
    noisy, clean = np.sqrt(a) * v + np.sqrt(1 - a) * x, np.sqrt(a) * x - np.sqrt(1 - a) * v
    expected = np.sqrt(before) * clean + np.sqrt(1 - before - sigma**2) * noisy + sigma * arrays[1]
    (latent,) = (call["latent"] for call in sessions["vae"].calls)
    assert_close(latent, expected.astype(np.float32), 1e-6)
    assert float(DdimSchedule.build(1, 1.0, codec.sampler.alphas).sigma[0]) > 0.01


def test_solver_takes_the_initial_noise_only(light: Watched) -> None:
    codec, sessions = light
    tokens, arrays = random_tokens(300), noise_arrays(1, batch=1, windows=2, steps=0)
    audio = codec.decode(tokens, steps=5, sampler="dpm-solver++", noise=arrays)
    assert len(sessions["denoiser"].calls) == 10
    (call,) = sessions["timesteps"].calls
    assert (call["timestep"][0], call["timestep"][-1], len(call["timestep"])) == (1, 999, 5)
    np.testing.assert_array_equal(codec.decode(tokens, steps=5, sampler="dpm-solver++", seed=1), audio)
    assert distance(codec.decode(tokens, steps=5, seed=1), audio) > 0.01
