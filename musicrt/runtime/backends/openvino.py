"""OpenVINO on a CPU, on the same ONNX files as ONNX Runtime."""

from __future__ import annotations

import functools
import importlib.util
import sys
import threading
from collections.abc import Callable, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np

from musicrt.runtime.backend import Backend, failure
from musicrt.runtime.backends.openvino_operators import CONVERSIONS
from musicrt.runtime.backends.openvino_rounding import keep_results
from musicrt.runtime.bundle import Bundle
from musicrt.runtime.errors import BackendError
from musicrt.runtime.precision import INT8, Precision
from musicrt.runtime.processor import bfloat16_obstacle
from musicrt.runtime.session import Array, Session
from musicrt.runtime.spec import StageSpec, updated_name

if TYPE_CHECKING:
    from collections.abc import Iterator

    import openvino as ov

_TELEMETRY = "openvino_telemetry"
_ONE_THREAD = {"NUM_STREAMS": 0}
"""Calls run on the thread that makes them. A stream of one thread loses errors that arise in a call, and its results are wrong (2026.4)."""


class OpenvinoSession(Session):
    """A stage in OpenVINO. Nothing is copied: its tensors are the arrays, and an array that is a state is both the input and the output.

    A model in which a call has failed is compiled anew for the next one: where memory was missing, it stays half prepared for the shapes of
    that call, and fails for those of the calls before (2026.4).
    """

    def __init__(self, stage: StageSpec, compile_model: Callable[[], ov.CompiledModel]) -> None:
        super().__init__(stage)
        self._compile, self._compiling = compile_model, threading.Lock()
        self._model: ov.CompiledModel | None = compile_model()
        self._is_closed = False

    @property
    def model(self) -> ov.CompiledModel:
        """The compiled model. Raises BackendError when closed, and BundleError where it has to be read again and is not there."""
        with self._compiling:
            if self._is_closed:
                raise BackendError(f"the session of stage {self.stage.name!r} is closed; load the bundle again")
            if self._model is None:
                self._model = self._compile()
            return self._model

    def _run(self, feeds: Mapping[str, Array], names: tuple[str, ...]) -> dict[str, Array]:
        sizes = self._check_inputs(feeds)
        results = {tensor.name: np.empty(tensor.resolve(sizes), tensor.dtype) for tensor in self.outputs}  # it computes all of them anyway
        # A request of its own, which goes with it: one that stayed would keep the arrays.
        self._bind({name: np.ascontiguousarray(feed) for name, feed in feeds.items()}, results)()
        return {name: results[name] for name in names}

    def _bind(self, feeds: Mapping[str, Array], results: Mapping[str, Array]) -> Callable[[], None]:
        updated = {updated_name(state.name): feeds[state.name] for state in self.states}
        return _Bound(self, {**feeds, **updated, **results})

    def give_up(self, model: ov.CompiledModel) -> None:
        """Have another one compiled in its place."""
        with self._compiling:
            if self._model is model:
                self._model = None

    def _close(self) -> None:
        self._model, self._is_closed = None, True


class _Bound:
    """A call on the same arrays each time. A request knows them by their addresses only: this keeps them alive."""

    def __init__(self, session: OpenvinoSession, arrays: Mapping[str, Array]) -> None:
        self._session, self._arrays = session, arrays
        self._model: ov.CompiledModel | None = None
        self._prepare()

    def __call__(self) -> None:
        self._prepare()
        try:
            with _backend_errors(self._session.stage.name):
                self._request.start_async()  # `infer` would copy all outputs into a dictionary
                self._request.wait()
        except BackendError:
            self._session.give_up(self._model)
            raise

    def _prepare(self) -> None:
        """Make the request, where it is not one of the model that the session has now."""
        if (model := self._session.model) is not self._model:
            with _backend_errors(self._session.stage.name):
                self._request = model.create_infer_request()
                for name, array in self._arrays.items():
                    self._request.set_tensor(name, _share(array))
            self._model = model


