"""Files of encoded audio: what is in them, what is refused, and the way of real audio files through a codec."""

from __future__ import annotations

import dataclasses
import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.numpy import save_file

from musicrt.runtime.encoded import FORMAT, TOKENS_FORMAT, Encoded, load_encoded, save_encoded
from musicrt.runtime.errors import AudioError, Cancelled, EncodedError, InputError, OutputError
from musicrt.runtime.model import Model
from musicrt.runtime.models.music2latent.pipeline import Pipeline
from musicrt.runtime.packing import pack_codes
from tests.conftest import refused
from tests.reference import signals

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


def music(samples: int, channels: int = 1) -> NDArray[np.float32]:
    return signals.audio("encoded", samples / 44100, 44100, channels)


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


@pytest.mark.parametrize(("key", "most"), [("sample_rate", 768_000), ("source_rate", 768_000), ("samples", 1 << 48)])
def test_numbers_of_the_header_have_bounds(tmp_path: Path, key: str, most: int) -> None:
    save_file({"values": VALUES}, tmp_path / "a.m2l", metadata={**HEADER, key: str(most)})
    assert getattr(load_encoded(tmp_path / "a.m2l"), key) == most
    save_file({"values": VALUES}, tmp_path / "a.m2l", metadata={**HEADER, key: str(most + 1)})
    with refused(EncodedError, tmp_path / "a.m2l", f"'{most + 1}' is no whole number", f"to {most}"):
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


# Through the codec


def test_encoded_audio_of_other_weights_is_refused(codec: Pipeline, tmp_path: Path) -> None:
    encoded = codec.encode_source(save_wave(tmp_path / "a.wav", music(2000)))
    codec.check_encoded(encoded)
    with refused(EncodedError, "other weights", "1234", encoded.identity[:12]):
        codec.check_encoded(dataclasses.replace(encoded, identity="1234" * 16))
    with refused(EncodedError, "48000 Hz", "44100 Hz"):
        codec.check_encoded(dataclasses.replace(encoded, sample_rate=48000))
    with refused(EncodedError, "semanticodec", "music2latent"):
        codec.check_encoded(dataclasses.replace(encoded, system="semanticodec"))
    target = tmp_path / "b.wav"
    save_encoded(tmp_path / "b.m2l", dataclasses.replace(encoded, identity="1234" * 16))
    with refused(EncodedError, "b.m2l"):
        codec.decode_file(tmp_path / "b.m2l", target)
    assert not target.exists()


def test_audio_without_identity_belongs_to_no_bundle(codec: Pipeline, tmp_path: Path) -> None:
    nameless = Pipeline(Model(codec.model.spec, codec.model.session, codec.backend))
    with refused(InputError, "tied to a bundle"):
        nameless.encode_file(save_wave(tmp_path / "a.wav", music(2000)), tmp_path / "a.m2l")
    with refused(InputError, "tied to a bundle"):
        nameless.encode_source(tmp_path / "a.wav", on_progress=lambda *_: pytest.fail("must not get this far"))
    encoded = codec.encode_source(tmp_path / "a.wav")
    for pipeline, identity in ((nameless, encoded.identity), (nameless, ""), (codec, "")):
        with refused(EncodedError, "other weights"):
            pipeline.check_encoded(dataclasses.replace(encoded, identity=identity))


def save_wave(path: Path, audio: NDArray[np.float32], rate: int = 44100, subtype: str = "FLOAT") -> Path:
    soundfile.write(path, audio.T, rate, subtype=subtype)
    return path


