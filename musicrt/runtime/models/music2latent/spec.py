"""Music2Latent as data (SPEC sections 1, 2 and 12)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from musicrt.runtime.models.music2latent.config import Config
from musicrt.runtime.precision import Gate, Half, Int8, Tolerance
from musicrt.runtime.spec import CheckpointSpec, Licences, ModelSpec, StageSpec, System
from musicrt.runtime.tensors import Axis, Dim, TensorSpec

SYSTEM = System(
    name="music2latent",
    title="Music2Latent",
    task="audio codec: 44.1 kHz audio <-> 64 continuous values per 4096 samples, decoded by a consistency model",
    paper="arXiv:2408.06500",
    licences=Licences(
        code="MIT",
        weights="CC BY-NC 4.0 (non-commercial)",
        weights_url="https://huggingface.co/SonyCSLParis/music2latent",
    ),
    variants={"full": {}},
)

CHECKPOINT = CheckpointSpec(files=("music2latent.pt",), hub_repository="SonyCSLParis/music2latent")

BATCH = Axis("batch", 1, 1, 64)
LATENTS = Axis("latents", 1, 54, 1 << 20)
"""A window of the streaming calls is tuned for; see `latents_axis`."""
FRAMES = Axis("frames", 1, 432, 1 << 23)
STEPS = Axis("steps", 1, 1, 1000)

GATES = (Gate("encode SNR dB", least=20.0), Gate("decode SNR dB", least=20.0), Gate("decode log-mel dB", most=1.0))
"""What 8-bit integers have to keep of latents and of audio."""


def build_spec(config: Mapping[str, Any], variant: str) -> ModelSpec:
    """Stages and tensors for given hyper-parameters. Raises ConfigError."""
    return _build(Config.from_mapping(config), variant)


def _build(config: Config, variant: str) -> ModelSpec:
    length = latents_axis(config)
    frames = length * config.frames_per_latent
    maps = level_shapes(config)
    representation = TensorSpec("representation", "float32", (BATCH, 2, config.bins, frames), scale=0.4)
    latents = TensorSpec("latents", "float32", (BATCH, config.bottleneck_channels, length), scale=0.25)
    x = TensorSpec("x", "float32", (BATCH, 2, config.bins, frames))
    output = TensorSpec("output", "float32", (BATCH, 2, config.bins, frames))
    levels = tap_levels(config)
    contributions = tuple(TensorSpec(f"contribution{i}", "float32", maps[level]) for i, level in enumerate(levels))
    shifts = 2 * sum(width * count for width, count in zip(config.channels, config.layers_list, strict=True))

    def sigma_tables(axis: Axis) -> tuple[TensorSpec, ...]:
        return (
            TensorSpec("scale_inp", "float32", (axis, config.bins)),
            TensorSpec("scale_out", "float32", (axis, config.bins)),
            TensorSpec("shift", "float32", (axis, shifts)),
        )

    waveform = TensorSpec("waveform", "float32", (BATCH, FRAMES * config.hop + 3 * config.hop), scale=0.2)
    spectrum = TensorSpec("representation", "float32", (BATCH, 2, config.bins, FRAMES), scale=0.4)
    stages = (
        StageSpec("frontend", "waveform -> companded spectrum", (waveform,), (spectrum,), Tolerance(5e-5), host=True, half=None),
        StageSpec(
            "encoder",
            "spectrum -> latents, features",
            (representation,),
            (latents, TensorSpec("features", "float32", (BATCH, config.feature_channels, length))),
            Tolerance(5e-5),
            half=Half(1e-2),
            int8=Int8(),
        ),
        StageSpec(
            "conditioning",
            "sigmas of a schedule -> everything that depends on sigma only; once per schedule",
            (TensorSpec("sigma", "float32", (STEPS,), values="positive", scale=2.0),),
            (
                TensorSpec("embedding", "float32", (STEPS, config.cond_channels)),
                TensorSpec("time_emb", "float32", (STEPS, config.cond_channels)),
                *sigma_tables(STEPS),
            ),
            Tolerance(1e-5),
            half=None,
        ),
        StageSpec(
            "pyramid",
            "latents -> feature maps and their contribution to every block; once per decode",
            (latents,),
            (*(TensorSpec(f"pyramid{level}", "float32", shape) for level, shape in enumerate(maps)), *contributions),
            Tolerance(2e-5),
            half=Half(8e-3),
            int8=Int8(),
        ),
        StageSpec(
            "denoiser",
            "one evaluation of the U-Net between the preconditioning factors",
            (x, *sigma_tables(BATCH), *contributions),
            (output,),
            Tolerance(5e-5),
            half=Half(6e-3),
            int8=Int8(),
        ),
        StageSpec(
            "decoder",
            "pyramid and denoiser in one graph: the single step of the default decode",
            (latents, x, *sigma_tables(BATCH)),
            (output,),
            Tolerance(5e-5),
            int8=Int8(),
        ),
        StageSpec("synthesis", "companded spectrum -> waveform", (spectrum,), (waveform,), Tolerance(1e-5), host=True, half=None),
    )
    return ModelSpec(
        system=SYSTEM.name,
        variant=variant,
        sample_rate=config.sample_rate,
        stages=stages,
        checkpoint=CHECKPOINT,
        config=config.to_mapping(),
        defaults={"denoising_steps": 1, "max_waveform_length": config.max_waveform_length_decode, "max_batch_size": 1},
        gates=GATES,
    )


def latents_axis(config: Config) -> Axis:
    """Latent frames, up to those of the official chunks of a minute, whose norms see all of them."""
    chunk = config.chunk_latents(max(config.max_waveform_length_encode, config.max_waveform_length_decode))
    return replace(LATENTS, longest=min(chunk, LATENTS.maximum))


def level_shapes(config: Config) -> list[tuple[Axis | Dim | int, ...]]:
    """Shapes of the pyramid's maps, finest first (SPEC section 2)."""
    shapes: list[tuple[Axis | Dim | int, ...]] = []
    bins, frames, length = config.bins, config.frames_per_latent, latents_axis(config)
    for level, width in enumerate(config.channels):
        if level:
            bins, frames = (bins // 4, frames) if config.freq_downsample_list[level - 1] else (bins // 2, frames // 2)
        shapes.append((BATCH, width, bins, length * frames))
    return shapes


def tap_levels(config: Config) -> list[int]:
    """The pyramid level behind each contribution, in the order in which the denoiser uses them (SPEC section 7.3)."""
    down = [level for level, count in enumerate(config.layers_list) for _ in range(count)]
    return [*down, *reversed(down), 0]