class OpenvinoCpu(Backend):
    """OpenVINO's CPU kernels.

    In float32 it is as fast as ONNX Runtime within 5 %, behind which `auto` tries it; in bfloat16 it is the fastest here on a CPU
    (`benchmarks/results/epyc-2core/lowered-music2latent-decoder.md`). The sessions of a process share one `ov.Core`, whose models take
    their threads from one pool. float32 is asked for by name, since what OpenVINO takes by itself is bfloat16 where the CPU has it. With
    bfloat16, stages are computed in it as wholes, if at all (`StageSpec.in_bfloat16`). So is, where the CPU has it, what a graph of 8-bit
    integers does not quantise: a fifth of the time of Music2Latent's decoder, at the same distance from float32.
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

    def check_bundle(self, bundle: Bundle) -> None:
        """Raises BackendError where a stage has no graph of the flavour, or one of another operator than OpenVINO has."""
        bundle.require_flavour(self.flavour)
        for stage in bundle.spec.stages if self.flavour == INT8 else ():
            if stage.int8 is not None and stage.int8.tensors:
                raise BackendError(
                    f"{self.name}: stage {stage.name!r} keeps {next(iter(stage.int8.tensors))} in 8 bits, which OpenVINO can't; "
                    "use onnxruntime-cpu, or float32"
                )

    def open_session(self, bundle: Bundle, stage: str) -> OpenvinoSession:
        """Open one stage of a bundle. Raises BackendError, BundleError."""
        spec = bundle.spec.stage(stage).in_flavour(self.flavour)

        def compile_model() -> ov.CompiledModel:
            with bundle.watched.unchanged(bundle.graph_files(stage, self.flavour)):
                path, entry = bundle.graph(stage, self.flavour)
                return self._compile(spec, path, self.flavour == INT8 and entry.precision == "int8")

        return OpenvinoSession(spec, compile_model)

    def open_graph(self, stage: StageSpec, path: Path, *, integers: bool = False) -> OpenvinoSession:
        """Open an ONNX file. integers: whether it is one in 8-bit integers. Raises BackendError."""
        return OpenvinoSession(stage, functools.partial(self._compile, stage, path, integers))

    def _compile(self, stage: StageSpec, path: Path, integers: bool) -> ov.CompiledModel:
        settings = self.settings(stage, integers)
        with _backend_errors(stage.name):
            graph = _core().read_model(path)
            if integers:
                keep_results(graph)
            model = _core().compile_model(graph, "CPU", settings)
            if model.get_property("INFERENCE_NUM_THREADS") == 1:  # chosen by OpenVINO
                model = _core().compile_model(graph, "CPU", settings | _ONE_THREAD)
        return model

    def settings(self, stage: StageSpec, integers: bool = False) -> dict[str, Any]:
        """What a stage is compiled with."""
        lowered = self.precision == "bfloat16" or (integers and self.rest == "bfloat16")
        settings: dict[str, Any] = {
            "INFERENCE_PRECISION_HINT": "bf16" if lowered and stage.in_bfloat16 else "f32",
            "ENABLE_CPU_PINNING": False,  # each process would choose the same cores
        }
        if self.threads == 1:
            return settings | _ONE_THREAD
        return settings | ({"INFERENCE_NUM_THREADS": self.threads} if self.threads else {})

    @property
    def rest(self) -> Precision:
        """What computes the operators of a graph of 8-bit integers that are not lowered."""
        return "float32" if bfloat16_obstacle() else "bfloat16"

    def describe(self) -> str:
        rest = f", the rest of integer graphs in {self.rest}" if self.precision == "int8" else ""
        return f"openvino {_import_openvino().get_version()}, {self.device}, {self.threads or 'all'} threads{rest}"


def _share(array: Array) -> ov.Tensor:
    """A tensor in the memory of an array, which OpenVINO only reads where that is read-only, but wants to be writable."""
    return _import_openvino().Tensor(array if array.flags.writeable else np.asarray(_Writable(array)), shared_memory=True)


class _Writable:
    """The memory of an array, as if it could be written to."""

    def __init__(self, array: Array) -> None:
        self.__array_interface__ = {**array.__array_interface__, "data": (array.ctypes.data, False)}
        self.array = array  # which owns it


_STARTING = threading.RLock()


def _core() -> ov.Core:
    """The one of the process. Raises ImportError, OSError, RuntimeError."""
    with _STARTING:
        return _start()


@functools.cache
def _start() -> ov.Core:
    openvino = _import_openvino()
    core = openvino.Core()
    core.get_property("CPU", "FULL_DEVICE_NAME")
    from openvino.frontend.onnx import ConversionExtension

    for (operator, domain), convert in CONVERSIONS.items():
        core.add_extension(ConversionExtension(operator, domain, convert))
    return core


def _import_openvino() -> Any:
    """The package, without what reports to its makers: importing it says so to them where `openvino_telemetry` can be imported."""
    with _STARTING:
        return _import_without_telemetry()


def _import_without_telemetry() -> Any:
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
        raise failure(stage, "OpenVINO", error) from error
