"""Sampling loops with their network, on the host or, where the network runs on a GPU, there.

A loop says all that both drivers have to know of it: the host's is a function on arrays, the GPU's launches the kernels of the solver with
the coefficients of its steps. They compute the same, number by number.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from musicrt.runtime.loops.diffusion import Draw, Evaluate, OnStep
from musicrt.runtime.session import Array, Session

if TYPE_CHECKING:
    from musicrt.runtime.cuda.denoising import DeviceLoops

Float = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Loop:
    """A sampling loop that only lacks network and noise.

    solver, coefficients: float32 [1 + steps, n], of the kernels (`musicrt.runtime.cuda.kernels`); row 0 is for what comes before the
    steps. positions: which row of the denoiser's tables each step takes. draws: how many arrays of noise there are, the initial one
    included. branches: rows of the network's result, None where it has the signal's shape. known: what the signal begins with, float32
    [batch, planes, n, bins], if anything. run: the host's driver (evaluate, draw, on_step) -> signal.
    """

    solver: str
    positions: Sequence[int]
    coefficients: Float
    draws: int
    branches: int | None
    run: Callable[[Evaluate, Draw, OnStep], Float]
    guidance: float = 1.0
    known: Float | None = None

    @property
    def steps(self) -> int:
        """How many evaluations of the network a run takes."""
        return len(self.positions)


@dataclass(frozen=True, eq=False)
class Denoiser:
    """The network of a loop, and what it is told besides the noisy signal.

    constants: the same in every step. tables: [steps, n]; a row of each is told in a step, the same to every item of the batch.
    signal, result: the names of what it is given and gives.
    """

    session: Session
    constants: Mapping[str, Array]
    tables: Mapping[str, Array]
    result: str
    signal: str = "x"

    def on_host(self) -> Evaluate:
        """For one run of a loop: bound when it is first called, to the buffers that are the same in every step."""
        rows: dict[str, Array] = {}
        call: Callable[[], None] | None = None

        def evaluate(index: int, x: Float, out: Float) -> None:
            nonlocal call
            if call is None:
                rows.update({name: np.empty((len(x), *table.shape[1:]), table.dtype) for name, table in self.tables.items()})
                call = self.session.bind({**self.constants, **rows, self.signal: x}, {self.result: out})
            for name, row in rows.items():
                row[:] = self.tables[name][index]
            call()

        return evaluate


@dataclass(eq=False)
class LoopRunner:
    """Runs loops for one model, whose sessions are all on the host or all on one GPU. What it keeps there serves the next runs."""

    _loops: DeviceLoops | None = field(default=None, init=False, repr=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, init=False, repr=False)

    def run(self, loop: Loop, denoiser: Denoiser, draw: Draw, on_step: OnStep) -> Float:
        """The signal after the last step, float32 [batch, ...]. Raises InputError, BackendError, and what the callables raise.

        On a GPU all noise that is not `PlacedNoise` is drawn first, in the same order, and `on_step` is called after the last step, as
        often as there were steps: nothing on the host is waited for in between, and `Cancelled` takes effect when a run is done.
        """
        device = denoiser.session.gpu
        if device is None:
            return loop.run(denoiser.on_host(), draw, on_step)
        from musicrt.runtime.cuda.denoising import DeviceLoops

        with self._lock:
            if self._loops is None or self._loops.device is not device:
                self._loops = DeviceLoops(device)
            loops = self._loops
        return loops.run(loop, denoiser, draw, on_step)


def table_of(*columns: Any) -> Float:
    """Coefficients of the steps in order, [steps] each -> float32 [1 + steps, n] with zeros in row 0."""
    return np.concatenate([np.zeros((1, len(columns)), np.float32), np.stack(columns, axis=1)]).astype(np.float32)
