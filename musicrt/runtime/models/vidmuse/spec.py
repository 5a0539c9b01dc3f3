"""VidMuse as data: what it is, its variants, its stages, their tensors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from musicrt.runtime.models.vidmuse.config import HOP, IMAGE, SAMPLE_RATE, TOKENS_PER_FRAME, VISUAL_WIDTH, Config
from musicrt.runtime.precision import FLOAT32_OPERATORS, Gate, Half, Int8, Tolerance
from musicrt.runtime.spec import CheckpointSpec, Licences, ModelSpec, StageSpec, System
from musicrt.runtime.tensors import Axis, TensorSpec, floats

BATCH = Axis("batch", 1, 1, 64)
FRAMES = Axis("frames", 1, 32, 1 << 14)
"""Of a video."""
LOCAL = Axis("local", 1, 60, 1 << 12)
"""Frames of a window."""
GLOBAL = Axis("global", 1, 32, 1 << 12)
"""Frames of the whole video."""
TOKENS = Axis("tokens", 1, 3000, 1 << 18)
"""Of the condition: 50 for each local frame."""
NULL_TOKENS = Axis("null_tokens", 1, 50, 1 << 18)
"""Of the condition where there is none: one black frame stands for any number."""
COLUMNS = Axis("columns", 1, 1, 1 << 14)
"""Of the sequence: tokens of all codebooks, each behind the one before."""
CAPACITY = Axis("capacity", 16, 1504, 1 << 16, fixed=True)
"""Columns that the caches have room for."""
CODES = Axis("codes", 1, 256, 1 << 14)
"""Of a codebook, 50 a second; a block of 5 s with its neighbours."""
SAMPLES = Axis("samples", 1, 30 * SAMPLE_RATE, 1 << 26)

GATES = (
    Gate("generate top-1", least=0.8),
    Gate("generate KL", most=0.05),
    Gate("encode agreement", least=0.8),
    Gate("decode SNR dB", least=20.0),
    Gate("decode log-mel dB", most=1.0),
)
"""What 8-bit integers have to keep: of the language model's choices, step by step along the way of the float32 network; of codes and of
audio."""

HUB_CODEC = "facebook/encodec_32khz"
HUB_FILE = f"{HUB_CODEC}/model.safetensors"
_RECURRENT = (*FLOAT32_OPERATORS, "LSTM")
"""What stays float32 where there is an LSTM: its state goes on from step to step, and from block to block of a long file."""
CHECKPOINT = CheckpointSpec(
    files=("state_dict.bin", "compression_state_dict.bin"),
    hub_repository="HKUSTAudio/VidMuse",
    companions={HUB_FILE: HUB_CODEC},
)


def _scale(width: int, layers: int, heads: int) -> dict[str, Any]:
    return {"lm": {"transformer_lm": {"dim": width, "num_heads": heads, "num_layers": layers}}}


SYSTEM = System(
    name="vidmuse",
    title="VidMuse",
    task="music generation: a video -> its music, 32 kHz mono",
    paper="arXiv:2406.04321",
    licences=Licences(
        code="CC BY-NC 4.0 (audiocraft's part: MIT)",
        weights="CC BY-NC 4.0 (VidMuse, EnCodec); the image tower: MIT",
        weights_url=CHECKPOINT.url,
    ),
    variants={
        "small": _scale(1024, 24, 16),
        "xsmall": _scale(64, 2, 2),
        "medium": _scale(1536, 48, 24),
        "large": _scale(2048, 48, 32),
    },
)


def build_spec(config: Mapping[str, Any], variant: str) -> ModelSpec:
    """The spec for official hyper-parameters. Raises ConfigError."""
    return _describe(Config.from_mapping(config), variant)


def _describe(config: Config, variant: str) -> ModelSpec:
    return ModelSpec(
        system=SYSTEM.name,
        variant=variant,
        sample_rate=SAMPLE_RATE,
        stages=(*_visual_stages(config), *_language_stages(config), *_codec_stages(config)),
        config=config.to_mapping(),
        defaults={"top_k": 250, "top_p": 0.0, "temperature": 1.0, "guidance": 3.0, "extend_stride": 29.5, "global_frames": 32},
        checkpoint=CHECKPOINT,
        gates=GATES,
    )


def cross_names(layers: int) -> list[str]:
    """Names of the keys and values of the condition, layer by layer: what the stage `cross` gives."""
    return [f"cross_{part}_{layer}" for layer in range(layers) for part in ("key", "value")]


def null_names(layers: int) -> list[str]:
    """The same where there is no condition."""
    return [f"null_{part}_{layer}" for layer in range(layers) for part in ("key", "value")]


def cache_names(layers: int) -> list[str]:
    """Names of the caches of self-attention, layer by layer: the states of the stage `lm`."""
    return [f"{part}_{layer}" for layer in range(layers) for part in ("key", "value")]


def _visual_stages(config: Config) -> tuple[StageSpec, ...]:
    hidden = (FRAMES, TOKENS_PER_FRAME, VISUAL_WIDTH)
    local, whole = (BATCH, LOCAL * TOKENS_PER_FRAME), (BATCH, GLOBAL * TOKENS_PER_FRAME)
    return (
        StageSpec(
            "visual",
            "normalised pixels of frames -> hidden states of the image tower",
            (floats("pixel_values", FRAMES, 3, IMAGE, IMAGE),),
            (floats("hidden", *hidden),),
            Tolerance(1e-4),
            half=Half(4e-3),
            int8=Int8(),
        ),
        StageSpec(
            "local",
            "hidden states of a window's frames -> those after the temporal transformer, which looks at one frame at a time",
            (floats("hidden", *hidden),),
            (floats("local_hidden", *hidden),),
            Tolerance(1e-4),
            half=Half(3e-3),
            int8=Int8(),
        ),
        StageSpec(
            "global",
            "the same for the frames of the whole video",
            (floats("hidden", *hidden),),
            (floats("global_hidden", *hidden),),
            Tolerance(1e-4),
            half=Half(3e-3),
            int8=Int8(),
        ),
        StageSpec(
            "fuse",
            "a window's frames and those of the whole video -> condition of the language model",
            (floats("local_hidden", *local, VISUAL_WIDTH), floats("global_hidden", *whole, VISUAL_WIDTH)),
            (floats("video_emb", *local, config.width),),
            Tolerance(1e-4),
            half=Half(3e-3),
            int8=Int8(),
        ),
    )


def _language_stages(config: Config) -> tuple[StageSpec, ...]:
    layers, heads, head_width = config.layers, config.heads, config.head_width
    keys = [floats(name, BATCH, heads, TOKENS, head_width) for name in cross_names(layers)]
    null_keys = [floats(name, 1, heads, NULL_TOKENS, head_width) for name in null_names(layers)]
    ranges = {name: name for name in (*cross_names(layers), *cache_names(layers))}
    ranges |= zip(null_names(layers), cross_names(layers), strict=True)  # what stage `cross` gives, of one black frame
    by_layer = [tensor for layer in range(0, 2 * layers, 2) for tensor in (*keys[layer : layer + 2], *null_keys[layer : layer + 2])]
    return (
        StageSpec(
            "cross",
            "condition -> keys and values of every layer; once per window",
            (floats("video_emb", BATCH, TOKENS, config.width),),
            tuple(keys),
            Tolerance(1e-4),
            half=Half(1.2e-3, tensors=tuple(cross_names(layers))),
            int8=Int8("weights", bits=0, tensors={name: name for name in cross_names(layers)}),
        ),
        StageSpec(
            "lm",
            "tokens -> logits with the condition and without it; the keys and values of what came before are kept",
            (
                TensorSpec("tokens", "int64", (BATCH, config.codebooks, COLUMNS), values="codes", codes=config.card + 1),
                # How many columns came before: none in a probe, because only then may there be several now.
                TensorSpec("length", "int64", (1,), values="codes", codes=1),
                *by_layer,
            ),
            (floats("logits", 2, BATCH, config.codebooks, COLUMNS, config.card),),
            Tolerance(1e-4),
            states=tuple(floats(name, BATCH * 2, heads, CAPACITY, head_width) for name in cache_names(layers)),
            half=Half(3e-3, tensors=tuple(tensor.name for tensor in by_layer)),
            int8=Int8("weights", tensors=ranges, single="columns"),
        ),
    )


def _codec_stages(config: Config) -> tuple[StageSpec, ...]:
    latent, channels = (BATCH, config.latent_channels), config.recurrent_channels
    codes = TensorSpec("codes", "int64", (BATCH, config.codebooks, CODES), values="codes", codes=config.card)
    state = (config.recurrent_layers, BATCH, channels)
    return (
        StageSpec(
            "codec-encoder",
            "waveform -> embedding, one for each 640 samples that are begun",
            (floats("audio", BATCH, 1, SAMPLES, scale=0.1),),
            (floats("embedding", *latent, (SAMPLES * 1 + (HOP - 1)) // HOP),),
            Tolerance(1e-4),
            half=Half(1.5e-3, _RECURRENT),
            int8=Int8(),
        ),
        StageSpec("quantizer", "embedding -> codes", (floats("embedding", *latent, CODES),), (codes,), Tolerance(1e-2), half=None),
        StageSpec(
            "dequantizer",
            "codes -> what they stand for",
            (codes,),
            (floats("latent", *latent, CODES),),
            Tolerance(1e-5),
            half=None,
        ),
        StageSpec(
            "recurrence",
            "latents with three neighbours on each side -> features, and the state from which to go on",
            (floats("latent", *latent, CODES * 1 + 6), floats("h", *state, scale=0.3), floats("c", *state)),
            (floats("features", BATCH, channels, CODES), floats("next_h", *state), floats("next_c", *state)),
            Tolerance(1e-4),
            half=Half(1.5e-3, _RECURRENT),
        ),
        StageSpec(
            "synthesis",
            "features -> waveform; two more on a side make its ends exact",
            (floats("features", BATCH, channels, CODES),),
            (floats("audio", BATCH, 1, CODES * HOP),),
            Tolerance(1e-4),
            half=Half(3e-3, modules=(f"layers.{3 * len(config.encodec.upsampling_ratios) + 1}",)),
            int8=Int8(),
        ),
    )
