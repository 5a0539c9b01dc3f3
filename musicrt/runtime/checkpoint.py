"""Reading official checkpoints without executing anything in them, and strict loading of what they hold (needs torch)."""

from __future__ import annotations

import logging
import os
import pickle
import re
import struct
import tokenize
import warnings
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from musicrt.runtime.errors import CheckpointError, MusicRTError, one_line
from musicrt.runtime.hub import Source, find_files
from musicrt.runtime.spec import CheckpointSpec
from musicrt.runtime.unpickling import load_tensors

_LOG = logging.getLogger("musicrt")


def read_checkpoint(checkpoint: CheckpointSpec, source: Source) -> dict[str, dict[str, Any]]:
    """Contents of a checkpoint's files by official name; {"array": Tensor} of an .npy file. `source`: as of `find_files`.

    Raises CheckpointError: missing, not a checkpoint, or holding objects that would have to be executed to be read.
    """
    contents: dict[str, dict[str, Any]] = {}
    for name, path in find_files(checkpoint, source).items():
        match path.suffix:
            case ".npy":
                contents[name] = {"array": read_array(path)}
            case ".safetensors":
                contents[name] = read_safetensors(path)
            case _:
                contents[name] = read_tensors(path, with_objects=name in checkpoint.with_objects)
    return contents


def read_array(path: Path) -> Tensor:
    """The array of an .npy file, read from the disk where it is used. Raises CheckpointError."""
    try:
        with np.errstate(over="ignore"):  # of an absurd shape, which is refused a moment later
            array = np.load(path, mmap_mode="c", allow_pickle=False)
        if isinstance(array, np.ndarray):
            return torch.from_numpy(np.asarray(array))
        array.close()
        reason = f"holds a {type(array).__name__}"
    except (OSError, EOFError, ValueError, TypeError, OverflowError, MemoryError, SyntaxError, tokenize.TokenError) as error:
        reason = one_line(error).partition(". ")[0]  # numpy goes on with how to read the file unsafely
    raise CheckpointError(f"{path} can't be read as an array of numbers ({reason}); download it again")


def read_safetensors(path: Path, kind: type[MusicRTError] = CheckpointError, remedy: str = "download it again") -> dict[str, Tensor]:
    """The tensors of a safetensors file. Raises an error of that kind, which ends with the remedy."""
    try:
        return dict(load_file(path))
    except (SafetensorError, OSError, RuntimeError, ValueError, OverflowError, TypeError) as error:  # also of shapes that torch can't have
        raise kind(f"{path} can't be read as a safetensors file ({one_line(error)}); {remedy}") from None


def read_tensors(path: Path, *, with_objects: bool = False) -> dict[str, Any]:
    """Content of a torch file, read with torch's allow-list of tensors and plain containers. Raises CheckpointError.

    with_objects: leave out any other objects, and say so in the log, instead of refusing the file; they are not made in either case.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of pickle protocols, asking to write to torch
            content = _load(path, with_objects)
    except pickle.UnpicklingError as error:
        named = re.search(r"GLOBAL (\S+)", str(error))  # torch goes on with how to read the file unsafely
        reason = f"it names {_printable(named[1])}" if named else one_line(error)
        raise CheckpointError(f"{path} is not a plain tensor checkpoint and was not executed ({reason}); use the official file") from None
    except _DAMAGE as error:
        raise CheckpointError(f"{path} can't be read as a torch checkpoint ({one_line(error)}); download it again") from None
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} holds a {type(content).__name__}, expected a dictionary of tensors; use the official file")
    return content


_DAMAGE = (
    *(RuntimeError, OSError, EOFError, ValueError, KeyError, AttributeError, IndexError, TypeError, AssertionError, OverflowError),
    *(MemoryError, struct.error),
)


_FORCED = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
"""Keeps torch from taking another unpickler than its own."""


def _load(path: Path, with_objects: bool) -> Any:
    archive = zipfile.is_zipfile(path)
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=archive)
    except pickle.UnpicklingError as error:
        if not (with_objects and (archive or "GLOBAL" in str(error))):
            raise
    if not archive:
        raise CheckpointError(
            f"{path} holds objects beside its tensors, which can't be left out of torch's old format; load it with torch, and save it again"
        )
    if os.environ.get(_FORCED, "").lower() in ("1", "y", "yes", "true"):
        raise CheckpointError(f"{path} holds objects beside its tensors, which can't be left out where {_FORCED} is set; unset it")
    content, left_out = load_tensors(path)
    names = f"{', '.join(map(_printable, left_out[:5]))}{' …' if len(left_out) > 5 else ''}"
    message = "%s holds objects beside its tensors, which were left out and not made: %s"
    _LOG.warning(message, path.name, names, extra={"event": "objects_left_out", "file": path.name})
    return content


@dataclass(frozen=True)
class Part:
    """A network, the file that has its tensors, and what comes there before their names."""

    network: nn.Module
    file: str
    prefix: str = ""


def load_parts(parts: Sequence[Part], files: Mapping[str, Mapping[str, Any]], *, dead: Callable[[str], bool]) -> None:
    """Load networks, and make them ready for inference. Tensors that none has are ignored, and unless they are `dead`, with a warning.

    files: tensors by official name, by what the file is called in messages. Raises CheckpointError as `load_weights`.
    """
    used: dict[str, set[str]] = {file: set() for file in files}
    for part in parts:
        state = files[part.file]
        known = {key: part.prefix + key for key in part.network.state_dict() if part.prefix + key in state}
        given = {key: state[name] for key, name in known.items()}
        load_weights(part.network, given, dead=lambda _: False, source=part.file, prefix=part.prefix)
        part.network.eval().requires_grad_(False)
        used[part.file].update(known.values())
    unknown = [key for file, state in files.items() for key in state if key not in used[file] and not dead(key)]
    if unknown:
        message = "the checkpoint has %d tensors that no stage uses, such as %s; they are ignored"
        _LOG.warning(message, len(unknown), _printable(unknown[0]), extra={"event": "tensors_ignored", "tensors": len(unknown)})


def load_weights(
    network: nn.Module, state: object, *, dead: Callable[[str], bool], source: str = "the checkpoint", prefix: str = ""
) -> None:
    """Load `state` into a network, as float32. Keys that are `dead` may be there or not; all others must fit exactly.

    Raises CheckpointError naming missing, unexpected and mis-shaped keys (a few of each, and how many), with the prefix that they have
    in their source.
    """
    if not isinstance(state, Mapping):
        raise CheckpointError(f"the weights are a {type(state).__name__}, expected a dictionary from names to tensors")
    expected = network.state_dict()
    given = {key: value for key, value in state.items() if not (isinstance(key, str) and dead(key))}
    problems = {
        "missing": [key for key in expected if key not in given],
        "unexpected": [_printable(key) for key in given if key not in expected],
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
            f"{len(keys)} {kind}: {', '.join(prefix + key for key in keys[:3])}{' …' if len(keys) > 3 else ''}"
            for kind, keys in problems.items()
            if keys
        )
        raise CheckpointError(f"{source} does not fit the network: {details}; check the variant or configuration")
    network.load_state_dict({key: given[key].to(torch.float32) for key in expected}, assign=True)


def _printable(name: object) -> str:
    """A name that a file gives, for messages: in ASCII, and not too long."""
    return ascii(str(name))[1:-1][:80]
