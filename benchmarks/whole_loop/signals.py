"""The samplers of Music2Latent, SemantiCodec and MuCodec: networks that are run on one signal again and again."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.whole_loop.compose import Sampler
from benchmarks.whole_loop.denoising import SIGNAL, write_consistency, write_ddim, write_euler
from benchmarks.whole_loop.problems import SEED, Arrays, Problem, Run, Size
from musicrt.runtime.loops import consistency, ddim, flow
from musicrt.runtime.loops.consistency import ConsistencySchedule
from musicrt.runtime.loops.ddim import DdimSchedule
from musicrt.runtime.loops.denoiser import Denoiser, Loop, LoopRunner
from musicrt.runtime.loops.diffusion import alphas_cumprod
from musicrt.runtime.loops.flow import EulerSchedule
from musicrt.runtime.model import Model
from musicrt.runtime.models.mucodec.config import CODE_RATE, LATENT_BINS, LATENT_CHANNELS
from musicrt.runtime.models.music2latent.config import Config as Music2LatentConfig
from musicrt.runtime.models.semanticodec.config import LATENT_SHAPE
from musicrt.runtime.models.semanticodec.config import Config as SemantiCodecConfig

Float = NDArray[np.float32]
_TABLE = "table "
"""Begins the names of what the network is told of each step: float32 [steps, batch, ...], in the order of the loop."""
_OWN = ("noise", "known")


def _normal(seed: int, *shape: int) -> Float:
    return np.random.default_rng((SEED, seed)).standard_normal(shape, np.float32)


class _Signal(ABC):
    """What the three share. output: of the network."""

    stage = "denoiser"
    output = "v"
    result = SIGNAL, np.float32

    def __init__(self, config: Mapping[str, Any], size: Size) -> None:
        self.config, self.size = config, size

    def feeds(self, arrays: Arrays) -> Arrays:
        """See `Problem`."""
        return {name: array for name, array in arrays.items() if not name.startswith(_TABLE)}

    def tables(self, arrays: Arrays) -> Arrays:
        """What the network is told step by step."""
        return {name.removeprefix(_TABLE): array for name, array in arrays.items() if name.startswith(_TABLE)}

    def host(self, model: Model, arrays: Arrays) -> Run:
        """See `Problem`. As in the package: its tables have the rows by position, and are told to every item of a batch."""
        loop = self.loop(arrays)
        order = np.argsort(loop.positions)
        tables = {name: table[order, 0] for name, table in self.tables(arrays).items()}
        constants = {name: array for name, array in self.feeds(arrays).items() if name not in _OWN}
        noise: list[Float] = list(arrays["noise"])

        def run() -> Arrays:
            denoiser = Denoiser(model.session(self.stage), constants, tables, self.output)
            return {SIGNAL: LoopRunner().run(loop, denoiser, noise.__getitem__, lambda: None)}

        return run

    @abstractmethod
    def loop(self, arrays: Arrays) -> Loop:
        """That of the package."""


class Music2Latent(_Signal):
    """Consistency steps; guidance there is none."""

    output = "output"

    @property
    def schedule(self) -> ConsistencySchedule:
        config = Music2LatentConfig.from_mapping(self.config)
        sigmas = {"sigma_min": config.sigma_min, "sigma_max": config.sigma_max, "sigma_data": config.sigma_data, "rho": config.rho}
        return ConsistencySchedule.build(self.size.steps, **sigmas)

    def prepare(self, codec: Any) -> Arrays:
        """See `Problem`."""
        config, model = Music2LatentConfig.from_mapping(self.config), codec.model
        count = codec.axis_sizes(self.size.seconds)["latents"]
        latents = _normal(0, 1, config.bottleneck_channels, count) * np.float32(0.25)
        maps = [tensor.name for tensor in model.session("pyramid").outputs if tensor.name.startswith("contribution")]
        sigmas = np.array(self.schedule.sigmas[:-1], np.float32)
        told = model.session("conditioning").run({"sigma": sigmas}, ("scale_inp", "scale_out", "shift"))
        return {
            **model.session("pyramid").run({"latents": latents}, maps),
            **{_TABLE + name: table[:, None] for name, table in told.items()},
            "noise": _normal(1, self.size.steps, 1, 2, config.bins, count * config.frames_per_latent),
        }

    def sampler(self, arrays: Arrays) -> Sampler:
        """See `Problem`."""
        return write_consistency(self.schedule, self.tables(arrays))

    def loop(self, arrays: Arrays) -> Loop:
        """See `_Signal`."""
        del arrays
        return consistency.loop(self.schedule)


class SemantiCodec(_Signal):
    """DDIM with guidance, on a whole window."""

    @property
    def schedule(self) -> DdimSchedule:
        decoder = SemantiCodecConfig.from_mapping(self.config).decoder
        return DdimSchedule.build(self.size.steps, 1.0, alphas_cumprod(decoder.linear_start, decoder.linear_end, decoder.timesteps))

    def prepare(self, codec: Any) -> Arrays:
        """See `Problem`."""
        config, schedule = SemantiCodecConfig.from_mapping(self.config), self.schedule
        feature = _normal(0, 1, config.tokens, 2 * config.feature_dim)
        shift = codec.model.session("timesteps").run({"timestep": schedule.timesteps})["shift"]
        return {
            **codec.sampler.contexts(feature, 2),
            _TABLE + "shift": np.ascontiguousarray(shift[::-1, None]),
            "noise": _normal(1, schedule.steps + 1, 1, *LATENT_SHAPE),
        }

    def sampler(self, arrays: Arrays) -> Sampler:
        """See `Problem`."""
        return write_ddim(self.schedule, self.tables(arrays), self.size.guidance)

    def loop(self, arrays: Arrays) -> Loop:
        """See `_Signal`."""
        del arrays
        return ddim.loop(self.schedule, self.size.guidance)


class MuCodec(_Signal):
    """Euler steps with guidance; a quarter of the window is known, as in all windows but the first."""

    stage, output = "estimator", "velocity"

    @property
    def schedule(self) -> EulerSchedule:
        return EulerSchedule.build(self.size.steps)

    def prepare(self, codec: Any) -> Arrays:
        """See `Problem`."""
        frames = max(round(self.size.seconds * CODE_RATE / 2) // 4, 1) * 4
        shape = (LATENT_CHANNELS, frames, LATENT_BINS)
        known, noise = _normal(0, 1, LATENT_CHANNELS, frames // 4, LATENT_BINS), _normal(1, 1, 1, *shape)
        told = codec.model.session("timesteps").run({"timestep": self.schedule.times})
        context = codec.sampler.contexts(_normal(2, 1, *shape), known, 2)
        return {"context": context, **{_TABLE + name: table[:, None] for name, table in told.items()}, "noise": noise, "known": known}

    def sampler(self, arrays: Arrays) -> Sampler:
        """See `Problem`."""
        return write_euler(self.schedule, self.tables(arrays), self.size.guidance, arrays["known"].shape[2])

    def loop(self, arrays: Arrays) -> Loop:
        """See `_Signal`."""
        return flow.loop(self.schedule, arrays["known"], self.size.guidance)


PROBLEMS: Mapping[str, Callable[[Mapping[str, Any], Size], Problem]] = {
    "music2latent": Music2Latent,
    "semanticodec": SemantiCodec,
    "mucodec": MuCodec,
}
