"""PyTorch, on a CPU or on CUDA: the fallback where nothing else is installed, and what every other backend is compared with."""

from __future__ import annotations

import functools
import importlib.util
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np

from musicrt.runtime.backend import Backend, failure
from musicrt.runtime.backends.torch_bfloat16 import call_lowered, prepare_lowering
from musicrt.runtime.bundle import Bundle
from musicrt.runtime.cuda.array import DeviceArray
from musicrt.runtime.cuda.device import Device
from musicrt.runtime.cuda.graph import SWITCH
from musicrt.runtime.driver import cuda_obstacle, device_obstacle
from musicrt.runtime.errors import BackendError, BundleError, MusicRTError
from musicrt.runtime.precision import Precision
from musicrt.runtime.registry import system_module
from musicrt.runtime.session import Array, Session
from musicrt.runtime.spec import StageSpec

if TYPE_CHECKING:
    from torch import Tensor, nn


class TorchSession(Session):
    """A stage as a torch module, in inference mode. On CUDA it works on the stream of `gpu`, if that is given.

    lowered: with convolutions and products of matrices in bfloat16, on images with their channels last; see `prepare_lowering`.
    """

    def __init__(self, stage: StageSpec, module: nn.Module, device: str = "cpu", gpu: Device | None = None, lowered: bool = False) -> None:
        super().__init__(stage)
        self.device, self._gpu, self._lowered = device, gpu, lowered
        self._module: nn.Module | None = module.to(device)

    @property
    def gpu(self) -> Device | None:
        return self._gpu

    def _run(self, feeds: Mapping[str, Array], names: tuple[str, ...]) -> dict[str, Array]:
        import torch

        with torch.inference_mode(), self._on_stream():
            inputs = [torch.from_numpy(np.require(feeds[tensor.name], requirements=["C", "W"])).to(self.device) for tensor in self.inputs]
            buffers = [torch.from_numpy(feeds[tensor.name]) for tensor in self.states]
            states = [buffer.to(self.device) for buffer in buffers]  # on a CPU the very same memory
            values = self._compute([*inputs, *states])
            for buffer, state in zip(buffers, states, strict=True):
                if state is not buffer:
                    buffer.copy_(state)
            results = {tensor.name: value for tensor, value in zip(self.outputs, values, strict=True)}
            return {name: np.ascontiguousarray(results[name].cpu().numpy()) for name in names}

    def _bind_device(self, arrays: Mapping[str, DeviceArray], sizes: Mapping[str, int]) -> Callable[[], None]:
        import torch

        del sizes
        feeds, results = ([as_tensor(arrays[tensor.name]) for tensor in tensors] for tensors in (self.stage.feeds, self.outputs))

        def call() -> None:
            with torch.inference_mode(), self._on_stream():
                for result, value in zip(results, self._compute(feeds), strict=True):
                    result.copy_(value)

        return call

    def _compute(self, feeds: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """The outputs of the stage for its inputs and states."""
        if self._module is None:
            raise BackendError(f"the session of stage {self.stage.name!r} is closed; load the bundle again")
        try:
            produced = call_lowered(self._module, feeds) if self._lowered else self._module(*feeds)
        except (RuntimeError, MemoryError) as error:
            raise failure(self.stage.name, "torch", error) from error
        return produced[: len(self.outputs)] if isinstance(produced, tuple) else (produced,)  # behind them are the states once more

    def _on_stream(self) -> AbstractContextManager[object]:
        """As the current stream of torch that of `gpu`."""
        return use_stream(self._gpu.stream) if self._gpu else nullcontext()

    def _close(self) -> None:
        self._module = None


class TorchCpu(Backend):
    """PyTorch on a CPU. `threads` is a setting of the whole process in torch."""

    name = "torch-cpu"
    device: ClassVar[Literal["cpu", "cuda"]] = "cpu"
    extra = "torch"
    precisions: ClassVar[tuple[Precision, ...]] = ("float32", "bfloat16")

    def __init__(self, **options: Any) -> None:
        """As for every backend. Raises BackendError in a child forked after torch was used: it would wait for threads of the parent."""
        super().__init__(**options)
        if (user := _first_user()) != os.getpid():
            raise BackendError(
                f"{self.name} was opened in process {user} before this one was forked from it, and torch's threads do not come along; "
                "start children with multiprocessing's 'spawn'"
            )

    @classmethod
    def obstacle(cls) -> str | None:
        if not importlib.util.find_spec("torch"):
            return f"torch is not installed (pip install 'musicrt[{cls.extra}]')"
        try:
            import torch  # noqa: F401 - installed is not yet usable
        except (ImportError, OSError) as error:
            return f"torch can't be imported ({error})"
        return None

    def open_session(self, bundle: Bundle, stage: str) -> TorchSession:
        """Open one stage with the weights of the bundle. Raises BundleError if they do not fit."""
        import torch

        if self.threads:
            torch.set_num_threads(self.threads)
        spec = bundle.spec.stage(stage)
        with self.turn():
            return TorchSession(spec, self._stages(bundle)[stage], self.device, self.gpu, self._is_lowered(spec))

    def describe(self) -> str:
        import torch

        return f"torch {torch.__version__}, {self.device}, {torch.get_num_threads()} threads"

    @functools.cached_property
    def _loaded(self) -> dict[Path, dict[str, nn.Module]]:
        return {}

    def _stages(self, bundle: Bundle) -> dict[str, nn.Module]:
        if bundle.path not in self._loaded:
            stages = load_bundle_stages(bundle)
            for spec in bundle.spec.stages:  # all before any runs, because stages share layers
                if spec.half is not None and self._is_lowered(spec):
                    prepare_lowering(stages[spec.name], spec.half)
            self._loaded[bundle.path] = stages
        return self._loaded[bundle.path]

    def _is_lowered(self, spec: StageSpec) -> bool:
        return self.precision == "bfloat16" and spec.in_bfloat16


@functools.cache
def _first_user() -> int:
    """The process in which torch was used first, among this one and its parents."""
    return os.getpid()


class TorchCuda(TorchCpu):
    """PyTorch on an NVIDIA GPU."""

    name = "torch-cuda"
    precisions: ClassVar[tuple[Precision, ...]] = ("float32",)
    device: ClassVar[Literal["cpu", "cuda"]] = "cuda"

    @classmethod
    def obstacle(cls) -> str | None:
        if reason := cuda_obstacle() or TorchCpu.obstacle():
            return reason
        import torch

        return None if torch.cuda.is_available() else "the installed torch has no CUDA"

    @functools.cached_property
    def gpu(self) -> Device | None:
        """None where the packages for it are not installed: loops are on the host then."""
        return None if device_obstacle() else TorchDevice(self.stream, graphs=self.graphs)

    def describe(self) -> str:
        return f"{super().describe()}, {device_obstacle() or 'loops on the GPU'}"


class TorchDevice(Device):
    """The GPU with torch: what torch allocates in a recording is kept for its replays."""

    def record(self, work: Callable[[], None]) -> Callable[[], None]:
        """See `Device`."""
        import torch

        graph, failed = torch.cuda.CUDAGraph(), None
        try:
            with torch.cuda.graph(graph, stream=_stream(self.stream), capture_error_mode="thread_local"):
                try:
                    work()
                except MusicRTError as error:  # kept until the recording has ended, which may fail as well
                    failed = error
        except RuntimeError as error:
            raise failed or BackendError(
                f"torch can't record a CUDA graph: {' '.join(str(error).split())[:300]}; set {SWITCH}=0, or load with graphs=False"
            ) from error
        if failed:
            raise failed

        def replay() -> None:
            with use_stream(self.stream):
                graph.replay()

        return replay

    def record_loop(self, work: Callable[[int], None]) -> Callable[[], None]:
        """See `Device`; torch records no loops."""
        del work
        raise BackendError("torch-cuda records no graphs with loops in them; leave out MUSICRT_CUDA_WHILE")


def as_tensor(array: DeviceArray) -> Tensor:
    """A tensor in the same memory."""
    import torch

    return torch.as_tensor(array, device="cuda")


def use_stream(stream: int) -> AbstractContextManager[object]:
    """Makes a stream torch's current one."""
    import torch

    return torch.cuda.stream(_stream(stream))


def _stream(handle: int) -> Any:
    import torch

    return torch.cuda.ExternalStream(handle)  # type: ignore[no-untyped-call]


def load_bundle_stages(bundle: Bundle) -> dict[str, nn.Module]:
    """The torch modules of all stages, with the bundle's weights. Raises BundleError."""
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    with torch.device("meta"):
        stages: dict[str, nn.Module] = system_module(bundle.manifest.system, "stages").build_stages(bundle.manifest.config)
    together = torch.nn.ModuleDict(stages)
    with bundle.watched.unchanged([bundle.manifest.weights]):
        try:
            weights = load_file(bundle.weights)
        except (SafetensorError, OSError) as error:
            raise BundleError(f"{bundle.weights} can't be read ({error}); copy the bundle again") from None
    expected = {name: tensor.shape for name, tensor in together.named_parameters()}
    wrong = [
        name
        for name, shape in expected.items()
        if name not in weights or weights[name].shape != shape or weights[name].dtype not in (torch.float32, torch.float16)
    ]
    if wrong:
        raise BundleError(f"{bundle.weights} does not fit the network: {len(wrong)} tensors, {wrong[0]} first; export the bundle again")
    # Stages may share layers (a fused stage has those of its parts): each is stored once, under the first name.
    keys = [key for key in together.state_dict(keep_vars=True) if key in expected]
    together.load_state_dict({key: weights[key].float() for key in keys}, strict=False, assign=True)
    return {name: stage.eval().requires_grad_(False) for name, stage in stages.items()}
