"""Drop-in for `semanticodec.SemantiCodec`: the official arguments, shapes, tensor types and order of noise (SPEC section 10)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from musicrt.runtime.errors import AudioError, ConfigError, InputError
from musicrt.runtime.facades import as_array, as_floats, as_tensor, choose_device, draw_normal, open_bundle
from musicrt.runtime.hub import Source, download_checkpoint, find_files
from musicrt.runtime.loops.diffusion import Draw
from musicrt.runtime.model import Model
from musicrt.runtime.models.semanticodec.config import LATENT_SHAPE, MEL_BINS, SAMPLE_RATE, SEGMENT_FRAMES
from musicrt.runtime.models.semanticodec.lengths import segment_count, target_token_len
from musicrt.runtime.models.semanticodec.noise import Place
from musicrt.runtime.models.semanticodec.pipeline import SEGMENTS, Pipeline
from musicrt.runtime.models.semanticodec.spec import BATCH, SYSTEM, build_spec
from musicrt.runtime.source import AudioSource, open_source
from musicrt.runtime.spec import CheckpointSpec

if TYPE_CHECKING:
    from torch import Tensor

Float = NDArray[np.float32]


class MissingAudioError(AudioError, FileNotFoundError):
    """An audio file that is not there; callers of the official class catch a FileNotFoundError."""


class SemantiCodec:
    """The official class, on any backend. Needs torch: its tokens are tensors, and its noise comes from torch's generator.

    token_rate: 25, 50 or 100. semantic_vocab_size: 4096, 8192, 16384 or 32768. ddim_sample_step, cfg_scale: may be changed between
    calls. checkpoint_path: a folder with the official files (run in PyTorch), a bundle folder (run on the fastest backend), or None:
    the official files in the working directory; each that is not there is downloaded once from the hub into `cache_path`.
    codec: an opened pipeline instead. device: "cpu" or "cuda"; None: that of `codec`, else cuda where it is usable.
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
        chosen = choose_device("SemantiCodec", device, codec)
        import torch

        setting = {"token_rate": token_rate, "semantic_vocab_size": semantic_vocab_size}
        checkpoint = build_spec(setting, "official").checkpoint
        if codec is None:
            model = open_bundle(checkpoint_path, chosen)
            if model is None:
                model = Model.open_checkpoint(SYSTEM.name, _locate(checkpoint, checkpoint_path, cache_path), setting, device=chosen)
            codec = Pipeline(model)
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
        mel = np.concatenate(list(self.codec.segments.analyse(source, 1, segment_count(source.samples))), axis=1)
        return torch.from_numpy(mel), target_token_len(source.samples, self.codec.config.stack)

    def encode(self, path: str | Path) -> Tensor:
        """Tokens int64 [1, T, 2] of a file's first channel, a semantic and an acoustic code each, on `device`.

        Raises MissingAudioError, which is a FileNotFoundError as officially, AudioError, InputError, BackendError.
        """
        return as_tensor(self.codec.encode(_open(path)), self.device)

    def decode(self, tokens: Any) -> Float:
        """Audio float32 [batch, 1, samples] of tokens [batch, T, 2], 16 kHz. `torch.manual_seed` gives the official package's noise.

        Officially the batch is 1; here up to 64, with noise of [batch, 8, 256, 16] in each draw. Raises InputError, BackendError.
        """
        codes = self.codec.check_tokens(as_array(tokens, "tokens"))
        rows = len(codes)
        if rows > BATCH.maximum:
            raise InputError(f"got tokens of {rows} rows, expected at most {BATCH.maximum}; decode them in several calls")
        noise = _TorchNoise(rows, self.device)  # all rows of a window run at once, because they share its draws
        return self.codec.decode(codes, steps=self.ddim_sample_step, guidance=self.cfg_scale, noise=noise, max_batch_size=rows)

    def forward(self, path: str | Path) -> Float:
        """Encode a file, and decode its tokens: float32 [1, 1, samples] at 16 kHz. Errors as of the two ways."""
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
        array = as_floats(mel, "a mel spectrogram")
        if array.ndim != 3 or array.shape[2] != MEL_BINS or not array.size or array.shape[1] % SEGMENT_FRAMES:
            raise InputError(f"got a mel spectrogram of shape {list(array.shape)}, expected [batch, 1024 n, 128] as `load_audio` gives")
        segments = array.reshape(-1, SEGMENT_FRAMES, MEL_BINS)
        batches = [list(segments[start : start + SEGMENTS]) for start in range(0, len(segments), SEGMENTS)]
        tokens = np.stack([one for batch in batches for one in self.codec.segments.encode(batch)])
        return as_tensor(tokens.reshape(len(array), -1, 2), self.device)

    def token_to_quantized_feature(self, tokens: Any) -> Tensor:
        """Tokens [batch, T, 2] -> their code vectors float32 [batch, T, 2D], the acoustic one first. Raises InputError, BackendError."""
        return as_tensor(self.codec.decoder.embed(self.codec.check_tokens(as_array(tokens, "tokens"))), self.device)


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
        known = as_floats(feature, "a feature")
        sample = self.codec.sampler.prepare("ddim", ddim_steps, unconditional_guidance_scale, ddim_eta)
        given = None if x_T is None else as_floats(x_T, "x_T")
        latents = sample.run(known, lambda k: _draw(len(known), self.device) if given is None or k else given, lambda: None)
        return np.stack([self.codec.decoder.synthesise(latent) for latent in latents])[:, None]


class _TorchNoise:
    """Draws as the official sampler does: for each window the initial noise, then that of every step (SPEC section 3.3).

    The rows of a window have to be decoded together, the first one first.
    """

    def __init__(self, rows: int, device: Any) -> None:
        self._rows, self._device = rows, device
        self._last: Float = np.empty((0, *LATENT_SHAPE), np.float32)

    def at(self, places: Sequence[Place], draws: int) -> Draw:
        """See `musicrt.runtime.models.semanticodec.noise.Noise`."""
        del draws
        return lambda _index: np.stack([self._row(place.row) for place in places])

    def _row(self, row: int) -> Float:
        if row == 0:
            self._last = _draw(self._rows, self._device)
        noise: Float = self._last[row]
        return noise


def _draw(rows: int, device: Any) -> Float:
    return draw_normal((rows, *LATENT_SHAPE), device)


def _locate(checkpoint: CheckpointSpec, path: str | Path | None, cache: str | Path) -> Source:
    """The official files, where the official class looks for them. Raises CheckpointError."""
    if path is not None:
        return Path(path).expanduser()
    files = {name: Path(name) for name in checkpoint.files if Path(name).is_file()}
    missing = replace(checkpoint, files=tuple(name for name in checkpoint.files if name not in files))
    if missing.files:
        files |= find_files(missing, download_checkpoint(missing, checkpoint.hub_repository, cache))
    return files


def _open(path: str | Path) -> AudioSource:
    if not isinstance(path, str | Path):
        raise InputError(f"got {type(path).__name__}, expected the path of an audio file; `codec.encode` takes arrays")
    if not Path(path).exists():
        raise MissingAudioError(f"can't read {path}: no such file; expected an audio file")
    return open_source(path, SAMPLE_RATE, kernel="sinc")
