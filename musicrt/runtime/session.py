"""What runs one stage, on whatever backend: the contract between pipelines and backends."""

from __future__ import annotations

import contextlib
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import NDArray

from musicrt.runtime.checks import check_array, check_tensor
from musicrt.runtime.cuda.array import DeviceArray
from musicrt.runtime.errors import BackendError, InputError
from musicrt.runtime.gate import Gate, keep_in_forks
from musicrt.runtime.observation import tell_listeners
from musicrt.runtime.spec import StageSpec
from musicrt.runtime.tensors import TensorSpec

if TYPE_CHECKING:
    from musicrt.runtime.cuda.device import Device

Array = NDArray[Any]


class Session(ABC):
    """One stage, ready to run on one backend.

    `run` checks its inputs against the spec and returns arrays that the caller owns. `bind` checks once and returns a call
    that reads and writes the same buffers every time: what a sampling loop uses. Both take the stage's states among the feeds,
    C-contiguous and writable, and change them in place; inputs they leave alone. Several threads may run one session, each with
    buffers of its own: at once on a CPU, one after the other on a GPU. A bound call is of one thread at a time.
    Where the stage runs on a GPU, `gpu` is that one, and `bind_device` is `bind` for arrays in its memory.
    `backend` and `precision` are what a `Model` opened it for, in words.
    """

    backend = precision = ""

    def __init__(self, stage: StageSpec) -> None:
        self.stage = stage
        self._gate = Gate(f"the session of stage {stage.name!r}")
        self._dependent: dict[Callable[[], None], None] = {}
        self._lock = threading.Lock()
        keep_in_forks(self)

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        return self.stage.inputs

    @property
    def states(self) -> tuple[TensorSpec, ...]:
        return self.stage.states

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        return self.stage.outputs

    @property
    def limits(self) -> Mapping[str, tuple[int, int]]:
        """The smallest and the largest size of each axis that it accepts: those of the spec, if it is not made for fewer."""
        return {axis.name: (axis.minimum, axis.maximum) for axis in self.stage.axes}

    @property
    def gpu(self) -> Device | None:
        """The GPU, and the stream, that it works on with `bind_device`; None: it has none, or can't be called there."""
        return None

    def run(self, feeds: Mapping[str, Array], outputs: Sequence[str] | None = None) -> dict[str, Array]:
        """Run once. `outputs`: the wanted ones, all by default. Raises InputError, BackendError."""
        self._gate.check()
        sizes = self._check_inputs(feeds)
        self._check_buffers({state.name: feeds[state.name] for state in self.states}, changed={state.name for state in self.states})
        names = self._check_names(outputs)
        with self.in_use():
            started = time.perf_counter()
            results = self._run(feeds, names)
            seconds = time.perf_counter() - started
        self.tell(sizes, seconds)
        return results

    def bind(self, feeds: Mapping[str, Array], results: Mapping[str, Array]) -> Callable[[], None]:
        """A call that runs on these C-contiguous buffers and writes into `results`. Raises InputError, BackendError."""
        self._gate.check()
        sizes = self._check_inputs(feeds)
        names = self._check_names(tuple(results))
        for tensor in self.outputs:
            if tensor.name in names:
                check_array(tensor, results[tensor.name], sizes, self.stage.name)
        self._check_buffers({**feeds, **results}, changed={*results, *(state.name for state in self.states)})
        with self.in_use():
            run = self._bind(dict(feeds), dict(results))

        def call() -> None:
            with self.in_use():
                started = time.perf_counter()
                run()
                seconds = time.perf_counter() - started
            self.tell(sizes, seconds)

        return call

    def bind_device(self, feeds: Mapping[str, Any], results: Mapping[str, Any]) -> Callable[[], None]:
        """A call that enqueues the stage on the stream of `gpu` for arrays there, and does not wait for it.

        feeds, results: all inputs and states, and all outputs, of any package that `DeviceArray.of` takes; states are changed in place.
        Several calls may be bound, each to its own arrays. Raises InputError, BackendError.
        """
        self._gate.check()
        self._require_gpu()
        arrays = {name: DeviceArray.of(array) for name, array in {**feeds, **results}.items()}
        expected = [*self.stage.feeds, *self.outputs]
        if arrays.keys() != {tensor.name for tensor in expected}:
            raise InputError(f"{self.stage.name}: got the arrays {sorted(arrays)}, expected {sorted(tensor.name for tensor in expected)}")
        sizes: dict[str, int] = {}
        for tensor in expected:
            check_tensor(tensor, arrays[tensor.name], sizes, self.stage.name)
        with self.in_use():
            run = self._bind_device(arrays, sizes)

        def call() -> None:
            with self.in_use():
                run()

        return call

    def new_states(self, sizes: Mapping[str, int]) -> dict[str, DeviceArray]:
        """Zeroed states on the GPU for `bind_device`. Raises BackendError."""
        device = self._require_gpu()
        with self.in_use():
            arrays = {state.name: device.empty(state.resolve(sizes), state.dtype) for state in self.states}
            for array in arrays.values():
                device.clear(array)
        return arrays

    @contextlib.contextmanager
    def in_use(self) -> Iterator[None]:
        """While the calling thread is in here, `close` waits, and the GPU, if there is one, works for it alone. Raises BackendError."""
        with self._gate, self.gpu.turn() if self.gpu else contextlib.nullcontext():
            yield

    def tell(self, sizes: Mapping[str, int], seconds: float, runs: int = 1) -> None:
        """Tell those who listen (`observe_stages`) of a run that has ended, or of several in one."""
        tell_listeners(self.stage.name, self.backend, self.precision, sizes, runs, seconds)

    def close(self) -> None:
        """Release what the backend holds, once the calls of other threads have ended. A closed session refuses to run; closing twice is
        fine. In a forked child it does nothing: what is held belongs to the parent.
        """
        if self._gate.shut():
            with self._lock:
                dependent, self._dependent = self._dependent, {}
            for drop in dependent:
                drop()
            self._close()

    def at_close(self, drop: Callable[[], None]) -> None:
        """Have this called when it is closed, once: for what keeps memory on a GPU from call to call, and the calls bound to that."""
        with self._lock:
            self._gate.check()
            self._dependent[drop] = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _require_gpu(self) -> Device:
        if self.gpu is None:
            raise BackendError(f"the session of stage {self.stage.name!r} works on host memory; use `bind`")
        return self.gpu

    def _check_inputs(self, feeds: Mapping[str, Array]) -> dict[str, int]:
        expected = {tensor.name for tensor in self.stage.feeds}
        if set(feeds) != expected:
            raise InputError(f"{self.stage.name}: got inputs {sorted(feeds)}, expected {sorted(expected)}")
        sizes: dict[str, int] = {}
        for tensor in self.stage.feeds:
            check_array(tensor, feeds[tensor.name], sizes, self.stage.name)
        return sizes

    def _check_buffers(self, buffers: Mapping[str, Array], changed: Collection[str]) -> None:
        for name, array in buffers.items():
            if not array.flags.c_contiguous:
                raise InputError(f"{self.stage.name}: buffer {name!r} is not C-contiguous; pass np.ascontiguousarray of it")
            if name in changed and not array.flags.writeable:
                raise InputError(f"{self.stage.name}: buffer {name!r} is read-only; pass a copy of it")

    def _check_names(self, names: Sequence[str] | None) -> tuple[str, ...]:
        known = tuple(tensor.name for tensor in self.outputs)
        unknown = [name for name in names or () if name not in known]
        if unknown:
            raise InputError(f"{self.stage.name} has no output {unknown[0]!r}; known: {', '.join(known)}")
        if names is not None and not names:
            raise InputError(f"{self.stage.name}: got no output to compute, expected some of {', '.join(known)}")
        return known if names is None else tuple(names)

    @abstractmethod
    def _run(self, feeds: Mapping[str, Array], names: tuple[str, ...]) -> dict[str, Array]: ...

    def _bind(self, feeds: Mapping[str, Array], results: Mapping[str, Array]) -> Callable[[], None]:
        def call() -> None:
            for name, value in self._run(feeds, tuple(results)).items():
                np.copyto(results[name], value)

        return call

    def _bind_device(self, arrays: Mapping[str, DeviceArray], sizes: Mapping[str, int]) -> Callable[[], None]:
        """For sessions with a GPU. arrays: every feed and output; sizes: those of the axes."""
        raise NotImplementedError

    def _close(self) -> None:
        return
