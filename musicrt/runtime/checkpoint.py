"""Reading official checkpoints without executing anything in them, and strict loading of what they hold (needs torch)."""

from __future__ import annotations

import pickle
import warnings
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from musicrt.runtime.errors import CheckpointError
from musicrt.runtime.spec import System


def read_checkpoint(system: System, source: Path) -> dict[str, dict[str, Any]]:
    """Contents of a system's checkpoint files by official name. `source`: their folder, or the file where there is one.

    Raises CheckpointError: missing, not a checkpoint, or holding objects that would have to be executed to be read.
    """
    names = system.checkpoint.files
    if source.is_file() and len(names) == 1:
        return {names[0]: read_tensors(source)}
    if not source.is_dir():
        raise CheckpointError(f"{source} does not exist; expected a folder with {', '.join(names)} ({system.licences.weights_url})")
    missing = [name for name in names if not (source / name).is_file()]
    if missing:
        raise CheckpointError(f"{source} lacks {', '.join(missing)}; download from {system.licences.weights_url}")
    return {name: read_tensors(source / name) for name in names}


def read_tensors(path: Path) -> dict[str, Any]:
    """Content of a torch file, read with torch's allow-list of tensors and plain containers. Raises CheckpointError."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of pickle protocols, asking to write to torch
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except pickle.UnpicklingError as error:
        reason = " ".join(str(error).split())[:160]
        raise CheckpointError(f"{path} is not a plain tensor checkpoint and was not executed ({reason}); use the official file") from None
    except (RuntimeError, OSError, EOFError, ValueError, KeyError, AttributeError, IndexError, TypeError) as error:
        reason = " ".join(str(error).split())[:160]
        raise CheckpointError(f"{path} can't be read as a torch checkpoint ({reason}); download it again") from None
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} holds a {type(content).__name__}, expected a dictionary of tensors; use the official file")
    return content


def load_weights(network: nn.Module, state: object, *, dead: Callable[[str], bool]) -> None:
    """Load `state` into a network, as float32. Keys that are `dead` may be there or not; all others must fit exactly.

    Raises CheckpointError naming missing, unexpected and mis-shaped keys (a few of each, and how many).
    """
    if not isinstance(state, Mapping):
        raise CheckpointError(f"the weights are a {type(state).__name__}, expected a dictionary from names to tensors")
    expected = network.state_dict()
    given = {key: value for key, value in state.items() if not (isinstance(key, str) and dead(key))}
    problems = {
        "missing": [key for key in expected if key not in given],
        "unexpected": [str(key) for key in given if key not in expected],
        "not tensors": [key for key in expected if key in given and not isinstance(given[key], Tensor)],
        "of another shape": [
            f"{key} {list(given[key].shape)} instead of {list(tensor.shape)}"
            for key, tensor in expected.items()
            if isinstance(given.get(key), Tensor) and given[key].shape != tensor.shape
        ],
    }
    problems["with NaN or infinite values"] = [
        key for key in expected if isinstance(given.get(key), Tensor) and not given[key].isfinite().all()
    ]
    if any(problems.values()):
        details = "; ".join(
            f"{len(keys)} {kind}: {', '.join(keys[:3])}{' …' if len(keys) > 3 else ''}" for kind, keys in problems.items() if keys
        )
        raise CheckpointError(f"the checkpoint does not fit the network: {details}; check the variant or configuration")
    network.load_state_dict({key: given[key].to(torch.float32) for key in expected}, assign=True)
