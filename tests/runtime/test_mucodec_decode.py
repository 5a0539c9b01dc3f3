"""MuCodec's decode: windows one after the other, noise, guidance, fit, streams, batches."""

from __future__ import annotations

import tracemalloc
from typing import Any

import numpy as np
import pytest

from musicrt.runtime.models.mucodec.lengths import decoded_samples
from musicrt.runtime.models.mucodec.noise import SeededNoise
from tests.runtime.mucodec_codecs import Float, Watched, distance, light_normfeat, music, noise_arrays, open_light, random_codes


@pytest.fixture
def light() -> Watched:
    return open_light()


# Shapes and windows


@pytest.mark.parametrize(("codes", "windows"), [(1, 1), (29, 1), (1024, 1), (1025, 2), (1664, 2)])
def test_sound_is_stereo_of_the_official_length(light: Watched, codes: int, windows: int) -> None:
    """1664 codes are among those that the official code fails on."""
    codec, sessions = light
    sound = codec.decode(random_codes(codes), steps=1, seed=0)
    assert sound.shape == (2, decoded_samples(codes))
    assert sound.dtype == np.float32
    assert np.isfinite(sound).all()
    assert len(sessions["condition"].calls) == len(sessions["context"].calls) == windows
    assert len(sessions["vae"].calls) == 2 * windows


def test_codes_are_looped_up_to_a_window(light: Watched) -> None:
    codec, sessions = light
    codes = random_codes(1100)
    codec.decode(codes, steps=1, seed=0)
    first, second = (call["codes"] for call in sessions["dequantizer"].calls)
    np.testing.assert_array_equal(first, codes[:, :, :1024])
    np.testing.assert_array_equal(second, np.concatenate([codes[:, :, 768:], codes, codes], axis=2)[:, :, :1024])
    assert all(call["known"].all() for call in sessions["condition"].calls)


def test_windows_know_the_end_of_the_one_before(light: Watched) -> None:
    codec, sessions = light
    codec.decode(random_codes(1500), steps=2, seed=0)
    first, second = sessions["context"].calls
    assert not first["incontext"].any()
    returned = light_normfeat({"latents": np.zeros(1)})["returned"]
    assert returned == 0.5
    last = sessions["vae"].calls[0]["latents"]  # of the left channel, as returned
    projected = light_normfeat({"latents": last[:, :, -128:]})["projected"]
    np.testing.assert_allclose(second["incontext"][0, :16, :128], projected[0], atol=1e-5)
    assert not second["incontext"][:, :, 128:].any()
    again = sessions["vae"].calls[2]["latents"][:, :, :128]
    np.testing.assert_allclose(again, last[:, :, -128:], atol=1e-5)


@pytest.mark.parametrize(("prompt", "end"), [(0, 1_966_080), (254_321, 480 * 3568 + 16)])
def test_windows_are_faded_over_a_quarter(light: Watched, monkeypatch: pytest.MonkeyPatch, prompt: int, end: int) -> None:
    """From 1 to 0, where the second window begins; with this prompt the first wave has 16 samples more than its frames, as officially."""
    codec, _ = light
    levels = iter([1.0, 0.0])
    monkeypatch.setattr(codec.synthesis, "render", lambda _, samples: np.full((2, samples), next(levels), np.float32))
    sound = codec.decode(random_codes(1400), steps=1, seed=3, prompt=music(prompt) if prompt else None)
    assert sound.shape == (2, 1400 * 1920)
    assert (sound[:, : end - 491_519] == 1).all()
    np.testing.assert_allclose(sound[0, end - 491_520 : end], np.linspace(1, 0, 491_520), atol=1e-6)
    assert not sound[:, end - 1 :].any()


def test_channels_are_different(light: Watched) -> None:
    codec, _ = light
    left, right = codec.decode(random_codes(50), steps=2, seed=0)
    assert distance(left, right) > 0.1


