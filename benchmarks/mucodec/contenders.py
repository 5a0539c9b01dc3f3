"""The ways of running the model that the suites compare. Importing this needs no torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.contenders import Opened
from benchmarks.mucodec.official import PARTS, Official
from benchmarks.mucodec.workload import STEPS, TIME, Part, Workload
from benchmarks.plain import PlainGraphs
from benchmarks.rounds import Outputs
from musicrt.runtime.loops.flow import EulerSchedule


class PlainOnnx(Official):
    """What one line of `torch.onnx.export` for each part gives, in ONNX Runtime with its default options."""

    def __init__(self, folder: Path, config: Mapping[str, Any], threads: int | None) -> None:
        super().__init__(config)
        self.graphs = PlainGraphs(folder, threads)

    def run(self, part: str, *inputs: NDArray[Any]) -> dict[str, NDArray[Any]]:
        """See `Official`."""
        return self.graphs.run(part, dict(zip(PARTS[part][0], inputs, strict=True)))


class OnBackend(Opened):
    """A bundle on one backend, as a user runs it."""

    def prepare(self, part: Part, work: Workload) -> Callable[[], Outputs]:
        """See `Contender`. Steps run on bound buffers, as in the sampler, and channels one by one."""
        codec, size = self.codec, round(part.size)
        match part.kind:
            case "muq":
                heard = work.mel(size)
                return lambda: {"hidden": codec.windows.features(heard)}
            case "encode":
                audio = work.audio(part.size)
                return lambda: {"codes": codec.encode(audio)}
            case "prepare":
                return self._prepare_window(size, work)
            case "step":
                return self._prepare_step(size, work)
            case "vae":
                latents = work.latents(size, part.channels)
                return lambda: {"mel": np.stack([codec.synthesis.mel(one[None]) for one in latents])}
            case _:
                spectrogram = work.spectrogram(size, part.channels)
                return lambda: {"waveform": np.stack([codec.synthesis.waveform(one) for one in spectrogram])}

    def _prepare_window(self, frames: int, work: Workload) -> Callable[[], Outputs]:
        sampler, codes, known = self.codec.sampler, work.codes(frames), work.signal(frames)[2]
        timesteps, schedule = self.codec.model.session("timesteps"), EulerSchedule.build(STEPS)

        def call() -> Outputs:
            condition = sampler.condition(codes)
            sampler.contexts(condition, known, 2)
            timesteps.run({"timestep": schedule.times})
            return {"condition": condition}

        return call

    def _prepare_step(self, frames: int, work: Workload) -> Callable[[], Outputs]:
        model, (x, condition, known) = self.codec.model, work.signal(frames)
        velocity = np.empty((2, *x.shape), np.float32)
        told = model.session("timesteps").run({"timestep": np.full(1, TIME, np.float32)})
        feeds = {"context": self.codec.sampler.contexts(condition, known, 2), "x": x, **told}
        evaluate = model.session("estimator").bind(feeds, {"velocity": velocity})

        def call() -> Outputs:
            evaluate()
            return {"velocity": velocity}

        return call
