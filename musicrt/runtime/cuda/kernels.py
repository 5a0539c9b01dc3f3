"""The kernels of the sampling loops, as calls with types: each checks its arrays, computes its grid and enqueues one launch.

The sources are CUDA C++ in the folder `sources` beside this module; what they compute is defined by the NumPy step functions of
`musicrt.runtime.loops`, by `musicrt.runtime.noise` and by `musicrt.runtime.windows`. All that changes from run to run (noise, seeds,
weights, guidance, counters) lies in the memory of the GPU, so that a captured launch stays right. Nothing is allocated or waited for.
"""

from __future__ import annotations

import ctypes
import math
from typing import Any

import numpy as np

from musicrt.runtime.cuda.arguments import MOST_CARD, SOLVERS, STATE, Choice, GivenNoise, Noise, NoiseArguments, Signal, check
from musicrt.runtime.cuda.array import DeviceArray
from musicrt.runtime.cuda.compiler import compile_kernels
from musicrt.runtime.cuda.device import Device
from musicrt.runtime.errors import BackendError, InputError

ELEMENTWISE, SORTING = 256, 512
"""Threads of a block."""
TYPES = {np.dtype(np.float32): "float", np.dtype(np.float16): "half"}
"""What networks give, and what kernels that read it are called."""
STEMS = {name: name.removesuffix("++").replace("-", "_") for name in SOLVERS}
"""What the kernels of a solver are called."""
SOURCES = {
    "denoise": tuple(f"{name}_{what}" for name in STEMS.values() for what in ("begin", "step_float", "step_half")),
    "choose": ("choose_float", "choose_half"),
    "join": ("join",),
    "go_on": ("go_on",),
}
"""The kernels of each source file."""


