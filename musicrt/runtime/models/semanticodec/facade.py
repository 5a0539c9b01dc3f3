"""Drop-in for `semanticodec.SemantiCodec`: the official arguments, shapes, tensor types and order of noise (SPEC section 10)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from musicrt.runtime.backends.torch import TorchCpu, TorchCuda
from musicrt.runtime.bundle import MANIFEST
from musicrt.runtime.errors import AudioError, BackendError, CheckpointError, ConfigError, InputError
from musicrt.runtime.hub import download_checkpoint, find_files
from musicrt.runtime.model import Model
from musicrt.runtime.models.semanticodec.config import LATENT_SHAPE, MEL_BINS, SAMPLE_RATE, SEGMENT_FRAMES
from musicrt.runtime.models.semanticodec.lengths import segment_count, target_token_len
from musicrt.runtime.models.semanticodec.pipeline import SEGMENTS, Pipeline
from musicrt.runtime.models.semanticodec.spec import SYSTEM, build_spec
from musicrt.runtime.source import AudioSource, open_source
from musicrt.runtime.spec import CheckpointSpec

if TYPE_CHECKING:
    from torch import Tensor

Float = NDArray[np.float32]


class MissingAudioError(AudioError, FileNotFoundError):
    """An audio file that is not there; callers of the official class catch a FileNotFoundError."""


class SemantiCodec:
    """The official class, on any backend. Needs torch: its tokens are tensors, and its noise comes from torch's generator.

    token_rate: 25, 50 or 100. semantic_vocab_size: 4096, 8192, 16384 or 32768. ddim_sample_step and cfg_scale may be changed between
    calls. checkpoint_path: a folder with the official files (run in PyTorch), a bundle folder (run on the fastest backend), or None:
    the official files in the working directory, else those downloaded once from the hub into `cache_path`.
    codec: an opened pipeline instead. device: "cpu" or "cuda"; None: cuda where it is usable.
    Raises ConfigError, CheckpointError, BundleError, BackendError. It is no `nn.Module`; `forward` is the plain call.
    """

    def __init__(
        self,
        token_rate: int = 50,
        semantic_vocab_size: int = 16384,
        ddim_sample_step: int = 50,
        cfg_scale: float = 2.0,
        checkpoint_path: str | Path | None = None,
        cache_path: str | Path = "pretrained",
        *,
        codec: Pipeline | None = None,
        device: Any = None,
    ) -> None:
        chosen = _choose_device(device)
        import torch

        setting = {"token_rate": token_rate, "semantic_vocab_size": semantic_vocab_size}
        checkpoint = build_spec(setting, "official").checkpoint
        if codec is None and checkpoint_path is not None and (Path(checkpoint_path) / MANIFEST).is_file():
            codec = Pipeline(Model.open(checkpoint_path, device=chosen))
        if codec is None:
            source = _locate(checkpoint, checkpoint_path, cache_path)
            codec = Pipeline(Model.open_checkpoint(SYSTEM.name, source, setting, device=chosen))
        found = {name: getattr(codec.config, name) for name in setting}
        if found != setting:
            raise ConfigError(f"got {setting}, and a codec of {found}; pass the values of the codec")
        self.codec = codec
        self.device = torch.device(chosen)
        self.token_rate, self.stack_factor_K = token_rate, 100 / token_rate
        self.ddim_sample_step, self.cfg_scale = ddim_sample_step, cfg_scale
        self.encoder, self.decoder = Encoder(codec, self.device), Decoder(codec, self.device)

    def load_audio(self, path: str | Path) -> tuple[Tensor, float]:
        """The normalised mel spectrogram float32 [1, 1024 n, 128] of a file's first channel, on the CPU, and its length in tokens.

        A file whose length is a multiple of a segment gets one more, as officially. Raises MissingAudioError, AudioError.
        """
        import torch

        source = _open(path)
        mel = np.concatenate(list(self.codec.mel_segments(source, 1, segment_count(source.samples))), axis=1)
        return torch.from_numpy(mel), target_token_len(source.samples, self.codec.config.stack)

    def encode(self, path: str | Path) -> Tensor:
        """Tokens int64 [1, T, 2] of a file's first channel, a semantic and an acoustic code each, on `device`.

        Raises MissingAudioError, which is a FileNotFoundError as officially, AudioError, InputError, BackendError.
        """
        return _as_tensor(self.codec.encode(_open(path)), self.device)

    def decode(self, tokens: Any) -> Float:
        """Audio float32 [batch, 1, samples] of tokens [batch, T, 2], 16 kHz. `torch.manual_seed` gives the official package's noise.

        Officially the batch is 1; here up to 64, with noise of [batch, 8, 256, 16] in each draw. Raises InputError, BackendError.
        """
        codes = self.codec.check_tokens(_as_array(tokens))
        noise, rows = _TorchNoise(len(codes), self.device), len(codes)  # all rows of a window at once, because they share its draws
        return self.codec.decode(codes, steps=self.ddim_sample_step, guidance=self.cfg_scale, noise=noise, max_batch_size=rows)

    def forward(self, path: str | Path) -> Float:
        """Encode a file, and decode its tokens."""
        return self.decode(self.encode(path))

    __call__ = forward


class Encoder:
    """The calls of the official `codec.encoder`."""

    def __init__(self, codec: Pipeline, device: Any) -> None:
        self.codec, self.device = codec, device

    def __call__(self, mel: Any) -> Tensor:
        """Mel spectrograms [batch, 1024 n, 128] as of `load_audio` -> all tokens int64 [batch, n T, 2] of their segments.

        Raises InputError, BackendError.
        """
        array = np.asarray(_as_array(mel), np.float32)
        if array.ndim != 3 or array.shape[2] != MEL_BINS or not array.size or array.shape[1] % SEGMENT_FRAMES:
            raise InputError(f"got a mel spectrogram of shape {list(array.shape)}, expected [batch, 1024 n, 128] as `load_audio` gives")
        segments = array.reshape(-1, SEGMENT_FRAMES, MEL_BINS)
        batches = [list(segments[start : start + SEGMENTS]) for start in range(0, len(segments), SEGMENTS)]
        tokens = np.stack([one for batch in batches for one in self.codec.encode_segments(batch)])
        return _as_tensor(tokens.reshape(len(array), -1, 2), self.device)

    def token_to_quantized_feature(self, tokens: Any) -> Tensor:
        """Tokens [batch, T, 2] -> their code vectors float32 [batch, T, 2D], the acoustic one first. Raises InputError, BackendError."""
        return _as_tensor(self.codec.embed(self.codec.check_tokens(_as_array(tokens))), self.device)


class Decoder:
    """The call of the official `codec.decoder` for one window."""

    def __init__(self, codec: Pipeline, device: Any) -> None:
        self.codec, self.device = codec, device

    def generate_sample(
        self,
        feature: Any,
        ddim_steps: int = 200,
        ddim_eta: float = 1.0,
        x_T: Any = None,  # noqa: N803 - the official name
        unconditional_guidance_scale: float = 1.0,
    ) -> Float:
        """Code vectors [batch, T, 2D] of a whole window, rows of -1 where there are none -> float32 [batch, 1, 163872].

        x_T: the initial noise [batch, 8, 256, 16]; by default drawn, as that of every step is. Raises InputError, BackendError.
        """
        known = np.ascontiguousarray(_as_array(feature), np.float32)
        sample = self.codec.sampler.prepare("ddim", ddim_steps, unconditional_guidance_scale, ddim_eta)
        given = None if x_T is None else np.asarray(_as_array(x_T), np.float32)
        latents = sample.run(known, lambda k: given if given is not None and k == 0 else _draw(len(known), self.device), lambda: None)
        return np.stack([self.codec.synthesise(latent) for latent in latents])[:, None]


class _TorchNoise:
    """Draws as the official sampler does: for each window the initial noise, then that of every step (SPEC section 3.3).

    The rows of a window have to be decoded together, the first one first.
    """

    def __init__(self, rows: int, device: Any) -> None:
        self._rows, self._device = rows, device
        self._last: Float = np.empty((0, *LATENT_SHAPE), np.float32)

    def window(self, row: int, window: int, draws: int) -> Callable[[int], Float]:
        """See `musicrt.runtime.models.semanticodec.noise.Noise`."""
        del window, draws

        def draw(_index: int) -> Float:
            if row == 0:
                self._last = _draw(self._rows, self._device)
            noise: Float = self._last[row]
            return noise

        return draw


def _draw(rows: int, device: Any) -> Float:
    import torch

    noise: Float = torch.randn((rows, *LATENT_SHAPE), device=device).cpu().numpy()
    return noise


def _choose_device(device: Any) -> Literal["cpu", "cuda"]:
    """Where the tensors are, and the network runs. Raises BackendError."""
    if reason := TorchCpu.obstacle():
        raise BackendError(f"SemantiCodec gives torch tensors, and {reason}; musicrt.load needs no torch")
    chosen = str(device or ("cpu" if TorchCuda.obstacle() else "cuda")).removesuffix(":0")
    if chosen == "cpu":
        return "cpu"
    if chosen != "cuda":
        raise BackendError(f"got device {device!r}, expected 'cpu' or 'cuda'")
    if reason := TorchCuda.obstacle():
        raise BackendError(f"got device {device!r}, which can't be used here: {reason}; pass device='cpu'")
    return "cuda"


def _locate(checkpoint: CheckpointSpec, path: str | Path | None, cache: str | Path) -> Path:
    """The folder of the official files, where the official class looks for them. Raises CheckpointError."""
    if path is not None:
        return Path(path).expanduser()
    try:
        find_files(checkpoint, Path())
    except CheckpointError:
        return download_checkpoint(checkpoint, checkpoint.hub_repository, cache)
    return Path()


def _open(path: str | Path) -> AudioSource:
    if not isinstance(path, str | Path):
        raise InputError(f"got {type(path).__name__}, expected the path of an audio file; `codec.encode` takes arrays")
    if not Path(path).exists():
        raise MissingAudioError(f"can't read {path}: no such file; expected an audio file")
    return open_source(path, SAMPLE_RATE, kernel="sinc")


def _as_array(values: Any) -> NDArray[Any]:
    import torch

    return np.asarray(values.detach().cpu() if isinstance(values, torch.Tensor) else values)


def _as_tensor(values: NDArray[Any], device: Any) -> Tensor:
    import torch

    return torch.from_numpy(values).to(device)
