"""Encoded audio in one file: a safetensors file with the tensor `values` and, in its header, what it takes to decode it.

| header key | meaning |
|---|---|
| `format` | `musicrt-encoded 1` |
| `system`, `variant` | e.g. `music2latent`, `full` |
| `kind` | what the values are: `latents` or `features` |
| `identity` | SHA-256 of weights and configuration; decoding with another bundle is refused |
| `sample_rate` | of the model, in Hz |
| `source_rate` | of the audio that was encoded, in Hz |
| `samples` | length of that audio at `sample_rate`; decoding stops there |

`values` is float32 [channels, C, L]. Any safetensors reader opens the file; nothing in it is ever executed.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from musicrt.runtime.errors import EncodedError
from musicrt.runtime.files import new_file

FORMAT = "musicrt-encoded 1"


@dataclass(frozen=True)
class Encoded:
    """Encoded audio with what it takes to decode it; the fields are those of the file's header."""

    values: NDArray[np.float32] = field(repr=False)
    system: str
    variant: str
    kind: Literal["latents", "features"]
    identity: str
    sample_rate: int
    source_rate: int
    samples: int
    name: str = "the encoded audio"


def save_encoded(path: str | Path, encoded: Encoded) -> None:
    """Write a file of encoded audio. Raises OutputError."""
    with new_file(Path(path)) as temporary:
        write_encoded(temporary, encoded)


def write_encoded(path: Path, encoded: Encoded) -> None:
    """The same into a file that `new_file` made."""
    header = {
        "format": FORMAT,
        "system": encoded.system,
        "variant": encoded.variant,
        "kind": encoded.kind,
        "identity": encoded.identity,
        "sample_rate": str(encoded.sample_rate),
        "source_rate": str(encoded.source_rate),
        "samples": str(encoded.samples),
    }
    save_file({"values": np.ascontiguousarray(encoded.values)}, path, metadata=header)


def load_encoded(path: str | Path) -> Encoded:
    """Read a file of encoded audio. Raises EncodedError for anything else."""
    path = Path(path)
    try:
        if not path.is_file():
            what = "a folder" if path.is_dir() else "missing"
            raise EncodedError(f"{path} is {what}, expected a file of encoded audio (make one with: musicrt encode)")
        with safe_open(path, "np") as file:
            header = file.metadata() or {}
            names = list(file.keys())
            values = file.get_tensor("values") if names == ["values"] else None
    except EncodedError:
        raise
    except (SafetensorError, OSError, ValueError, TypeError, AttributeError) as error:  # the last: a dtype that numpy has not
        raise EncodedError(f"{path} is damaged or not encoded audio ({error}); encode the audio again") from None
    if header.get("format") != FORMAT or values is None:
        raise EncodedError(f"{path} has format {header.get('format')!r}, expected {FORMAT!r}; encode the audio again with this version")
    kind = header.get("kind")
    sound = values.dtype == np.float32 and values.ndim == 3 and values.size > 0 and np.isfinite(values).all()
    if kind not in ("latents", "features") or not sound:
        raise EncodedError(
            f"{path} holds {kind!r} {values.dtype} {list(values.shape)}, expected finite float32 [channels, C, L]; encode the audio again"
        )
    try:
        return Encoded(
            values=values,
            system=header["system"],
            variant=header["variant"],
            kind=kind,
            identity=header["identity"],
            sample_rate=_count(header["sample_rate"], 1),
            source_rate=_count(header["source_rate"], 1),
            samples=_count(header["samples"], 0),
            name=path.name,
        )
    except (KeyError, ValueError) as error:
        raise EncodedError(f"{path} has a damaged header ({error}); encode the audio again") from None


def _count(text: str, least: int) -> int:
    value = int(text)
    if value < least:
        raise ValueError(f"{value} is below {least}")
    return value
