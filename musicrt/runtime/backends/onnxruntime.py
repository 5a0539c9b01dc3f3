"""ONNX Runtime, on a CPU or on CUDA."""

from __future__ import annotations

import functools
import importlib.util
import os
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from musicrt.runtime.backend import Backend
from musicrt.runtime.backends.onnx_session import OnnxSession, backend_errors
from musicrt.runtime.bundle import Bundle
from musicrt.runtime.cuda.device import Device
from musicrt.runtime.driver import cuda_obstacle, device_obstacle
from musicrt.runtime.errors import BackendError
from musicrt.runtime.precision import Precision
from musicrt.runtime.spec import StageSpec

if TYPE_CHECKING:
    import onnxruntime as ort

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # what ONNX Runtime (1.31) reads when it is imported; else it may report to its makers

SPINNING = "MUSICRT_SPINNING"
"""The environment variable that lets idle threads on a CPU ask for work again and again, where it is 1.

By default they sleep: each session has threads of its own, and those of the stage that has just run would take the cores from the next one
and from NumPy. Threads for all sessions (`set_global_thread_pool_sizes`) are no way out: sessions of the caller's own would fail to open.
"""


SLEEPING = {"session.intra_op.allow_spinning": "0"}
"""The entry of a session's configuration with which they sleep."""


class _OnnxBackend(Backend):
    """What both providers share. ONNX Runtime is imported when a backend is made, not before."""

    provider: ClassVar[str]

    @property
    def options(self) -> dict[str, Any]:
        """Of the provider."""
        return {}

    def open_session(self, bundle: Bundle, stage: str) -> OnnxSession:
        """Open one stage of a bundle. Raises BackendError, BundleError."""
        with bundle.watched.unchanged(bundle.graph_files(stage, self.flavour)):
            path, _ = bundle.graph(stage, self.flavour)
            return self.open_graph(bundle.spec.stage(stage).in_flavour(self.flavour), path)

    def check_bundle(self, bundle: Bundle) -> None:
        """Raises BackendError where a stage has no graph of the flavour."""
        bundle.require_flavour(self.flavour)

    def with_flavour(self, flavour: str) -> Self:
        """The same for graphs of any flavour: all are ONNX."""
        other = type(self)(threads=self.threads, stream=self.stream, graphs=self.graphs, precision=self.precision)
        other.flavour = flavour
        return other

    def open_graph(self, stage: StageSpec, path: Path) -> OnnxSession:
        """Open an ONNX file; refuses to run on another provider than asked for. Raises BackendError."""
        return self._open(stage, str(path), {})

    def open_model(self, stage: StageSpec, model: bytes, folder: Path) -> OnnxSession:
        """Open a graph that is in memory, and whose external data lie in `folder`. Raises BackendError."""
        return self._open(stage, model, {"session.model_external_initializers_file_folder_path": str(folder)})

    def _open(self, stage: StageSpec, graph: str | bytes, entries: Mapping[str, str]) -> OnnxSession:
        import onnxruntime as ort

        if self.device == "cpu":
            _share_arena()
            entries = {**entries, "session.use_env_allocators": "1"} | ({} if _is_spinning() else SLEEPING)
        settings = make_options(self.threads, entries)
        with backend_errors(stage.name), self.turn():
            session = ort.InferenceSession(graph, settings, providers=[(self.provider, self.options)], enable_fallback=0)
        running = session.get_providers()[0]
        if running != self.provider:
            raise BackendError(f"{self.name}: ONNX Runtime fell back to {running}; check the driver and the onnxruntime-gpu installation")
        return OnnxSession(stage, session, self.gpu)

    def describe(self) -> str:
        import onnxruntime as ort

        return f"onnxruntime {ort.__version__}, {self.provider}, {self.threads or 'all'} threads"


class OnnxCpu(_OnnxBackend):
    """ONNX Runtime's own CPU kernels."""

    name = "onnxruntime-cpu"
    device: ClassVar[Literal["cpu", "cuda"]] = "cpu"
    extra = "cpu"
    precisions: ClassVar[tuple[Precision, ...]] = ("float32", "int8")
    provider = "CPUExecutionProvider"

    @classmethod
    def obstacle(cls) -> str | None:
        return _import_obstacle(f"onnxruntime is not installed (pip install 'musicrt[{cls.extra}]')")


class OnnxCuda(_OnnxBackend):
    """ONNX Runtime with its CUDA provider.

    Sampling loops stay on the GPU, but are launched call by call: what ONNX Runtime does can't be recorded from outside.
    """

    name = "onnxruntime-cuda"
    device: ClassVar[Literal["cpu", "cuda"]] = "cuda"
    extra = "cuda"
    provider = "CUDAExecutionProvider"

    @functools.cached_property
    def gpu(self) -> Device | None:
        """None where the packages for it are not installed."""
        return None if device_obstacle() else Device(self.stream, graphs=False)

    @property
    def options(self) -> dict[str, Any]:
        # EXHAUSTIVE would tune again for every new length.
        fixed = {"cudnn_conv_algo_search": "HEURISTIC", "arena_extend_strategy": "kSameAsRequested"}
        return fixed | ({"user_compute_stream": str(self.gpu.stream)} if self.gpu else {})

    def describe(self) -> str:
        return f"{super().describe()}, {device_obstacle() or 'loops on the GPU, without graphs'}"

    @classmethod
    def obstacle(cls) -> str | None:
        if reason := cuda_obstacle() or _import_obstacle(f"onnxruntime-gpu is not installed (pip install 'musicrt[{cls.extra}]')"):
            return reason
        import onnxruntime as ort

        offered = ort.get_available_providers()
        return None if cls.provider in offered else f"the installed onnxruntime has no {cls.provider} (pip install 'musicrt[{cls.extra}]')"


def make_options(threads: int | None, entries: Mapping[str, str]) -> ort.SessionOptions:
    """What every session is opened with. entries: of its configuration."""
    import onnxruntime as ort

    settings = ort.SessionOptions()
    settings.log_severity_level = 3
    # Patterns plan one block for all activations of a shape: at these sizes 1.7 times the memory, and not faster.
    settings.enable_mem_pattern = False
    if threads:
        settings.intra_op_num_threads = threads
    for name, value in entries.items():
        settings.add_session_config_entry(name, value)
    return settings


_REGISTERING = threading.Lock()


def _share_arena() -> None:
    with _REGISTERING:
        _register_arena()


@functools.cache
def _register_arena() -> None:
    """One arena for the activations of all sessions of the process: each of its own would keep the most that its stage ever needed.

    It stays when the sessions are closed, for those that are opened next.
    """
    import onnxruntime as ort

    memory = ort.OrtMemoryInfo("Cpu", ort.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, ort.OrtMemType.DEFAULT)
    ort.create_and_register_allocator(memory, ort.OrtArenaCfg({}))


def _is_spinning() -> bool:
    """Whether threads wait for work by asking for it again and again. Raises BackendError for a value that says neither."""
    value = os.environ.get(SPINNING, "0")
    if value not in ("0", "1"):
        raise BackendError(f"got {SPINNING}={value}, expected 1 (idle threads ask for work again and again) or 0")
    return value == "1"


def _import_obstacle(missing: str) -> str | None:
    if not importlib.util.find_spec("onnxruntime"):
        return missing
    try:
        import onnxruntime  # noqa: F401 - installed is not yet usable
    except (ImportError, OSError) as error:
        return f"onnxruntime can't be imported ({error})"
    return None
