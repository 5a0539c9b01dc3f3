"""What all contenders of the latency suite work on: the same arrays in every process."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from musicrt.runtime.errors import InputError
from musicrt.runtime.loops.consistency import ConsistencySchedule
from musicrt.runtime.measure import synthesise_music
from musicrt.runtime.models.music2latent.config import Config
from musicrt.runtime.models.music2latent.spectrum import Spectrum

Float = NDArray[np.float32]
Outputs = Mapping[str, Float]

STAGES = ("front-end", "encoder", "noise", "conditioning", "pyramid", "step", "evaluation", "synthesis")
"""front-end: audio -> spectrum. noise: one draw. step: a U-Net evaluation, the pyramid given. evaluation: both, from latents."""


@dataclass(frozen=True)
class Workload:
    """One channel of `seconds` of audio: latents float32 [1, 64, L], spectra [1, 2, F, 8 L]."""

    config: Config
    seconds: float
    audio: Float
    spectrum: Float
    latents: Float

    @classmethod
    def build(cls, config: Config, seconds: float) -> Workload:
        """A pure function of its arguments. Raises InputError where not even one latent fits."""
        audio = synthesise_music(seconds, config.sample_rate)
        count = crop_latents(config, audio.shape[1])
        if count < 1:
            least = (config.samples_per_latent + 3 * config.hop) / config.sample_rate
            raise InputError(f"got {seconds} s, expected at least {least:.3f} s, which is one latent")
        deviation = np.float32(0.25 / config.sigma_rescale)  # that of trained latents, about
        latents = np.random.default_rng(1).standard_normal((1, config.bottleneck_channels, count), np.float32) * deviation
        return cls(config, seconds, audio, Spectrum(config).analyse(crop_audio(config, audio)), latents)

    @property
    def raw_latents(self) -> Float:
        """Latents as the network takes them."""
        return self.latents * np.float32(self.config.sigma_rescale)

    @property
    def decoded_seconds(self) -> float:
        """Length of what the latents decode to."""
        return float(self.latents.shape[-1] * self.config.samples_per_latent + 3 * self.config.hop) / self.config.sample_rate

    def noise(self, steps: int) -> list[Float]:
        """The initial noise and one array for each step, in the official order."""
        generator = np.random.default_rng(2)
        return [generator.standard_normal(self.spectrum.shape, np.float32) for _ in range(steps + 1)]

    def noisy(self) -> Float:
        """What the first evaluation sees."""
        return self.noise(0)[0] * np.float32(self.config.sigma_max)


class Contender(Protocol):
    """One way of running the model. `noise`: arrays as from `Workload.noise`; None: the contender's own generator."""

    def encode(self, audio: Float) -> Float: ...

    def decode(self, latents: Float, steps: int, noise: Sequence[Float] | None = None) -> Float: ...

    def stages(self, work: Workload) -> dict[str, Callable[[], Outputs]]:
        """Calls by names of STAGES, as many as it has; with outputs of one name and meaning for all contenders."""
        ...


def crop_latents(config: Config, samples: int) -> int:
    """How many latents the official `encode` makes of so many samples."""
    return (samples - 3 * config.hop) // config.samples_per_latent


def crop_audio(config: Config, audio: Float) -> Float:
    """The samples that the official `encode` keeps."""
    return audio[:, : crop_latents(config, audio.shape[1]) * config.samples_per_latent + 3 * config.hop]


def official_schedule(config: Config, steps: int) -> ConsistencySchedule:
    """The noise levels of so many steps."""
    return ConsistencySchedule.build(
        steps, sigma_min=config.sigma_min, sigma_max=config.sigma_max, sigma_data=config.sigma_data, rho=config.rho
    )