class Kernels:
    """The kernels on one GPU. A source file is compiled and loaded when one of its kernels is first needed, which no capture survives."""

    def __init__(self, device: Device) -> None:
        """The launches go to the device's stream."""
        self._device = device
        self._functions: dict[str, Any] = {}
        self._modules: list[Any] = []

    def prepare(self, *sources: str) -> None:
        """Load the kernels of some of `SOURCES` now, before a capture. Raises BackendError."""
        for source in sources:
            self._load(source)

    def begin(self, solver: str, signal: Signal, coefficients: DeviceArray, noise: Noise, known: DeviceArray | None = None) -> None:
        """Make the network's first input, and the state, from draw 0 and row 0 of the coefficients. Raises InputError, BackendError.

        coefficients: float32 [1 + steps, K], see `step`. known: see `step`.
        """
        name, tail = self._denoising(solver, signal, coefficients, 0, noise, known)
        self._spread(f"{name}_begin", signal, tail)

    def step(
        self,
        solver: str,
        index: int,
        signal: Signal,
        v: DeviceArray,
        coefficients: DeviceArray,
        guidance: DeviceArray,
        noise: Noise | None = None,
        known: DeviceArray | None = None,
    ) -> None:
        """Guidance, step number `index` of the loop, counted from 1, and the network's next input. Raises InputError, BackendError.

        v: what the network gave, float32 or float16 [rows, *signal], rows 1, or 2 with the conditional row first. coefficients: float32
        [1 + steps, K]; row `index` is used, with draw `index` of the noise (None: noise is 0). guidance: float32 [1]. known: float32
        [batch, planes, n, bins], for "flow" only: what the first n frames are in the end (None: none are known).
        """
        name, tail = self._denoising(solver, signal, coefficients, index, noise, known)
        kind = self._type("v", v)
        if v.shape[0] not in (1, 2):
            raise InputError(f"got {v.shape[0]} rows of v, expected 1, or 2 with guidance")
        check("v", v, v.dtype, (v.shape[0], *signal.x.shape))
        check("guidance", guidance, np.float32, (1,))
        self._spread(f"{name}_step_{kind}", signal, (_pointer(v), ctypes.c_int(v.shape[0]), _pointer(guidance), *tail))

    def choose(self, choice: Choice) -> None:
        """Choose the tokens of the column that the state names, write them, and go on to the next. Raises InputError, BackendError.

        Does nothing where the state says to stop.
        """
        logits, (batch, codebooks, room) = choice.logits, choice.tokens.shape
        kind, card = self._type("logits", logits), logits.shape[-1]
        columns = logits.shape[3] if len(logits.shape) == 5 else 1
        check("logits", logits, logits.dtype, (2, batch, codebooks, *([columns] if len(logits.shape) == 5 else []), None))
        if not 1 <= card <= MOST_CARD:
            raise InputError(f"got logits of {card} tokens, expected 1 to {MOST_CARD}; such codebooks are chosen from on the host")
        rows = batch * codebooks
        check("settings", choice.settings, np.float32, (4,))
        check("delays", choice.delays, np.int32, (codebooks,))
        check("tokens", choice.tokens, np.int64, (batch, codebooks, room))
        check("fed", choice.fed, np.int64, (batch, codebooks, 1))
        check("length", choice.length, np.int64, (1,))
        check("state", choice.state, np.int32, (len(STATE),))
        if choice.seed is not None:
            check("seed", choice.seed, np.uint64, (1,))
        if choice.uniforms is not None:
            check("uniforms", choice.uniforms, np.float64, (None, rows))
        if choice.seed is not None and choice.uniforms is not None:
            raise InputError("got a seed and uniform numbers, expected one of the two")
        sizes = (ctypes.c_int(codebooks), ctypes.c_int(card), ctypes.c_int(columns), ctypes.c_int(room))
        pointers = (choice.settings, choice.seed, choice.uniforms, choice.delays)
        written = (choice.tokens, choice.fed, choice.length, choice.state)
        arguments = (_pointer(logits), *sizes, *map(_pointer, pointers), ctypes.c_longlong(choice.special), *map(_pointer, written))
        self.launch(f"choose_{kind}", rows, SORTING, *arguments)

    def go_on(self, handle: int, state: DeviceArray) -> None:
        """Let the WHILE node of a graph, by the handle of its condition, run again unless the state says to stop or has failed."""
        check("state", state, np.int32, (len(STATE),))
        self.launch("go_on", 1, 1, ctypes.c_ulonglong(handle), _pointer(state))

    def join(
        self, out: DeviceArray, value: DeviceArray, start: int, taken: int, fade: int = 0, guard: int = 0, inclusive: bool = False
    ) -> None:
        """Write a window into a longer result from `start` on, fading it in over what the windows before left there.

        out: float32 [rows, total]. value: float32 [rows, size], of which `taken` positions count. fade: how many of those the result has
        already. guard, and `inclusive` for `inclusive_ramp`: as in `musicrt.runtime.windows.join_windows`. Raises InputError, BackendError.
        """
        check("out", out, np.float32, (None, None))
        rows, total = out.shape
        check("value", value, np.float32, (rows, None))
        if not (0 <= fade <= taken <= value.shape[1] and 0 <= start <= total - taken and guard >= 0):
            raise InputError(f"got {taken} of {value.shape[1]} positions with a fade of {fade} for {start} of {total}; they do not fit")
        sizes = (rows, total, value.shape[1], start, taken, fade, guard, int(inclusive))
        blocks = max(math.ceil(rows * taken / ELEMENTWISE), 1)
        self.launch("join", blocks, ELEMENTWISE, _pointer(out), _pointer(value), *map(ctypes.c_int, sizes))

    def launch(self, name: str, blocks: int, threads: int, *arguments: Any) -> None:
        """Enqueue a kernel on a grid; arguments: ctypes values of exactly the kernel's types. Raises BackendError."""
        from cuda.bindings import driver

        if name not in self._functions:
            self._load(next(source for source, names in SOURCES.items() if name in names))
        addresses = (ctypes.c_void_p * len(arguments))(*map(ctypes.addressof, arguments))
        stream, packed = driver.CUstream(self._device.stream), ctypes.addressof(addresses)
        function = self._functions[name]
        _succeed(driver.cuLaunchKernel(function, blocks, 1, 1, threads, 1, 1, 0, stream, packed, 0), f"launching {name}")

    def _load(self, source: str) -> None:
        from cuda.bindings import driver

        if SOURCES[source][0] in self._functions:
            return
        cubin = compile_kernels(source, self._device.architecture)
        remedy = "update the driver, or take a cuda-bindings and an NVRTC of its CUDA"
        module = _succeed(driver.cuModuleLoadData(cubin), f"loading the kernels of {source}", remedy)
        self._modules.append(module)
        for name in SOURCES[source]:
            self._functions[name] = _succeed(driver.cuModuleGetFunction(module, name.encode()), f"finding {name}")

    def _spread(self, name: str, signal: Signal, arguments: tuple[Any, ...]) -> None:
        """Launch an elementwise kernel: a thread for each four values of a column."""
        extent = signal.extent()
        quads = extent.batch * extent.planes * math.ceil(extent.bins / 4) * extent.frames
        self.launch(
            name, max(math.ceil(quads / ELEMENTWISE), 1), ELEMENTWISE, extent, _pointer(signal.x), _pointer(signal.state), *arguments
        )

    def _denoising(
        self, solver: str, signal: Signal, coefficients: DeviceArray, index: int, noise: Noise | None, known: DeviceArray | None
    ) -> tuple[str, tuple[Any, ...]]:
        """The stem of a kernel's name, and its last arguments: coefficients, noise, known frames."""
        if solver not in SOLVERS:
            raise InputError(f"got solver {solver!r}, expected one of {', '.join(SOLVERS)}")
        check("coefficients", coefficients, np.float32, (None, SOLVERS[solver]))
        if not 0 <= index < coefficients.shape[0]:
            raise InputError(f"got step {index}, expected 1 to {coefficients.shape[0] - 1}, as there are coefficients")
        if signal.state is None and solver != "ddim":
            raise InputError(f"got no state for {solver}, which carries one; pass an array like x")
        row = ctypes.c_void_p(coefficients.address + index * SOLVERS[solver] * coefficients.dtype.itemsize)
        held = 0
        if known is not None:
            if solver != "flow" or signal.frames_last:
                raise InputError(f"got known frames for {solver}, expected flow with frames in the second place from last")
            batch, planes, frames, bins = signal.x.shape
            held = known.shape[2] if len(known.shape) == 4 else 0
            check("known", known, np.float32, (batch, planes, min(held, frames), bins))
        tail = (row, _noise(signal, noise, index), _pointer(known), ctypes.c_int(held))
        return STEMS[solver], tail

    @staticmethod
    def _type(name: str, array: DeviceArray) -> str:
        if array.dtype not in TYPES or not array.shape:
            raise InputError(f"{name}: got {array.dtype} {list(array.shape)} on the GPU, expected float32 or float16")
        return TYPES[array.dtype]


