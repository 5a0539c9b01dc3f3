"""SemantiCodec as data: what it is, its twelve settings, its stages, their tensors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from musicrt.runtime.models.semanticodec.config import HOP, LATENT_SHAPE, MEL_BINS, SAMPLE_RATE, SEGMENT_FRAMES, VOCODER_BINS, Config
from musicrt.runtime.precision import FLOAT32_OPERATORS, Gate, Half, Int8, Tolerance
from musicrt.runtime.spec import CheckpointSpec, Licences, ModelSpec, StageSpec, System
from musicrt.runtime.tensors import Axis, TensorSpec, floats

BATCH = Axis("batch", 1, 1, 64)
FRAMES = Axis("frames", 1, SEGMENT_FRAMES, 1 << 20)
GUIDANCE = Axis("guidance", 1, 2, 2)
STEPS = Axis("steps", 1, 50, 1000)

GATES = (Gate("encode agreement", least=0.85), Gate("decode SNR dB", least=12.0), Gate("decode log-mel dB", most=1.5))
"""What 8-bit integers have to keep of tokens and of audio. A token that differs is as a rule the second nearest of its codebook."""

SYSTEM = System(
    name="semanticodec",
    title="SemantiCodec",
    task="audio codec: 16 kHz mono speech, sound and music <-> 25, 50 or 100 tokens per second",
    paper="arXiv:2405.00233",
    licences=Licences(
        code="MIT",
        weights="as the model card says; its AudioMAE was trained with code under CC BY-NC 4.0",
        weights_url="https://huggingface.co/haoheliu/SemantiCodec",
    ),
    variants={
        f"rate{rate}-vocab{vocabulary}": {"token_rate": rate, "semantic_vocab_size": vocabulary}
        for rate in (50, 25, 100)
        for vocabulary in (16384, 4096, 8192, 32768)
    },
)


def build_spec(config: Mapping[str, Any], variant: str) -> ModelSpec:
    """The spec for official hyper-parameters. Raises ConfigError."""
    return _describe(Config.from_mapping(config), variant)


def _describe(config: Config, variant: str) -> ModelSpec:
    semantic_codes, acoustic_codes = config.codebook_sizes
    width, count = config.feature_dim, config.tokens
    latent = (BATCH, *LATENT_SHAPE)

    def codes(name: str, size: int, *shape: int | Axis) -> TensorSpec:
        return TensorSpec(name, "int64", shape, values="codes", codes=size)

    mel = floats("mel", BATCH, SEGMENT_FRAMES, MEL_BINS, scale=0.5)
    representation = floats("representation", BATCH, count, width)
    centroids = floats("centroids", BATCH, count, width)
    residual = floats("residual", BATCH, count, width, scale=0.3)
    semantic, acoustic = codes("semantic", semantic_codes, BATCH, count), codes("acoustic", acoustic_codes, BATCH, count)
    tokens = Axis("tokens", 1, count, 1 << 20)
    shifts = sum(shift_channels(config))
    log_mel = floats("mel", BATCH, FRAMES, VOCODER_BINS)

    def context(kind: str, *rows: Axis) -> list[TensorSpec]:
        """Keys or values of the token context: what every context attention attends to."""
        return [floats(f"{kind}{i}", *rows, count, channels) for i, channels in enumerate(context_channels(config))]

    stages = (
        StageSpec(
            "frontend",
            "waveform -> normalised log-mel spectrogram",
            (TensorSpec("waveform", "float32", (BATCH, FRAMES * HOP + 240), scale=0.1),),
            (TensorSpec("mel", "float32", (BATCH, FRAMES, MEL_BINS)),),
            Tolerance(1e-4),
            host=True,
            half=None,
        ),
        StageSpec("audiomae", "spectrogram of a segment -> representation", (mel,), (representation,), Tolerance(5e-5), int8=Int8()),
        StageSpec(
            "semantic",
            "representation -> semantic codes and their centroids",
            (representation,),
            (semantic, centroids),
            Tolerance(1e-2),
            half=None,
        ),
        StageSpec(
            "residual",
            "what the centroids leave of the representation, by LSTM",
            (representation, centroids, TensorSpec("mask", "float32", (BATCH, count))),
            (residual,),
            Tolerance(1e-4),
        ),
        StageSpec("acoustic", "residual -> acoustic codes", (residual,), (acoustic,), Tolerance(1e-2), half=None),
        StageSpec(
            "embedding",
            "codes -> feature: the two code vectors, the acoustic one first",
            (codes("semantic", semantic_codes, BATCH, tokens), codes("acoustic", acoustic_codes, BATCH, tokens)),
            (floats("feature", BATCH, tokens, 2 * width),),
            Tolerance(1e-6),
            half=None,
        ),
        StageSpec(
            "conditioning",
            "feature of a window -> keys and values of every context attention; once per window",
            (floats("feature", BATCH, count, 2 * width, scale=0.5),),
            (*context("key", BATCH), *context("value", BATCH)),
            Tolerance(2e-5),
            half=Half(1e-3),
        ),
        StageSpec(
            "timesteps",
            "timesteps of a schedule -> what each residual block adds; once per schedule",
            (codes("timestep", config.decoder.timesteps, STEPS),),
            (floats("shift", STEPS, shifts),),
            Tolerance(2e-5),
            half=None,
        ),
        StageSpec(
            "denoiser",
            "one evaluation of the U-Net, for all rows of the guidance",
            (*context("key", GUIDANCE, BATCH), *context("value", GUIDANCE, BATCH), floats("x", *latent), floats("shift", BATCH, shifts)),
            (floats("v", GUIDANCE, *latent),),
            Tolerance(5e-5),
            half=Half(2e-2),
            int8=Int8(),
        ),
        StageSpec(
            "vae",
            "latent of a window -> log-mel spectrogram",
            (floats("latent", *latent),),
            (floats("mel", BATCH, SEGMENT_FRAMES, VOCODER_BINS),),
            Tolerance(5e-5),
            int8=Int8(),
        ),
        StageSpec(
            "vocoder",
            "log-mel spectrogram -> waveform",
            (log_mel,),
            (TensorSpec("waveform", "float32", (BATCH, FRAMES * HOP + 32)),),
            Tolerance(5e-5),
            half=Half(operators=(*FLOAT32_OPERATORS, "Tanh"), modules=("conv_post",)),
            int8=Int8(),
        ),
    )
    return ModelSpec(
        system=SYSTEM.name,
        variant=variant,
        sample_rate=SAMPLE_RATE,
        stages=stages,
        config=config.to_mapping(),
        defaults={"steps": config.ddim_sample_step, "guidance": config.cfg_scale, "eta": 1.0},
        checkpoint=find_checkpoint(config),
        bit_rate=config.pairs_per_second * sum(config.bits),
        gates=GATES,
    )


def find_checkpoint(config: Config) -> CheckpointSpec:
    """The official files of a setting (SPEC section 1): encoder, decoder, codebook, whose name says half its vocabulary."""
    folder, codebook = f"semanticodec_tokenrate_{config.token_rate}", f"codebook_{config.semantic_vocab_size // 2}_0.npy"
    return CheckpointSpec(
        files=(f"{folder}/encoder.ckpt", f"{folder}/decoder.ckpt", f"codebook_idx/combine_{config.tokens}_audioset_dominate/{codebook}"),
        hub_repository="haoheliu/SemantiCodec",
    )


def shift_channels(config: Config) -> list[int]:
    """Channels of the residual blocks of the U-Net, in the order in which they run (SPEC section 3.4)."""
    unet = config.unet_config
    down = [channels for channels in unet.channels for _ in range(unet.num_res_blocks)]
    up = [channels for channels in reversed(unet.channels) for _ in range(unet.num_res_blocks + 1)]
    return [*down, *[unet.channels[-1]] * 2, *up]


def context_channels(config: Config) -> list[int]:
    """Channels of the attentions to the tokens, in the order in which they run: one on each block of all levels but the first."""
    unet = config.unet_config
    levels = unet.channels[1:]
    down = [channels for channels in levels for _ in range(unet.num_res_blocks)]
    up = [channels for channels in reversed(levels) for _ in range(unet.num_res_blocks + 1)]
    return [*down, unet.channels[-1], *up]
