"""From the feature of windows to their latents: the sampling loops on the sessions of a model (SPEC section 3.3)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from musicrt.runtime.errors import InputError
from musicrt.runtime.loops import ddim, dpmsolver
from musicrt.runtime.loops.ddim import DdimSchedule
from musicrt.runtime.loops.denoiser import Denoiser, Loop, LoopRunner
from musicrt.runtime.loops.diffusion import Draw, OnStep, alphas_cumprod, branches
from musicrt.runtime.loops.dpmsolver import DpmSolverSchedule
from musicrt.runtime.model import Model
from musicrt.runtime.models.semanticodec.config import Config
from musicrt.runtime.models.semanticodec.options import SamplerName
from musicrt.runtime.recent import Recent

Float = NDArray[np.float32]
_SCHEDULES = 4  # whose shifts are kept; one of 1000 steps has 16 MB


@dataclass(frozen=True)
class Sample:
    """A prepared sampler. `run(feature [B, T, 2D], draw, on_step)` gives latents [B, 8, 256, 16] after `steps` calls of `on_step`.

    `draws`: how many arrays `draw` is asked for, the initial noise included.
    """

    run: Callable[[Float, Draw, OnStep], Float]
    steps: int
    draws: int


class Sampler:
    """Runs schedules; what depends on timesteps only is computed once for each schedule, what depends on tokens once for each window."""

    def __init__(self, model: Model, config: Config) -> None:
        self.model, self.config = model, config
        self._runner = LoopRunner()
        self._shifts: Recent[Float] = Recent(_SCHEDULES)  # by timesteps

    @cached_property
    def alphas(self) -> Float:
        """The noise schedule the network was trained with, float32 [1000]."""
        decoder = self.config.decoder
        return alphas_cumprod(decoder.linear_start, decoder.linear_end, decoder.timesteps)

    def prepare(self, name: SamplerName, steps: int, guidance: float, eta: float | None) -> Sample:
        """Choose a sampler. guidance 1.0 evaluates the conditional row only, any other both rows as one batch.

        Raises InputError, BackendError.
        """
        timesteps, loop = self._loop(name, steps, guidance, eta)
        rows, shifts = branches(guidance), self._shifts_of(timesteps)

        def run(feature: Float, draw: Draw, on_step: OnStep) -> Float:
            context = self.contexts(feature, rows)
            denoiser = Denoiser(self.model.session("denoiser"), context, {"shift": shifts}, result="v")
            return self._runner.run(loop, denoiser, draw, on_step)

        return Sample(run, loop.steps, loop.draws)

    def _loop(self, name: SamplerName, steps: int, guidance: float, eta: float | None) -> tuple[NDArray[np.int64], Loop]:
        """Timesteps and loop."""
        match name:
            case "ddim":
                schedule = DdimSchedule.build(steps, self.model.spec.given("eta", eta), self.alphas)
                return schedule.timesteps, ddim.loop(schedule, guidance)
            case "dpm-solver++":
                if eta is not None:
                    raise InputError(f"got eta {eta!r} for dpm-solver++, which adds no noise; leave it out, or take sampler='ddim'")
                solver = DpmSolverSchedule.build(steps, self.alphas)
                return solver.timesteps, dpmsolver.loop(solver, guidance)
            case _:
                raise InputError(f"got sampler {name!r}, expected 'ddim' or 'dpm-solver++'")

    def _shifts_of(self, timesteps: NDArray[np.int64]) -> Float:
        return self._shifts.get(timesteps.tobytes(), lambda: self.model.session("timesteps").run({"timestep": timesteps})["shift"])

    def contexts(self, feature: Float, rows: int) -> dict[str, Float]:
        """Keys and values [rows, B, ...] of every context attention; row 1 knows of no tokens (SPEC section 3.2)."""
        known = self.model.session("conditioning").run({"feature": feature})
        if rows == 1:
            return {name: value[None] for name, value in known.items()}
        return {name: np.stack([value, np.broadcast_to(self._unconditional[name], value.shape)]) for name, value in known.items()}

    @cached_property
    def _unconditional(self) -> dict[str, Float]:
        nothing = np.zeros((1, self.config.tokens, 2 * self.config.feature_dim), np.float32)
        return self.model.session("conditioning").run({"feature": nothing})