FILES: dict[str, Callable[[Path], object]] = {
    "8-bit.wav": lambda path: save_wave(path, music(9000), subtype="PCM_U8"),
    "16-bit.wav": lambda path: save_wave(path, music(9000, 2), subtype="PCM_16"),
    "24-bit.wav": lambda path: save_wave(path, music(9000, 2), subtype="PCM_24"),
    "float64.wav": lambda path: save_wave(path, music(9000, 2), subtype="DOUBLE"),
    "96 kHz.wav": lambda path: save_wave(path, music(20_000, 2), rate=96_000),
    "8 kHz.wav": lambda path: save_wave(path, music(2000), rate=8000),
    "six channels.wav": lambda path: save_wave(path, music(3000, 6)),
    "silent.wav": lambda path: save_wave(path, np.zeros((2, 3000), np.float32)),
    "full scale.wav": lambda path: save_wave(path, np.sign(music(3000))),
    "one sample.wav": lambda path: save_wave(path, music(1)),
    "no sample.wav": lambda path: save_wave(path, np.zeros((1, 0), np.float32)),
    "song.flac": lambda path: soundfile.write(path, music(9000, 2).T, 48_000),
    "song.ogg": lambda path: soundfile.write(path, music(9000, 2).T, 44_100),
    "song.mp3": lambda path: soundfile.write(path, music(9000, 2).T, 44_100),
    "ünï cödé 音.wav": lambda path: save_wave(path, music(1000)),
}


