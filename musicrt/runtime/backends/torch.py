"""PyTorch, on a CPU or on CUDA: the fallback where nothing else is installed, and what every other backend is compared with."""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np

from musicrt.runtime.bundle import Bundle
from musicrt.runtime.driver import cuda_obstacle
from musicrt.runtime.errors import BackendError, BundleError
from musicrt.runtime.registry import system_module
from musicrt.runtime.session import Array, Backend, Session
from musicrt.runtime.spec import StageSpec

if TYPE_CHECKING:
    from torch import nn


class TorchSession(Session):
    """A stage as a torch module, in inference mode."""

    def __init__(self, stage: StageSpec, module: nn.Module, device: str = "cpu") -> None:
        super().__init__(stage)
        self.device = device
        self._module: nn.Module | None = module.to(device)

    def _run(self, feeds: Mapping[str, Array], names: tuple[str, ...]) -> dict[str, Array]:
        import torch

        if self._module is None:
            raise BackendError(f"the session of stage {self.stage.name!r} is closed")
        with torch.inference_mode():
            inputs = [torch.from_numpy(np.require(feeds[tensor.name], requirements=["C", "W"])).to(self.device) for tensor in self.inputs]
            buffers = [torch.from_numpy(feeds[tensor.name]) for tensor in self.states]
            states = [buffer.to(self.device) for buffer in buffers]  # on a CPU the very same memory
            try:
                produced = self._module(*inputs, *states)
            except (RuntimeError, MemoryError) as error:
                raise BackendError(f"{self.stage.name}: torch failed: {' '.join(str(error).split())[:300]}") from error
            for buffer, state in zip(buffers, states, strict=True):
                if state is not buffer:
                    buffer.copy_(state)
        values = produced[: len(self.outputs)] if isinstance(produced, tuple) else (produced,)  # behind them the states once more
        results = {tensor.name: value for tensor, value in zip(self.outputs, values, strict=True)}
        return {name: np.ascontiguousarray(results[name].cpu().numpy()) for name in names}

    def _close(self) -> None:
        self._module = None


class TorchCpu(Backend):
    """PyTorch on a CPU. `threads` is a setting of the whole process in torch."""

    name = "torch-cpu"
    device: ClassVar[Literal["cpu", "cuda"]] = "cpu"
    extra = "torch"

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
        return TorchSession(bundle.spec.stage(stage), self._stages(bundle)[stage], self.device)

    def describe(self) -> str:
        import torch

        return f"torch {torch.__version__}, {self.device}, {torch.get_num_threads()} threads"

    @functools.cached_property
    def _loaded(self) -> dict[Path, dict[str, nn.Module]]:
        return {}

    def _stages(self, bundle: Bundle) -> dict[str, nn.Module]:
        if bundle.path not in self._loaded:
            self._loaded[bundle.path] = load_bundle_stages(bundle)
        return self._loaded[bundle.path]


class TorchCuda(TorchCpu):
    """PyTorch on an NVIDIA GPU."""

    name = "torch-cuda"
    device: ClassVar[Literal["cpu", "cuda"]] = "cuda"

    @classmethod
    def obstacle(cls) -> str | None:
        if reason := cuda_obstacle() or TorchCpu.obstacle():
            return reason
        import torch

        return None if torch.cuda.is_available() else "the installed torch has no CUDA"


def load_bundle_stages(bundle: Bundle) -> dict[str, nn.Module]:
    """The torch modules of all stages, with the bundle's weights. Raises BundleError."""
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    with torch.device("meta"):
        stages: dict[str, nn.Module] = system_module(bundle.manifest.system, "stages").build_stages(bundle.manifest.config)
    together = torch.nn.ModuleDict(stages)
    try:
        weights = load_file(bundle.weights)
    except (SafetensorError, OSError) as error:
        raise BundleError(f"{bundle.weights} can't be read ({error}); copy the bundle again") from None
    expected = {name: tensor.shape for name, tensor in together.named_parameters()}
    wrong = [
        name
        for name, shape in expected.items()
        if name not in weights or weights[name].shape != shape or weights[name].dtype != torch.float32
    ]
    if wrong:
        raise BundleError(f"{bundle.weights} does not fit the network: {len(wrong)} tensors, {wrong[0]} first; export the bundle again")
    # Stages may share layers (a fused stage has those of its parts): each is stored once, under the first name.
    keys = [key for key in together.state_dict(keep_vars=True) if key in expected]
    together.load_state_dict({key: weights[key] for key in keys}, strict=False, assign=True)
    return {name: stage.eval().requires_grad_(False) for name, stage in stages.items()}
