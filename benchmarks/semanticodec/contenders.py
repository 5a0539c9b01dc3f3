"""The ways of running the model that the suites compare. Importing this needs no torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.contenders import Opened
from benchmarks.plain import PlainGraphs
from benchmarks.rounds import Outputs
from benchmarks.semanticodec.official import PARTS, Official
from benchmarks.semanticodec.workload import GUIDANCE, TIMESTEP, Float, Tokens, Workload
from musicrt.runtime.models.semanticodec.noise import Place, SeededNoise

_SEED = 7


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

    def encode(self, audio: Float) -> Tokens:
        """Audio float32 [1, n] -> tokens int64 [1, T, 2]."""
        tokens: Tokens = self.codec.encode(audio)
        return tokens

    def decode(self, tokens: Tokens, steps: int, noise: Sequence[Float] | None = None) -> Float:
        """Tokens int64 [1, T, 2] -> audio [1, n]; without `noise` the codec's own, from a seed."""
        seed = _SEED if noise is None else None
        audio: Float = self.codec.decode(tokens, steps=steps, guidance=GUIDANCE, seed=seed, noise=noise)[:, 0]
        return audio

    def stages(self, work: Workload) -> dict[str, Callable[[], Outputs]]:
        """See `Contender`. Evaluations run on bound buffers, as in the sampler."""
        model, sampler, segment = self.codec.model, self.codec.sampler, work.segment
        inputs = {stage: work.feeds(stage) for stage in ("audiomae", "semantic", "residual", "acoustic", "vae", "vocoder")}
        feature, x = work.feeds("conditioning")["feature"], work.feeds("denoiser")["x"]
        shift = model.session("timesteps").run({"timestep": np.array([TIMESTEP])})["shift"]
        v = np.empty((2, *x.shape), np.float32)
        evaluate = model.session("denoiser").bind({**sampler.contexts(feature, 2), "x": x, "shift": shift}, {"v": v})

        def evaluation() -> Outputs:
            evaluate()
            return {"v": v}

        def caller(stage: str) -> Callable[[], Outputs]:
            return lambda: model.session(stage).run(inputs[stage])

        return {
            "front-end": lambda: {"mel": self.codec.segments.filter_bank.analyse_segment(segment)},
            "noise": lambda: {"noise": SeededNoise(_SEED).at([Place(0, 0)], 1)(0)[0]},
            "conditioning": lambda: sampler.contexts(feature, 2),
            "evaluation": evaluation,
            **{stage: caller(stage) for stage in inputs},
        }
