"""MuCodec's vocoder without the official overlaps: the same samples, with less work."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from musicrt.runtime.fake_session import FakeSession
from musicrt.runtime.models.mucodec.config import VocoderConfig
from musicrt.runtime.models.mucodec.lengths import wave_samples
from musicrt.runtime.models.mucodec.synthesis import receptive_frames
from musicrt.runtime.session import Array
from tests.runtime.mucodec_codecs import Float, distance, open_light

_REACH = 12  # of the tiny vocoder, whose kernels are shorter


def far_reaching(feeds: Mapping[str, Array]) -> dict[str, Array]:
    """Each frame as 480 samples that depend on all frames within reach, and on no other; beyond the ends there are zeros."""
    mel = feeds["mel"]
    levels = mel @ np.cos(np.arange(256)).astype(np.float32)
    padded = np.pad(levels, ((0, 0), (_REACH, _REACH)))
    frames = sum(np.float32(np.cos(k)) * padded[:, k : k + mel.shape[1]] for k in range(2 * _REACH + 1))
    samples = np.sin(0.1 * np.asarray(frames)[:, :, None] + np.arange(480) / 100).reshape(len(mel), -1)
    return {"waveform": np.pad(samples, ((0, 0), (0, 16)), mode="edge").astype(np.float32)}


def official_chunks(mel: Float) -> Float:
    """SPEC section 4.9 to the letter: every chunk by itself."""

    def vocode(chunk: Float) -> Float:
        samples: Float = far_reaching({"mel": chunk[None]})["waveform"][0]
        return samples

    wave = vocode(mel[:1024])
    size = len(wave) // 1024 * 1024
    wave, fade = wave[:size], int(size * 768 / 1024)
    ramp, start = np.linspace(0, 1, fade), 0
    while start + 1024 < len(mel):
        start += 256
        chunk = vocode(mel[start : start + 1024])[:size]
        wave[-fade:] = wave[-fade:] * (1 - ramp) + chunk[:fade] * ramp
        wave = np.concatenate([wave, chunk[fade:]])
    return wave


def random_mel(frames: int) -> Float:
    return 1.5 * np.random.default_rng(frames).standard_normal((frames, 256), np.float32) - 4


def test_reach_is_that_of_the_configuration() -> None:
    assert receptive_frames(VocoderConfig()) == 22
    codec, _ = open_light()
    assert codec.synthesis.reach == _REACH


@pytest.mark.parametrize("kernels", [(3,), (3, 7), (3, 7, 11, 15)])
def test_reach_is_that_of_the_network(kernels: tuple[int, ...]) -> None:
    """Of a change in one frame, samples of just so many frames before or after show something."""
    torch = pytest.importorskip("torch")
    from musicrt.runtime.networks.hifigan import HifiGan

    config = VocoderConfig(resblock_kernel_sizes=kernels, resblock_dilation_sizes=((1, 3, 5),) * len(kernels))
    reach, middle = receptive_frames(config), 30
    torch.manual_seed(0)
    vocoder = HifiGan(256, 32, config.upsample_rates, config.upsample_kernel_sizes, kernels).double()
    mel = torch.randn(1, 61, 256, dtype=torch.float64)
    changed = mel.clone()
    changed[:, middle] += 100
    with torch.no_grad():
        seen = (vocoder(mel) != vocoder(changed))[0, : 61 * 480].reshape(61, 480).any(dim=1).nonzero()
    assert max(middle - int(seen.min()), int(seen.max()) - middle) <= reach
    assert max(middle - int(seen.min()), int(seen.max()) - middle) >= reach - 1


@pytest.mark.parametrize("frames", [1, 100, 300, 1024, 1025, 1100, 1280, 1500, 1792, 2304, 3984, 4096])
def test_wave_is_that_of_the_official_chunks(frames: int) -> None:
    codec, _ = open_light(vocoder=far_reaching)
    mel = random_mel(frames)
    expected, got = official_chunks(mel), codec.synthesis.waveform(mel)
    assert len(got) == wave_samples(frames)
    assert got.dtype == np.float32
    assert distance(got, expected) < 1e-6 if len(expected) else len(got) == 0
    if frames > 1024:
        plain = far_reaching({"mel": mel[None]})["waveform"][0, : len(got)]
        assert distance(plain, expected) > 1e-5, "the ends of chunks can be heard"


@pytest.mark.parametrize("samples", [1, 479, 480, 60_000, 122_880, 122_881, 491_520, 491_521, 500_000, 860_000])
def test_first_samples_are_the_same(samples: int) -> None:
    codec, _ = open_light(vocoder=far_reaching)
    mel = random_mel(1800)
    got = codec.synthesis.waveform(mel, samples)
    assert got.shape == (samples,)
    assert np.abs(got - official_chunks(mel)[:samples]).max() < 1e-5


def frames_run(sessions: Any) -> int:
    return sum(call["mel"].shape[0] * call["mel"].shape[1] for call in sessions["vocoder"].calls)


def test_work_is_a_fraction_of_the_official() -> None:
    """Officially 13 chunks for a window. The margins are those of the tiny vocoder; the released one's are 22."""
    codec, sessions = open_light()
    codec.synthesis.waveform(random_mel(4096))
    assert frames_run(sessions) == 4096 + 2 * _REACH + 24 * 2 * _REACH
    assert 13 * 1024 / (4096 + 2 * 22 + 24 * 2 * 22) > 2.56


def test_blocks_are_as_small_as_the_vocoder_takes_them(monkeypatch: pytest.MonkeyPatch) -> None:
    codec, sessions = open_light(vocoder=far_reaching)
    expected = codec.synthesis.waveform(random_mel(4096))
    sessions["vocoder"].calls.clear()
    monkeypatch.setattr(FakeSession, "limits", {"batch": (1, 5), "mel_frames": (1, 300)})
    assert distance(codec.synthesis.waveform(random_mel(4096)), expected) < 1e-6
    shapes = [call["mel"].shape[:2] for call in sessions["vocoder"].calls]
    assert (max(batch for batch, _ in shapes), max(frames for _, frames in shapes)) == (5, 300)


def test_what_is_cut_away_is_not_computed() -> None:
    codec, sessions = open_light()
    codec.synthesis.waveform(random_mel(4096), 100 * 480)
    assert frames_run(sessions) == 100 + _REACH


def test_both_channels_are_rendered() -> None:
    codec, sessions = open_light()
    latents = np.random.default_rng(0).standard_normal((1, 32, 20, 32), np.float32)
    sound = codec.synthesis.render(latents, 70_000)
    assert sound.shape == (2, 70_000)
    halves = latents[:, :16], latents[:, 16:]
    for call, half, channel in zip(list(sessions["vae"].calls), halves, sound, strict=True):
        np.testing.assert_array_equal(call["latents"], half)
        np.testing.assert_array_equal(channel, codec.synthesis.waveform(codec.synthesis.mel(half), 70_000))
    assert distance(sound[1], sound[0]) > 0.1
