"""Drop-in for `music2latent.EncoderDecoder`: the official arguments, shapes, tensor types and order of noise (SPEC section 15)."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from musicrt.runtime.audio import probe_audio, read_audio
from musicrt.runtime.backends.torch import TorchCpu, TorchCuda
from musicrt.runtime.bundle import MANIFEST
from musicrt.runtime.errors import BackendError
from musicrt.runtime.hub import locate_checkpoint
from musicrt.runtime.model import Model
from musicrt.runtime.models.music2latent.noise import Place
from musicrt.runtime.models.music2latent.pipeline import Pipeline
from musicrt.runtime.models.music2latent.spec import CHECKPOINT, SYSTEM

if TYPE_CHECKING:
    from torch import Tensor

logger = logging.getLogger("musicrt")


class EncoderDecoder:
    """The official class, on any backend. Needs torch: its results are tensors, and its noise comes from torch's generator.

    load_path_inference: the official `music2latent.pt` (run in PyTorch), a bundle folder (run on the fastest backend), or
        None: the official checkpoint, downloaded from the hub once. device: "cpu" or "cuda"; None: cuda where it is usable.
    codec: an opened pipeline instead of the two.
    """

    def __init__(self, load_path_inference: str | Path | None = None, device: Any = None, *, codec: Pipeline | None = None) -> None:
        self.load_path_inference = load_path_inference
        if reason := TorchCpu.obstacle():
            raise BackendError(f"EncoderDecoder gives torch tensors, and {reason}; musicrt.load needs no torch")
        chosen = str(device or ("cpu" if TorchCuda.obstacle() else "cuda")).removesuffix(":0")
        if chosen not in ("cpu", "cuda"):
            raise BackendError(f"got device {device!r}, expected 'cpu' or 'cuda'")
        self.device: Literal["cpu", "cuda"] = "cuda" if chosen == "cuda" else "cpu"
        if self.device == "cuda" and (reason := TorchCuda.obstacle()):
            raise BackendError(f"got device {device!r}, which can't be used here: {reason}; pass device='cpu'")
        self._given = codec
        self.get_models()

    def get_models(self) -> None:
        """Load the network from `load_path_inference` again."""
        self.codec = self._given or self._load()

    def _load(self) -> Pipeline:
        path = self.load_path_inference
        if path is not None and (Path(path) / MANIFEST).is_file():
            return Pipeline(Model.open(path, device=self.device))
        source = locate_checkpoint(CHECKPOINT, path)
        return Pipeline(Model.open_checkpoint(SYSTEM.name, source, {}, device=self.device))

    def encode(
        self,
        path_or_audio: Any,
        max_waveform_length: int | None = None,
        max_batch_size: int | None = None,
        extract_features: bool = False,
    ) -> Tensor:
        """Latents [channels, 64, L] (or features [channels, 8192, L]) of a file or of audio [samples] or [channels, samples].

        As officially: a file's rate is ignored (with a warning), and integers are not scaled to [-1, 1].
        """
        import torch

        if isinstance(path_or_audio, str | Path):
            rate = probe_audio(path_or_audio).sample_rate
            if rate != self.codec.sample_rate:
                logger.warning("%s: %d Hz is taken for %d Hz, as in the official package", path_or_audio, rate, self.codec.sample_rate)
            audio = read_audio(path_or_audio)[0]
        else:
            audio = np.asarray(path_or_audio.detach().cpu() if isinstance(path_or_audio, torch.Tensor) else path_or_audio)
        values = self.codec.encode(
            audio.astype(np.float32),
            extract_features=extract_features,
            max_waveform_length=max_waveform_length,
            max_batch_size=max_batch_size,
        )
        return torch.from_numpy(values).to(self.device)

    def decode(
        self,
        latent: Any,
        denoising_steps: int = 1,
        max_waveform_length: int | None = None,
        max_batch_size: int | None = None,
    ) -> Tensor:
        """Audio [channels, 4096 L + 1536] on the CPU, within [-1, 1]. `torch.manual_seed` gives the official package's noise."""
        import torch

        array = np.asarray(latent.detach().cpu() if isinstance(latent, torch.Tensor) else latent)
        audio = self.codec.decode(
            array,
            steps=denoising_steps,
            noise=_TorchNoise(self.device),
            max_waveform_length=max_waveform_length,
            max_batch_size=max_batch_size,
        )
        return torch.from_numpy(audio)


class _TorchNoise:
    """Draws as the official sampler does: the initial noise on the CPU, the rest on the network's device (SPEC section 8)."""

    sequential = True

    def __init__(self, device: str) -> None:
        self.device = device

    def draw(self, places: Sequence[Place], draw: int, shape: tuple[int, int, int]) -> NDArray[np.float32]:
        import torch

        noise: NDArray[np.float32] = torch.randn(len(places), *shape, device=self.device if draw else "cpu").cpu().numpy()
        return noise
