"""An engine that was read from its plan, its execution contexts, and the calls that run it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from musicrt.runtime.cuda.array import DeviceArray
from musicrt.runtime.cuda.device import Arena
from musicrt.runtime.errors import BackendError, EngineError, InputError
from musicrt.runtime.manifest import ProfileEntry
from musicrt.runtime.spec import StageSpec, updated_name
from musicrt.runtime.tensorrt_family import type_name
from musicrt.runtime.tensorrt_messages import Messages


class OpenEngine:
    """A deserialised engine, which makes execution contexts."""

    def __init__(self, trt: Any, stage: StageSpec, opened: tuple[Any, Any], profiles: Sequence[ProfileEntry], messages: Messages) -> None:
        """`opened`: what `open_plan` gives. Raises EngineError where it has not the tensors of the stage."""
        self.stage, self.messages = stage, messages
        self._trt, self._profiles = trt, profiles
        self._opened = opened  # the runtime outlives the engine
        self._check_tensors()

    def new_context(self, *, recorded: bool = False) -> EngineContext:
        """A context of its own. recorded: its calls become part of CUDA graphs. Raises EngineError where the GPU has no room for it."""
        trt, engine = self._trt, self._opened[1]
        strategy = trt.ExecutionContextAllocationStrategy.USER_MANAGED
        specialization = getattr(trt, "DynamicShapesKernelSpecializationStrategy", None)  # tensorrt-rtx has it
        with self.messages.awaited():
            if recorded and specialization is not None:
                # By default the kernels for a shape are compiled on the side: a graph would keep those that stand in for them.
                settings = engine.create_runtime_config()
                settings.set_execution_context_allocation_strategy(strategy)
                settings.dynamic_shapes_kernel_specialization_strategy = specialization.EAGER
                context = engine.create_execution_context(settings)
            else:
                context = engine.create_execution_context(strategy)
            if context is None:
                reason = self.messages.reason()
                raise EngineError(f"{self.stage.name}: no execution context: {reason}; free memory of the GPU and load again")
        context.error_recorder = self.messages.recorder
        return EngineContext(self, context)

    @property
    def limits(self) -> dict[str, tuple[int, int]]:
        """The smallest and the largest size of each axis that some profile accepts."""
        ranges = {name: [profile.axes[name] for profile in self._profiles] for name in self._profiles[0].axes}
        return {name: (min(least for least, _, _ in known), max(most for _, _, most in known)) for name, known in ranges.items()}

    def profile_of(self, sizes: Mapping[str, int]) -> int:
        """Index of the profile for these sizes. Raises InputError where there is none."""
        index = fitting_profile(self._profiles, sizes)
        if index is None:
            known = "; ".join(_describe(profile) for profile in self._profiles)
            got = ", ".join(f"{name} {size}" for name, size in sizes.items())
            raise InputError(
                f"{self.stage.name}: got {got}, but the engine is made for {known}; use shorter or fewer windows, "
                "or build it with another --profile"
            )
        return index

    def _check_tensors(self) -> None:
        """Hold names and dtypes against the spec: a plan of before a change of it would read and write other bytes."""
        engine = self._opened[1]
        names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
        found = {name: type_name(self._trt, engine.get_tensor_dtype(name)) for name in names}
        expected = {tensor.name: str(tensor.dtype) for tensor in (*self.stage.feeds, *self.stage.outputs)}
        expected |= {updated_name(state.name): str(state.dtype) for state in self.stage.states}
        for name in sorted(found.keys() | expected.keys()):
            got, wanted = (tensors.get(name, "missing") for tensors in (found, expected))
            if got != wanted:
                raise EngineError(
                    f"{self.stage.name}: tensor {name!r} of the engine is {got}, expected {wanted}, as another version of musicrt had it; "
                    "export the bundle again, then build its engines"
                )


class EngineContext:
    """An execution context, whose scratch memory is lent to it for each call.

    A CUDA graph that was recorded of it is right only as long as its shapes stay the same.
    """

    def __init__(self, opened: OpenEngine, context: Any) -> None:
        self._engine, self._context = opened, context  # the engine outlives the context
        self._stage, self._messages = opened.stage, opened.messages
        self._profile: int | None = None
        self._sizes: dict[str, int] = {}
        self._scratch = 0

    def run(self, sizes: Mapping[str, int], arrays: Mapping[str, DeviceArray], stream: int, arena: Arena) -> None:
        """Enqueue one call. `arrays`: every input and output of the engine. Raises BackendError, InputError."""
        context, messages = self._context, self._messages
        with messages.awaited():
            self._prepare(dict(sizes), stream)
            context.set_device_memory(arena.reserve(self._scratch), self._scratch)
            for name, array in arrays.items():
                self._must(context.set_tensor_address(name, array.address), f"takes no address for {name!r}")
            # A refused call does nothing and says so here only.
            self._must(context.execute_async_v3(stream), "does not run")

    def _prepare(self, sizes: dict[str, int], stream: int) -> None:
        """Choose the profile and set the shapes, where they are not those of the last call."""
        if sizes == self._sizes:
            return
        self._sizes = {}
        index = self._engine.profile_of(sizes)
        if index != self._profile:
            self._must(self._context.set_optimization_profile_async(index, stream), f"takes no profile {index}")
            self._profile = index
        for tensor in self._stage.feeds:
            shape = tensor.resolve(sizes)
            self._must(self._context.set_input_shape(tensor.name, shape), f"takes no {tensor.name!r} of shape {list(shape)}")
        if missing := self._context.infer_shapes():
            lacking = f"TensorRT lacks the shapes of {', '.join(missing)}"
            raise BackendError(f"{self._stage.name}: {lacking}; export the bundle again, then build its engines")
        self._scratch = int(self._context.update_device_memory_size_for_shapes())
        self._sizes = sizes

    def _must(self, done: bool, failure: str) -> None:
        if not done:
            raise BackendError(f"{self._stage.name}: TensorRT {failure}: {self._messages.reason()}")


def open_plan(trt: Any, stage: str, path: Path, messages: Messages, *, weights: Path | None = None) -> tuple[Any, Any]:
    """A runtime, and the engine that it reads from a file. `weights`: the graph whose weights a stripped one gets. Raises EngineError."""
    remedy = f"delete {path.parent}, then build the engines again on this machine"  # whole plans count as current: none would be built
    with messages.awaited():
        runtime = trt.Runtime(messages.logger)
        engine = runtime.deserialize_cuda_engine(path.read_bytes())
        if engine is None:
            raise EngineError(f"{stage}: {path.name} can't be opened: {messages.reason()}; {remedy}")
        if weights is not None:
            refitter = trt.Refitter(engine, messages.logger)
            filled = trt.OnnxParserRefitter(refitter, messages.logger).refit_from_file(str(weights)) and refitter.refit_cuda_engine()
            if not filled:
                raise EngineError(f"{stage}: the weights of {weights.name} don't fit the engine: {messages.reason()}; {remedy}")
    return runtime, engine


def fitting_profile(profiles: Sequence[ProfileEntry], sizes: Mapping[str, int]) -> int | None:
    """Index of the profile that accepts these sizes and is tuned for the nearest; None if none accepts them."""
    fits = [
        (sum(abs(sizes[name] - optimum) / optimum for name, (_, optimum, _) in profile.axes.items()), index)
        for index, profile in enumerate(profiles)
        if all(least <= sizes[name] <= most for name, (least, _, most) in profile.axes.items())
    ]
    return min(fits)[1] if fits else None


def _describe(profile: ProfileEntry) -> str:
    return f"{profile.bucket} (" + ", ".join(f"{name} {least} to {most}" for name, (least, _, most) in profile.axes.items()) + ")"
