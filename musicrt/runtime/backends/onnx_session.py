"""A stage in ONNX Runtime, on a CPU or on CUDA."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from musicrt.runtime.backend import failure
from musicrt.runtime.cuda.array import DeviceArray
from musicrt.runtime.cuda.device import Device
from musicrt.runtime.errors import BackendError
from musicrt.runtime.session import Array, Session
from musicrt.runtime.spec import StageSpec, updated_name

if TYPE_CHECKING:
    import onnxruntime as ort


class OnnxSession(Session):
    """A stage in ONNX Runtime. On CUDA it works on the stream of `gpu`, if that is given."""

    def __init__(self, stage: StageSpec, session: ort.InferenceSession, gpu: Device | None = None) -> None:
        super().__init__(stage)
        self._session: ort.InferenceSession | None = session
        self._gpu = gpu

    @property
    def gpu(self) -> Device | None:
        return self._gpu

    @property
    def session(self) -> ort.InferenceSession:
        """The session of ONNX Runtime. Raises BackendError when closed."""
        if self._session is None:
            raise BackendError(f"the session of stage {self.stage.name!r} is closed; load the bundle again")
        return self._session

    def _run(self, feeds: Mapping[str, Array], names: tuple[str, ...]) -> dict[str, Array]:
        updated = self._updated(feeds)
        with backend_errors(self.stage.name):
            if updated and self._on_cpu:
                binding = self._bind_buffers(feeds, updated)
                for name in names:
                    binding.bind_output(name, "cpu")
                self.session.run_with_iobinding(binding)
                # One by one, because `copy_outputs_to_cpu` would copy the states too, which may take gigabytes.
                produced = binding.get_outputs()[len(updated) :]
                return {name: value.numpy() for name, value in zip(names, produced, strict=True)}
            values = self.session.run([*names, *updated], dict(feeds))
        for buffer, value in zip(updated.values(), values[len(names) :], strict=True):
            np.copyto(buffer, value)
        return {name: np.asarray(value) for name, value in zip(names, values[: len(names)], strict=True)}

    def _bind(self, feeds: Mapping[str, Array], results: Mapping[str, Array]) -> Callable[[], None]:
        if not self._on_cpu:
            return super()._bind(feeds, results)  # host buffers have to be copied to the device in each call
        with backend_errors(self.stage.name):
            binding = self._bind_buffers(feeds, {**self._updated(feeds), **results})

        # The binding knows the buffers by their addresses only: the call has to keep them alive.
        return functools.partial(self._run_bound, self.session, binding, (feeds, results))

    def _bind_device(self, arrays: Mapping[str, DeviceArray], sizes: Mapping[str, int]) -> Callable[[], None]:
        import onnxruntime as ort

        del sizes
        place = "cpu" if self._on_cpu else "cuda"
        updated = {updated_name(state.name): arrays[state.name] for state in self.states}
        with backend_errors(self.stage.name):
            binding = self.session.io_binding()
            for tensor in self.stage.feeds:
                array = arrays[tensor.name]
                binding.bind_input(tensor.name, place, 0, array.dtype.type, array.shape, array.address)
            for name, array in {**updated, **{tensor.name: arrays[tensor.name] for tensor in self.outputs}}.items():
                binding.bind_output(name, place, 0, array.dtype.type, array.shape, array.address)
            options = ort.RunOptions()
            options.add_run_config_entry("disable_synchronize_execution_providers", "1")
        return functools.partial(self._run_bound, self.session, binding, arrays, options)

    @property
    def _on_cpu(self) -> bool:
        """Whether the session works on host memory."""
        return bool(self.session.get_providers()[0] == "CPUExecutionProvider")

    def _updated(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """The states among the feeds, by the outputs that change them."""
        return {updated_name(state.name): feeds[state.name] for state in self.states}

    def _bind_buffers(self, feeds: Mapping[str, Array], results: Mapping[str, Array]) -> ort.IOBinding:
        """A binding to arrays. An array that is fed and a result is changed in place by the operators that can."""
        binding = self.session.io_binding()
        for name, array in feeds.items():
            binding.bind_cpu_input(name, array)
        for name, array in results.items():
            binding.bind_output(name, "cpu", 0, array.dtype.type, array.shape, array.ctypes.data)
        return binding

    def _run_bound(self, session: ort.InferenceSession, binding: ort.IOBinding, _buffers: object, options: Any = None) -> None:
        with backend_errors(self.stage.name):
            session.run_with_iobinding(binding, options)

    def _close(self) -> None:
        self._session = None


class backend_errors:  # noqa: N801 - used as a context manager
    """Turns the many exception types of ONNX Runtime into BackendError; they share no base but Exception."""

    def __init__(self, stage: str) -> None:
        self.stage = stage

    def __enter__(self) -> None:
        return

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        known = isinstance(error, RuntimeError | ValueError | TypeError | MemoryError)
        if isinstance(error, Exception) and (known or type(error).__module__.startswith("onnxruntime")):
            raise failure(self.stage, "ONNX Runtime", error) from error
