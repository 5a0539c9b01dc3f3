"""Hyper-parameters of VidMuse, nested and named as in the official configurations (SPEC sections 2, 5, 6 and 9).

`lm` has the sections of the training configuration that say what the network is; `clip_vision` and `encodec` are what the hub says of the
image tower and of the codec. A codec that comes with a training configuration of its own (`codec`) is brought into the form of `encodec`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from musicrt.runtime.hyperparameters import Count, Depth, Group, Positive, Width
from musicrt.runtime.models.vidmuse.audiocraft import FRAME_RATE, as_encodec
from musicrt.runtime.models.vidmuse.language_config import LanguageConfig
from musicrt.runtime.packing import bits_of

SAMPLE_RATE = 32000
HOP = 640
"""Samples that a code stands for."""
VIDEO_RATE = 2
"""Local frames a second."""
IMAGE = 224
"""Rows and columns of a frame."""
TOKENS_PER_FRAME = 50
VISUAL_WIDTH = 768
WINDOW_SECONDS = 30.0


class ClipConfig(Group):
    """The image tower, a CLIP ViT-B/32 (SPEC section 5)."""

    unused = frozenset(
        {
            "architectures", "attention_dropout", "dropout", "initializer_factor", "initializer_range", "model_type", "num_channels",
            "projection_dim", "torch_dtype", "transformers_version",
        }
    )  # fmt: skip
    hidden_size: Literal[768] = 768
    intermediate_size: Width = 3072
    num_hidden_layers: Depth = 12
    num_attention_heads: Literal[12] = 12
    image_size: Literal[224] = 224
    patch_size: Literal[32] = 32
    hidden_act: Literal["quick_gelu"] = "quick_gelu"
    layer_norm_eps: Positive = 1e-5


class CodecConfig(Group):
    """EnCodec (SPEC section 9)."""

    unused = frozenset({"architectures", "model_type", "overlap", "torch_dtype", "transformers_version", "trim_right_ratio"})
    sampling_rate: Literal[32000] = 32000
    audio_channels: Literal[1] = 1
    normalize: Literal[False] = False
    chunk_length_s: None = None
    target_bandwidths: Annotated[tuple[Positive, ...], Field(min_length=1, max_length=16)] = (2.2,)
    hidden_size: Width = 128
    num_filters: Annotated[Width, Field(multiple_of=2, le=1 << 11)] = 64
    num_residual_layers: Literal[1] = 1
    upsampling_ratios: Annotated[tuple[Annotated[int, Field(strict=True, ge=2)], ...], Field(min_length=1)] = (8, 5, 4, 4)
    norm_type: Literal["weight_norm"] = "weight_norm"
    kernel_size: Literal[7] = 7
    last_kernel_size: Literal[7] = 7
    residual_kernel_size: Literal[3] = 3
    dilation_growth_rate: Depth = 2
    use_causal_conv: Literal[False] = False
    pad_mode: Literal["reflect", "constant"] = "reflect"
    compress: Literal[2] = 2
    num_lstm_layers: Annotated[Depth, Field(le=8)] = 2
    codebook_size: Count = 2048
    codebook_dim: Width = 128
    use_conv_shortcut: Literal[False] = False

    @property
    def codebooks(self) -> int:
        """As many as the largest bandwidth takes, in kbit/s."""
        return int(1000 * self.target_bandwidths[-1] / (FRAME_RATE * bits_of(self.codebook_size)) + 1e-6)

    @model_validator(mode="after")
    def _check(self) -> CodecConfig:
        if math.prod(self.upsampling_ratios) != HOP:
            raise ValueError(f"upsampling_ratios={list(self.upsampling_ratios)}, expected a product of {HOP} samples per code")
        if self.codebook_dim != self.hidden_size:
            raise ValueError(f"codebook_dim={self.codebook_dim}, expected hidden_size={self.hidden_size}")
        return self


class Config(Group):
    """The whole system. Defaults: the small scale."""

    lm: LanguageConfig = LanguageConfig()
    segment_duration: Annotated[float, Field(strict=True, ge=WINDOW_SECONDS, le=WINDOW_SECONDS)] = WINDOW_SECONDS
    clip_vision: ClipConfig = ClipConfig()
    encodec: CodecConfig = CodecConfig()

    @model_validator(mode="after")
    def _check(self) -> Config:
        for name, given, source, expected in (
            ("delays of lm.codebooks_pattern", len(self.delays), "lm.transformer_lm.n_q", self.codebooks),
            ("codebooks by encodec.target_bandwidths", self.encodec.codebooks, "lm.transformer_lm.n_q", self.codebooks),
            ("encodec.codebook_size", self.encodec.codebook_size, "lm.transformer_lm.card", self.card),
        ):
            if given != expected:
                raise ValueError(f"{given} {name}, expected {expected} as {source} is")
        return self

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> Config:
        """Read official hyper-parameters. Raises ConfigError for an unknown name, a bad value, or a network that is not built here."""
        values = dict(values)
        if "codec" in values and "encodec" not in values:
            values["encodec"] = as_encodec(values.pop("codec"))
        return cls.read("vidmuse", values)

    def to_mapping(self) -> dict[str, Any]:
        """The same as JSON values."""
        return self.model_dump(mode="json")

    @property
    def card(self) -> int:
        """Codes of a codebook."""
        return self.lm.transformer_lm.card

    @property
    def special(self) -> int:
        """The token where there is none."""
        return self.card

    @property
    def codebooks(self) -> int:
        return self.lm.transformer_lm.n_q

    @property
    def delays(self) -> tuple[int, ...]:
        """Steps that each codebook is behind."""
        return self.lm.codebooks_pattern.delay.delays

    @property
    def sample_rate(self) -> int:
        return SAMPLE_RATE

    @property
    def hop(self) -> int:
        """Samples of a code."""
        return HOP

    @property
    def frame_rate(self) -> int:
        """Codes a second, of each codebook."""
        return FRAME_RATE

    @property
    def window_seconds(self) -> float:
        """What is generated in one go."""
        return WINDOW_SECONDS

    @property
    def width(self) -> int:
        return self.lm.transformer_lm.dim

    @property
    def layers(self) -> int:
        return self.lm.transformer_lm.num_layers

    @property
    def heads(self) -> int:
        return self.lm.transformer_lm.num_heads

    @property
    def head_width(self) -> int:
        return self.width // self.heads

    @property
    def latent_channels(self) -> int:
        return self.encodec.hidden_size

    @property
    def recurrent_channels(self) -> int:
        return self.encodec.num_filters << len(self.encodec.upsampling_ratios)

    @property
    def recurrent_layers(self) -> int:
        return self.encodec.num_lstm_layers

    @property
    def pad_mode(self) -> Literal["reflect", "constant"]:
        return self.encodec.pad_mode