def test_first_codebooks_will_do() -> None:
    codec, sessions = open_light(codebooks=4)
    codes = random_codes(90, 4)
    whole = codec.decode(codes, steps=1, seed=0)
    part = codec.decode(codes[:, :2], steps=1, seed=0)
    assert [call["codes"].shape for call in sessions["dequantizer"].calls] == [(1, 4, 1024), (1, 2, 1024)]
    assert distance(part, whole) > 1e-3


# fit="length"


@pytest.mark.parametrize(("codes", "frames"), [(1, [32]), (64, [32]), (100, [64]), (1024, [512]), (1100, [512, 192])])
def test_fit_length_takes_the_smallest_bucket(light: Watched, codes: int, frames: list[int]) -> None:
    codec, sessions = light
    sound = codec.decode(random_codes(codes), steps=1, seed=0, fit="length")
    assert sound.shape == (2, decoded_samples(codes))
    assert [call["x"].shape[2] for call in sessions["estimator"].calls] == frames
    if codes != 1024:
        np.testing.assert_allclose(sound, codec.decode(random_codes(codes), steps=1, seed=0), atol=1e-5)  # light stages see no context
    else:
        np.testing.assert_array_equal(sound, codec.decode(random_codes(codes), steps=1, seed=0))


# Streams and batches


def test_stream_gives_the_same_one_window_late(light: Watched) -> None:
    codec, sessions = light
    codes = random_codes(2000)
    whole = codec.decode(codes, steps=1, seed=5)
    sessions["vae"].calls.clear()
    stream = codec.decode_stream(codes, steps=1, seed=5)
    assert sessions["vae"].calls == []
    blocks = [next(stream)]
    assert len(sessions["vae"].calls) == 4, "two channels of two windows"
    blocks += stream
    assert [block.shape for block in blocks] == [(2, 1_474_560), (2, 1_474_560), (2, 2000 * 1920 - 2 * 1_474_560)]
    np.testing.assert_array_equal(np.concatenate(blocks, axis=1), whole)


def test_memory_does_not_grow_with_the_sound(light: Watched) -> None:
    codec, sessions = light

    def forget(_done: int, _total: int) -> None:
        for session in sessions.values():  # which record their calls
            session.calls.clear()

    def peak(count: int) -> int:
        tracemalloc.start()
        for _block in codec.decode_stream(random_codes(count), steps=1, seed=0, on_progress=forget):
            pass
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found

    assert peak(6000) < 1.05 * peak(2500)


def test_batch_is_one_decode_after_the_other(light: Watched) -> None:
    codec, _ = light
    codes = [random_codes(30), random_codes(70, seed=1)[0]]
    for got, one in zip(codec.decode_batch(codes, steps=2, seed=3, fit="length"), codes, strict=True):
        np.testing.assert_array_equal(got, codec.decode(one, steps=2, seed=3, fit="length"))
    assert codec.decode_batch([]) == []


# Noise


def test_seed_gives_one_result(light: Watched) -> None:
    codec, _ = light
    codes = random_codes(30)
    options: Any = {"steps": 2, "fit": "length"}
    first = codec.decode(codes, seed=7, **options)
    np.testing.assert_array_equal(codec.decode(codes, seed=7, **options), first)
    for other in (8, None, None):
        assert distance(codec.decode(codes, seed=other, **options), first) > 1e-3


def test_noise_depends_on_the_place_only() -> None:
    noise = SeededNoise(3)
    (first,) = noise.initial(0, 512)(0)
    assert first.shape == (32, 512, 32)
    assert first.dtype == np.float32
    assert abs(first.mean()) < 0.01
    assert abs(first.std() - 1) < 0.01
    np.testing.assert_array_equal(noise.initial(0, 96)(0)[0], first[:, :96])
    (following,) = noise.initial(1, 512)(0)
    np.testing.assert_array_equal(following[:, :128], first[:, 384:])
    for other in (following, SeededNoise(4).initial(0, 512)(0)[0]):
        assert abs((first * other).mean()) < 0.01
    left, right = noise.posterior(0, 128), noise.posterior(1, 128)
    assert left.shape == right.shape == (16, 128, 32)
    for one, other in ((left, right), (left, first[:16, :128]), (right, first[16:, :128])):
        assert abs((one * other).mean()) < 0.01


