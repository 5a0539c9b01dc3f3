"""Encoded audio in one file: a safetensors file with the tensor `values` and, in its header, what it takes to decode it.

| header key | meaning |
|---|---|
| `format` | `musicrt-encoded 1`; of tokens `musicrt-encoded 2` |
| `system`, `variant` | e.g. `music2latent`, `full` |
| `kind` | what the values are: `latents`, `features` or `tokens` |
| `identity` | SHA-256 of weights and configuration; decoding with another bundle is refused |
| `sample_rate` | of the model, in Hz |
| `source_rate` | of the audio that was encoded, in Hz |
| `samples` | length of that audio at `sample_rate`; decoding stops there |
| `shape` | of tokens only: `batch,frames,codebooks` |
| `bits` | of tokens only: bits of a code of each codebook, e.g. `14,13` |
| `record` | where it is known, what it was made with: JSON, see `musicrt.runtime.record` |

`values` is float32 [channels, C, L]. Of tokens it is uint8 [bytes]: the codes int64 [batch, frames, codebooks] in their `bits`, as
`musicrt.runtime.packing` describes. Any safetensors reader opens the file; nothing in it is ever executed.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from musicrt.runtime.errors import EncodedError, InputError, one_line
from musicrt.runtime.files import new_file
from musicrt.runtime.limits import check_limit
from musicrt.runtime.packing import pack_codes, unpack_codes
from musicrt.runtime.record import Record, find_record
from musicrt.runtime.waveform import HIGHEST_RATE

FORMAT = "musicrt-encoded 1"
TOKENS_FORMAT = "musicrt-encoded 2"
_LARGEST = 2**48  # of any number in a header; as samples at 44.1 kHz 200 years
_PADDING = 1024  # frames that even a single sample may be filled up to

Kind = Literal["latents", "features", "tokens"]
_FORMATS: dict[Kind, str] = {"latents": FORMAT, "features": FORMAT, "tokens": TOKENS_FORMAT}


@dataclass(frozen=True)
class Encoded:
    """Encoded audio with what it takes to decode it; the fields are those of the file's header.

    values: float32 [channels, C, L], or of kind "tokens" int64 [batch, frames, codebooks]; the first axis has one item for each
    channel that decoding gives. bits: of a code of each codebook, empty for floats. record: what it was made with, where that is known.
    """

    values: NDArray[Any] = field(repr=False)
    system: str
    variant: str
    kind: Kind
    identity: str
    sample_rate: int
    source_rate: int
    samples: int
    name: str = "the encoded audio"
    bits: tuple[int, ...] = ()
    record: Record | None = None

    @property
    def seconds(self) -> float:
        """Length of the audio that was encoded."""
        return self.samples / self.sample_rate

    @property
    def bit_rate(self) -> float:
        """Bits of all values (32 of each float) for each second of that audio; 0.0 where it is empty."""
        size = self.values.size
        bits = size // len(self.bits) * sum(self.bits) if self.bits else 32 * size
        return bits / self.seconds if self.samples else 0.0


def save_encoded(path: str | Path, encoded: Encoded) -> None:
    """Write a file of encoded audio. Raises OutputError, and InputError for values that no such file can hold."""
    with new_file(Path(path)) as temporary:
        write_encoded(temporary, encoded)


def write_encoded(path: Path, encoded: Encoded) -> None:
    """The same into a file that `new_file` made."""
    values, shape = encoded.values, encoded.values.shape
    if len(shape) != 3 or 0 in shape:
        raise InputError(f"got {encoded.kind} {list(shape)}, expected three axes of at least one entry, as `encode` gives")
    header = {
        "format": _FORMATS[encoded.kind],
        "system": encoded.system,
        "variant": encoded.variant,
        "kind": encoded.kind,
        "identity": encoded.identity,
        "sample_rate": str(encoded.sample_rate),
        "source_rate": str(encoded.source_rate),
        "samples": str(encoded.samples),
    }
    if encoded.kind == "tokens":
        values = pack_codes(values, encoded.bits)
        header |= {"shape": ",".join(map(str, shape)), "bits": ",".join(map(str, encoded.bits))}
    if encoded.record is not None:
        header["record"] = encoded.record.line
    save_file({"values": np.ascontiguousarray(values)}, path, metadata=header)
    _sort_header(path)


def _sort_header(path: Path) -> None:
    """safetensors writes a header in another order each time; of one recording there is to be one file."""
    with path.open("r+b") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.dumps(json.loads(file.read(length)), sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
        if len(header) <= length:  # as it is, unless JSON is written otherwise there
            file.seek(8)
            file.write(header.ljust(length))


def load_encoded(path: str | Path) -> Encoded:
    """Read a file of encoded audio. Raises EncodedError for anything else."""
    path = Path(path)
    try:
        if not path.is_file():
            what = "a folder" if path.is_dir() else "no file" if path.exists() else "missing"
            raise EncodedError(f"{path} is {what}, expected a file of encoded audio (make one with: musicrt encode)")
        _check_header(path)
        with safe_open(path, "np") as file:
            header = file.metadata() or {}
            names = list(file.keys())
            if names == ["values"]:
                _check_size(file.get_slice("values").get_shape())
            stored = file.get_tensor("values") if names == ["values"] else None
    except EncodedError:
        raise
    except (SafetensorError, OSError, ValueError, TypeError, AttributeError) as error:  # the last: a dtype that numpy has not
        raise EncodedError(f"{path} is damaged or not encoded audio ({one_line(error)}); encode the audio again") from None
    if header.get("format") not in (FORMAT, TOKENS_FORMAT) or stored is None:
        known = f"{FORMAT!r} or {TOKENS_FORMAT!r}"
        raise EncodedError(f"{path} has format {header.get('format')!r}, expected {known}; encode the audio again with this version")
    kind = next((known for known in _FORMATS if known == header.get("kind")), None)
    if kind is None or _FORMATS[kind] != header["format"]:
        raise EncodedError(f"{path} has kind {header.get('kind')!r} in format {header['format']!r}; encode the audio again")
    try:
        values, bits = _read_tokens(header, stored) if kind == "tokens" else (_read_floats(stored), ())
        encoded = Encoded(
            values=values,
            system=_text(header["system"]),
            variant=_text(header["variant"]),
            kind=kind,
            identity=_text(header["identity"]),
            sample_rate=_count(header["sample_rate"], 1, HIGHEST_RATE),
            source_rate=_count(header["source_rate"], 1, HIGHEST_RATE),
            samples=_count(header["samples"], 0),
            name=path.name,
            bits=bits,
            record=_read_record(path, header.get("record", "")),
        )
        check_limit("audio_seconds", encoded.seconds, f"{path} stands for {encoded.seconds:.0f} s of audio", EncodedError)
    except EncodedError:
        raise
    except InputError as error:
        raise EncodedError(f"{path} holds no {kind}: {error}; encode the audio again") from None
    except (KeyError, ValueError) as error:
        raise EncodedError(f"{path} has a damaged header ({error}); encode the audio again") from None
    return encoded


def _check_header(path: Path) -> None:
    """The length of the header is what a safetensors file begins with. Raises EncodedError."""
    with path.open("rb") as file:
        length = min(int.from_bytes(file.read(8), "little"), path.stat().st_size)  # one beyond the file's end is damage
    check_limit("encoded_header_bytes", length, f"{path} has a header of {length} bytes", EncodedError)


def _read_record(path: Path, text: str) -> Record | None:
    try:
        return find_record(text)
    except InputError as error:
        raise EncodedError(f"{path}: {error}; encode the audio again") from None


def _check_size(shape: Sequence[int]) -> None:
    count = math.prod(shape)
    check_limit("encoded_values", count, f"got {count} values")


def _read_floats(stored: NDArray[Any]) -> NDArray[np.float32]:
    if stored.dtype != np.float32 or stored.ndim != 3 or not stored.size or not np.isfinite(stored).all():
        raise InputError(f"got {stored.dtype} {list(stored.shape)}, expected finite float32 [channels, C, L]")
    return stored


def _read_tokens(header: Mapping[str, str], stored: NDArray[Any]) -> tuple[NDArray[np.int64], tuple[int, ...]]:
    shape, bits = (tuple(_count(number, 1) for number in header[key].split(",")) for key in ("shape", "bits"))
    if len(shape) != 3:
        raise InputError(f"got codes of shape {list(shape)}, expected [batch, frames, codebooks]")
    most = _count(header["samples"], 0) + _PADDING
    if shape[1] > most:
        raise InputError(f"got {shape[1]} frames of codes for {header['samples']} samples, expected at most {most}")
    _check_size(shape)  # in memory up to 64 times as large as packed
    return unpack_codes(stored, shape, bits), bits


def _text(text: str) -> str:
    """What may stand in a line of a terminal."""
    if not text.isprintable():
        raise ValueError(f"{text[:80]!r} is no name")
    return text


def _count(text: str, least: int, most: int = _LARGEST) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= len(str(_LARGEST)) and least <= int(text) <= most):
        raise ValueError(f"{text[:80]!r} is no whole number from {least} to {most}")
    return int(text)
