"""Readers of foreign bytes, fed with changed files: each works, or raises an error of this package, in little memory.

The targets are those of `tools/fuzz`, which goes on for longer. Examples are the same in every run.
"""

from __future__ import annotations

import functools
import logging
import tracemalloc
from collections.abc import Iterator, Sequence

import pytest

from tools.fuzz.targets import TARGETS, run_target

pytest.importorskip("hypothesis")
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

MEMORY = 64 << 20  # bytes that Python and NumPy may hold at once
EXAMPLES = {"manifest": 40, "video": 25, "options": 20}
NEEDS = {"video": "av", "graph": "onnx", "weights": "torch"}
FOUND: Sequence[tuple[str, bytes]] = (
    ("manifest", b'{"format":"musicrt-bundle","version":1e999}'),
    ("manifest", b'{"format":"musicrt-bundle","version":' + b"9" * 5000 + b"}"),
    ("manifest", b'{"format":"musicrt-bundle","version":1,"system":"\\ud800"}'),
    ("header", b'{"__metadata__":{},"values":{"dtype":"F32","shape":[18446744073709551615,2],"data_offsets":[0,8]}}\0' + bytes(8)),
    ("weights", b'{"more":{"dtype":"F32","shape":[0,9223372036854775808],"data_offsets":[0,0]}}\0'),
    ("weights", b'{"more":{"dtype":"F32\\n\\u001b[2J","shape":[0],"data_offsets":[0,0]}}\0'),
    ("header", b'{"__metadata__":{},"values":{"dtype":"F32\\n\\u001b[2J","shape":[0],"data_offsets":[0,0]}}\0'),
    ("graph", b"\x3a\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01"),
    ("options", b"decode\0b\0a.tok\0a.wav\0--threads\0" + b"[" * 2000),
    ("options", b"decode\0b\0a.tok\0a.wav\0--seed\0" + b"9" * 5000),
)
"""What was found once, or looks as if it could be, made small."""


@functools.cache
def seeds(name: str) -> Sequence[bytes]:
    return TARGETS[name].seeds()


@st.composite
def changed(draw: st.DrawFn, name: str) -> bytes:
    """A valid input, changed in a few places: bytes replaced, taken out, put in or repeated, or cut short."""
    content = bytearray(draw(st.sampled_from(seeds(name))))
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, max(len(content) - 1, 0)))
        stop = at + draw(st.sampled_from([1, 1, 1, 2, 4, 8, 64]))
        match draw(st.sampled_from(["replace", "flip", "drop", "insert", "repeat", "cut"])):
            case "replace":
                content[at:stop] = draw(st.binary(min_size=stop - at, max_size=stop - at))
            case "flip" if content:
                content[at] ^= 1 << draw(st.integers(0, 7))
            case "drop":
                del content[at:stop]
            case "insert":
                content[at:at] = draw(st.sampled_from([b"\xff" * 8, bytes(8), b"9" * 20, b"-", b"e999", b'"', b"[" * 2000, b"\x80\xff"]))
            case "repeat":
                content[at:at] = content[at:stop] * draw(st.sampled_from([1, 100]))
            case "cut":
                del content[at:]
    return bytes(content)


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    logging.disable()
    yield
    logging.disable(logging.NOTSET)


@pytest.mark.parametrize("name", TARGETS)
def test_any_bytes_work_or_are_refused(name: str) -> None:
    if name in NEEDS:
        pytest.importorskip(NEEDS[name])

    @settings(
        max_examples=EXAMPLES.get(name, 100),
        derandomize=True,
        deadline=None,
        database=None,
        phases=[Phase.generate],  # making a finding small takes longer than the finding is worth here; the fuzzer does it too
        suppress_health_check=list(HealthCheck),
    )
    @given(st.one_of(changed(name), changed(name), changed(name), st.binary(max_size=200)))
    def run(data: bytes) -> None:
        run_target(name, data)

    tracemalloc.start()
    try:
        run()
        assert tracemalloc.get_traced_memory()[1] < MEMORY
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("name", TARGETS)
def test_unchanged_files_are_read(name: str) -> None:
    """Else nothing behind the first check would be reached."""
    if name in NEEDS:
        pytest.importorskip(NEEDS[name])
    for seed in seeds(name):
        run_target(name, seed)


@pytest.mark.parametrize(("name", "data"), FOUND, ids=range(len(FOUND)))
def test_what_was_found_once_stays_mended(name: str, data: bytes) -> None:
    run_target(name, data)
