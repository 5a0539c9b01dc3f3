"""Files of encoded audio: what is in them, and what is refused."""

from __future__ import annotations

import dataclasses
import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.numpy import save_file

from musicrt.runtime.encoded import FORMAT, TOKENS_FORMAT, Encoded, load_encoded, save_encoded
from musicrt.runtime.errors import EncodedError, InputError, OutputError
from musicrt.runtime.packing import pack_codes
from tests.conftest import refused

HEADER = {
    "format": FORMAT,
    "system": "music2latent",
    "variant": "full",
    "kind": "latents",
    "identity": "0" * 64,
    "sample_rate": "44100",
    "source_rate": "48000",
    "samples": "4000",
}
VALUES = np.arange(48, dtype=np.float32).reshape(2, 8, 3)
TOKENS = np.arange(2 * 7 * 2).reshape(2, 7, 2) * 300
TOKENS_HEADER = {**HEADER, "format": TOKENS_FORMAT, "kind": "tokens", "shape": "2,7,2", "bits": "14,13"}


def make_encoded(**changes: Any) -> Encoded:
    encoded = Encoded(
        values=VALUES,
        system="music2latent",
        variant="full",
        kind="latents",
        identity="0" * 64,
        sample_rate=44100,
        source_rate=48000,
        samples=4000,
    )
    return dataclasses.replace(encoded, **changes)


def make_tokens(**changes: Any) -> Encoded:
    return make_encoded(**{"values": TOKENS, "kind": "tokens", "bits": (14, 13), **changes})


# The container


def test_encoded_audio_survives_a_file(tmp_path: Path) -> None:
    save_encoded(tmp_path / "a.m2l", make_encoded())
    loaded = load_encoded(str(tmp_path / "a.m2l"))
    np.testing.assert_array_equal(loaded.values, VALUES)
    for field in dataclasses.fields(Encoded):
        if field.name != "values":
            assert getattr(loaded, field.name) == ("a.m2l" if field.name == "name" else getattr(make_encoded(), field.name))


def test_file_is_plain_safetensors_with_a_readable_header(tmp_path: Path) -> None:
    save_encoded(tmp_path / "a.m2l", make_encoded())
    with safe_open(tmp_path / "a.m2l", "np") as file:
        assert file.metadata() == HEADER
        assert list(file.keys()) == ["values"]
    assert [path.name for path in tmp_path.iterdir()] == ["a.m2l"]


def test_values_are_stored_as_they_look(tmp_path: Path) -> None:
    """Not as they lie in memory."""
    turned = VALUES.transpose(2, 1, 0)
    save_encoded(tmp_path / "a.m2l", make_encoded(values=turned))
    np.testing.assert_array_equal(load_encoded(tmp_path / "a.m2l").values, turned)


def test_missing_target_folder_is_refused(tmp_path: Path) -> None:
    with refused(OutputError, tmp_path / "missing" / "a.m2l"):
        save_encoded(tmp_path / "missing" / "a.m2l", make_encoded())


def raw_file(dtype: str, shape: list[int], data: bytes) -> bytes:
    header = json.dumps({"__metadata__": HEADER, "values": {"dtype": dtype, "shape": shape, "data_offsets": [0, len(data)]}}).encode()
    return struct.pack("<Q", len(header)) + header + data


DAMAGED: dict[str, bytes] = {
    "empty": b"",
    "text": b"This is a text file, and no encoded audio at all.\n",
    "wave": b"RIFF\x24\x00\x00\x00WAVEfmt \x10\x00\x00\x00",
    "cut length": raw_file("F32", [1, 8, 1], bytes(32))[:5],
    "cut header": raw_file("F32", [1, 8, 1], bytes(32))[:50],
    "cut values": raw_file("F32", [1, 8, 1], bytes(32))[:-1],
    "surplus": raw_file("F32", [1, 8, 1], bytes(32)) + b"x",
    "nested": struct.pack("<Q", 100_000) + b"[" * 100_000,
    "huge": raw_file("F32", [1 << 40, 1 << 40, 1 << 40], bytes(32)),
    "half": raw_file("F16", [1, 8, 1], bytes(16)),
    "double": raw_file("F64", [1, 8, 1], bytes(64)),
    "integers": raw_file("I32", [1, 8, 1], bytes(32)),
    "bfloat16": raw_file("BF16", [1, 8, 1], bytes(16)),
    "float8": raw_file("F8_E4M3", [1, 8, 1], bytes(8)),
    "complex": raw_file("C64", [1, 8, 1], bytes(64)),
    "two axes": raw_file("F32", [8, 1], bytes(32)),
    "four axes": raw_file("F32", [1, 1, 8, 1], bytes(32)),
    "no values": raw_file("F32", [1, 8, 0], b""),
    "NaN": raw_file("F32", [1, 8, 1], np.full(8, np.nan, "<f4").tobytes()),
    "infinity": raw_file("F32", [1, 8, 1], np.full(8, np.inf, "<f4").tobytes()),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_damaged_or_foreign_file_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "a.m2l").write_bytes(DAMAGED[name])
    with refused(EncodedError, tmp_path / "a.m2l"):
        load_encoded(tmp_path / "a.m2l")


