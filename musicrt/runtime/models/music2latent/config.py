"""Hyper-parameters of Music2Latent, under their official names (SPEC section 2)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from musicrt.runtime.errors import ConfigError

# Switches of the official file that select another network than the one every released checkpoint has.
_FIXED: dict[str, object] = {
    "data_channels": 2,
    "use_fourier": False,
    "frequency_scaling": True,
    "normalization": True,
    "pre_normalize_2d_to_1d": True,
    "pre_normalize_downsampling_encoder": True,
}
# Names that matter for training or for CUDA autocast only; they change nothing that is computed here.
_IGNORED = frozenset({"mixed_precision", "fourier_scale", "dropout_rate", "min_res_dropout", "init_as_zero"})


@dataclass(frozen=True)
class Config:
    """What the network, the sampler and the chunking need to know. Defaults: the released checkpoint."""

    sample_rate: int = 44100
    hop: int = 512
    alpha_rescale: float = 0.65
    beta_rescale: float = 0.34
    sigma_data: float = 0.5
    sigma_min: float = 0.002
    sigma_max: float = 80.0
    rho: float = 7.0
    sigma_rescale: float = 0.06
    base_channels: int = 64
    multipliers_list: tuple[int, ...] = (1, 2, 4, 4, 4)
    layers_list: tuple[int, ...] = (2, 2, 2, 2, 2)
    attention_list: tuple[int, ...] = (0, 0, 1, 1, 1)
    layers_list_encoder: tuple[int, ...] = (1, 1, 1, 1, 1)
    attention_list_encoder: tuple[int, ...] = (0, 0, 1, 1, 1)
    freq_downsample_list: tuple[int, ...] = (1, 0, 0, 0)
    bottleneck_base_channels: int = 512
    num_bottleneck_layers: int = 4
    bottleneck_channels: int = 64
    heads: int = 4
    cond_channels: int = 256
    max_batch_size_encode: int = 1
    max_waveform_length_encode: int = 44100 * 60
    max_batch_size_decode: int = 1
    max_waveform_length_decode: int = 44100 * 60

    def __post_init__(self) -> None:
        self._check_numbers()
        levels = len(self.multipliers_list)
        for name in ("layers_list", "attention_list", "layers_list_encoder", "attention_list_encoder"):
            if len(getattr(self, name)) != levels:
                raise ConfigError(f"{name} has {len(getattr(self, name))} entries, expected {levels} as multipliers_list has")
        if len(self.freq_downsample_list) != levels - 1:
            raise ConfigError(f"freq_downsample_list has {len(self.freq_downsample_list)} entries, expected {levels - 1}")
        shrink = self.frames_per_latent << 2 * self.freq_downsample_list.count(1)
        if self.bins % shrink:
            raise ConfigError(f"hop {self.hop} gives {self.bins} bins, which the levels do not divide evenly")

    def _check_numbers(self) -> None:
        """Each hyper-parameter by itself; sizes are bounded because a manifest may come from anywhere."""
        lists = (
            "multipliers_list",
            "layers_list",
            "layers_list_encoder",
            "attention_list",
            "attention_list_encoder",
            "freq_downsample_list",
        )
        for name in lists:
            low, high = (0, 1) if name.startswith(("attention", "freq")) else (1, 64)
            values = getattr(self, name)
            if not isinstance(values, tuple) or not values or not all(type(value) is int and low <= value <= high for value in values):
                raise ConfigError(f"got {name}={values!r}, expected whole numbers from {low} to {high}")
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name not in lists and (isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1 << 31):
                raise ConfigError(f"got {field.name}={value!r}, expected a positive number")
            if field.type == "int" and not isinstance(value, int):
                raise ConfigError(f"got {field.name}={value!r}, expected a whole number")
        if self.sigma_min >= self.sigma_max:
            raise ConfigError(f"got sigma_min={self.sigma_min} and sigma_max={self.sigma_max}, expected sigma_min below sigma_max")
        if self.cond_channels % 2 or self.cond_channels < 4:
            raise ConfigError(f"got cond_channels={self.cond_channels}, expected an even number from 4 on")
        for width in (*self.channels, self.bottleneck_base_channels):
            if width < 4 or width % min(width // 4, 32):
                raise ConfigError(
                    f"got a level of {width} channels, which group norm does not divide; expected multiples of 4, from 128 on of 32"
                )
        widths = [w for w, *flags in zip(self.channels, self.attention_list, self.attention_list_encoder, strict=False) if any(flags)]
        if any(width % self.heads for width in widths):
            raise ConfigError(f"got heads={self.heads}, which does not divide the attention's channels {widths}")

    @property
    def bins(self) -> int:
        """F: frequency bins kept of each frame."""
        return 2 * self.hop

    @property
    def fft_size(self) -> int:
        """N: samples in a frame."""
        return 4 * self.hop

    @property
    def frames_per_latent(self) -> int:
        """ds: STFT frames behind one latent frame."""
        return 1 << self.freq_downsample_list.count(0)

    @property
    def samples_per_latent(self) -> int:
        return self.hop * self.frames_per_latent

    def chunk_latents(self, samples: int) -> int:
        """Latents in an official chunk of so many samples (SPEC section 9)."""
        return int(samples / self.hop) // self.frames_per_latent

    @property
    def coarse_bins(self) -> int:
        """Fb: frequency size of the coarsest level."""
        return (self.bins >> 2 * self.freq_downsample_list.count(1)) // self.frames_per_latent

    @property
    def channels(self) -> tuple[int, ...]:
        """Channels of each level, finest first."""
        return tuple(self.base_channels * m for m in self.multipliers_list)

    @property
    def feature_channels(self) -> int:
        """Rows of `extract_features`."""
        return self.channels[-1] * self.coarse_bins

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> Config:
        """Read official hyper-parameters. Raises ConfigError for an unknown name or a network that is not built here."""
        known = {f.name: f for f in fields(cls)}
        chosen: dict[str, Any] = {}
        for name, value in values.items():
            if name in known:
                chosen[name] = tuple(value) if isinstance(value, list) else value
            elif name in _FIXED:
                if value != _FIXED[name]:
                    raise ConfigError(f"music2latent: {name}={value!r} is not supported; the released network has {_FIXED[name]!r}")
            elif name not in _IGNORED:
                raise ConfigError(f"music2latent has no hyper-parameter {name!r}; known: {', '.join(sorted(known))}")
        return cls(**chosen)

    def to_mapping(self) -> dict[str, Any]:
        """The same as JSON values."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}
