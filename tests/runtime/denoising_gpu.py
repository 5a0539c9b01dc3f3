"""A small network, loops to run it, and a GPU of host memory beside a host to compare them on."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from musicrt.runtime.fake_session import FakeSession
from musicrt.runtime.loops import consistency, ddim, dpmsolver, flow
from musicrt.runtime.loops.consistency import ConsistencySchedule
from musicrt.runtime.loops.ddim import DdimSchedule
from musicrt.runtime.loops.denoiser import Denoiser, Loop, LoopRunner
from musicrt.runtime.loops.diffusion import Draw, alphas_cumprod
from musicrt.runtime.loops.dpmsolver import DpmSolverSchedule
from musicrt.runtime.loops.flow import EulerSchedule
from musicrt.runtime.noise import PlacedNoise
from musicrt.runtime.precision import Tolerance
from musicrt.runtime.session import Array, Session
from musicrt.runtime.spec import StageSpec
from musicrt.runtime.tensors import Axis, TensorSpec
from tests.runtime.fake_gpu import FakeDevice, FakeGpuSession

Float = NDArray[np.float32]
PLANES, FRAMES, BINS, WIDTH = 3, 8, 4, 5
ALPHAS = alphas_cumprod(0.0015, 0.0195, 1000)
BATCH, ROWS = Axis("batch", 1, 1, 8), Axis("rows", 1, 2, 2)
SIGNAL = (BATCH, PLANES, FRAMES, BINS)


def stage(result: str = "float32", rows: bool = True) -> StageSpec:
    inputs = TensorSpec("x", "float32", SIGNAL), TensorSpec("shift", "float32", (BATCH, WIDTH))
    context = TensorSpec("context", "float32", (ROWS, BATCH, WIDTH) if rows else (BATCH, WIDTH))
    output = TensorSpec("v", result, (ROWS, *SIGNAL) if rows else SIGNAL)  # type: ignore[arg-type]
    return StageSpec("network", "", (*inputs, context), (output,), Tolerance(1e-5))


def network(feeds: Mapping[str, Array]) -> Mapping[str, Array]:
    """Depends on all that it is told, by item and row."""
    told = np.sin(feeds["context"] + feeds["shift"]).sum(axis=-1, dtype=np.float32)
    return {"v": np.float32(0.4) * feeds["x"] + told[..., None, None, None]}


def schedule(solver: str, steps: int, guidance: float = 1.0, batch: int = 1, known: int = 2) -> Loop:
    match solver:
        case "ddim":
            return ddim.loop(DdimSchedule.build(steps, 1.0, ALPHAS), guidance)
        case "dpm-solver++":
            return dpmsolver.loop(DpmSolverSchedule.build(steps, ALPHAS), guidance)
        case "flow":
            held = np.random.default_rng(5).normal(size=(batch, PLANES, known, BINS)).astype(np.float32)
            return flow.loop(EulerSchedule.build(steps), held, guidance)
        case _:
            return consistency.loop(ConsistencySchedule.build(steps, sigma_min=0.002, sigma_max=80.0, sigma_data=0.5, rho=7.0))


def told(loop: Loop, batch: int, seed: int = 0) -> tuple[dict[str, Float], dict[str, Float]]:
    """Constants and tables."""
    numbers = np.random.default_rng(seed)
    rows = () if loop.branches is None else (loop.branches,)
    constants = {"context": numbers.normal(size=(*rows, batch, WIDTH)).astype(np.float32)}
    return constants, {"shift": numbers.normal(size=(loop.steps, WIDTH)).astype(np.float32)}


def injected(loop: Loop, batch: int, seed: int = 1) -> Draw:
    arrays = np.random.default_rng(seed).normal(size=(loop.draws, batch, PLANES, FRAMES, BINS)).astype(np.float32)
    return lambda k: arrays[k]


def seeded(batch: int, seed: int = 3) -> PlacedNoise:
    return PlacedNoise(seed, tuple((item, 7 * item) for item in range(batch)), (PLANES, FRAMES, BINS), frames_last=False)


class Gpu:
    """A device with all that is kept for it."""

    def __init__(self, *, graphs: bool = True) -> None:
        self.device, self.runner = FakeDevice(graphs=graphs), LoopRunner()
        self._sessions = {rows: on_gpu(stage(rows=rows), self.device) for rows in (True, False)}

    def compare(self, loop: Loop, draw: Draw, batch: int = 1, seed: int = 0) -> Float:
        """The signal on the GPU, after having compared it with the host's."""
        constants, tables = told(loop, batch, seed)
        session = self._sessions[loop.branches is not None]
        steps: list[None] = []

        def run(session: Session) -> Float:
            return self.runner.run(loop, Denoiser(session, constants, tables, result="v"), draw, lambda: steps.append(None))

        got, expected = run(session), run(FakeSession(session.stage, network))
        assert len(steps) == 2 * loop.steps
        np.testing.assert_array_equal(got, expected)
        assert np.isfinite(got).all()
        return got


def rounded(values: Mapping[str, Array], kind: str) -> Mapping[str, Array]:
    return {name: value.astype(kind) for name, value in values.items()}


def on_gpu(spec: StageSpec, device: FakeDevice) -> FakeGpuSession:
    kind = spec.outputs[0].dtype
    return FakeGpuSession(FakeSession(spec, lambda feeds: rounded(network(feeds), kind)), device)


SOLVERS = ["ddim", "dpm-solver++", "flow", "consistency"]