def test_undamaged_file_of_the_same_kind_loads(tmp_path: Path) -> None:
    (tmp_path / "a.m2l").write_bytes(raw_file("F32", [1, 8, 1], bytes(32)))
    assert load_encoded(tmp_path / "a.m2l").values.shape == (1, 8, 1)


@pytest.mark.parametrize("shape", [(8, 3), (1, 2, 8, 3), (0, 8, 3), (2, 8, 0)])
def test_values_that_no_file_holds_are_not_written(tmp_path: Path, shape: tuple[int, ...]) -> None:
    with refused(InputError, list(shape), "three axes"):
        save_encoded(tmp_path / "a.m2l", make_encoded(values=np.zeros(shape, np.float32)))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("change", ["drop", "-1", "1.5", "x", "", "two\nlines", "9" * 5000, "9" * 300, "1_000", "+5", " 7", "٤٤١٠٠", "²"])
@pytest.mark.parametrize("key", ["format", "kind", "sample_rate", "source_rate", "samples"])
def test_damaged_header_is_refused(tmp_path: Path, key: str, change: str) -> None:
    header = {name: value for name, value in {**HEADER, key: change}.items() if value != "drop"}
    save_file({"values": VALUES}, tmp_path / "a.m2l", metadata=header)
    with refused(EncodedError, tmp_path / "a.m2l"):
        load_encoded(tmp_path / "a.m2l")


@pytest.mark.parametrize(("key", "most"), [("sample_rate", 768_000), ("source_rate", 768_000)])
def test_numbers_of_the_header_have_bounds(tmp_path: Path, key: str, most: int) -> None:
    save_file({"values": VALUES}, tmp_path / "a.m2l", metadata={**HEADER, key: str(most)})
    assert getattr(load_encoded(tmp_path / "a.m2l"), key) == most
    save_file({"values": VALUES}, tmp_path / "a.m2l", metadata={**HEADER, key: str(most + 1)})
    with refused(EncodedError, tmp_path / "a.m2l", f"'{most + 1}' is no whole number", f"to {most}"):
        load_encoded(tmp_path / "a.m2l")


def test_length_of_the_audio_has_a_bound(tmp_path: Path) -> None:
    day = 44_100 * 24 * 3600
    save_file({"values": VALUES}, tmp_path / "a.m2l", metadata={**HEADER, "samples": str(day)})
    assert load_encoded(tmp_path / "a.m2l").samples == day
    save_file({"values": VALUES}, tmp_path / "a.m2l", metadata={**HEADER, "samples": str(day + 44_100)})
    with refused(EncodedError, tmp_path / "a.m2l", "stands for 86401 s", "at most 86400", "MUSICRT_LIMITS=audio_seconds=86401"):
        load_encoded(tmp_path / "a.m2l")


@pytest.mark.parametrize("key", ["system", "variant", "identity"])
def test_incomplete_header_is_refused(tmp_path: Path, key: str) -> None:
    save_file({"values": VALUES}, tmp_path / "a.m2l", metadata={name: value for name, value in HEADER.items() if name != key})
    with refused(EncodedError, tmp_path / "a.m2l", key):
        load_encoded(tmp_path / "a.m2l")


@pytest.mark.parametrize("key", ["system", "variant", "identity"])
@pytest.mark.parametrize("text", ["two\nlines", "\x1b[31mred"])
def test_names_that_a_terminal_would_obey_are_refused(tmp_path: Path, key: str, text: str) -> None:
    save_file({"values": VALUES}, tmp_path / "a.m2l", metadata={**HEADER, key: text})
    with refused(EncodedError, tmp_path / "a.m2l", repr(text)):
        load_encoded(tmp_path / "a.m2l")


def test_other_containers_are_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", values=VALUES)
    (tmp_path / "a.npz").rename(tmp_path / "npz")
    np.save(tmp_path / "a.npy", VALUES)
    save_file({"values": VALUES}, tmp_path / "no header")
    save_file({"latents": VALUES}, tmp_path / "other name", metadata=HEADER)
    save_file({"values": VALUES, "more": VALUES}, tmp_path / "two tensors", metadata=HEADER)
    (tmp_path / "folder").mkdir()
    for name in ("npz", "a.npy", "no header", "other name", "two tensors", "folder", "missing", "x" * 300):
        with refused(EncodedError, tmp_path / name):
            load_encoded(tmp_path / name)


# Tokens


def test_tokens_survive_a_file(tmp_path: Path) -> None:
    save_encoded(tmp_path / "a.tok", make_tokens())
    loaded = load_encoded(tmp_path / "a.tok")
    assert loaded.values.dtype == np.int64
    np.testing.assert_array_equal(loaded.values, TOKENS)
    assert (loaded.kind, loaded.bits, loaded.samples, loaded.name) == ("tokens", (14, 13), 4000, "a.tok")


