"""Drop-in for the official class `VidMuse`: its arguments, shapes, tensor types and random numbers (SPEC sections 7 and 14)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from musicrt.runtime.errors import ConfigError, InputError
from musicrt.runtime.facades import as_array, as_floats, as_tensor, choose_device, open_bundle
from musicrt.runtime.hub import locate_checkpoint
from musicrt.runtime.loops.delays import Tokens
from musicrt.runtime.loops.sampling import Float, race
from musicrt.runtime.model import Model
from musicrt.runtime.models.vidmuse.audiocraft import FRAME_RATE, parse_training_config
from musicrt.runtime.models.vidmuse.chunks import check_duration, check_stride
from musicrt.runtime.models.vidmuse.config import WINDOW_SECONDS
from musicrt.runtime.models.vidmuse.frames import Clip
from musicrt.runtime.models.vidmuse.options import GenerateOptions
from musicrt.runtime.models.vidmuse.pipeline import Pipeline
from musicrt.runtime.models.vidmuse.spec import CHECKPOINT, SYSTEM
from musicrt.runtime.progress import Progress, ignore_progress

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Clip", "VidMuse"]

_SEED = 1234
"""Officially set before each window."""
_TEXT_MODELS = ("small", "medium", "large", "melody")


class VidMuse:
    """The official class, on any backend. Needs torch: its results are tensors, and its random numbers come from torch.

    As officially it begins each window with seed 1234, so the same video has the same music at every call; here torch's own generator is
    left alone, and the numbers are those of a CPU on any device. `musicrt.load(…).generate` takes a seed. `max_duration` is a window.
    """

    def __init__(self, codec: Pipeline, device: Any = None) -> None:
        """codec: an opened pipeline. device: where tensors are, "cpu" or "cuda"; None: that of the pipeline. Raises BackendError."""
        chosen = choose_device("VidMuse", device, codec)
        import torch

        self.codec, self.device, self.name = codec, torch.device(chosen), codec.model.spec.variant
        self.max_duration = WINDOW_SECONDS
        self.compression_model, self.lm = CompressionModel(codec, self.device), LanguageModel(codec, self.device)
        self._progress_callback: Progress | None = None
        self.set_generation_params(duration=15.0)

    @classmethod
    def get_pretrained(cls, name: str | Path | None = None, device: Any = None) -> VidMuse:
        """Open a folder with the official files or a hub id (run in PyTorch), or a bundle folder (run on the fastest backend).

        None: the official hub id. device: "cpu" or "cuda"; None: cuda where it is usable. Raises ConfigError, CheckpointError, BundleError,
        BackendError.
        """
        if name in _TEXT_MODELS:
            raise ConfigError(f"got {name!r}, which is a text model of MusicGen; pass a folder, or {CHECKPOINT.hub_repository!r}")
        chosen = choose_device("VidMuse", device, None)
        model = open_bundle(name, chosen)
        if model is None:
            model = Model.open_checkpoint(SYSTEM.name, locate_checkpoint(CHECKPOINT, name), _read_scale, device=chosen)
        return cls(Pipeline(model), chosen)

    @property
    def sample_rate(self) -> int:
        """Of the music, 32000 Hz."""
        return self.codec.sample_rate

    @property
    def frame_rate(self) -> float:
        """Timesteps of the tokens in a second, 50."""
        return float(FRAME_RATE)

    @property
    def audio_channels(self) -> int:
        """Of the music, 1."""
        return self.codec.row_channels

    def set_generation_params(
        self,
        use_sampling: bool = True,
        top_k: int = 250,
        top_p: float = 0.0,
        temperature: float = 1.0,
        duration: float = 30.0,
        cfg_coef: float = 3.0,
        two_step_cfg: bool = False,
        extend_stride: float = 29.5,
    ) -> None:
        """Options of later calls; see `Pipeline.generate_stream`. two_step_cfg: fails officially, and is refused. Raises InputError."""
        _refuse_two_steps(two_step_cfg)
        stride, seconds = check_stride(extend_stride), check_duration(duration)
        params: dict[str, Any] = {
            "use_sampling": use_sampling,
            "temp": temperature,
            "top_k": top_k,
            "top_p": top_p,
            "cfg_coef": cfg_coef,
            "two_step_cfg": two_step_cfg,
        }
        self.codec.check_settings(_options(**params))
        self.extend_stride, self.duration, self.generation_params = stride, seconds, params

    def set_custom_progress_callback(self, progress_callback: Progress | None = None) -> None:
        """A function of how many columns of tokens are made, and how many there will be; None: print them."""
        self._progress_callback = progress_callback

    def generate(self, video: Sequence[Any], progress: bool = False, return_tokens: bool = False) -> Tensor | tuple[Tensor, Tensor]:
        """Music float32 [1, 1, samples] of one video: its local and global frames, each [3, F, 224, 224] of whole numbers from 0 to 255.

        progress: call the callback. return_tokens: also the codes, int64 [1, 4, n]. Raises InputError, BackendError.
        """
        local, around = _as_pair(video, 4)
        options = _options(**self.generation_params)
        options |= {"duration": self.duration, "extend_stride": self.extend_stride, "noise": _TorchNumbers((1, *around.shape))}
        options["on_progress"] = (self._progress_callback or _print_progress) if progress else ignore_progress
        if options["temperature"] == 0:
            del options["noise"]
        tokens = self.codec.generate_tokens(Clip.from_tensors(local, around), **options)
        audio = self.generate_audio(tokens)
        return (audio, as_tensor(tokens, self.device)) if return_tokens else audio

    def generate_audio(self, gen_tokens: Any) -> Tensor:
        """Audio float32 [batch, 1, 640 n] of codes [batch, 4, n]. Raises InputError, BackendError."""
        return self.compression_model.decode(gen_tokens)


class CompressionModel:
    """The official `compression_model`, an EnCodec."""

    def __init__(self, codec: Pipeline, device: Any) -> None:
        self._codec, self._device = codec, device
        self.sample_rate, self.frame_rate, self.channels = codec.sample_rate, float(FRAME_RATE), codec.row_channels
        self.num_codebooks = self.total_codebooks = codec.config.codebooks
        self.cardinality = codec.config.card

    def encode(self, x: Any) -> tuple[Tensor, None]:
        """Audio [batch, 1, samples] at 32 kHz -> codes int64 [batch, 4, n], and no scale. Raises InputError, BackendError."""
        audio = as_floats(x, "audio")
        if audio.ndim != 3 or audio.shape[1] != 1 or not audio.size:
            raise InputError(f"got audio of shape {list(audio.shape)}, expected [batch, 1, samples]")
        return as_tensor(np.concatenate([self._codec.encode(row) for row in audio]), self._device), None

    def decode(self, codes: Any, scale: None = None) -> Tensor:
        """Codes [batch, 4, n] -> audio float32 [batch, 1, 640 n]. scale: there is none. Raises InputError, BackendError."""
        if scale is not None:
            raise InputError("got a scale, expected None: this codec does not scale")
        return as_tensor(self._codec.decode(as_array(codes, "codes"))[:, None], self._device)

    def decode_latent(self, codes: Any) -> Tensor:
        """Codes [batch, 4, n] -> what they stand for, float32 [batch, latent channels, n]. Raises InputError, BackendError."""
        return as_tensor(self._codec.audio.dequantize(self._codec.audio.check(as_array(codes, "codes"))), self._device)


class LanguageModel:
    """The official `lm`, as far as it makes tokens."""

    def __init__(self, codec: Pipeline, device: Any) -> None:
        self._codec, self._device = codec, device
        self.num_codebooks, self.card, self.special_token_id = codec.config.codebooks, codec.config.card, codec.config.special

    def generate(
        self,
        prompt: Any,
        video: Sequence[Any],
        max_gen_len: int = 256,
        use_sampling: bool = True,
        temp: float = 1.0,
        top_k: int = 250,
        top_p: float = 0.0,
        cfg_coef: float = 3.0,
        two_step_cfg: bool = False,
        remove_prompts: bool = False,
        callback: Progress | None = None,
    ) -> Tensor:
        """Codes int64 [batch, 4, max_gen_len], made in one window of any length.

        prompt: codes [batch, 4, P] that they begin with, or None. video: local and global frames, each [batch, 3, F, 224, 224].
        remove_prompts: leave the prompt out of the result. Raises InputError, BackendError.
        """
        _refuse_two_steps(two_step_cfg)
        local, around = _as_pair(video, 5)
        if len(local) != len(around):
            raise InputError(f"got local frames of {len(local)} videos and global frames of {len(around)}, expected as many")
        clips = [Clip.from_tensors(*pair) for pair in zip(local, around, strict=True)]
        options = _options(use_sampling, temp, top_k, top_p, cfg_coef)
        options |= {"prompt": None if prompt is None else as_array(prompt, "a prompt"), "on_progress": callback or ignore_progress}
        if options["temperature"] != 0:
            options["noise"] = _TorchNumbers(around.shape)
        tokens = np.concatenate(self._codec.generate_window(clips, max_gen_len, **options))
        known = 0 if prompt is None else np.shape(prompt)[-1]
        return as_tensor(tokens[:, :, known:].copy() if remove_prompts else tokens, self._device)


class _TorchNumbers:
    """Draws as torch.multinomial does on a CPU after what is officially drawn before (SPEC section 7)."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        """`shape`: that of the global frames [batch, 3, F, H, W], for which an unused dropout draws."""
        import torch

        self._shape, self._generator = shape, torch.Generator()

    def begin(self) -> None:
        """See `musicrt.runtime.models.vidmuse.noise.Numbers`."""
        import torch

        self._generator.manual_seed(_SEED)
        torch.rand(self._shape, generator=self._generator)

    def draw(self, call: int, weights: Float) -> Tokens:
        """See `musicrt.runtime.models.vidmuse.noise.Numbers`."""
        import torch

        del call
        return race(weights, torch.empty(weights.shape).exponential_(1, generator=self._generator).numpy())


def _read_scale(files: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The scale of the language model as the checkpoint states it. Raises CheckpointError."""
    main = CHECKPOINT.files[0]
    stated = parse_training_config(files[main]["xp.cfg"], main) if "xp.cfg" in files[main] else {}
    sizes = stated.get("transformer_lm")
    given = sizes if isinstance(sizes, Mapping) else {}
    return {"lm": {"transformer_lm": {name: given[name] for name in ("dim", "num_heads", "num_layers") if name in given}}}


