"""From the codes of windows to their latents: the flow-matching loop on the sessions of a model (SPEC sections 4.4 to 4.6)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from musicrt.runtime.loops import flow
from musicrt.runtime.loops.denoiser import Denoiser, LoopRunner
from musicrt.runtime.loops.diffusion import Draw, OnStep
from musicrt.runtime.loops.flow import EulerSchedule
from musicrt.runtime.model import Model
from musicrt.runtime.recent import Recent

Float = NDArray[np.float32]
Codes = NDArray[np.int64]
_SCHEDULES = 4  # whose modulations are kept; one of 1000 steps has 44 MB


@dataclass(frozen=True)
class Sample:
    """A prepared sampler. `run(condition, known, noise, on_step)` gives latents [B, 32, T, 32] after `steps` calls of `on_step`.

    condition: [B, 32, T, 32], of `Sampler.condition`. known: latents [B, 32, n, 32] of the first n frames, none for n = 0, which
    the result begins with. noise: a call 0 -> [B, 32, T, 32].
    """

    run: Callable[[Float, Float, Draw, OnStep], Float]
    steps: int


class Sampler:
    """Runs schedules; what depends on times only is computed once for each schedule, what depends on codes once for each window."""

    def __init__(self, model: Model) -> None:
        self._model, self._runner = model, LoopRunner()
        self._schedules: Recent[tuple[EulerSchedule, dict[str, Float]]] = Recent(_SCHEDULES)  # by steps

    def prepare(self, steps: int, guidance: float) -> Sample:
        """Choose steps and guidance; up to 1.0 only the conditional row is evaluated, above both rows as one batch.

        Raises InputError, BackendError.
        """
        rows = flow.branches(guidance)
        schedule, tables = self._schedule(steps)

        def run(condition: Float, known: Float, noise: Draw, on_step: OnStep) -> Float:
            held = self.normalise(known)
            context = self.contexts(condition, held, rows)
            denoiser = Denoiser(self._model.session("estimator"), {"context": context}, tables, result="velocity")
            return self.restore(self._runner.run(flow.loop(schedule, held, guidance), denoiser, noise, on_step))

        return Sample(run, schedule.steps)

    def condition(self, codes: Codes, kept: int | None = None) -> Float:
        """What codes [B, codebooks, 2 T] ask for: [B, 32, T, 32]; frames from `kept` on ask for nothing. Raises BackendError."""
        quantised = self._model.session("dequantizer").run({"codes": codes})["quantised"]
        batch, frames = len(codes), codes.shape[2] // 2
        known = np.repeat((np.arange(frames) < (frames if kept is None else kept)).astype(np.float32)[None], batch, axis=0)
        return self._model.session("condition").run({"quantised": quantised, "known": known})["condition"]

    def contexts(self, condition: Float, known: Float, rows: int) -> Float:
        """What the estimator is told of a window in every step: [rows, B, 8 T, w]; row 1 knows of no codes, but of `known`."""
        incontext = np.zeros_like(condition)
        incontext[:, :, : known.shape[2]] = known
        feeds = {"incontext": np.concatenate([incontext] * rows), "condition": np.concatenate([condition, 0 * condition][:rows])}
        context = self._model.session("context").run(feeds)["context"]
        return np.ascontiguousarray(context).reshape(rows, len(condition), *context.shape[1:])

    def normalise(self, latents: Float) -> Float:
        """Latents [B, 32, T, 32] -> what the loop works on; T may be 0."""
        return self._map(latents, "projected") if latents.shape[2] else latents

    def restore(self, signal: Float) -> Float:
        """The inverse."""
        return self._map(signal, "returned")

    def _map(self, latents: Float, name: str) -> Float:
        return self._model.session("normfeat").run({"latents": np.ascontiguousarray(latents)}, [name])[name]

    def _schedule(self, steps: int) -> tuple[EulerSchedule, dict[str, Float]]:
        """The schedule, and what each of its times makes of the estimator: `modulation` [steps, 6 w], `embedding` [steps, w]."""
        schedule = EulerSchedule.build(steps)
        return self._schedules.get(schedule.steps, lambda: (schedule, self._model.session("timesteps").run({"timestep": schedule.times})))
