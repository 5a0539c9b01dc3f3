"""MuCodec as data: what it is, its variants, its stages, their tensors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from musicrt.runtime.models.mucodec.config import (
    LATENT_BINS,
    LATENT_CHANNELS,
    MEL_BINS,
    MEL_HOP,
    MUQ_BINS,
    MUQ_CODE_SAMPLES,
    PATCH,
    SAMPLE_RATE,
    VAE_CHANNELS,
    VOCODER_EXTRA,
    Config,
)
from musicrt.runtime.precision import FLOAT32_OPERATORS, Gate, Half, Int8, Tolerance
from musicrt.runtime.spec import CheckpointSpec, Licences, ModelSpec, StageSpec, System
from musicrt.runtime.tensors import Axis, Dim, TensorSpec, floats

BATCH = Axis("batch", 1, 1, 64)
CODES = Axis("codes", 1, 1024, 1 << 14)
FRAMES = Axis("frames", 1, 512, 1 << 13)
"""Latent frames."""
ROWS = Axis("rows", 1, 256, 1 << 12)
"""Rows of patches, two latent frames each: the estimator takes whole patches only."""
MEL_FRAMES = Axis("mel_frames", 1, 1024, 1 << 16)
GUIDANCE = Axis("guidance", 1, 2, 2)
STEPS = Axis("steps", 1, 50, 1000)
GATES = (Gate("encode agreement", least=0.85), Gate("decode SNR dB", least=12.0), Gate("decode log-mel dB", most=1.5))
"""What 8-bit integers have to keep of codes and of audio. A code that differs is as a rule the second nearest of its codebook."""
PATCHES = LATENT_BINS // PATCH
"""Of a row."""
VAE_FACTOR = 8
"""Mel frames and bands in a frame and a bin of the latent."""

CHECKPOINT = CheckpointSpec(
    files=("tools/audioldm_48k.pth", "muq_dev/muq.pt", "ckpt/mucodec.pt"),
    hub_repository="yaoxunxu/mucodec",
    with_objects=("tools/audioldm_48k.pth", "muq_dev/muq.pt"),
)

SYSTEM = System(
    name="mucodec",
    title="MuCodec",
    task="audio codec: 48 kHz stereo music <-> 25 codes per second and codebook",
    paper="arXiv:2409.13216",
    licences=Licences(
        code="MIT",
        weights="CC BY-NC 4.0 (muq.pt, mucodec.pt); audioldm_48k.pth: as the card of haoheliu/audioldm_48k says",
        weights_url=CHECKPOINT.url,
    ),
    variants={f"codebooks{count}": {"rvq": {"n_codebooks": count}} for count in (1, 2, 4)},
)


def build_spec(config: Mapping[str, Any], variant: str) -> ModelSpec:
    """The spec for official hyper-parameters. Raises ConfigError."""
    return _describe(Config.from_mapping(config), variant)


def _describe(config: Config, variant: str) -> ModelSpec:
    rvq, width, features = config.rvq, config.transformer2D.width, config.features
    codebooks = Axis("codebooks", 1, rvq.n_codebooks, rvq.n_codebooks)

    def codes(*shape: int | Axis) -> TensorSpec:
        return TensorSpec("codes", "int64", shape, values="codes", codes=rvq.codebook_size)

    def latents(name: str, frames: Axis | Dim = FRAMES) -> TensorSpec:
        return floats(name, BATCH, LATENT_CHANNELS, frames, LATENT_BINS)

    tokens, modulation, embedding = ROWS * PATCHES, 6 * width, width
    # Reflection at the ends takes more than a thousand samples.
    clip, prompt, prompt_mel = Axis("codes", 2, 1024, 1 << 14), Axis("hops", 3, 1024, 1 << 14), Axis("mel_frames", 16, 1025, 1 << 14)
    posterior = (BATCH, VAE_CHANNELS, prompt_mel // VAE_FACTOR, LATENT_BINS)

    stages = (
        StageSpec(
            "frontend",
            "waveform at 24 kHz -> normalised mel spectrogram in dB",
            (floats("waveform", BATCH, clip * MUQ_CODE_SAMPLES, scale=0.1),),
            (floats("mel", BATCH, MUQ_BINS, clip * 4),),
            Tolerance(1e-4),
            host=True,
            half=None,
        ),
        StageSpec(
            "muq",
            "mel spectrogram -> hidden state of MuQ behind the tapped layer",
            (floats("mel", BATCH, MUQ_BINS, CODES * 4),),
            (floats("hidden", BATCH, CODES, features),),
            Tolerance(1e-4),
            half=Half(1.2e-2),
            int8=Int8(),
        ),
        StageSpec(
            "quantizer",
            "hidden state -> codes of every codebook",
            (floats("hidden", BATCH, CODES, features),),
            (codes(BATCH, rvq.n_codebooks, CODES),),
            Tolerance(1e-2),
            half=None,
        ),
        StageSpec(
            "dequantizer",
            "codes of the first codebooks -> the features that they stand for",
            (codes(BATCH, codebooks, CODES),),
            (floats("quantised", BATCH, features, CODES),),
            Tolerance(1e-5),
            half=None,
        ),
        StageSpec(
            "condition",
            "quantised features -> condition of the estimator; frames that are not known take the embedding of nothing",
            (floats("quantised", BATCH, features, FRAMES * 2), floats("known", BATCH, FRAMES)),
            (latents("condition"),),
            Tolerance(1e-5),
            half=Half(2e-3),
        ),
        StageSpec(
            "normfeat",
            "latents -> the same normalised for the sampler (projected), and brought back from there (returned)",
            (latents("latents"),),
            (latents("projected"), latents("returned")),
            Tolerance(1e-6),
            half=None,
        ),
        StageSpec(
            "context",
            "latents in context and condition -> their share of every token, with its position; once per window",
            (latents("incontext", ROWS * PATCH), latents("condition", ROWS * PATCH)),
            (floats("context", BATCH, tokens, width),),
            Tolerance(1e-5),
            half=Half(1e-3),
        ),
        StageSpec(
            "timesteps",
            "timesteps of a schedule -> what they do to every layer; once per schedule",
            (floats("timestep", STEPS, scale=0.3),),
            (floats("modulation", STEPS, modulation), floats("embedding", STEPS, embedding)),
            Tolerance(1e-4),
            half=None,
        ),
        StageSpec(
            "estimator",
            "one evaluation of the transformer, for all rows of the guidance",
            (
                floats("context", GUIDANCE, BATCH, tokens, width),
                latents("x", ROWS * PATCH),
                floats("modulation", BATCH, modulation, scale=0.5),
                floats("embedding", BATCH, embedding, scale=0.5),
            ),
            (floats("velocity", GUIDANCE, BATCH, LATENT_CHANNELS, ROWS * PATCH, LATENT_BINS),),
            Tolerance(1e-4),
            half=Half(3e-3),
            int8=Int8(),
        ),
        StageSpec(
            "vae",
            "latents of a channel -> log-mel spectrogram",
            (floats("latents", BATCH, VAE_CHANNELS, FRAMES, LATENT_BINS, scale=0.5),),
            (floats("mel", BATCH, FRAMES * VAE_FACTOR, MEL_BINS),),
            Tolerance(1e-4),
            half=Half(3e-3),
            int8=Int8(),
        ),
        StageSpec(
            "vocoder",
            "log-mel spectrogram -> waveform",
            (floats("mel", BATCH, MEL_FRAMES, MEL_BINS),),
            (floats("waveform", BATCH, MEL_FRAMES * MEL_HOP + VOCODER_EXTRA),),
            Tolerance(1e-4),
            half=Half(operators=(*FLOAT32_OPERATORS, "Tanh"), modules=("network.conv_post",)),
            int8=Int8(),
        ),
        StageSpec(
            "prompt-frontend",
            "waveform at 48 kHz -> log-mel spectrogram of a prompt",
            (floats("waveform", BATCH, prompt * MEL_HOP, scale=0.1),),
            (floats("mel", BATCH, prompt * 1 + 1, MEL_BINS),),
            Tolerance(1e-4),
            host=True,
            half=None,
        ),
        StageSpec(
            "vae-encoder",
            "log-mel spectrogram of a prompt's channel -> mean and deviation of its latents",
            (floats("mel", BATCH, prompt_mel, MEL_BINS),),
            (floats("mean", *posterior), floats("deviation", *posterior)),
            Tolerance(1e-4),
            int8=Int8(),
        ),
    )
    return ModelSpec(
        system=SYSTEM.name,
        variant=variant,
        sample_rate=SAMPLE_RATE,
        stages=stages,
        config=config.to_mapping(),
        defaults={"steps": config.chain.num_steps_code2sound, "guidance": config.chain.guidance_scale},
        checkpoint=CHECKPOINT,
        bit_rate=config.bit_rate,
        gates=GATES,
    )
