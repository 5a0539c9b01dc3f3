"""Hyper-parameters of SemantiCodec, nested and named as officially (SPEC sections 1 and 8)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from musicrt.runtime.hyperparameters import Count, Depth, Finite, Group, Positive, Width
from musicrt.runtime.packing import bits_of

SAMPLE_RATE = 16000
SEGMENT_FRAMES = 1024
"""Mel frames in a segment of the encoder, and in what a window decodes to."""
HOP = 160
"""Samples between mel frames, of the front-end as of the vocoder."""
MEL_BINS = 128
"""Of the encoder."""
PATCH = 16
"""Frames and bins in a patch."""
LATENT_SHAPE = (8, 256, 16)
"""Channels, time and frequency of a window's latent."""
VOCODER_BINS = 64
POSITION_CHANNELS = 192
"""Channels of the positional code that follows the two code vectors in the context."""
LSTM_LAYERS = {25: 2, 50: 3, 100: 4}

Dilations = tuple[Literal[1], Literal[3], Literal[5]]


class AudioMaeConfig(Group):
    """The ViT that looks at the mel spectrogram (SPEC section 2.4)."""

    unused = frozenset({"decoder_embed_dim", "decoder_depth", "decoder_num_heads"})
    img_size: tuple[Literal[1024], Literal[128]] = (1024, 128)
    patch_size: Literal[16] = 16
    in_chans: Literal[1] = 1
    embed_dim: Width = 768
    depth: Depth = 12
    num_heads: Width = 12
    mlp_ratio: Depth = 4
    qkv_bias: Literal[True] = True
    norm_eps: Positive = 1e-6
    contextual_depth: Depth = 8

    @model_validator(mode="after")
    def _check(self) -> AudioMaeConfig:
        if self.embed_dim % self.num_heads:
            raise ValueError(f"num_heads={self.num_heads} does not divide embed_dim={self.embed_dim}")
        if self.contextual_depth + 1 >= self.depth:
            raise ValueError(f"contextual_depth={self.contextual_depth} leaves no layer of depth={self.depth} to average")
        return self


class PositionConfig(Group):
    """The positional code of the tokens."""

    seq_length: Literal[512] = 512
    embedding_dim: Literal[192] = 192


class EncoderConfig(Group):
    """The residual encoder and its codebook (SPEC section 2.4). `None`: follows from the token rate."""

    feature_dimension: Count | None = None
    codebook_size: Count = 8192
    codebook_dim: None = None
    use_cosine_sim: Literal[False] = False
    residual_encoder: Literal["lstm"] = "lstm"
    lstm_layer: Depth | None = None
    lstm_bidirectional: Literal[True] = True
    rvq_layers: Literal[0] = 0
    use_oracle: Literal[False] = False
    use_positional_embedding: Literal[True] = True
    pos_embed: PositionConfig = PositionConfig()


class DecoderConfig(Group):
    """The latent and its noise schedule (SPEC section 3.3)."""

    unused = frozenset({"scale_by_std", "num_timesteps_cond", "first_stage_key"})
    latent_t_size: Literal[256] = 256
    latent_f_size: Literal[16] = 16
    channels: Literal[8] = 8
    sampling_rate: Literal[16000] = 16000
    linear_start: Positive = 0.0015
    linear_end: Positive = 0.0195
    timesteps: Width = 1000
    parameterization: Literal["v"] = "v"


class UNetConfig(Group):
    """The denoiser (SPEC section 3.4)."""

    unused = frozenset({"image_size"})
    model_channels: Width = 64
    channel_mult: tuple[Depth, Depth, Depth, Depth] = (1, 2, 3, 5)
    num_res_blocks: Depth = 2
    num_head_channels: Width = 32
    in_channels: Literal[8] = 8
    out_channels: Literal[8] = 8
    attention_resolutions: tuple[Literal[8], Literal[4], Literal[2]] = (8, 4, 2)
    context_dim: tuple[Count] | None = None
    transformer_depth: Literal[1] = 1
    use_spatial_transformer: Literal[True] = True

    @property
    def channels(self) -> tuple[int, ...]:
        """Of each level, finest first; all levels but the first have attention."""
        return tuple(self.model_channels * times for times in self.channel_mult)

    @model_validator(mode="after")
    def _check(self) -> UNetConfig:
        if any(width % 32 or width % self.num_head_channels for width in self.channels):
            raise ValueError(f"levels of {list(self.channels)} channels, expected multiples of 32 and of num_head_channels")
        return self


class DdConfig(Group):
    """Sizes of the VAE's decoder (SPEC section 3.5)."""

    unused = frozenset({"double_z", "dropout", "resolution"})
    ch: Annotated[Width, Field(multiple_of=32)] = 128
    ch_mult: tuple[Depth, Depth, Depth] = (1, 2, 4)
    num_res_blocks: Depth = 2
    z_channels: Literal[8] = 8
    in_channels: Literal[1] = 1
    out_ch: Literal[1] = 1
    mel_bins: Literal[64] = 64
    attn_resolutions: tuple[()] = ()
    downsample_time: Literal[False] = False


