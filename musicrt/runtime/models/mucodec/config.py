"""Hyper-parameters of MuCodec, nested and named as in the official configurations (SPEC sections 1, 3 and 4)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from musicrt.runtime.hyperparameters import Count, Depth, Finite, Group, Positive, Width
from musicrt.runtime.models.mucodec.muq_config import ConformerConfig, MelStatistics, MuqConfig
from musicrt.runtime.packing import bits_of

SAMPLE_RATE = 48000
CODE_RATE = 25
"""Codes a second, of each codebook."""
CODE_SAMPLES = 1920
"""Samples that a code stands for; a latent frame is two codes."""
MUQ_RATE = 24000
MUQ_CODE_SAMPLES = 960
MUQ_HOP = 240
MUQ_BINS = 128
"""Mel bands that MuQ looks at, every `MUQ_HOP` samples: four frames a code."""
LATENT_CHANNELS, LATENT_BINS = 32, 32
"""Of both channels together: 16 of the left, then 16 of the right one."""
VAE_CHANNELS = 16
MEL_HOP = 480
MEL_BINS = 256
"""Mel bands of the VAE, every `MEL_HOP` samples: eight frames to a latent frame."""
VOCODER_EXTRA = 16
"""Samples that the vocoder makes beyond `MEL_HOP` for each frame."""
PATCH = 2
"""Frames and bins of a patch of the estimator."""

Dilations = tuple[Literal[1], Literal[3], Literal[5]]


class MainConfig(Group):
    """The module that holds quantizer, conditioning and estimator."""

    unused = frozenset({"unet_model_name", "snr_gamma"})
    num_channels: Literal[32] = 32


class QuantizerConfig(Group):
    """The residual quantizer (SPEC section 3.5). Released: one codebook."""

    unused = frozenset({"quantizer_dropout", "stale_tolerance"})
    input_dim: Width = 1024
    n_codebooks: Depth = 1
    codebook_size: Count = 16384
    codebook_dim: Width = 32


class EstimatorConfig(Group):
    """The transformer that predicts the velocity (SPEC section 4.6)."""

    unused = frozenset({"_class_name", "dropout", "norm_num_groups", "num_embeds_ada_norm", "upcast_attention", "use_linear_projection"})
    activation_fn: Literal["gelu-approximate"] = "gelu-approximate"
    attention_bias: Literal[True] = True
    attention_head_dim: Width = 72
    attention_type: Literal["default"] = "default"
    cross_attention_dim: None = None
    double_self_attention: Literal[False] = False
    in_channels: Literal[96] = 96
    norm_elementwise_affine: Literal[False] = False
    norm_eps: Positive = 1e-6
    norm_type: Literal["ada_norm_single"] = "ada_norm_single"
    num_attention_heads: Width = 22
    num_layers: Depth = 24
    num_vector_embeds: None = None
    only_cross_attention: Literal[False] = False
    out_channels: Literal[32] = 32
    patch_size: Literal[2] = 2
    sample_size: Literal[384] = 384

    @property
    def width(self) -> int:
        return self.num_attention_heads * self.attention_head_dim

    @model_validator(mode="after")
    def _check(self) -> EstimatorConfig:
        if self.width % 4 or self.width > 1 << 16:
            raise ValueError(
                f"num_attention_heads={self.num_attention_heads} of attention_head_dim={self.attention_head_dim} are {self.width} wide, "
                "expected a multiple of 4 up to 65536"
            )
        return self


class DdConfig(Group):
    """Sizes of the VAE (SPEC section 4.8)."""

    unused = frozenset({"dropout", "resolution"})
    double_z: Literal[True] = True
    mel_bins: Literal[256] = 256
    z_channels: Literal[16] = 16
    downsample_time: Literal[False] = False
    in_channels: Literal[1] = 1
    out_ch: Literal[1] = 1
    ch: Annotated[Width, Field(multiple_of=32)] = 128
    ch_mult: tuple[Depth, Depth, Depth, Depth] = (1, 2, 4, 8)
    num_res_blocks: Depth = 2
    attn_resolutions: tuple[()] = ()

    @property
    def channels(self) -> tuple[int, ...]:
        """Of each level, finest first."""
        return tuple(self.ch * times for times in self.ch_mult)


class AutoencoderConfig(Group):
    """The VAE of each channel's mel spectrogram."""

    unused = frozenset({"image_key"})
    sampling_rate: Literal[48000] = 48000
    subband: Literal[1] = 1
    embed_dim: Literal[16] = 16
    time_shuffle: Literal[1] = 1
    ddconfig: DdConfig = DdConfig()


