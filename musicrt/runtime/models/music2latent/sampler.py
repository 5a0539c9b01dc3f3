"""From latents and noise to a spectrum: the consistency loop on the sessions of a model (SPEC section 8)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from musicrt.runtime.loops import consistency
from musicrt.runtime.loops.consistency import ConsistencySchedule
from musicrt.runtime.loops.denoiser import Denoiser, LoopRunner
from musicrt.runtime.loops.diffusion import Draw, OnStep
from musicrt.runtime.model import Model
from musicrt.runtime.models.music2latent.config import Config
from musicrt.runtime.recent import Recent

Float = NDArray[np.float32]
_TABLES = ("scale_inp", "scale_out", "shift")
_SCHEDULES = 4  # whose tables are kept


@dataclass(frozen=True)
class Sample:
    """A prepared sampler. `run(raw latents [B, 64, L], draw, on_step)` gives spectra [B, 2, F, 8 L] after `steps` calls of `on_step`.

    See `loops.consistency.sample`.
    """

    run: Callable[[Float, Draw, OnStep], Float]
    steps: int


class Sampler:
    """Runs schedules; what depends on their sigmas only is computed once for each number of steps."""

    def __init__(self, model: Model, config: Config) -> None:
        self.model, self.config = model, config
        self._runner = LoopRunner()
        self._tables: Recent[dict[str, Float]] = Recent(_SCHEDULES)  # by steps

    def schedule(self, steps: int) -> ConsistencySchedule:
        """The official noise levels. Raises InputError for fewer than one step."""
        config = self.config
        return ConsistencySchedule.build(
            steps, sigma_min=config.sigma_min, sigma_max=config.sigma_max, sigma_data=config.sigma_data, rho=config.rho
        )

    def prepare(self, steps: int) -> Sample:
        """Choose a number of steps.

        A single step runs pyramid and denoiser as one graph; more steps share one pyramid. Raises InputError, BackendError.
        """
        schedule = self.schedule(steps)
        loop = consistency.loop(schedule)
        tables = self._conditioning(schedule)
        session = self.model.session("decoder" if steps == 1 else "denoiser")

        def run(latents: Float, draw: Draw, on_step: OnStep) -> Float:
            if steps == 1:
                constant = {"latents": latents}
            else:
                names = [tensor.name for tensor in self.model.session("pyramid").outputs if tensor.name.startswith("contribution")]
                constant = self.model.session("pyramid").run({"latents": latents}, names)
            return self._runner.run(loop, Denoiser(session, constant, tables, result="output"), draw, on_step)

        return Sample(run, steps)

    def _conditioning(self, schedule: ConsistencySchedule) -> dict[str, Float]:
        sigmas = np.array(schedule.sigmas[:-1], np.float32)
        return self._tables.get(schedule.steps, lambda: self.model.session("conditioning").run({"sigma": sigmas}, _TABLES))