def test_tokens_are_packed_under_a_readable_header(tmp_path: Path) -> None:
    save_encoded(tmp_path / "a.tok", make_tokens())
    with safe_open(tmp_path / "a.tok", "np") as file:
        assert file.metadata() == TOKENS_HEADER
        payload = file.get_tensor("values")
    assert payload.nbytes == 48, "14 pairs of 27 bits"
    np.testing.assert_array_equal(payload, pack_codes(TOKENS, (14, 13)))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"values": TOKENS * 40}, ("in codebook 0", "expected 0 to 16383")),
        ({"values": TOKENS - 1}, ("from -1", "in codebook 0")),
        ({"values": TOKENS.astype(np.int32)}, ("int32",)),
        ({"values": TOKENS.astype(np.float32)}, ("float32",)),
        ({"bits": ()}, ("bits=[]",)),
        ({"bits": (14, 13, 12)}, ("[2, 7, 2]", "bits=[14, 13, 12]")),
        ({"values": TOKENS[0]}, ("[7, 2]", "three axes")),
    ],
)
def test_tokens_that_do_not_fit_are_not_written(tmp_path: Path, changes: dict[str, Any], words: tuple[str, ...]) -> None:
    with refused(InputError, *words):
        save_encoded(tmp_path / "a.tok", make_tokens(**changes))
    assert not list(tmp_path.iterdir())


PAYLOAD = pack_codes(TOKENS, (14, 13))
WRONG_TOKENS: dict[str, tuple[dict[str, str], NDArray[Any]]] = {
    "of floats' format": ({"format": FORMAT}, PAYLOAD),
    "floats": ({}, VALUES),
    "floats of tokens' format": ({"kind": "latents"}, VALUES),
    "unpacked": ({}, TOKENS),
    "a byte too few": ({}, PAYLOAD[:-1]),
    "a byte too many": ({}, np.append(PAYLOAD, np.uint8(0))),
    "surplus bits": ({}, PAYLOAD | np.uint8(1)),
    "two axes": ({}, PAYLOAD[None]),
    "shape of two": ({"shape": "14,2"}, PAYLOAD),
    "shape of four": ({"shape": "1,2,7,2"}, PAYLOAD),
    "another shape": ({"shape": "2,8,2"}, PAYLOAD),
    "negative shape": ({"shape": "-2,-7,2"}, PAYLOAD),
    "empty shape": ({"shape": ""}, PAYLOAD),
    "shape of nothing": ({"shape": "0,7,2"}, PAYLOAD),
    "huge shape": ({"shape": f"{1 << 40},{1 << 40},2"}, PAYLOAD),
    "text as shape": ({"shape": "2,x,2"}, PAYLOAD),
    "one codebook": ({"bits": "27"}, PAYLOAD),
    "three codebooks": ({"bits": "14,7,6"}, PAYLOAD),
    "other bits": ({"bits": "14,14"}, PAYLOAD),
    "no bits": ({"bits": "0,27"}, PAYLOAD),
    "negative bits": ({"bits": "-14,13"}, PAYLOAD),
    "many bits": ({"bits": f"{1 << 40},13"}, PAYLOAD),
    "text as bits": ({"bits": "14;13"}, PAYLOAD),
    "digits": ({"bits": "9" * 5000 + ",13"}, PAYLOAD),
}


@pytest.mark.parametrize("name", WRONG_TOKENS)
def test_damaged_tokens_are_refused(tmp_path: Path, name: str) -> None:
    changes, values = WRONG_TOKENS[name]
    save_file({"values": values}, tmp_path / "a.tok", metadata={**TOKENS_HEADER, **changes})
    with refused(EncodedError, tmp_path / "a.tok", "encode the audio again"):
        load_encoded(tmp_path / "a.tok")


def test_more_frames_than_the_audio_has_samples_are_refused(tmp_path: Path) -> None:
    """But for what a very short one may be filled up to."""
    tokens = make_tokens(values=np.zeros((1, 1025, 2), np.int64), samples=1)
    save_encoded(tmp_path / "a.tok", tokens)
    assert load_encoded(tmp_path / "a.tok").values.shape == (1, 1025, 2)
    save_encoded(tmp_path / "a.tok", dataclasses.replace(tokens, samples=0))
    with refused(EncodedError, tmp_path / "a.tok", "1025 frames of codes for 0 samples", "at most 1024"):
        load_encoded(tmp_path / "a.tok")


@pytest.mark.parametrize("key", ["format", "kind", "shape", "bits", "samples", "identity"])
def test_tokens_with_an_incomplete_header_are_refused(tmp_path: Path, key: str) -> None:
    save_file({"values": PAYLOAD}, tmp_path / "a.tok", metadata={name: value for name, value in TOKENS_HEADER.items() if name != key})
    with refused(EncodedError, tmp_path / "a.tok", key):
        load_encoded(tmp_path / "a.tok")


def test_seconds_and_bit_rate_are_those_of_the_source() -> None:
    assert make_tokens(sample_rate=16_000).seconds == 0.25
    assert make_tokens(sample_rate=16_000).bit_rate == 14 * 27 / 0.25
    assert make_encoded(samples=88_200).bit_rate == 48 * 32 / 2
    assert make_encoded(samples=0).seconds == make_encoded(samples=0).bit_rate == 0.0
