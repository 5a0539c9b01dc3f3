"""What an ONNX file may refer to, checked before any library opens it: weights of its own bundle, and operators that exports make.

Needs no package: the few fields of ONNX's protobuf that matter are found by walking over the bytes. Of a field that comes several times
protobuf takes the last, or all; here every one has to be right, and whatever can't be followed is refused.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from musicrt.runtime.errors import BundleError, InputError
from musicrt.runtime.limits import check_limit

OPERATORS: Mapping[str, frozenset[str]] = {"com.microsoft": frozenset({"MultiHeadAttention", "GroupQueryAttention", "MatMulNBits"})}
"""Those that exports and calibration make beside ONNX's own, by domain. Others may load code, or open files, as EPContext does."""
_OWN = ("", "ai.onnx")  # ONNX's domain, which has two names
_DEEPEST = 32  # messages in messages
_VARINT, _LONG, _BYTES, _INT = 0, 1, 2, 5  # protobuf's wire types; the two others are long gone

# By message, the fields that are messages themselves, and what they are.
_INSIDE: Mapping[str, Mapping[int, str]] = {
    "model": {7: "graph"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
}
_REFUSED: Mapping[str, Mapping[int, str]] = {"model": {20: "training", 25: "functions of its own"}}
_KIND, _DOMAIN = 4, 7  # of a node
_EXTERNAL = 13  # of a tensor
_KEY, _VALUE = 1, 2  # of an entry of external data


class _Field(NamedTuple):
    """A field of a message, its bytes from `start` to `stop`."""

    number: int
    wire: int
    start: int
    stop: int


def check_graph(path: Path, weights: Collection[str]) -> None:
    """Raises BundleError unless it is an ONNX file whose external data lie in `weights`, files beside it, and whose operators are known."""
    remedy = "do not use this bundle, or export it again"
    if path.suffix != ".onnx":  # runtimes tell by the suffix what a file is
        raise BundleError(f"{path} is no ONNX graph by its name, expected one that ends in .onnx; {remedy}")
    try:
        size = path.stat().st_size
        check_limit("graph_bytes", size, f"{path} has {size} bytes beside its weights", BundleError)
        content = path.read_bytes()
        sizes = {name: (path.parent / name).stat().st_size for name in weights}
        _check(content, "model", _Field(0, _BYTES, 0, len(content)), sizes, 0)
    except OSError as error:
        raise BundleError(f"{path} can't be read ({error.strerror or error}); copy the bundle again") from None
    except InputError as error:
        raise BundleError(f"{path}: {error}; {remedy}") from None


def _check(content: bytes, message: str, place: _Field, sizes: Mapping[str, int], depth: int) -> None:
    if depth > _DEEPEST:
        raise InputError(f"its graph is more than {_DEEPEST} levels deep")
    inside, refused = _INSIDE.get(message, {}), _REFUSED.get(message, {})
    texts: dict[int, list[str]] = {_KIND: [], _DOMAIN: []}
    entries: list[tuple[list[str], list[str]]] = []
    for field in _fields(content, place.start, place.stop):
        if field.number in refused:
            raise InputError(f"it has {refused[field.number]}, which no graph of ours has")
        is_entry = message == "tensor" and field.number == _EXTERNAL
        if (is_entry or field.number in inside) and field.wire != _BYTES:
            raise InputError("it is no intact ONNX file")
        if is_entry:
            entries.append(_read_entry(content, field))
        elif field.number in inside:
            _check(content, inside[field.number], field, sizes, depth + 1)
        elif message == "node" and field.wire == _BYTES and field.number in texts:
            texts[field.number].append(_text(content, field))
    if message == "node":
        _check_operator(texts[_KIND] or [""], texts[_DOMAIN] or [""])
    if entries:
        _check_external(entries, sizes)


def _check_operator(kinds: list[str], domains: list[str]) -> None:
    for domain in domains:
        for kind in kinds:
            if domain not in _OWN and kind not in OPERATORS.get(domain, ()):
                raise InputError(f"it has the operator {_shown(kind)} of {_shown(domain)}, which no export of this version makes")


def _read_entry(content: bytes, place: _Field) -> tuple[list[str], list[str]]:
    """Names and values of an entry that says where a tensor's data lie: one of each, if all is well."""
    fields = [field for field in _fields(content, place.start, place.stop) if field.wire == _BYTES]
    return [_text(content, one) for one in fields if one.number == _KEY], [_text(content, one) for one in fields if one.number == _VALUE]


def _check_external(entries: list[tuple[list[str], list[str]]], sizes: Mapping[str, int]) -> None:
    """All entries of a tensor."""
    found: dict[str, str] = {}
    for names, values in entries:
        if len(names) != 1 or len(values) > 1 or names[0] in found or names[0] not in ("location", "offset", "length"):
            raise InputError(f"a weight has the entry {_shown(' '.join(names))}, expected location, offset and length, each once")
        found[names[0]] = values[0] if values else ""
    location = found.get("location", "")
    if location not in sizes:
        raise InputError(f"its weights lie in {_shown(location)}, expected {' or '.join(sorted(sizes)) or 'none'} beside it")
    end = 0
    for name in ("offset", "length"):
        number = found.get(name, "0")
        if not (number.isascii() and number.isdigit() and len(number) < 19):
            raise InputError(f"a weight has the {name} {_shown(number)}, expected a whole number")
        end += int(number)
    if end > sizes[location]:
        raise InputError(f"a weight ends at byte {end} of {location}, which has {sizes[location]}")


def _fields(content: bytes, start: int, stop: int) -> Iterator[_Field]:
    """The fields of the message that lies there."""
    at = start
    while at < stop:
        tag, at = _varint(content, at, stop)
        wire, begin = tag & 7, at
        if wire == _VARINT:
            _, at = _varint(content, at, stop)
        elif wire == _BYTES:
            length, begin = _varint(content, at, stop)
            at = begin + length
        elif wire in (_LONG, _INT):
            at += 8 if wire == _LONG else 4
        else:
            raise InputError("it is no ONNX file")
        if at > stop or not 0 < tag >> 3 < 1 << 29:
            raise InputError("it is no intact ONNX file")
        yield _Field(tag >> 3, wire, begin, at)


def _varint(content: bytes, at: int, stop: int) -> tuple[int, int]:
    """A number of up to ten bytes, and where it ends."""
    value = 0
    for shift in range(0, 70, 7):
        if at >= stop:
            break
        byte = content[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
    raise InputError("it is no intact ONNX file")


def _text(content: bytes, place: _Field) -> str:
    return content[place.start : place.stop].decode("utf-8", "backslashreplace")


def _shown(text: str) -> str:
    return ascii(text[:80])
