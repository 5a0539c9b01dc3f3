"""Dummy as data: what it is, its stages, their tensors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from musicrt.runtime.errors import ConfigError
from musicrt.runtime.precision import Tolerance
from musicrt.runtime.spec import CheckpointSpec, Licences, ModelSpec, StageSpec, System
from musicrt.runtime.tensors import Axis, TensorSpec

SYSTEM = System(
    name="dummy",  # that of the folder
    title="Dummy",
    task="audio codec: 8 kHz audio <-> as many values, by one matrix; shows what a system needs",
    paper="arXiv:0000.00000",
    licences=Licences(code="MIT", weights="CC0 1.0 (made by the test)", weights_url="https://example.org/dummy"),
    variants={"full": {}},  # hyper-parameters by name; export takes the first unless told otherwise
)

CHECKPOINT = CheckpointSpec(files=("dummy.pt",), hub_repository="example/dummy")

DEFAULTS: Mapping[str, int] = {"sample_rate": 8000, "hop": 32, "width": 32}
"""Hyper-parameters of the released network: samples in a frame, values for each frame."""

BATCH = Axis("batch", 1, 1, 64)
FRAMES = Axis("frames", 1, 250, 1 << 20)


def read_config(config: Mapping[str, Any]) -> dict[str, int]:
    """All hyper-parameters. Raises ConfigError for an unknown name or a value that can't be."""
    for name, value in config.items():
        if name not in DEFAULTS:
            raise ConfigError(f"dummy has no hyper-parameter {name!r}; known: {', '.join(DEFAULTS)}")
        if type(value) is not int or value < 1:
            raise ConfigError(f"dummy: {name} is {value!r}, expected a whole number from 1 on")
    return {**DEFAULTS, **config}


def build_spec(config: Mapping[str, Any], variant: str) -> ModelSpec:
    """Stages and tensors for given hyper-parameters. Raises ConfigError."""
    full = read_config(config)
    samples = TensorSpec("samples", "float32", (BATCH, full["hop"], FRAMES), scale=0.2)
    values = TensorSpec("values", "float32", (BATCH, full["width"], FRAMES), scale=0.2)
    return ModelSpec(
        system=SYSTEM.name,
        variant=variant,
        sample_rate=full["sample_rate"],
        stages=(
            StageSpec("encoder", "frames of samples -> values", (samples,), (values,), Tolerance(1e-5)),
            StageSpec("decoder", "values -> frames of samples", (values,), (samples,), Tolerance(1e-5)),
        ),
        checkpoint=CHECKPOINT,
        config=full,
        defaults={},
    )