class VocoderConfig(Group):
    """HiFi-GAN (SPEC section 4.9)."""

    resblock: Literal["1"] = "1"
    upsample_rates: tuple[Literal[6], Literal[5], Literal[4], Literal[2], Literal[2]] = (6, 5, 4, 2, 2)
    upsample_kernel_sizes: tuple[Literal[12], Literal[10], Literal[8], Literal[4], Literal[4]] = (12, 10, 8, 4, 4)
    upsample_initial_channel: Annotated[Width, Field(multiple_of=32)] = 1536
    resblock_kernel_sizes: Annotated[tuple[Depth, ...], Field(min_length=1, max_length=8)] = (3, 7, 11, 15)
    resblock_dilation_sizes: tuple[Dilations, ...] = ((1, 3, 5),) * 4
    num_mels: Literal[256] = 256
    n_fft: Literal[2048] = 2048
    hop_size: Literal[480] = 480
    win_size: Literal[2048] = 2048
    sampling_rate: Literal[48000] = 48000
    fmin: Literal[20] = 20
    fmax: Literal[24000] = 24000

    @model_validator(mode="after")
    def _check(self) -> VocoderConfig:
        if any(size % 2 == 0 for size in self.resblock_kernel_sizes):
            raise ValueError(f"resblock_kernel_sizes={list(self.resblock_kernel_sizes)}, expected odd numbers")
        if len(self.resblock_dilation_sizes) != len(self.resblock_kernel_sizes):
            raise ValueError(
                f"{len(self.resblock_dilation_sizes)} resblock_dilation_sizes for {len(self.resblock_kernel_sizes)} resblock_kernel_sizes, "
                "expected as many"
            )
        return self


class StftConfig(Group):
    """The mel spectrogram of the prompt (SPEC section 4.7)."""

    filter_length: Literal[2048] = 2048
    hop_length: Literal[480] = 480
    win_length: Literal[2048] = 2048
    n_mel_channels: Literal[256] = 256
    sampling_rate: Literal[48000] = 48000
    mel_fmin: Literal[20] = 20
    mel_fmax: Literal[24000] = 24000


class ChainConfig(Group):
    """Constants of the official calls; but for the defaults of the sampler, what is built here knows these only."""

    sample_rate: Literal[48000] = 48000
    window_seconds: Annotated[float, Field(ge=40.96, le=40.96)] = 40.96
    window_extra_samples: Literal[480] = 480
    code_rate: Literal[25] = 25
    latent_frames: Literal[512] = 512
    window_codes: Literal[1024] = 1024
    hop_codes: Literal[768] = 768
    guidance_scale: Finite = 1.5
    num_steps_code2sound: Width = 20
    num_steps_sound2sound: Width = 50
    peak_joint: Annotated[float, Field(ge=0.8, le=0.8)] = 0.8
    peak_per_channel: Annotated[float, Field(ge=0.9, le=0.9)] = 0.9


class Config(Group):
    """The whole system. Defaults: the released one, or what was assumed of it."""

    muq: MuqConfig = MuqConfig()
    muq_w2v2: ConformerConfig = ConformerConfig()
    muq_stat: MelStatistics = MelStatistics()
    layer_num: Annotated[Depth, Field(ge=2)] = 7
    main: MainConfig = MainConfig()
    rvq: QuantizerConfig = QuantizerConfig()
    transformer2D: EstimatorConfig = EstimatorConfig()  # noqa: N815 - the official name
    autoencoder: AutoencoderConfig = AutoencoderConfig()
    vocoder_48k: VocoderConfig = VocoderConfig()
    stft: StftConfig = StftConfig()
    chain: ChainConfig = ChainConfig()

    @model_validator(mode="after")
    def _check(self) -> Config:
        for name, given, source, expected in (
            ("muq_w2v2.hidden_size", self.muq_w2v2.hidden_size, "muq.encoder_dim", self.muq.encoder_dim),
            ("muq_w2v2.num_hidden_layers", self.muq_w2v2.num_hidden_layers, "muq.encoder_depth", self.muq.encoder_depth),
            ("rvq.input_dim", self.rvq.input_dim, "muq.encoder_dim", self.muq.encoder_dim),
        ):
            if given != expected:
                raise ValueError(f"{name}={given}, expected {expected} as {source} is")
        if self.layers > self.muq.encoder_depth:
            raise ValueError(f"layer_num={self.layer_num}, expected 2 to {self.muq.encoder_depth + 1} with muq.encoder_depth")
        return self

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> Config:
        """Read official hyper-parameters. Raises ConfigError for an unknown name, a bad value, or a network that is not built here."""
        return cls.read("mucodec", values)

    def to_mapping(self) -> dict[str, Any]:
        """The same as JSON values."""
        return self.model_dump(mode="json")

    @property
    def layers(self) -> int:
        """Layers of the conformer that are run: those above give nothing that is read."""
        return self.layer_num - 1

    @property
    def features(self) -> int:
        """D: width of what is quantised."""
        return self.rvq.input_dim

    @property
    def bits(self) -> tuple[int, ...]:
        """Bits of a code of each codebook."""
        return (bits_of(self.rvq.codebook_size),) * self.rvq.n_codebooks

    @property
    def bit_rate(self) -> float:
        """Nominal, of both channels together."""
        return float(math.fsum(self.bits) * CODE_RATE)
