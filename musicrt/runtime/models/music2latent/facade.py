"""Drop-in for `music2latent.EncoderDecoder`: the official arguments, shapes, tensor types and order of noise (SPEC section 15)."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from musicrt.runtime.audio import probe_audio, read_audio
from musicrt.runtime.facades import as_array, as_floats, as_tensor, choose_device, draw_normal, open_bundle
from musicrt.runtime.hub import locate_checkpoint
from musicrt.runtime.loops.diffusion import Draw
from musicrt.runtime.model import Model
from musicrt.runtime.models.music2latent.noise import Place
from musicrt.runtime.models.music2latent.pipeline import Pipeline
from musicrt.runtime.models.music2latent.spec import CHECKPOINT, SYSTEM

if TYPE_CHECKING:
    from torch import Tensor

_LOG = logging.getLogger("musicrt")


class EncoderDecoder:
    """The official class, on any backend. Needs torch: its results are tensors, and its noise comes from torch's generator.

    load_path_inference: the official `music2latent.pt` (run in PyTorch), a bundle folder (run on the fastest backend), or
        None: the official checkpoint, downloaded from the hub once. codec: an opened pipeline instead.
    device: "cpu" or "cuda"; None: that of `codec`, else cuda where it is usable.
    Raises CheckpointError, BundleError, BackendError.
    """

    def __init__(self, load_path_inference: str | Path | None = None, device: Any = None, *, codec: Pipeline | None = None) -> None:
        self.load_path_inference = load_path_inference
        self.device = choose_device("EncoderDecoder", device, codec)
        self._given = codec
        self.get_models()

    def get_models(self) -> None:
        """Load the network from `load_path_inference` again. Raises CheckpointError, BundleError, BackendError."""
        self.codec = self._given or self._load()

    def _load(self) -> Pipeline:
        model = open_bundle(self.load_path_inference, self.device)
        if model is None:
            source = locate_checkpoint(CHECKPOINT, self.load_path_inference)
            model = Model.open_checkpoint(SYSTEM.name, source, {}, device=self.device)
        return Pipeline(model)

    def encode(
        self,
        path_or_audio: Any,
        max_waveform_length: int | None = None,
        max_batch_size: int | None = None,
        extract_features: bool = False,
    ) -> Tensor:
        """Latents [channels, 64, L] (or features [channels, 8192, L]) of a file or of audio [samples] or [channels, samples].

        As officially: a file's rate is ignored (with a warning), and integers are not scaled to [-1, 1]. max_waveform_length: samples in a
        chunk, 60 s by default. max_batch_size: chunks that run together, 1 by default. Raises AudioError, InputError, BackendError.
        """
        if isinstance(path_or_audio, str | Path):
            rate = probe_audio(path_or_audio).sample_rate
            if rate != self.codec.sample_rate:
                fields = {"event": "rate_ignored", "file": Path(path_or_audio).name, "source_rate": rate}
                message = "%s: %d Hz is taken for %d Hz, as in the official package"
                _LOG.warning(message, path_or_audio, rate, self.codec.sample_rate, extra=fields)
            audio = read_audio(path_or_audio)[0]
        else:
            audio = as_floats(path_or_audio, "audio")
        values = self.codec.encode(
            audio,
            extract_features=extract_features,
            max_waveform_length=max_waveform_length,
            max_batch_size=max_batch_size,
        )
        return as_tensor(values, self.device)

    def decode(
        self,
        latent: Any,
        denoising_steps: int = 1,
        max_waveform_length: int | None = None,
        max_batch_size: int | None = None,
    ) -> Tensor:
        """Audio [channels, 4096 L + 1536] on the CPU, within [-1, 1], of latents [channels, 64, L] or [64, L].

        `torch.manual_seed` gives the official package's noise. Other arguments as of `encode`. Raises InputError, BackendError.
        """
        audio = self.codec.decode(
            as_array(latent, "latents"),
            steps=denoising_steps,
            noise=_TorchNoise(self.device),
            max_waveform_length=max_waveform_length,
            max_batch_size=max_batch_size,
        )
        return as_tensor(audio, "cpu")


class _TorchNoise:
    """Draws as the official sampler does: the initial noise on the CPU, the rest on the network's device (SPEC section 8)."""

    sequential = True

    def __init__(self, device: str) -> None:
        self.device = device

    def at(self, places: Sequence[Place], shape: tuple[int, int, int]) -> Draw:
        return lambda index: draw_normal((len(places), *shape), self.device if index else "cpu")
