"""MuCodec's prompts: what is taken of them, what comes of that, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from musicrt.runtime.errors import AudioError, InputError, MusicRTError
from musicrt.runtime.models.mucodec.lengths import decoded_samples
from musicrt.runtime.models.mucodec.prompt import LONG, Prompt
from tests.conftest import refused
from tests.runtime.mucodec_codecs import Watched, distance, light_vae_encoder, music, noise_arrays, open_light, random_codes


@pytest.fixture
def light() -> Watched:
    return open_light()


@pytest.mark.parametrize(
    ("samples", "start", "taken", "frames"),
    [
        (7200, 0, 7200, 2),
        (254_321, 0, 254_321, 66),
        (491_520, 0, 491_520, 128),
        (600_000, 0, 491_520, 128),
        (LONG - 1, 0, 491_520, 128),
        (LONG, 983_040, 491_520, 128),
    ],
)
def test_ten_seconds_are_taken(samples: int, start: int, taken: int, frames: int) -> None:
    audio = music(samples)
    prompt = Prompt.read(audio)
    np.testing.assert_array_equal(prompt.audio, audio[:, start : start + taken])
    assert (prompt.frames, prompt.codes) == (frames, 2 * frames)
    assert LONG == 1_476_480


def test_mono_is_both_channels() -> None:
    audio = music(9000, 1)
    for same in (audio, audio[0]):
        np.testing.assert_array_equal(Prompt.read(same).audio, np.repeat(audio, 2, axis=0))


def test_file_of_another_rate_is_resampled(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "prompt.wav", music(44_100).T, 44_100, subtype="FLOAT")
    assert Prompt.read(tmp_path / "prompt.wav").audio.shape == (2, 48_000)


@pytest.mark.parametrize("fit", ["window", "length"])
def test_prompt_comes_before_and_is_not_in_the_result(light: Watched, fit: Any) -> None:
    codec, sessions = light
    codes, prompt = random_codes(200), music(254_321)
    sound = codec.decode(codes, steps=2, seed=4, prompt=prompt, fit=fit)
    assert sound.shape == (2, decoded_samples(200))
    ahead = codec.encode(prompt, fit=fit)[:, :, :132]
    np.testing.assert_array_equal(sessions["dequantizer"].calls[0]["codes"][:, :, :332], np.concatenate([ahead, codes], axis=2))
    frames = {"window": 512, "length": 192}[fit]
    assert [call["latents"].shape for call in sessions["vae"].calls] == [(1, 16, frames - 66, 32)] * 2


def test_latents_of_the_prompt_are_known(light: Watched) -> None:
    """Samples of the posterior, the left channel's first, with the first two draws."""
    codec, sessions = light
    arrays = noise_arrays(4, windows=1, prompt_frames=66)
    assert [array.shape for array in arrays] == [(1, 16, 66, 32)] * 2 + [(1, 32, 512, 32)]
    sound = codec.decode(random_codes(200), steps=2, noise=arrays, prompt=music(254_321))
    calls = sessions["vae-encoder"].calls
    assert [call["mel"].shape for call in calls] == [(1, 530, 256)] * 2
    found = [light_vae_encoder(call) for call in calls]
    latents = np.concatenate([one["mean"] + one["deviation"] * array for one, array in zip(found, arrays[:2], strict=True)], axis=1)
    (context,) = sessions["context"].calls
    np.testing.assert_allclose(context["incontext"][0, :, :66], 2 * latents[0] - 1, atol=1e-5)
    assert not context["incontext"][:, :, 66:].any()
    np.testing.assert_array_equal(codec.decode(random_codes(200), steps=2, seed=4, prompt=music(254_321)), sound)


def test_prompt_changes_what_follows(light: Watched) -> None:
    codec, _ = light
    options: Any = {"steps": 2, "seed": 0, "fit": "length"}
    codes, prompt = random_codes(150), music(20_000)
    alone, behind = codec.decode(codes, **options), codec.decode(codes, prompt=prompt, **options)
    assert alone.shape == behind.shape
    assert distance(behind, alone) > 0.1


def test_codes_of_the_first_codebooks_take_those_of_the_prompt() -> None:
    codec, sessions = open_light(codebooks=4)
    codec.decode(random_codes(90, 2), steps=1, seed=0, prompt=music(20_000), fit="length")
    (call,) = sessions["dequantizer"].calls
    np.testing.assert_array_equal(call["codes"][:, :, :10], codec.encode(music(20_000), fit="length")[:, :2, :10])


@pytest.mark.parametrize(
    ("prompt", "kind", "words"),
    [
        (music(7199), InputError, ["7199 samples", "at least 7200"]),
        (np.zeros((2, 0), np.float32), InputError, ["no samples"]),
        (np.zeros((2, 48_000), np.float32), InputError, ["silent", "1.00 s"]),
        (np.pad(music(900_000), ((0, 0), (0, 600_000))), InputError, ["silent", "10.24 s"]),
        (np.full((2, 48_000), np.nan, np.float32), InputError, ["NaN"]),
        (np.zeros((3, 48_000), np.float32), InputError, ["3 channels", "one or two"]),
        (np.zeros((1, 2, 48_000), np.float32), InputError, ["(1, 2, 48000)"]),
        (np.zeros(48_000, np.int16), InputError, ["int16"]),
        ([0.1] * 48_000, InputError, ["list"]),
        ("no such file.wav", AudioError, ["no such file"]),
    ],
    ids=["short", "empty", "silent", "silent where it is used", "NaN", "three channels", "three axes", "integers", "list", "missing"],
)
def test_wrong_prompts_are_refused(light: Watched, prompt: Any, kind: type[MusicRTError], words: list[str]) -> None:
    """By the call itself, before anything is decoded."""
    codec, _ = light
    with refused(kind, *words):
        codec.decode_stream(random_codes(5), prompt=prompt)
    with refused(kind, *words):
        codec.check_decoding(prompt=prompt)
