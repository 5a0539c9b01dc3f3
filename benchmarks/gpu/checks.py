"""Every kernel on a GPU against the NumPy functions that define it."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from musicrt.runtime.cuda.arguments import STATE, Choice, GivenNoise, Noise, SeededNoise, Signal, choice_settings, choice_state
from musicrt.runtime.cuda.array import DeviceArray
from musicrt.runtime.cuda.device import Device
from musicrt.runtime.cuda.repetition import GraphOfLoop
from musicrt.runtime.errors import BackendError
from musicrt.runtime.loops import consistency, ddim, dpmsolver, flow
from musicrt.runtime.loops.autoregressive import TokenSequence, write_columns
from musicrt.runtime.loops.delays import DelayPattern, Tokens
from musicrt.runtime.loops.denoiser import Loop
from musicrt.runtime.loops.diffusion import Evaluate, alphas_cumprod
from musicrt.runtime.loops.sampling import Float, Sampling, pick
from musicrt.runtime.noise import PlacedNoise
from musicrt.runtime.windows import join_windows, overlapping_windows

_SHAPE = (2, 3, 64, 40)  # batch, planes, bins, frames
_NOISE = 2e-6
"""Of noise by position: logarithms and cosines of a GPU and of a host differ in their last bits. Everything else is the same to the bit."""
_PATTERN, _BATCH, _CARD, _COLUMNS, _GUIDANCE = DelayPattern((0, 1, 2, 3), 2048), 2, 2048, 64, 3.0
_BOOKS = len(_PATTERN.delays)
_CHOICES = {
    "greedy": Sampling(temperature=0.0),
    "top_k 250": Sampling(),
    "top_k 1": Sampling(top_k=1),
    "all, temperature 1.5": Sampling(top_k=0, temperature=1.5),
    "top_p 0.9": Sampling(top_p=0.9),
}


@dataclass(frozen=True)
class Check:
    """What was compared. error: relative L2 distance, of tokens the share that differs. note: why nothing was, where nothing was."""

    name: str
    error: float
    tolerance: float
    note: str = ""

    @property
    def failed(self) -> bool:
        """Whether it is not near enough; NaN never is."""
        return not self.note and not self.error <= self.tolerance

    def to_json(self) -> dict[str, Any]:
        """All of it as JSON values."""
        return {**asdict(self), "failed": self.failed}


def check_kernels(device: Device) -> Iterator[Check]:
    """All kernels. Raises BackendError where one can't be compiled or launched."""
    yield from _check_loops(device)
    yield from _check_choices(device)
    yield from _check_windows(device)


def _loops() -> Mapping[str, Loop]:
    alphas = alphas_cumprod(0.0015, 0.0195, 1000)
    levels = {"sigma_min": 0.002, "sigma_max": 80.0, "sigma_data": 0.5, "rho": 7.0}
    known = _normal(1, (_SHAPE[0], _SHAPE[1], 5, _SHAPE[2]))
    return {
        "ddim": ddim.loop(ddim.DdimSchedule.build(8, 1.0, alphas), 2.0),
        "dpm-solver++": dpmsolver.loop(dpmsolver.DpmSolverSchedule.build(8, alphas), 2.0),
        "flow": flow.loop(flow.EulerSchedule.build(8), known, 2.0),
        "consistency": consistency.loop(consistency.ConsistencySchedule.build(4, **levels)),
    }


def _check_loops(device: Device) -> Iterator[Check]:
    batch, planes, bins, frames = _SHAPE
    for name, loop in _loops().items():
        frames_last = name != "flow"
        inner = (bins, frames) if frames_last else (frames, bins)
        placed = PlacedNoise(7, tuple((item, 100 * item) for item in range(batch)), (planes, *inner), frames_last)
        draws = np.stack([placed(k) for k in range(loop.draws)])
        values = [_normal(10 + k, (loop.branches or 1, *draws.shape[1:])) for k in range(loop.steps)]
        expected = loop.run(_recite(values), draws.__getitem__, lambda: None)
        seeded = SeededNoise(_put(device, np.array([placed.seed], np.uint64)), _put(device, np.array(placed.places, np.int32)))
        kinds: tuple[tuple[str, Noise, float], ...] = (
            ("given noise", GivenNoise(_put(device, draws)), 0.0),
            ("seed", seeded, _NOISE),
        )
        for kind, noise, tolerance in kinds:
            yield Check(f"{name}, {kind}", _distance(_denoise(device, loop, values, noise, frames_last), expected), tolerance)


def _recite(values: Sequence[Float]) -> Evaluate:
    """A network that gives these, whatever it is given."""
    left = iter(values)

    def evaluate(_index: int, _x: Float, out: Float) -> None:
        out[...] = next(left).reshape(out.shape)

    return evaluate


