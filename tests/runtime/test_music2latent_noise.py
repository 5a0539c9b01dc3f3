"""Music2Latent's noise from outside, progress and cancelling."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest

from musicrt.runtime.errors import Cancelled, InputError
from musicrt.runtime.loops.diffusion import Draw
from musicrt.runtime.models.music2latent.noise import Place, SeededNoise
from musicrt.runtime.models.music2latent.pipeline import Pipeline
from tests.conftest import refused
from tests.runtime.music2latent_codecs import CHUNK, EDGE, Float, music, random_latents
from tests.runtime.progress import Recorder

# Noise from outside


class SpyNoise:
    """Notes what is asked for."""

    def __init__(self, sequential: bool) -> None:
        self.sequential = sequential
        self.draws: list[tuple[int, list[Place]]] = []

    def at(self, places: Sequence[Place], shape: tuple[int, int, int]) -> Draw:
        def draw(index: int) -> Float:
            self.draws.append((index, list(places)))
            return np.zeros((len(places), *shape), np.float32)

        return draw


def official_draws(length: int, steps: int, seed: int) -> list[Float]:
    draw = SeededNoise(seed).at([Place(0, 0)], (2, 128, 8 * length))
    return [draw(index) for index in range(steps + 1)]


@pytest.mark.parametrize("steps", [1, 2, 4])
def test_given_noise_replaces_the_seed(codec: Pipeline, steps: int) -> None:
    latents = random_latents(5)
    audio = codec.decode(latents, noise=official_draws(5, steps, seed=9), steps=steps)
    np.testing.assert_array_equal(audio, codec.decode(latents, seed=9, steps=steps))


def test_given_noise_is_drawn_in_the_official_order(codec: Pipeline) -> None:
    """The draw after the last step and those of the useless third chunk included."""
    noise = SpyNoise(sequential=True)
    codec.decode(random_latents(16, 2), noise=noise, steps=2, max_waveform_length=CHUNK)
    chunks = [[Place(channel, frame)] for frame in (0, 64, 128) for channel in (0, 1)]
    assert noise.draws == [(draw, chunk) for chunk in chunks for draw in (0, 1, 2)]


def test_noise_by_position_is_drawn_only_where_it_is_used(codec: Pipeline) -> None:
    noise = SpyNoise(sequential=False)
    codec.decode(random_latents(16, 2), noise=noise, steps=2, max_waveform_length=CHUNK)
    chunks = [[Place(channel, frame)] for frame in (0, 64) for channel in (0, 1)]
    assert noise.draws == [(draw, chunk) for chunk in chunks for draw in (0, 1)]


def test_wrong_noise_is_refused(codec: Pipeline) -> None:
    latents, draws = random_latents(5), official_draws(5, 1, seed=9)
    with refused(InputError, "too few noise arrays", "[1, 2, 128, 40]"):
        codec.decode(latents, noise=draws[:1])
    with refused(InputError, "too few noise arrays"):
        codec.decode(latents, noise=[])
    with refused(InputError, "[1, 2, 128, 39]", "[1, 2, 128, 40]"):
        codec.decode(latents, noise=[draws[0][..., 1:], draws[1]])
    with refused(InputError, "[2, 128, 40]", "[1, 2, 128, 40]"):
        codec.decode(latents, noise=[draws[0][0], draws[1]])
    with refused(InputError, "a seed and noise"):
        codec.decode(latents, noise=draws, seed=1)


# Progress and cancelling


@pytest.mark.parametrize("batch", [1, 4])
def test_encode_reports_progress_to_the_end(codec: Pipeline, batch: int) -> None:
    progress = Recorder()
    signal_list = [music(CHUNK * 2 + EDGE, 2), music(5000)]  # two chunks of two channels and a useless one; two chunks
    codec.encode_batch(signal_list, max_batch_size=batch, max_waveform_length=CHUNK, on_progress=progress)
    progress.assert_complete(2 * 2 + 2)


@pytest.mark.parametrize("batch", [1, 4])
@pytest.mark.parametrize("steps", [1, 3])
def test_decode_reports_progress_to_the_end(codec: Pipeline, batch: int, steps: int) -> None:
    progress = Recorder()
    signal_list = [random_latents(16, 2), random_latents(9)]
    codec.decode_batch(signal_list, steps=steps, max_batch_size=batch, max_waveform_length=CHUNK, on_progress=progress)
    progress.assert_complete((2 * 2 + 2) * steps)


@pytest.mark.parametrize("cancel_at", [1, 3])
def test_cancelling_stops_at_once(codec: Pipeline, cancel_at: int) -> None:
    latents = random_latents(24, 2)
    calls: list[Callable[[Recorder], object]] = [
        lambda progress: codec.encode(music(20_000, 2), max_waveform_length=CHUNK, on_progress=progress),
        lambda progress: codec.decode(latents, steps=2, max_waveform_length=CHUNK, on_progress=progress),
        lambda progress: list(codec.decode_stream(latents, steps=2, window=0.1, overlap=0.02, on_progress=progress)),
        lambda progress: list(codec.encode_stream(music(20_000, 2), window=0.1, overlap=0.02, on_progress=progress)),
    ]
    for call in calls:
        progress = Recorder(cancel_at)
        with refused(Cancelled, "enough"):
            call(progress)
        assert len(progress.calls) == cancel_at
    codec.decode(latents, seed=1)  # the codec goes on working
