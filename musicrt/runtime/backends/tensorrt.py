"""TensorRT engines on an NVIDIA GPU: `tensorrt` and `tensorrt-rtx`, which share all but a few lines of data (`tensorrt_family`)."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Literal
from weakref import WeakValueDictionary

import numpy as np

from musicrt.runtime.backend import Backend
from musicrt.runtime.bundle import Bundle
from musicrt.runtime.cuda.array import ALIGNMENT, DeviceArray
from musicrt.runtime.cuda.device import Arena, Device
from musicrt.runtime.cuda.engine import EngineContext, OpenEngine, open_plan
from musicrt.runtime.driver import gpu_architecture
from musicrt.runtime.errors import BackendError, EngineError, InputError
from musicrt.runtime.manifest import PlanEntry
from musicrt.runtime.precision import TRT, TRT_INT8, Precision
from musicrt.runtime.session import Array, Session
from musicrt.runtime.spec import StageSpec, updated_name
from musicrt.runtime.tensorrt_family import FAMILIES, Family, find_family
from musicrt.runtime.tensorrt_messages import messages_of


class TensorrtSession(Session):
    """A stage as an engine. `run` and `bind` take arrays of the host, `bind_device` those of the GPU, which nothing is copied of."""

    def __init__(self, stage: StageSpec, engine: OpenEngine, device: Device, arena: Arena) -> None:
        super().__init__(stage)
        self._engine: OpenEngine | None = engine
        self._context: EngineContext | None = engine.new_context()  # of calls from the host, whose shapes change
        self._bound: WeakValueDictionary[tuple[tuple[str, int], ...], EngineContext] = WeakValueDictionary()
        self._device, self._arena = device, arena
        self._buffers: dict[str, DeviceArray] = {}

    @property
    def gpu(self) -> Device:
        return self._device

    @property
    def limits(self) -> Mapping[str, tuple[int, int]]:
        return self._opened.limits

    def _run(self, feeds: Mapping[str, Array], names: tuple[str, ...]) -> dict[str, Array]:
        sizes = self._check_inputs(feeds)
        arrays = self._place(sizes)
        for tensor in self.stage.feeds:
            self._device.upload(np.ascontiguousarray(feeds[tensor.name]), arrays[tensor.name])
        self._host_context.run(sizes, self._with_updates(arrays), self._device.stream, self._arena)
        results = {tensor.name: np.empty(tensor.resolve(sizes), tensor.dtype) for tensor in self.outputs if tensor.name in names}
        for name, result in results.items():
            self._device.download(arrays[name], result)
        for state in self.states:
            self._device.download(arrays[state.name], feeds[state.name])
        self._device.wait()
        return {name: results[name] for name in names}

    def _bind_device(self, arrays: Mapping[str, DeviceArray], sizes: Mapping[str, int]) -> Callable[[], None]:
        bound = self._with_updates(arrays)
        for name, array in bound.items():
            if array.address % ALIGNMENT:
                where = f"begins at {array.address:#x}, expected a multiple of {ALIGNMENT} bytes"
                raise InputError(f"{self.stage.name}: {name} {where}; pass a copy of it")
        return functools.partial(self._context_for(sizes).run, dict(sizes), bound, self._device.stream, self._arena)

    def _context_for(self, sizes: Mapping[str, int]) -> EngineContext:
        """One for all bound calls of these sizes, as long as there are any: graphs that were recorded of it need it to keep its shapes."""
        key = tuple(sorted(sizes.items()))
        context = self._bound.get(key)
        if context is None:
            self._opened.profile_of(sizes)
            context = self._bound[key] = self._opened.new_context(recorded=self._device.graphs)
        return context

    @property
    def _opened(self) -> OpenEngine:
        if self._engine is None:
            raise BackendError(f"the session of stage {self.stage.name!r} is closed; load the bundle again")
        return self._engine

    @property
    def _host_context(self) -> EngineContext:
        if self._context is None:
            raise BackendError(f"the session of stage {self.stage.name!r} is closed; load the bundle again")
        return self._context

    def _place(self, sizes: Mapping[str, int]) -> dict[str, DeviceArray]:
        """Arrays on the GPU for all inputs, states and outputs; memory is kept from call to call where it is large enough."""
        arrays = {}
        for tensor in (*self.stage.feeds, *self.outputs):
            shape, known = tensor.resolve(sizes), self._buffers.get(tensor.name)
            wanted = DeviceArray(0, shape, np.dtype(tensor.dtype))
            if known is None or known.nbytes < wanted.nbytes:
                known = self._buffers[tensor.name] = self._device.empty(shape, tensor.dtype)
            arrays[tensor.name] = DeviceArray(known.address, shape, wanted.dtype, known)
        return arrays

    def _with_updates(self, arrays: Mapping[str, DeviceArray]) -> dict[str, DeviceArray]:
        """With the outputs that hold changed states: the very memory of the states."""
        return {**arrays, **{updated_name(state.name): arrays[state.name] for state in self.states}}

    def _close(self) -> None:
        self._engine = self._context = None
        self._buffers.clear()


class _TensorrtBackend(Backend):
    """What both share. TensorRT and CUDA are imported when the first session is opened; the driver is asked before."""

    device: ClassVar[Literal["cpu", "cuda"]] = "cuda"
    flavour = TRT
    lowered: ClassVar[str] = TRT_INT8
    precisions: ClassVar[tuple[Precision, ...]] = ("float16", "int8")

    @classmethod
    def family(cls) -> Family:
        """Which member it is."""
        return find_family(cls.name)

    @classmethod
    def obstacle(cls) -> str | None:
        return cls.family().run_obstacle()

    def check_bundle(self, bundle: Bundle) -> None:
        """Raises EngineError unless every stage has an engine for this GPU and version; BackendError where graphs are missing."""
        if self.precision == "int8":
            bundle.require_flavour(self.flavour)
        for stage in bundle.spec.stages:
            self._choose(bundle, stage.name)

    def open_session(self, bundle: Bundle, stage: str) -> TensorrtSession:
        """Open the plan of one stage. Raises BackendError, EngineError, BundleError."""
        if reason := self.obstacle():
            raise BackendError(f"{self.name} can't run here: {reason}")
        plan = self._choose(bundle, stage)
        spec = bundle.spec.stage(stage).in_flavour(plan.flavour)
        messages = messages_of(self._trt)
        with self.turn(), bundle.watched.unchanged([plan.file, *(bundle.graph_files(stage, plan.flavour) if plan.stripped else ())]):
            graph = bundle.graph(stage, plan.flavour)[0] if plan.stripped else None
            runtime, engine = open_plan(self._trt, stage, bundle.plan_file(plan), messages, weights=graph)
            return TensorrtSession(spec, OpenEngine(self._trt, spec, (runtime, engine), plan.profiles, messages), self.gpu, self._arena)

    def describe(self) -> str:
        return f"{self.name} {self._trt.__version__}, {self.gpu.name}, {gpu_architecture()}"

    def _choose(self, bundle: Bundle, stage: str) -> PlanEntry:
        """The plan of a stage that fits version and GPU. Raises EngineError with what there is."""
        flavour = bundle.flavour_of(stage, self.flavour) if self.precision == "int8" else self.flavour
        plans = bundle.plans(self.name, stage, flavour)
        remedy = f"make one with: musicrt build {bundle.path} --engine {self.name}{' --precision int8' * (self.precision == 'int8')}"
        if not plans:
            others = sorted({plan.engine for name in FAMILIES for plan in bundle.plans(name, stage, flavour).values()})
            has = f"only for {', '.join(others)}" if others else "none at all"
            raise EngineError(f"{bundle.path} has no {self.name} engine of stage {stage!r}, {has}; {remedy}")
        version, architecture = str(self._trt.__version__), gpu_architecture()
        current = [plan for plan in plans.values() if plan.version == version]
        if not current:
            had = ", ".join(sorted({plan.version for plan in plans.values()}))
            raise EngineError(f"the engine of stage {stage!r} is of {self.name} {had}, installed is {version}; {remedy}")
        fitting = [plan for plan in current if architecture in plan.targets]
        if not fitting:
            had = ", ".join(sorted({target for plan in current for target in plan.targets}))
            more = f" --target {architecture}" if self.family().ahead else ""
            raise EngineError(f"the engine of stage {stage!r} is made for {had}, this GPU is {architecture}; {remedy}{more}")
        return fitting[0]

    @functools.cached_property
    def _trt(self) -> Any:
        return self.family().load()

    @functools.cached_property
    def gpu(self) -> Device:
        return Device(self.stream, graphs=self.graphs)

    @functools.cached_property
    def _arena(self) -> Arena:
        return Arena(self.gpu)


class Tensorrt(_TensorrtBackend):
    """TensorRT 10 or 11; its engines run where they were built."""

    name = "tensorrt"
    extra = "tensorrt"


class TensorrtRtx(_TensorrtBackend):
    """TensorRT for RTX; its engines run on every GPU that they were built for."""

    name = "tensorrt-rtx"
    extra = "tensorrt-rtx"