def test_given_noise_is_taken_in_the_official_order(light: Watched) -> None:
    codec, sessions = light
    codes, arrays = random_codes(1100), noise_arrays(7, windows=2)
    expected = codec.decode(codes, steps=2, seed=7)
    sessions["estimator"].calls.clear()
    np.testing.assert_array_equal(codec.decode(codes, steps=2, noise=arrays), expected)
    np.testing.assert_array_equal(sessions["estimator"].calls[0]["x"], arrays[0])
    np.testing.assert_array_equal(sessions["estimator"].calls[2]["x"][:, :, 128:], arrays[1][:, :, 128:])
    np.testing.assert_array_equal(codec.decode(codes, steps=2, noise=SeededNoise(7)), expected)


# Guidance and steps


@pytest.mark.parametrize(("guidance", "rows"), [(None, 2), (1.5, 2), (3.0, 2), (1.0, 1), (0.2, 1)])
def test_guidance_costs_a_second_row(light: Watched, guidance: Any, rows: int) -> None:
    """Row 1 knows no codes; what does not change from step to step is computed once."""
    codec, sessions = light
    codec.decode(random_codes(30), steps=3, seed=0, guidance=guidance, fit="length")
    assert [call["context"].shape[:2] for call in sessions["estimator"].calls] == [(rows, 1)] * 3
    (call,) = sessions["context"].calls
    assert call["condition"].shape[0] == rows
    assert call["condition"][0].any()
    assert not call["condition"][1:].any()
    assert len(sessions["timesteps"].calls) == len(sessions["condition"].calls) == 1


def test_guidance_says_how_far_codes_are_followed(light: Watched) -> None:
    codec, sessions = light
    for guidance in (1.0, 1.5, 3.0):
        for seed in (0, 1):
            codec.decode(random_codes(30, seed=seed), steps=1, seed=0, guidance=guidance, fit="length")
    latents = [call["latents"] for call in sessions["vae"].calls[::2]]
    once, half_more, thrice = (float(np.linalg.norm(a - b)) for a, b in zip(latents[::2], latents[1::2], strict=True))
    assert abs(half_more / once - 1.5) < 1e-3
    assert abs(thrice / once - 3) < 1e-3


@pytest.mark.parametrize(("steps", "evaluations"), [(None, 20), (1, 1), (7, 7)])
def test_steps_are_evaluations(light: Watched, steps: int | None, evaluations: int) -> None:
    codec, sessions = light
    codec.decode(random_codes(5), steps=steps, seed=0, fit="length")
    times = [float(call["modulation"].mean()) for call in sessions["estimator"].calls]
    np.testing.assert_allclose(times, np.arange(evaluations) / evaluations, atol=1e-6)
    (call,) = sessions["timesteps"].calls
    assert len(call["timestep"]) == evaluations


def test_a_few_schedules_are_kept(light: Watched) -> None:
    codec, sessions = light
    for steps in (1, 2, 3, 4, 5, 5, 3, 2, 1, 1):
        codec.sampler.prepare(steps, 1.0)
    assert [len(call["timestep"]) for call in sessions["timesteps"].calls] == [1, 2, 3, 4, 5, 1]


def test_one_step_is_the_formula(light: Watched) -> None:
    """SPEC section 4.5 in float64."""
    codec, sessions = light
    (noise,) = noise_arrays(2, windows=1, frames=32)
    codec.decode(random_codes(5), steps=1, noise=[noise], guidance=2.0, fit="length")
    (call,) = sessions["estimator"].calls
    conditional, unconditional = codec.model.session("estimator").run(call)["velocity"].astype(np.float64)
    normalised = noise + unconditional + 2.0 * (conditional - unconditional)
    expected = 0.5 * normalised + 0.5
    left: Float = sessions["vae"].calls[0]["latents"]
    assert distance(left, expected[:, :16].astype(np.float32)) < 1e-6
