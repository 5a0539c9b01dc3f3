"""What export reads beside the weights: hyper-parameters, and a hash over all tensors."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from musicrt.runtime.errors import CheckpointError, ConfigError

_LEVELS = 16
"""Of dictionaries in a checkpoint: one that is in itself has no end."""


def beside_checkpoint(source: Path) -> Path | None:
    """The file config.json beside the checkpoint's files; None if there is none."""
    file = (source if source.is_dir() else source.parent) / "config.json"
    return file if file.is_file() else None


def read_config(file: Path) -> dict[str, Any]:
    """Hyper-parameters from a JSON file. Raises ConfigError."""
    try:
        values = json.loads(file.read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"{file} can't be read as JSON ({error}); expected an object of the official hyper-parameters") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{file} holds a {type(values).__name__}, expected an object of the official hyper-parameters")
    return values


def hash_tensors(files: Mapping[str, Mapping[str, Any]]) -> str:
    """SHA-256 of all tensors of a checkpoint by name, however they were pickled. Raises CheckpointError: dictionaries without end."""
    digest = hashlib.sha256()
    for name, tensor in sorted(_named_tensors("", files), key=lambda named: named[0]):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(tensor.contiguous().view(torch.uint8).numpy().data if tensor.numel() else b"")
    return digest.hexdigest()


def _named_tensors(prefix: str, tree: Mapping[str, Any], levels: int = _LEVELS) -> Iterator[tuple[str, torch.Tensor]]:
    if not levels:
        raise CheckpointError(
            f"the checkpoint has dictionaries in more than {_LEVELS} others, such as {prefix[:80]!a}; use the official file"
        )
    for key, value in tree.items():
        if isinstance(value, torch.Tensor):
            yield f"{prefix}{key}", value.detach().reshape(-1) if value.ndim == 0 else value.detach()
        elif isinstance(value, Mapping):
            yield from _named_tensors(f"{prefix}{key}/", value, levels - 1)