def _denoise(device: Device, loop: Loop, values: Sequence[Float], noise: Noise, frames_last: bool) -> Float:
    """The loop with what a network would give laid down beforehand: first call by call, then, which is the result, as one graph."""
    shape, kernels = values[0].shape[1:], device.kernels
    state = None if loop.solver == "ddim" else device.empty(shape, np.float32)
    signal = Signal(device.empty(shape, np.float32), state, frames_last)
    table, guidance = _put(device, loop.coefficients), _put(device, np.array([loop.guidance], np.float32))
    known = None if loop.known is None else _put(device, np.ascontiguousarray(loop.known))
    network = [_put(device, value) for value in values]

    def work() -> None:
        kernels.begin(loop.solver, signal, table, noise, known)
        for index, v in enumerate(network, 1):
            kernels.step(loop.solver, index, signal, v, table, guidance, noise if index < loop.draws else None, known)

    graph = device.capture(work)
    graph()
    device.clear(signal.x)
    graph()
    result: Float = _get(device, signal.x)
    return result


def _check_choices(device: Device) -> Iterator[Check]:
    """Sequences of tokens from logits that are the same for every column; one of them also by a graph with a loop."""
    numbers = np.random.default_rng(3).random((_COLUMNS, _BATCH * _BOOKS))
    for kind in (np.float32, np.float16):
        logits = (3 * _normal(2, (2, _BATCH, _BOOKS, _CARD))).astype(kind)
        for name, sampling in _CHOICES.items():
            expected = _choose_on_host(logits.astype(np.float32), sampling, numbers)
            tokens = _choose(device, logits, sampling, numbers, looping=False)
            yield Check(f"choice, {np.dtype(kind)}, {name}", float(np.mean(tokens != expected)), 0.0)
    try:
        tokens = _choose(device, logits, sampling, numbers, looping=True)
    except BackendError as error:  # an old driver
        yield Check("choice in a graph with a loop", math.nan, 0.0, str(error))
    else:
        yield Check("choice in a graph with a loop", float(np.mean(tokens != expected)), 0.0)


def _sequence() -> TokenSequence:
    return TokenSequence(_PATTERN, np.zeros((_BATCH, _BOOKS, 3), np.int64), _COLUMNS - 1 - _PATTERN.lag)


def _choose_on_host(logits: Float, sampling: Sampling, numbers: NDArray[np.float64]) -> Tokens:
    sequence, calls = _sequence(), itertools.count()

    def choose(guided: Float) -> Tokens:
        return sampling.choose(guided, lambda call, weights: pick(weights, numbers[call]), next(calls))

    for _ in write_columns(sequence, lambda _columns: logits.copy(), choose, _GUIDANCE):
        pass
    return sequence.tokens


def _choose(device: Device, logits: Any, sampling: Sampling, numbers: NDArray[np.float64], *, looping: bool) -> Tokens:
    sequence = _sequence()
    columns = sequence.tokens.shape[2]
    choice = Choice(
        logits=_put(device, logits),
        settings=_put(device, choice_settings(sampling, _GUIDANCE)),
        delays=_put(device, np.array(_PATTERN.delays, np.int32)),
        special=_PATTERN.special,
        tokens=_put(device, sequence.tokens),
        fed=device.empty((*sequence.tokens.shape[:2], 1), np.int64),
        length=device.empty((1,), np.int64),
        state=_put(device, choice_state(sequence.first, columns, columns, 0)),
        uniforms=_put(device, numbers),
    )
    kernels = device.kernels
    if looping:
        GraphOfLoop(device, lambda: kernels.choose(choice), choice.state)(sequence.steps)
    else:
        graph = device.capture(lambda: kernels.choose(choice))
        for _ in range(sequence.steps):
            graph()
    state = _get(device, choice.state)
    if state[STATE.index("column")] != columns or state[STATE.index("failed")]:
        raise BackendError(f"the kernel ended in the state {state.tolist()}, expected column {columns}; look at its source")
    tokens: Tokens = _get(device, choice.tokens)
    return tokens


def _check_windows(device: Device) -> Iterator[Check]:
    length, size = 100, 30
    windows = [(window, _normal(window.start, (3, size))) for window in overlapping_windows(length, size, 10)]
    out = device.empty((3, length), np.float32)
    for window, value in windows:
        device.kernels.join(out, _put(device, value), window.start, min(window.stop, length) - window.start, window.fade)
    yield Check("windows", _distance(_get(device, out), np.concatenate(list(join_windows(windows, length)), axis=1)), 0.0)


def _normal(seed: int, shape: tuple[int, ...]) -> Float:
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def _put(device: Device, array: NDArray[Any]) -> DeviceArray:
    memory = device.empty(array.shape, array.dtype)
    device.upload(np.ascontiguousarray(array), memory)
    return memory


def _get(device: Device, memory: DeviceArray) -> Any:
    array = np.empty(memory.shape, memory.dtype)
    device.download(memory, array)
    device.wait()
    return array


def _distance(got: Float, expected: Float) -> float:
    return float(np.linalg.norm(got - expected) / np.linalg.norm(expected))
