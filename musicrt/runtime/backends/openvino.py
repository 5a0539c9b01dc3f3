"""OpenVINO on a CPU, on the same ONNX files as ONNX Runtime."""

from __future__ import annotations

import functools
import importlib.util
import sys
from collections.abc import Callable, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np

from musicrt.runtime.backends.openvino_operators import CONVERSIONS
from musicrt.runtime.bundle import Bundle
from musicrt.runtime.errors import BackendError
from musicrt.runtime.processor import bfloat16_obstacle
from musicrt.runtime.session import Array, Backend, Session
from musicrt.runtime.spec import Precision, StageSpec, updated_name

if TYPE_CHECKING:
    from collections.abc import Iterator

    import openvino as ov

_TELEMETRY = "openvino_telemetry"
_ONE_THREAD = {"NUM_STREAMS": 0}
"""Calls run on the thread that makes them. A stream of one thread loses errors that arise in a call, and its results are wrong (2026.4)."""


class OpenvinoSession(Session):
    """A stage in OpenVINO. Nothing is copied: its tensors are the arrays, and an array that is a state is both the input and the output."""

    def __init__(self, stage: StageSpec, model: ov.CompiledModel) -> None:
        super().__init__(stage)
        self._model: ov.CompiledModel | None = model

    @property
    def model(self) -> ov.CompiledModel:
        """The compiled model. Raises BackendError when closed."""
        if self._model is None:
            raise BackendError(f"the session of stage {self.stage.name!r} is closed; load the bundle again")
        return self._model

    def _run(self, feeds: Mapping[str, Array], names: tuple[str, ...]) -> dict[str, Array]:
        sizes = self._check_inputs(feeds)
        results = {tensor.name: np.empty(tensor.resolve(sizes), tensor.dtype) for tensor in self.outputs}  # it computes all of them anyway
        # A request of its own, which goes with it: one that stayed would keep the arrays.
        self._bind({name: np.require(feed, requirements=["C", "W"]) for name, feed in feeds.items()}, results)()
        return {name: results[name] for name in names}

    def _bind(self, feeds: Mapping[str, Array], results: Mapping[str, Array]) -> Callable[[], None]:
        updated = {updated_name(state.name): feeds[state.name] for state in self.states}
        with _backend_errors(self.stage.name):
            request = self.model.create_infer_request()
            for name, array in {**feeds, **updated, **results}.items():
                request.set_tensor(name, _share(array))
        # The request knows the buffers by their addresses only: the call has to keep them alive.
        return functools.partial(self._run_bound, request, (feeds, results))

    def _run_bound(self, request: ov.InferRequest, _buffers: object) -> None:
        with _backend_errors(self.stage.name):
            request.start_async()  # `infer` would copy all outputs into a dictionary
            request.wait()

    def _close(self) -> None:
        self._model = None


class OpenvinoCpu(Backend):
    """OpenVINO's CPU kernels.

    In float32 it is 4 to 5 % slower than ONNX Runtime, behind which `auto` tries it; in bfloat16 it is the fastest here on a CPU
    (`benchmarks/results/epyc-2core/precisions-cpu.md`). The sessions of a process share one `ov.Core`, whose models take their threads from
    one pool. float32 is asked for by name, since what OpenVINO takes by itself is bfloat16 where the CPU has it. With bfloat16, stages are
    computed in it as wholes, if at all (`StageSpec.in_bfloat16`). With int8, what the graph does not quantise is float32.
    """

    name = "openvino-cpu"
    device: ClassVar[Literal["cpu", "cuda"]] = "cpu"
    extra = "openvino"
    precisions: ClassVar[tuple[Precision, ...]] = ("float32", "bfloat16", "int8")

    @classmethod
    def obstacle(cls) -> str | None:
        if not importlib.util.find_spec("openvino"):
            return f"openvino is not installed (pip install 'musicrt[{cls.extra}]')"
        try:
            _import_openvino()
            _core()
        except (ImportError, OSError, RuntimeError) as error:
            return f"openvino can't be imported or started ({' '.join(str(error).split())[:300]})"
        return None

    @classmethod
    def precision_obstacle(cls, precision: Precision) -> str | None:
        if reason := super().precision_obstacle(precision):
            return reason
        return bfloat16_obstacle() if precision == "bfloat16" else None

    def check_bundle(self, bundle: Bundle) -> None:
        """Raises BackendError where a stage has no graph of the flavour."""
        bundle.require_flavour(self.flavour)

    def open_session(self, bundle: Bundle, stage: str) -> OpenvinoSession:
        """Open one stage of a bundle. Raises BackendError, BundleError."""
        path, _ = bundle.graph(stage, self.flavour)
        spec = bundle.spec.stage(stage)
        return self.open_graph(spec, path)

    def open_graph(self, stage: StageSpec, path: Path) -> OpenvinoSession:
        """Open an ONNX file. Raises BackendError."""
        settings = self.settings(stage)
        with _backend_errors(stage.name):
            graph = _core().read_model(path)
            model = _core().compile_model(graph, "CPU", settings)
            if model.get_property("INFERENCE_NUM_THREADS") == 1:  # chosen by OpenVINO
                model = _core().compile_model(graph, "CPU", settings | _ONE_THREAD)
        return OpenvinoSession(stage, model)

    def settings(self, stage: StageSpec) -> dict[str, Any]:
        """What a stage is compiled with."""
        settings: dict[str, Any] = {
            "INFERENCE_PRECISION_HINT": "bf16" if self.precision == "bfloat16" and stage.in_bfloat16 else "f32",
            "ENABLE_CPU_PINNING": False,  # each process would choose the same cores
        }
        if self.threads == 1:
            return settings | _ONE_THREAD
        return settings | ({"INFERENCE_NUM_THREADS": self.threads} if self.threads else {})

    def describe(self) -> str:
        return f"openvino {_import_openvino().get_version()}, {self.device}, {self.threads or 'all'} threads"


def _share(array: Array) -> ov.Tensor:
    """A tensor in the memory of an array."""
    return _import_openvino().Tensor(array, shared_memory=True)


@functools.cache
def _core() -> ov.Core:
    """The one of the process. Raises ImportError, OSError, RuntimeError."""
    openvino = _import_openvino()
    core = openvino.Core()
    core.get_property("CPU", "FULL_DEVICE_NAME")
    from openvino.frontend.onnx import ConversionExtension

    for (operator, domain), convert in CONVERSIONS.items():
        core.add_extension(ConversionExtension(operator, domain, convert))
    return core


def _import_openvino() -> Any:
    """The package, without what reports to its makers: importing it says so to them where `openvino_telemetry` can be imported."""
    if "openvino" in sys.modules:
        import openvino

        return openvino
    modules: dict[str, ModuleType | None] = sys.modules  # type: ignore[assignment]
    absent = _TELEMETRY not in modules
    if absent:
        modules[_TELEMETRY] = None  # importing it raises ImportError, and a stub is taken
    try:
        import openvino
    finally:
        if absent:
            with suppress(KeyError):
                del modules[_TELEMETRY]
    return openvino


@contextmanager
def _backend_errors(stage: str) -> Iterator[None]:
    """Turns what OpenVINO raises into BackendError."""
    try:
        yield
    except (RuntimeError, ValueError, TypeError, MemoryError) as error:
        if isinstance(error, BackendError):
            raise
        raise BackendError(f"{stage}: OpenVINO failed: {' '.join(str(error).split())[:300]}") from error
