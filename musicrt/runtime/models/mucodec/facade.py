"""Drop-in for the official class `MuCodec`: its arguments, shapes, tensor types and order of noise (SPEC section 10)."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from musicrt.runtime.errors import CheckpointError, ConfigError, InputError
from musicrt.runtime.facades import as_array, as_floats, as_tensor, choose_device, draw_normal, open_bundle
from musicrt.runtime.hub import Source, file_places, locate_checkpoint
from musicrt.runtime.loops.diffusion import Draw
from musicrt.runtime.model import Model
from musicrt.runtime.models.mucodec.config import LATENT_BINS, LATENT_CHANNELS, SAMPLE_RATE, VAE_CHANNELS
from musicrt.runtime.models.mucodec.downmix import JOINT_PEAK, limit
from musicrt.runtime.models.mucodec.lengths import SHARED, WINDOW
from musicrt.runtime.models.mucodec.pipeline import Pipeline
from musicrt.runtime.models.mucodec.spec import CHECKPOINT, SYSTEM
from musicrt.runtime.source import open_source

if TYPE_CHECKING:
    from torch import Tensor

Float = NDArray[np.float32]
_SECONDS = 40.96  # of a window


class MuCodec:
    """The official class, on any backend. Needs torch: its results are tensors, and its noise comes from torch's generator.

    model_path: the official main file (`ckpt/mucodec.pt`; the other two are found in the working directory, as officially, or beside
    it), a folder with the three (run in PyTorch), a bundle folder (run on the fastest backend), or None: the official files,
    downloaded from the hub once. layer_num: that of the official script, 7. codec: an opened pipeline instead. device: "cpu" or
    "cuda"; None: that of `codec`, else cuda where it is usable. Raises ConfigError, CheckpointError, BundleError, BackendError.
    """

    def __init__(
        self,
        model_path: str | Path | None = None,
        layer_num: int = 7,
        load_main_model: bool = True,
        device: Any = None,
        *,
        codec: Pipeline | None = None,
    ) -> None:
        chosen = choose_device("MuCodec", device, codec)
        import torch

        if not load_main_model:
            raise ConfigError("got load_main_model=False, which leaves nothing to encode or decode with; leave it out")
        if codec is None:
            model = open_bundle(model_path, chosen)
            if model is None:
                model = Model.open_checkpoint(SYSTEM.name, _locate(model_path), {"layer_num": layer_num}, device=chosen)
            codec = Pipeline(model)
        if codec.config.layer_num != layer_num:
            raise ConfigError(f"got layer_num={layer_num}, and a codec of {codec.config.layer_num}; pass the number of the codec")
        self.codec = codec
        self.device = torch.device(chosen)
        self.layer_num, self.sample_rate = layer_num, SAMPLE_RATE

    def file2code(self, fname: str | Path) -> Tensor:
        """Codes int64 [1, codebooks, n] of a file of any rate, on `device`. Raises AudioError, InputError, BackendError."""
        if not isinstance(fname, str | Path):
            raise InputError(f"got {type(fname).__name__}, expected the path of an audio file; `sound2code` takes samples")
        return as_tensor(self.codec.encode(open_source(fname, SAMPLE_RATE, kernel="sinc")), self.device)

    def sound2code(self, orig_samples: Any, batch_size: int = 3) -> Tensor:
        """Codes int64 [1, codebooks, n] of samples [2, N] or [1, 2, N] at 48 kHz, on `device`; mono is both channels.

        Of several codebooks, officially all but the first get lost here. batch_size: windows that run together. Raises InputError,
        BackendError.
        """
        return as_tensor(self.codec.encode(_as_audio(orig_samples, "samples"), max_batch_size=batch_size), self.device)

    def code2sound(
        self,
        codes: Any,
        prompt: Any = None,
        duration: float = _SECONDS,
        guidance_scale: float = 1.5,
        num_steps: int = 20,
        disable_progress: bool = False,
    ) -> Tensor:
        """Sound float32 [2, samples] at 48 kHz of codes [1, codebooks, n], on the CPU. `torch.manual_seed` gives the official noise.

        prompt: samples [N], [1, N] or [2, N] at 48 kHz, or [1, channels, N]. guidance_scale: honoured here; officially always 1.5.
        duration: officially other values give overlaps that do not fit; they are refused. disable_progress: without effect, as
        officially; nothing is printed. Raises InputError, BackendError.
        """
        del disable_progress
        if duration != _SECONDS:
            raise InputError(f"got a duration of {duration!r} s, expected {_SECONDS}: windows have one length")
        sound = self.codec.decode(
            as_array(codes, "codes"),
            steps=num_steps,
            guidance=guidance_scale,
            prompt=None if prompt is None else _as_audio(prompt, "a prompt"),
            noise=_TorchNoise(self.device),
        )
        return as_tensor(sound, "cpu")

    def sound2sound(
        self, sound: Any, prompt: Any = None, min_duration: float = _SECONDS, steps: int = 50, disable_progress: bool = False
    ) -> Tensor:
        """Encode and decode samples [2, N]: float32 [2, 1920 n], up to 40 ms longer. Arguments and errors as of the two ways."""
        codes = self.sound2code(sound)
        return self.code2sound(codes, prompt=prompt, duration=min_duration, num_steps=steps, disable_progress=disable_progress)

    def preprocess_audio(self, input_audios: Any, threshold: float = JOINT_PEAK) -> Tensor:
        """Audio [batch, channels, N], the peak of each item at most `threshold`. Raises InputError."""
        audio = as_floats(input_audios, "audio")
        if audio.ndim != 3 or not audio.size:
            raise InputError(f"got audio of shape {list(audio.shape)}, expected [batch, channels, samples]")
        return as_tensor(limit(audio, np.abs(audio).max(axis=(1, 2), keepdims=True), threshold), self.device)


class _TorchNoise:
    """Draws as the official code does, also what has no effect: a first latent, and the filler of every further window (SPEC section 4.3).

    Serves one decode.
    """

    def __init__(self, device: Any) -> None:
        self._device, self._begun = device, False

    def posterior(self, channel: int, frames: int) -> Float:
        """See `musicrt.runtime.models.mucodec.noise.Noise`."""
        del channel
        return self._draw(VAE_CHANNELS, frames)

    def initial(self, window: int, frames: int) -> Draw:
        """See `musicrt.runtime.models.mucodec.noise.Noise`."""
        if window:
            self._draw(LATENT_CHANNELS, (WINDOW - SHARED) // 2)
        noise = self._draw(LATENT_CHANNELS, frames)[None]
        return lambda _index: noise

    def _draw(self, channels: int, frames: int) -> Float:
        if not self._begun:
            self._begun = True
            self._draw(LATENT_CHANNELS, WINDOW // 2)
        noise: Float = draw_normal((1, channels, frames, LATENT_BINS), self._device)[0]
        return noise


def _as_audio(samples: Any, name: str) -> Float:
    """Samples as [N] or [channels, N]. Raises InputError."""
    audio = as_floats(samples, name)
    if audio.ndim == 3 and len(audio) == 1:
        audio = audio.reshape(audio.shape[1:])
    if audio.ndim not in (1, 2):
        raise InputError(f"got {name} of shape {list(audio.shape)}, expected [2, N] or [1, 2, N]; pass one piece of audio at a time")
    return audio


def _locate(path: str | Path | None) -> Source:
    """The official files, where the official class looks for them, or all in one folder. Raises CheckpointError."""
    main = None if path is None else Path(path).expanduser()
    if main is None or not main.is_file():
        return locate_checkpoint(CHECKPOINT, path)
    *others, own = CHECKPOINT.files
    found = {own: main}
    for name in others:
        beside = [*file_places(main.parent.parent, name), *file_places(main.parent, name)]
        place = next((place for place in (Path(name), *reversed(beside)) if place.is_file()), None)
        if place is None:
            raise CheckpointError(
                f"{name} is not there for {main}; put it into the working directory, or give a folder with all three files"
            )
        found[name] = place
    return found
