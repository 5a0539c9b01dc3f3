"""Sampling loops that stay on the GPU: from noise to the last step as one graph, with nothing but the result going back to the host."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Hashable
from functools import partial

import numpy as np

from musicrt.runtime.cuda.arguments import GivenNoise, SeededNoise, Signal
from musicrt.runtime.cuda.array import ALIGNMENT, DeviceArray
from musicrt.runtime.cuda.device import Device
from musicrt.runtime.loops.denoiser import Denoiser, Float, Loop
from musicrt.runtime.loops.diffusion import Draw, OnStep
from musicrt.runtime.noise import PlacedNoise
from musicrt.runtime.session import Array

_BUCKETS = 4
"""Of which memory and graphs are kept."""
_PART = 100
"""Steps in a graph, at most: a longer loop is several, as a network takes hundreds of nodes for each."""


class DeviceLoops:
    """Runs loops on a device. What is allocated and recorded for a bucket (solver, steps, shapes) serves all runs of it."""

    def __init__(self, device: Device) -> None:
        self.device = device
        self._buckets: dict[Hashable, _Bucket] = {}

    def run(self, loop: Loop, denoiser: Denoiser, draw: Draw, on_step: OnStep) -> Float:
        """See `LoopRunner.run`."""
        noise = draw if isinstance(draw, PlacedNoise) else np.stack([draw(k) for k in range(loop.draws)]).astype(np.float32, copy=False)
        with denoiser.session.in_use():
            started = time.perf_counter()
            result = self._bucket(loop, denoiser, noise).run(loop, denoiser, noise)
            seconds = time.perf_counter() - started
        denoiser.session.tell({"batch": len(result)}, seconds, loop.steps)
        for _ in range(loop.steps):
            on_step()
        return result

    def drop(self) -> None:
        """Free what is kept."""
        with self.device.turn():
            self._buckets.clear()

    def _bucket(self, loop: Loop, denoiser: Denoiser, noise: PlacedNoise | Float) -> _Bucket:
        told = {**denoiser.constants, **denoiser.tables}
        shapes = tuple((name, array.shape, array.dtype) for name, array in told.items())
        drawn = (_shape(noise), noise.frames_last) if isinstance(noise, PlacedNoise) else noise.shape
        known = None if loop.known is None else loop.known.shape
        baked = (loop.solver, tuple(loop.positions), loop.draws, loop.branches)  # into the launches
        key = (denoiser.session, denoiser.signal, denoiser.result, baked, shapes, drawn, known)
        bucket = self._buckets.pop(key, None)
        if bucket is None:
            while len(self._buckets) >= _BUCKETS:
                del self._buckets[next(iter(self._buckets))]  # the one that was not used for longest, before the new one takes memory
            bucket = _Bucket(self.device, loop, denoiser, noise)
            denoiser.session.at_close(self.drop)
        self._buckets[key] = bucket
        return bucket


class _Bucket:
    """Memory for one kind of run, and the graphs of its steps."""

    def __init__(self, device: Device, loop: Loop, denoiser: Denoiser, noise: PlacedNoise | Float) -> None:
        self._device, self._memory = device, _Memory(device, loop, denoiser, noise)
        steps = range(1, loop.steps + 1)
        parts = (steps[first : first + _PART] for first in range(0, loop.steps, _PART))
        self._graphs = [device.capture(partial(self._memory.advance, part)) for part in parts]

    def run(self, loop: Loop, denoiser: Denoiser, noise: PlacedNoise | Float) -> Float:
        """Load what is new, go through all steps, and wait for the result."""
        signal = self._memory.signal.x
        result = np.empty(signal.shape, np.float32)
        self._memory.load(loop, denoiser, noise)
        for graph in self._graphs:
            graph()
        self._device.download(signal, result)
        self._device.wait()
        return result


class _Memory:
    """All that the steps of a run read and write. It knows of no graph: one that is dropped frees it at once."""

    def __init__(self, device: Device, loop: Loop, denoiser: Denoiser, noise: PlacedNoise | Float) -> None:
        self._device, self._solver, self._draws, shape = device, loop.solver, loop.draws, _shape(noise)
        state = None if loop.solver == "ddim" else device.empty(shape, np.float32)
        self.signal = Signal(device.empty(shape, np.float32), state, isinstance(noise, PlacedNoise) and noise.frames_last)
        self._constants = {name: device.empty(array.shape, array.dtype) for name, array in denoiser.constants.items()}
        self._tables = {name: _Table(device, table, shape[0]) for name, table in denoiser.tables.items()}
        self._coefficients = device.empty(loop.coefficients.shape, np.float32)
        self._guidance = device.empty((1,), np.float32)
        self._known = None if loop.known is None else device.empty(loop.known.shape, np.float32)
        self._noise: GivenNoise | SeededNoise
        if isinstance(noise, PlacedNoise):
            self._noise = SeededNoise(device.empty((1,), np.uint64), device.empty((shape[0], 2), np.int32))
        else:
            self._noise = GivenNoise(device.empty(noise.shape, np.float32))
        kind = next(tensor.dtype for tensor in denoiser.session.outputs if tensor.name == denoiser.result)
        self._result = device.empty((loop.branches or 1, *shape), kind)
        result = self._result.row(0) if loop.branches is None else self._result
        self._network = [self._bind(denoiser, position, result) for position in loop.positions]

    def load(self, loop: Loop, denoiser: Denoiser, noise: PlacedNoise | Float) -> None:
        """Upload what changes from run to run."""
        upload = self._device.upload
        for name, array in denoiser.constants.items():
            upload(np.ascontiguousarray(array), self._constants[name])
        for name, table in denoiser.tables.items():
            self._tables[name].load(table)
        upload(loop.coefficients, self._coefficients)
        upload(np.array([loop.guidance], np.float32), self._guidance)
        if loop.known is not None and self._known is not None:
            upload(np.ascontiguousarray(loop.known), self._known)
        if isinstance(noise, PlacedNoise) and isinstance(self._noise, SeededNoise):
            upload(np.array([noise.seed], np.uint64), self._noise.seed)
            upload(np.array(noise.places, np.int32), self._noise.places)
        elif isinstance(noise, np.ndarray) and isinstance(self._noise, GivenNoise):
            upload(np.ascontiguousarray(noise), self._noise.draws)

    def advance(self, steps: range) -> None:
        """Enqueue some steps, counted from 1; before the first one the signal begins."""
        kernels = self._device.kernels
        if steps.start == 1:
            kernels.begin(self._solver, self.signal, self._coefficients, self._noise, self._known)
        for index in steps:
            self._network[index - 1]()
            noise = self._noise if index < self._draws else None
            kernels.step(self._solver, index, self.signal, self._result, self._coefficients, self._guidance, noise, self._known)

    def _bind(self, denoiser: Denoiser, position: int, result: DeviceArray) -> Callable[[], None]:
        """The network at a position: it reads its row of each table where that lies."""
        rows = {name: table.row(position) for name, table in self._tables.items()}
        feeds = {**self._constants, **rows, denoiser.signal: self.signal.x}
        return denoiser.session.bind_device(feeds, {denoiser.result: result})


class _Table:
    """The rows of a table, each repeated for the batch, and where a network takes it."""

    def __init__(self, device: Device, table: Array, batch: int) -> None:
        self._device, self._shape = device, (batch, *table.shape[1:])
        size, unit = math.prod(self._shape), ALIGNMENT // table.dtype.itemsize
        self._memory = device.empty((len(table), -(-size // unit) * unit), table.dtype)
        self._loaded: Array | None = None

    def load(self, table: Array) -> None:
        """Upload it, unless it is the very one of the last time."""
        if table is self._loaded:
            return
        rows = np.zeros(self._memory.shape, table.dtype)
        rows[:, : math.prod(self._shape)] = np.broadcast_to(table[:, None], (len(table), *self._shape)).reshape(len(table), -1)
        self._device.upload(rows, self._memory)
        self._loaded = table

    def row(self, index: int) -> DeviceArray:
        """Where a row lies: [batch, ...]."""
        row = self._memory.row(index)
        return DeviceArray(row.address, self._shape, row.dtype, row)


def _shape(noise: PlacedNoise | Float) -> tuple[int, ...]:
    """Of the signal."""
    return (len(noise.places), *noise.shape) if isinstance(noise, PlacedNoise) else noise.shape[1:]