@pytest.mark.parametrize("chunking", ["seamless", "official"])
@pytest.mark.parametrize("name", FILES)
def test_real_file_keeps_its_length_through_the_codec(codec: Pipeline, tmp_path: Path, name: str, chunking: Any) -> None:
    FILES[name](tmp_path / name)
    info = soundfile.info(tmp_path / name)
    samples = -(-info.frames * 44100 // info.samplerate)
    encoded = codec.encode_file(tmp_path / name, tmp_path / "a.m2l", chunking=chunking)
    assert (encoded.sample_rate, encoded.source_rate, encoded.samples) == (44100, info.samplerate, samples)
    assert encoded.values.shape == (info.channels, 8, codec.latent_length(samples, "pad"))
    np.testing.assert_array_equal(load_encoded(tmp_path / "a.m2l").values, encoded.values)
    assert codec.decode_file(tmp_path / "a.m2l", tmp_path / "b.wav", chunking=chunking, seed=1) == samples
    decoded = soundfile.info(tmp_path / "b.wav")
    assert (decoded.frames, decoded.samplerate, decoded.channels) == (samples, 44100, info.channels)
    expected = codec.decode(encoded.values, seed=1)[:, :samples]
    audio, _ = soundfile.read(tmp_path / "b.wav", dtype="float32", always_2d=True)
    assert np.abs(audio.T - expected).max(initial=0.0) < 2**-22  # 24-bit PCM


def test_cropped_file_decodes_to_what_is_left(codec: Pipeline, tmp_path: Path) -> None:
    save_wave(tmp_path / "a.wav", music(1500))
    encoded = codec.encode_file(tmp_path / "a.wav", tmp_path / "a.m2l", tail="crop")
    assert encoded.samples == 2 * 512 + 192 < 1500
    assert codec.decode_file(tmp_path / "a.m2l", tmp_path / "b.wav") == encoded.samples


def test_mp3_without_a_length_header_is_taken_as_long_as_it_is(codec: Pipeline, tmp_path: Path) -> None:
    """Its length is estimated from bit rate and size, a little too long."""
    soundfile.write(tmp_path / "a.mp3", music(44_100, 2).T, 44_100, bitrate_mode="CONSTANT", compression_level=0.5)
    content = (tmp_path / "a.mp3").read_bytes()
    second_frame = content.index(b"\xff\xfb", max(content.find(b"Xing"), content.find(b"Info")))
    (tmp_path / "b.mp3").write_bytes(content[second_frame:])
    audio, _ = soundfile.read(tmp_path / "b.mp3", always_2d=True)
    assert soundfile.info(tmp_path / "b.mp3").frames > len(audio), "the estimate must be wrong for this test to tell anything"
    assert codec.encode_source(tmp_path / "b.mp3").samples == len(audio)
    assert codec.encode(tmp_path / "b.mp3").shape == (2, 8, (len(audio) - 192) // 512)


def test_file_cut_short_is_refused(codec: Pipeline, tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.flac", music(44_100).T, 44_100)
    content = (tmp_path / "a.flac").read_bytes()
    (tmp_path / "a.flac").write_bytes(content[: len(content) // 2])
    with refused(AudioError, "a.flac"):
        codec.encode_file(tmp_path / "a.flac", tmp_path / "a.m2l")
    assert not (tmp_path / "a.m2l").exists()


def test_features_are_stored_but_not_decoded(codec: Pipeline, tmp_path: Path) -> None:
    save_wave(tmp_path / "a.wav", music(3000, 2))
    codec.encode_file(tmp_path / "a.wav", tmp_path / "a.m2l", extract_features=True)
    loaded = load_encoded(tmp_path / "a.m2l")
    assert loaded.kind == "features"
    assert loaded.values.shape[1] == codec.config.feature_channels
    with refused(InputError, "features can't be decoded"):
        codec.decode_file(tmp_path / "a.m2l", tmp_path / "b.wav")
    assert not (tmp_path / "b.wav").exists()


def test_seed_decides_the_decoded_file(codec: Pipeline, tmp_path: Path) -> None:
    save_wave(tmp_path / "a.wav", music(3000, 2))
    codec.encode_file(tmp_path / "a.wav", tmp_path / "a.m2l")
    for name, seed in (("b", 1), ("c", 1), ("d", 2)):
        codec.decode_file(tmp_path / "a.m2l", tmp_path / f"{name}.flac", seed=seed, steps=2)
    contents = [(tmp_path / f"{name}.flac").read_bytes() for name in "bcd"]
    assert contents[0] == contents[1] != contents[2]


def test_cancelled_call_leaves_no_file(codec: Pipeline, tmp_path: Path) -> None:
    def cancel(done: int, total: int) -> None:
        raise Cancelled(f"at {done} of {total}")

    save_wave(tmp_path / "a.wav", music(3000, 2))
    with refused(Cancelled, "at 1 of 2"):
        codec.encode_file(tmp_path / "a.wav", tmp_path / "a.m2l", on_progress=cancel)
    codec.encode_file(tmp_path / "a.wav", tmp_path / "b.m2l")
    with refused(Cancelled, "at 1 of 2"):
        codec.decode_file(tmp_path / "b.m2l", tmp_path / "b.wav", on_progress=cancel)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.wav", "b.m2l"]


def test_unusable_target_fails_before_the_work(codec: Pipeline, tmp_path: Path) -> None:
    def work(_done: int, _total: int) -> None:
        pytest.fail("must not get this far")

    save_wave(tmp_path / "a.wav", music(3000))
    save_encoded(tmp_path / "a.m2l", codec.encode_source(tmp_path / "a.wav"))
    with refused(OutputError, tmp_path / "missing"):
        codec.encode_file(tmp_path / "a.wav", tmp_path / "missing" / "a.m2l", on_progress=work)
    with refused(OutputError, tmp_path / "missing"):
        codec.decode_file(tmp_path / "a.m2l", tmp_path / "missing" / "b.wav", on_progress=work)


def test_roundtrip_is_encode_and_decode(codec: Pipeline, tmp_path: Path) -> None:
    save_wave(tmp_path / "a.wav", music(3000, 2))
    codec.encode_file(tmp_path / "a.wav", tmp_path / "a.m2l", tail="crop")
    samples = codec.decode_file(tmp_path / "a.m2l", tmp_path / "b.flac", seed=1)
    assert codec.roundtrip_file(tmp_path / "a.wav", tmp_path / "c.flac", {"tail": "crop"}, {"seed": 1}) == samples == 2752
    assert (tmp_path / "c.flac").read_bytes() == (tmp_path / "b.flac").read_bytes()


class FirstChannel(Pipeline):
    """A system that drops all channels but the first."""

    def output_channels(self, channels: int, /, **options: Any) -> int:
        del channels, options
        return 1

    def encode_source(self, audio: str | Path, **options: Any) -> Encoded:
        encoded = super().encode_source(audio, **options)
        return dataclasses.replace(encoded, values=encoded.values[:1])


def test_roundtrip_writes_as_many_channels_as_were_encoded(codec: Pipeline, tmp_path: Path) -> None:
    save_wave(tmp_path / "a.wav", music(3000, 6))
    assert FirstChannel(codec.model).roundtrip_file(tmp_path / "a.wav", tmp_path / "b.mp3", {}, {"seed": 1}) == 3000
    assert soundfile.info(tmp_path / "b.mp3").channels == 1
    work = {"on_progress": lambda *_: pytest.fail("must not get this far")}
    with refused(AudioError, "b.mp3", "6 channels", "1 to 2"):
        codec.roundtrip_file(tmp_path / "a.wav", tmp_path / "b.mp3", work, {"seed": 1})


def test_unusable_target_of_a_roundtrip_fails_before_the_work(codec: Pipeline, tmp_path: Path) -> None:
    def work(_done: int, _total: int) -> None:
        pytest.fail("must not get this far")

    save_wave(tmp_path / "a.wav", music(3000))
    options = {"on_progress": work}
    with refused(OutputError, tmp_path / "missing"):
        codec.roundtrip_file(tmp_path / "a.wav", tmp_path / "missing" / "b.wav", options, options)
    with refused(AudioError, "'.xyz'"):
        codec.roundtrip_file(tmp_path / "a.wav", tmp_path / "b.xyz", options, options)
    assert [path.name for path in tmp_path.iterdir()] == ["a.wav"]


@pytest.mark.parametrize("wrong", [{"steps": 0}, {"seed": -1}, {"chunking": "sideways"}, {"window": 0.0}])
def test_wrong_values_for_the_decoding_of_a_roundtrip_fail_before_the_work(codec: Pipeline, tmp_path: Path, wrong: Any) -> None:
    save_wave(tmp_path / "a.wav", music(3000))
    work = {"on_progress": lambda *_: pytest.fail("must not get this far")}
    with refused(InputError, repr(next(iter(wrong.values())))):
        codec.roundtrip_file(tmp_path / "a.wav", tmp_path / "b.wav", work, wrong)
    assert [path.name for path in tmp_path.iterdir()] == ["a.wav"]


def test_unknown_options_are_refused_by_name_before_the_work(codec: Pipeline, tmp_path: Path) -> None:
    """Before the files are looked at, which are not there."""
    encoding = "music2latent has no option 'guidance'; it has chunking, extract_features, tail, window, overlap"
    decoding = "music2latent has no option 'guidance'; it has steps, seed, chunking, window, overlap"
    with refused(InputError, encoding):
        codec.encode_file(tmp_path / "a.wav", tmp_path / "a.m2l", tail="crop", guidance=2.0)
    with refused(InputError, encoding):
        codec.roundtrip_file(tmp_path / "a.wav", tmp_path / "b.wav", {"guidance": 2.0}, {})
    with refused(InputError, decoding):
        codec.roundtrip_file(tmp_path / "a.wav", tmp_path / "b.wav", {}, {"steps": 1, "guidance": 2.0})
    save_wave(tmp_path / "a.wav", music(3000))
    with refused(InputError, decoding):
        codec.decode_encoded(codec.encode_source(tmp_path / "a.wav"), tmp_path / "b.wav", guidance=2.0)
    assert [path.name for path in tmp_path.iterdir()] == ["a.wav"]


def test_windows_of_the_stream_are_an_option(codec: Pipeline, tmp_path: Path) -> None:
    save_wave(tmp_path / "a.wav", music(9000))
    options: dict[str, Any] = {"window": 0.1, "overlap": 0.02}
    encoded = codec.encode_source(tmp_path / "a.wav", **options)
    expected = np.concatenate(list(codec.encode_stream(tmp_path / "a.wav", tail="pad", **options)), axis=-1)
    np.testing.assert_array_equal(encoded.values, expected)
    assert np.abs(encoded.values - codec.encode_source(tmp_path / "a.wav").values).max() > 1e-3


@pytest.mark.parametrize("chunking", ["sideways", None])
def test_unknown_chunking_is_refused(codec: Pipeline, tmp_path: Path, chunking: Any) -> None:
    save_wave(tmp_path / "a.wav", music(3000, 2))
    with refused(InputError, repr(chunking), "'seamless'", "'official'"):
        codec.encode_file(tmp_path / "a.wav", tmp_path / "a.m2l", chunking=chunking)
