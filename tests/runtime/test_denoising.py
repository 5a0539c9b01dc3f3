"""Sampling loops on a GPU against those of the host, on a GPU of host memory that runs the kernels' own source.

The same numbers come out, and between the first launch and the last nothing is waited for, copied or allocated.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping
from itertools import groupby
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import musicrt
from musicrt.runtime.cuda import denoising
from musicrt.runtime.errors import BackendError, Cancelled, InputError
from musicrt.runtime.loops import consistency, ddim, dpmsolver, flow
from musicrt.runtime.loops.consistency import ConsistencySchedule
from musicrt.runtime.loops.ddim import DdimSchedule
from musicrt.runtime.loops.denoiser import Denoiser, Loop, LoopRunner
from musicrt.runtime.loops.diffusion import Draw, alphas_cumprod
from musicrt.runtime.loops.dpmsolver import DpmSolverSchedule
from musicrt.runtime.loops.flow import EulerSchedule
from musicrt.runtime.model import Model
from musicrt.runtime.models.mucodec.sampler import Sampler as MuCodecSampler
from musicrt.runtime.models.music2latent.config import Config as Music2LatentConfig
from musicrt.runtime.models.music2latent.sampler import Sampler as Music2LatentSampler
from musicrt.runtime.models.semanticodec.config import Config as SemantiCodecConfig
from musicrt.runtime.models.semanticodec.sampler import Sampler as SemantiCodecSampler
from musicrt.runtime.noise import PlacedNoise
from musicrt.runtime.registry import build_spec
from musicrt.runtime.select import Choice
from musicrt.runtime.session import Array, FakeSession, Session
from musicrt.runtime.spec import Axis, StageSpec, TensorSpec, Tolerance
from tests.conftest import refused, tiny_layout
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


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize(("steps", "guidance", "batch"), [(1, 1.0, 1), (2, 2.5, 3), (7, 2.5, 2), (7, 1.0, 7)])
def test_loop_gives_what_that_of_the_host_gives(solver: str, steps: int, guidance: float, batch: int) -> None:
    """Bit for bit, with noise of any kind, the first time and when the graph is replayed."""
    gpu = Gpu()
    loop = schedule(solver, steps, guidance, batch)
    first = gpu.compare(loop, injected(loop, batch), batch)
    assert (gpu.compare(loop, injected(loop, batch, 2), batch, seed=2) != first).any()
    np.testing.assert_array_equal(gpu.compare(loop, injected(loop, batch), batch), first)
    assert gpu.device.named("record") == [()]
    first = gpu.compare(loop, seeded(batch), batch)
    assert (gpu.compare(loop, seeded(batch, 2**64 - 1), batch) != first).any()
    assert gpu.device.named("record") == [()] * 2


@pytest.mark.parametrize("known", [0, FRAMES])
def test_known_frames(known: int) -> None:
    gpu = Gpu()
    loop = schedule("flow", 3, 2.0, known=known)
    got = gpu.compare(loop, seeded(1))
    if known:
        np.testing.assert_array_equal(got, loop.known)


def test_frames_may_come_last() -> None:
    gpu = Gpu()
    noise = PlacedNoise(4, ((0, 2), (1, 2)), (PLANES, FRAMES, BINS), frames_last=True)
    gpu.compare(schedule("consistency", 3), noise, 2)


@pytest.mark.parametrize("solver", SOLVERS)
def test_network_of_half_precision(solver: str) -> None:
    gpu = Gpu()
    batch = 2
    loop = schedule(solver, 3, 2.5, batch)
    constants, tables = told(loop, batch)
    session = on_gpu(stage("float16", loop.branches is not None), gpu.device)
    got = gpu.runner.run(loop, Denoiser(session, constants, tables, result="v"), injected(loop, batch), lambda: None)

    def evaluate(feeds: Mapping[str, Array]) -> Mapping[str, Array]:
        return rounded(rounded(network(feeds), "float16"), "float32")

    host = Denoiser(FakeSession(stage("float32", loop.branches is not None), evaluate), constants, tables, result="v")
    np.testing.assert_array_equal(got, gpu.runner.run(loop, host, injected(loop, batch), lambda: None))


# The order of calls


@pytest.mark.parametrize("solver", SOLVERS)
def test_nothing_is_waited_for_inside_the_loop(solver: str) -> None:
    gpu = Gpu()
    loop = schedule(solver, 3, 2.5, 1)
    name = {"dpm-solver++": "dpm_solver"}.get(solver, solver)
    steps = [("launch", f"{name}_begin"), *[("run", "network"), ("launch", f"{name}_step_float")] * loop.steps]

    def kinds() -> list[str]:
        return [kind for kind, _ in groupby(call[0] for call in gpu.device.calls if call not in steps)]

    gpu.compare(loop, seeded(1))
    assert [call for call in gpu.device.calls if call in steps] == steps
    assert kinds() == ["allocate", "upload", "record", "download", "wait"]
    first = gpu.device.calls.index(steps[0])
    assert gpu.device.calls[first : first + len(steps)] == steps
    gpu.device.calls.clear()
    gpu.compare(loop, seeded(1, 9), seed=4)
    assert kinds() == ["upload", "replay", "download", "wait"]
    assert len(gpu.device.named("wait")) == len(gpu.device.named("download")) == 1
    first = gpu.device.calls.index(("replay",))
    assert gpu.device.calls[first + 1 : first + 1 + len(steps)] == steps


def test_tables_are_uploaded_when_they_change() -> None:
    gpu, loop = Gpu(), schedule("ddim", 4)
    constants, tables = told(loop, 1)
    session = on_gpu(stage(), gpu.device)

    def uploads() -> int:
        gpu.device.calls.clear()
        gpu.runner.run(loop, Denoiser(session, constants, tables, result="v"), seeded(1), lambda: None)
        return len(gpu.device.named("upload"))

    first = uploads()
    assert uploads() == first - 1
    tables = {"shift": tables["shift"] + 1}
    assert uploads() == first


@pytest.mark.parametrize("how", ["argument", "environment"])
def test_without_graphs_the_steps_are_launched(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if how == "environment":
        monkeypatch.setenv("MUSICRT_CUDA_GRAPHS", "0")
    gpu, loop = Gpu(graphs=how == "environment"), schedule("ddim", 3, 2.0)
    for _ in range(2):
        gpu.compare(loop, seeded(1))
    assert gpu.device.named("record") == gpu.device.named("replay") == []
    assert len(gpu.device.named("run")) == 2 * loop.steps
    assert len(gpu.device.named("wait")) == 2


def test_long_loop_is_several_graphs() -> None:
    gpu, loop = Gpu(), schedule("dpm-solver++", 205)
    for _ in range(2):
        gpu.compare(loop, seeded(1))
    assert len(gpu.device.named("record")) == len(gpu.device.named("replay")) == 3
    assert [call[1] for call in gpu.device.calls if call[0] == "launch"].count("dpm_solver_begin") == 2


def test_memory_of_the_latest_kinds_of_runs_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(denoising, "_BUCKETS", 2)
    gpu = Gpu()

    def records(steps: int, batch: int = 1) -> int:
        gpu.device.calls.clear()
        gpu.compare(schedule("ddim", steps), seeded(batch), batch)
        return len(gpu.device.named("record"))

    assert [records(2), records(4), records(2), records(4)] == [1, 1, 0, 0]
    assert [records(2, batch=2), records(4), records(2)] == [1, 0, 1]
    gc.collect()
    held = gpu.device.held
    gc.disable()  # memory is free when its bucket goes, not when Python looks for cycles
    try:
        assert [records(7), records(4), records(2)] == [1, 1, 1]
        assert gpu.device.held == held
    finally:
        gc.enable()


def test_moved_memory_is_recorded_anew() -> None:
    gpu, loop = Gpu(), schedule("ddim", 2)
    gpu.compare(loop, seeded(1))
    gpu.device.generation += 1
    gpu.compare(loop, seeded(1, 5))
    gpu.compare(loop, seeded(1, 6))
    assert len(gpu.device.named("record")) == 2
    assert len(gpu.device.named("replay")) == 1


def test_failures_leave_what_can_be_used(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu, loop = Gpu(), schedule("ddim", 3)
    constants, tables = told(loop, 1)
    session = on_gpu(stage(), gpu.device)
    denoiser = Denoiser(session, constants, tables, result="v")
    bound = session._bind_device
    calls: list[int] = []

    def fail_in_recording(*arguments: Any) -> Callable[[], None]:
        call = bound(*arguments)

        def run() -> None:
            calls.append(1)
            if len(calls) == 5:
                raise BackendError("refused")
            call()

        return run

    monkeypatch.setattr(session, "_bind_device", fail_in_recording)
    with refused(BackendError, "refused"):
        gpu.runner.run(loop, denoiser, seeded(1), lambda: None)
    assert gpu.device.named("record") == [()]
    expected = loop.run(Denoiser(FakeSession(stage(), network), constants, tables, result="v").on_host(), seeded(1), lambda: None)
    for _ in range(2):
        np.testing.assert_array_equal(gpu.runner.run(loop, denoiser, seeded(1), lambda: None), expected)
    assert len(gpu.device.named("replay")) == 1

    def cancel() -> None:
        raise Cancelled("enough")

    with refused(Cancelled, "enough"):
        gpu.runner.run(loop, denoiser, seeded(1), cancel)
    with refused(InputError, "context has shape [1, 2, 5]", "network"):
        gpu.runner.run(loop, Denoiser(session, {"context": np.zeros((1, 2, 5), np.float32)}, tables, result="v"), seeded(1), lambda: None)


# The samplers of the systems, and a whole pipeline


def test_music_of_a_pipeline() -> None:
    """The stand-in inside the package, with seeds and with noise that is drawn in order, in batches and with windows that are dropped."""
    pytest.importorskip("onnxruntime")
    device, results = FakeDevice(), []
    for on_gpu in (False, True):
        with musicrt.load(backend="onnxruntime-cpu", threads=1) as codec:
            if on_gpu:
                for name in ("denoiser", "decoder"):
                    codec.model._sessions[name] = FakeGpuSession(codec.model.session(name), device)
            latents = np.random.default_rng(0).normal(size=(2, codec.config.bottleneck_channels, 12)).astype(np.float32)
            shape = (2, codec.config.bins, 12 * codec.config.frames_per_latent)
            noise = [np.random.default_rng(seed).normal(size=(2, *shape)).astype(np.float32) for seed in range(4)]
            results.append(
                [
                    codec.decode(latents, steps=1, seed=3),
                    codec.decode(latents, steps=3, seed=3, max_batch_size=2),
                    codec.decode(latents, steps=3, noise=noise, max_batch_size=2),
                    np.concatenate(list(codec.decode_stream(latents, steps=2, seed=3, window=0.5, overlap=0.2)), axis=1),
                ]
            )
    assert len(device.named("record")) > 3
    assert len(device.named("replay")) >= 2
    for got, expected in zip(results[1], results[0], strict=True):
        np.testing.assert_array_equal(got, expected)


def light(spec: StageSpec) -> FakeSession:
    """A session whose outputs depend on all inputs; those that are shaped like `x`, value by value."""

    def compute(feeds: Mapping[str, Array]) -> Mapping[str, Array]:
        sizes = session._check_inputs(feeds)
        mean = np.float32(sum(np.sin(np.arange(1, 1 + value.size) * value.ravel()).mean() for name, value in feeds.items() if name != "x"))
        results = {}
        for tensor in spec.outputs:
            shape = tensor.resolve(sizes)
            ramp = np.cos(np.arange(np.prod(shape), dtype=np.float32)).reshape(shape)
            results[tensor.name] = ramp * mean + (np.float32(0.4) * feeds["x"] if "x" in feeds else 0)
        return rounded(results, "float32")

    session = FakeSession(spec, compute)
    return session


def model_of(system: str, device: FakeDevice | None, *networks: str) -> Model:
    spec = build_spec(system, tiny_layout(system)["config"], "tiny")

    def open_session(name: str) -> Session:
        session = light(spec.stage(name))
        return FakeGpuSession(session, device) if device and name in networks else session

    return Model(spec, open_session, Choice("fake", "fake"))


@pytest.mark.parametrize("steps", [1, 3])
def test_music2latent(steps: int) -> None:
    device = FakeDevice()
    models = [model_of("music2latent", where, "denoiser", "decoder") for where in (None, device)]
    config = Music2LatentConfig.from_mapping(models[0].spec.config)
    latents = np.random.default_rng(0).normal(size=(2, config.bottleneck_channels, 3)).astype(np.float32)
    noise = PlacedNoise(5, ((0, 16), (1, 16)), (2, config.bins, 3 * config.frames_per_latent))
    host, gpu = (Music2LatentSampler(model, config).prepare(steps)(latents, noise, lambda: None) for model in models)
    np.testing.assert_array_equal(gpu, host)
    assert len(device.named("run")) == steps


@pytest.mark.parametrize(("name", "guidance"), [("ddim", 1.0), ("ddim", 2.0), ("dpm-solver++", 2.0)])
def test_semanticodec(name: Any, guidance: float) -> None:
    device = FakeDevice()
    models = [model_of("semanticodec", where, "denoiser") for where in (None, device)]
    config = SemantiCodecConfig.from_mapping(models[0].spec.config)
    feature = np.random.default_rng(0).normal(size=(1, config.tokens, 2 * config.feature_dim)).astype(np.float32)
    noise = PlacedNoise(5, ((0, 240),), (8, 256, 16), frames_last=False)
    samples = [SemantiCodecSampler(model, config).prepare(name, 4, guidance, None) for model in models]
    host, gpu = (sample.run(feature, noise, lambda: None) for sample in samples)
    np.testing.assert_array_equal(gpu, host)
    assert len(device.named("run")) == samples[1].steps


@pytest.mark.parametrize("known", [0, 5])
def test_mucodec(known: int) -> None:
    device = FakeDevice()
    models = [model_of("mucodec", where, "estimator") for where in (None, device)]
    numbers = np.random.default_rng(0)
    condition = numbers.normal(size=(1, 32, 12, 32)).astype(np.float32)
    held = numbers.normal(size=(1, 32, known, 32)).astype(np.float32)
    noise = PlacedNoise(5, ((0, 0),), (32, 12, 32), frames_last=False)
    samples = [MuCodecSampler(model).prepare(3, 1.5) for model in models]
    host, gpu = (sample.run(condition, held, noise, lambda: None) for sample in samples)
    np.testing.assert_array_equal(gpu, host)
    assert len(device.named("run")) == 3