class FirstStageConfig(Group):
    """The VAE."""

    unused = frozenset({"subband", "time_shuffle", "image_key"})
    embed_dim: Literal[8] = 8
    sampling_rate: Literal[16000] = 16000
    ddconfig: DdConfig = DdConfig()


class VocoderConfig(Group):
    """HiFi-GAN (SPEC section 3.6)."""

    resblock: Literal["1"] = "1"
    upsample_rates: tuple[Literal[5], Literal[4], Literal[2], Literal[2], Literal[2]] = (5, 4, 2, 2, 2)
    upsample_kernel_sizes: tuple[Depth, Depth, Depth, Depth, Depth] = (16, 16, 8, 4, 4)
    upsample_initial_channel: Annotated[Width, Field(multiple_of=32)] = 1024
    resblock_kernel_sizes: tuple[Literal[3], Literal[7], Literal[11]] = (3, 7, 11)
    resblock_dilation_sizes: tuple[Dilations, Dilations, Dilations] = ((1, 3, 5), (1, 3, 5), (1, 3, 5))
    num_mels: Literal[64] = 64
    sampling_rate: Literal[16000] = 16000
    hop_size: Literal[160] = 160


class Config(Group):
    """One of the twelve settings, or the same network in other sizes. Defaults: token rate 50, 16384 semantic codes."""

    token_rate: Literal[25, 50, 100] = 50
    semantic_vocab_size: Literal[4096, 8192, 16384, 32768] = 16384
    stack_factor_K: Literal[1, 2, 4] | None = None  # noqa: N815 - the official name
    semantic_codebook_rows: Count | None = None
    ddim_sample_step: Width = 50
    cfg_scale: Finite = 2.0
    patch_feature_width: Width = 768
    audiomae: AudioMaeConfig = AudioMaeConfig()
    encoder: EncoderConfig = EncoderConfig()
    decoder: DecoderConfig = DecoderConfig()
    unet_config: UNetConfig = UNetConfig()
    first_stage_config: FirstStageConfig = FirstStageConfig()
    vocoder: VocoderConfig = VocoderConfig()

    @model_validator(mode="after")
    def _check(self) -> Config:
        for name, given, expected in (
            ("stack_factor_K", self.stack_factor_K, self.stack),
            ("encoder.feature_dimension", self.encoder.feature_dimension, self.feature_dim),
            ("unet_config.context_dim", self.unet_config.context_dim, (self.context_dim,)),
            ("patch_feature_width", self.patch_feature_width, self.audiomae.embed_dim),
        ):
            if given not in (None, expected):
                raise ValueError(f"{name}={given}, expected {expected} with the other values")
        return self

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> Config:
        """Read official hyper-parameters. Raises ConfigError for an unknown name, a bad value, or a network that is not built here."""
        return cls.read("semanticodec", values)

    def to_mapping(self) -> dict[str, Any]:
        """The same as JSON values, one form for one network: what follows is written out, rows only where the vocabulary does not tell."""
        values = self.model_dump(mode="json")
        values["stack_factor_K"] = self.stack
        values["encoder"] |= {"feature_dimension": self.feature_dim, "lstm_layer": self.lstm_layers}
        values["unet_config"]["context_dim"] = [self.context_dim]
        if self.semantic_codebook_rows == self.semantic_vocab_size:
            values["semantic_codebook_rows"] = None
        return values

    @property
    def stack(self) -> int:
        """K: patches along time and frequency that make one token (SPEC section 1)."""
        return 100 // self.token_rate

    @property
    def tokens(self) -> int:
        """T: token pairs in a segment or window."""
        return 512 // self.stack

    @property
    def feature_dim(self) -> int:
        """D: width of a code vector."""
        return self.patch_feature_width * self.stack

    @property
    def context_dim(self) -> int:
        """Width of the denoiser's context: both code vectors and the positional code."""
        return 2 * self.feature_dim + POSITION_CHANNELS

    @property
    def lstm_layers(self) -> int:
        return self.encoder.lstm_layer or LSTM_LAYERS[self.token_rate]

    @property
    def codebook_sizes(self) -> tuple[int, int]:
        """Semantic (of its file, else what its name says) and acoustic."""
        return self.semantic_codebook_rows or self.semantic_vocab_size, self.encoder.codebook_size

    @property
    def bits(self) -> tuple[int, int]:
        """Bits of a semantic and of an acoustic code."""
        semantic, acoustic = self.codebook_sizes
        return bits_of(semantic), bits_of(acoustic)

    @property
    def pairs_per_second(self) -> float:
        return SAMPLE_RATE * self.tokens / (SEGMENT_FRAMES * HOP)