def _noise(signal: Signal, noise: Noise | None, draw: int) -> NoiseArguments:
    if noise is None:
        return NoiseArguments(None, None, None, draw)
    if isinstance(noise, GivenNoise):
        check("draws", noise.draws, np.float32, (None, *signal.x.shape))
        if draw >= noise.draws.shape[0]:
            raise InputError(f"got {noise.draws.shape[0]} draws of noise, expected at least {draw + 1}")
        return NoiseArguments(noise.draws.address, None, None, draw)
    check("seed", noise.seed, np.uint64, (1,))
    check("places", noise.places, np.int32, (signal.x.shape[0], 2))
    if bins := signal.extent().bins % 4:
        raise InputError(f"got a signal whose bins are {bins} more than a multiple of 4, as noise by position needs; pass arrays of noise")
    return NoiseArguments(None, noise.seed.address, noise.places.address, draw)


def _pointer(array: DeviceArray | None) -> ctypes.c_void_p:
    return ctypes.c_void_p(None if array is None else array.address)


def _succeed(result: tuple[Any, ...], what: str, remedy: str = "look for other programs on the GPU, then load again") -> Any:
    if int(result[0]) != 0:
        raise BackendError(f"CUDA failed at {what}: {getattr(result[0], 'name', result[0])}; {remedy}")
    return result[1] if len(result) > 1 else None
