"""Dummy as torch modules, one per stage; imported for export and for the torch backends only."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from musicrt.runtime.checkpoint import load_weights

from .spec import read_config


def fit_config(files: Mapping[str, Mapping[str, Any]], config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The hyper-parameters with those that only the checkpoint's files tell, such as the rows of a codebook; here there are none."""
    del files
    return config


def build_stages(config: Mapping[str, Any]) -> dict[str, nn.Module]:
    """Stages for given hyper-parameters with untrained weights. Each takes and gives the tensors of its spec, in that order."""
    full = read_config(config)
    return {
        "encoder": nn.Conv1d(full["hop"], full["width"], 1, bias=False),
        "decoder": nn.Conv1d(full["width"], full["hop"], 1, bias=False),
    }


def load_stages(files: Mapping[str, Mapping[str, Any]], config: Mapping[str, Any]) -> dict[str, nn.Module]:
    """Stages with the weights of a checkpoint: the contents of each official file, by file name. Raises CheckpointError."""
    stages = build_stages(config)
    load_weights(nn.ModuleDict(stages), files["dummy.pt"], dead=lambda _: False)
    return {name: stage.eval().requires_grad_(False) for name, stage in stages.items()}
