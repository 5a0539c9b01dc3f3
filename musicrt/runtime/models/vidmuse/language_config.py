"""Hyper-parameters of the language model: the sections of the training configuration that say what it is (SPEC sections 2, 5, 6 and 7)."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from musicrt.runtime.hyperparameters import Count, Depth, Group, Width

Empty = tuple[()]


class TransformerConfig(Group):
    """The language model, and what the temporal transformers take from it (SPEC sections 5 and 6)."""

    unused = frozenset(
        {
            "dropout", "emb_lr", "lr", "weight_decay", "custom", "memory_efficient", "attention_as_float32", "checkpointing", "weight_init",
            "depthwise_init", "zero_bias_init", "cross_attention", "attention_dropout", "two_step_cfg",
        }
    )  # fmt: skip
    dim: Width = 1024
    num_heads: Width = 16
    num_layers: Depth = 24
    hidden_scale: Depth = 4
    n_q: Annotated[Depth, Field(le=16)] = 4
    card: Count = 2048
    depth: Depth = 2
    dim_head: Width = 64
    activation: Literal["gelu"] = "gelu"
    norm_first: Literal[True] = True
    norm: Literal["layer_norm"] = "layer_norm"
    norm_emb: Literal[False] = False
    bias_ff: Literal[False] = False
    bias_attn: Literal[False] = False
    bias_proj: Literal[False] = False
    past_context: None = None
    causal: Literal[True] = True
    layer_scale: None = None
    positional_embedding: Literal["sin"] = "sin"
    positional_scale: Annotated[float, Field(ge=1, le=1)] = 1.0
    max_period: Annotated[float, Field(ge=10000, le=10000)] = 10000.0
    xpos: Literal[False] = False
    qk_layer_norm: Literal[False] = False
    qk_layer_norm_cross: Literal[False] = False
    kv_repeat: Literal[1] = 1

    @model_validator(mode="after")
    def _check(self) -> TransformerConfig:
        if self.dim % self.num_heads or self.dim % 2 or self.dim < 4:
            raise ValueError(f"dim={self.dim}, expected an even number of 4 and more that num_heads={self.num_heads} divides")
        if self.dim // self.num_heads % 8:  # as ONNX Runtime's attention over caches wants it; official ones are 32 and 64
            raise ValueError(f"dim={self.dim} and num_heads={self.num_heads}, expected heads of a multiple of 8; others are not built here")
        return self


class DelayConfig(Group):
    """How many steps each codebook is behind the first (SPEC section 7)."""

    delays: Annotated[tuple[Annotated[int, Field(strict=True, ge=0, le=64)], ...], Field(min_length=1, max_length=16)] = (0, 1, 2, 3)
    flatten_first: Literal[0] = 0
    empty_initial: Literal[0] = 0


class PatternConfig(Group):
    """The order in which tokens are made."""

    unused = frozenset({"parallel", "unroll", "music_lm", "coarse_first", "valley"})
    modeling: Literal["delay"] = "delay"
    delay: DelayConfig = DelayConfig()


class FuserConfig(Group):
    """Where the condition enters: by cross-attention."""

    unused = frozenset({"cross_attention_pos_emb_scale"})
    cross: tuple[str] = ("description",)
    cross_attention_pos_emb: Literal[False] = False
    prepend: Empty = ()
    sum: Empty = ()
    input_interpolate: Empty = ()


class GlobalConfig(Group):
    """The frames of the whole video. How many there are is an option of a call."""

    unused = frozenset({"global_feature_path", "mode", "num_frames"})
    if_add_gobal: Literal[True] = True


class VideoConfig(Group):
    """What is seen of the video."""

    unused = frozenset({"video_overlap"})
    visual_encoder: Literal["clip"] = "clip"
    video_fps: Literal[2] = 2
    add_global: GlobalConfig = GlobalConfig()


class StereoConfig(Group):
    """Two codecs side by side."""

    unused = frozenset({"per_timestep"})
    use: Literal[False] = False


class LanguageConfig(Group):
    """Sections of the training configuration."""

    unused = frozenset({"classifier_free_guidance", "conditioners", "attribute_dropout"})
    lm_model: Literal["transformer_lm"] = "transformer_lm"
    transformer_lm: TransformerConfig = TransformerConfig()
    codebooks_pattern: PatternConfig = PatternConfig()
    fuser: FuserConfig = FuserConfig()
    video: VideoConfig = VideoConfig()
    interleave_stereo_codebooks: StereoConfig = StereoConfig()
    sample_rate: Literal[32000] = 32000
    channels: Literal[1] = 1
