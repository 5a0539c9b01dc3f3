"""Checkpoints with other tensors than the official ones, and what stages make of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from musicrt.runtime.registry import build_spec, fit_spec, system_module
from musicrt.runtime.verify import probe_inputs, probe_sizes
from tests.reference.signals import Array

State = dict[Any, Any]


def drop(*starts: str) -> Callable[[State], State]:
    """Drops the tensors whose keys begin so."""
    return lambda state: {key: value for key, value in state.items() if not key.startswith(starts)}


def add(more: State) -> Callable[[State], State]:
    """Adds tensors, or puts them in the place of others."""
    return lambda state: {**state, **more}


def run_stages(system: str, checkpoint: Path, *names: str, config: Mapping[str, Any]) -> list[Array]:
    """The first output of stages for test inputs."""
    pytest.importorskip("torch")
    from musicrt.runtime.backends.torch import TorchSession
    from musicrt.runtime.checkpoint import read_checkpoint

    spec = build_spec(system, config, "tiny")
    files = read_checkpoint(spec.checkpoint, checkpoint)
    spec = fit_spec(spec, files)
    modules, outputs = system_module(system, "stages").load_stages(files, spec.config), list[Array]()
    for name in names:
        stage = spec.stage(name)
        outputs.append(TorchSession(stage, modules[name]).run(probe_inputs(stage, probe_sizes(stage, 2), 1))[stage.outputs[0].name])
    return outputs