def _options(use_sampling: bool, temp: float, top_k: int, top_p: float, cfg_coef: float, **_unused: bool) -> GenerateOptions:
    return {"top_k": top_k, "top_p": top_p, "temperature": temp if use_sampling else 0.0, "guidance": cfg_coef}


def _as_pair(video: Any, axes: int) -> tuple[Any, Any]:
    """Local and global frames as arrays of so many axes. Raises InputError."""
    if not isinstance(video, Sequence) or len(video) != 2:
        what = f"{len(video)} items" if isinstance(video, Sequence) else type(video).__name__
        raise InputError(f"got {what}, expected [local, global], the frames of one video")
    local, around = as_array(video[0], "local frames"), as_array(video[1], "global frames")
    for name, frames in (("local", local), ("global", around)):
        if frames.ndim != axes:
            raise InputError(f"got {name} frames of shape {list(frames.shape)}, expected [{'batch, ' if axes == 5 else ''}3, F, 224, 224]")
    return local, around


def _refuse_two_steps(two_step_cfg: Any) -> None:
    if two_step_cfg:
        raise InputError("got two_step_cfg=True, which fails officially; leave it out: both halves run as one batch")


def _print_progress(done: int, total: int) -> None:
    print(f"{done: 6d} / {total: 6d}", end="\r", flush=True)
