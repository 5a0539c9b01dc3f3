"""VidMuse's codec: decoding in pieces, its ends, encoding, and files."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import musicrt
from musicrt.runtime.audio_writer import write_audio
from musicrt.runtime.errors import AudioError, InputError
from musicrt.runtime.models.vidmuse import codec as codec_module
from musicrt.runtime.models.vidmuse.codec import pad_ends
from musicrt.runtime.models.vidmuse.pipeline import Pipeline
from musicrt.runtime.resampling import resample_audio
from tests.conftest import ForSystem, refused
from tests.reference import signals
from tests.runtime.vidmuse_codecs import CARD, Codes, Float, LightSession, distance, open_light, open_tiny


@pytest.fixture(scope="module")
def tiny(tiny_checkpoints: ForSystem) -> Iterator[Pipeline]:
    with open_tiny(tiny_checkpoints("vidmuse")) as codec:
        yield codec


def random_codes(count: int, batch: int = 1, seed: int = 0) -> Codes:
    return np.random.default_rng(seed).integers(0, CARD, (batch, 4, count))


def in_pieces(codec: Pipeline, codes: Codes, *sizes: int) -> list[Float]:
    """Decoded with the pieces of codes that a loop of tokens might give."""
    decoder, blocks, start = codec.audio.open(len(codes)), [], 0
    for size in sizes:
        blocks.append(decoder.push(codes[:, :, start : start + size]))
        start += size
    assert start == codes.shape[2]
    return [*blocks, decoder.finish()]


def whole(codec: Pipeline, codes: Codes) -> Float:
    """Decoded with every stage run once."""
    model, config = codec.model, codec.config
    latent = model.session("dequantizer").run({"codes": codes})["latent"]
    state = np.zeros((config.recurrent_layers, len(codes), config.recurrent_channels), np.float32)
    padded = np.ascontiguousarray(pad_ends(latent, config.pad_mode))
    features = model.session("recurrence").run({"latent": padded, "h": state, "c": state})["features"]
    return model.session("synthesis").run({"features": features})["audio"][:, 0]


# Decoding


@pytest.mark.parametrize(
    "sizes", [(40,), (1,) * 40, (3, 1, 36), (4, 36), (2, 0, 2, 36), (5, 5, 30), (36, 1, 1, 1, 1), (20, 20), (7, 13, 0, 20)]
)
def test_pieces_give_what_the_whole_gives(tiny: Pipeline, sizes: tuple[int, ...]) -> None:
    codes = np.random.default_rng(0).integers(0, 2048, (2, 4, 40))
    blocks = in_pieces(tiny, codes, *sizes)
    assert distance(np.concatenate(blocks, axis=1), whole(tiny, codes)) < 2e-6


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 6, 7, 8])
@pytest.mark.parametrize("pad_mode", ["reflect", "constant"])
def test_short_signals_have_their_ends(count: int, pad_mode: str) -> None:
    codec = open_light(pad_mode=pad_mode)[0]
    codes = random_codes(count, batch=2, seed=count)
    expected = whole(codec, codes)
    assert expected.shape == (2, 640 * count)
    for sizes in ((count,), (1,) * count):
        assert distance(np.concatenate(in_pieces(codec, codes, *sizes), axis=1), expected) < 1e-6


def test_audio_comes_five_frames_after_its_codes() -> None:
    blocks = in_pieces(open_light()[0], random_codes(9), *(1,) * 9)
    assert [block.shape[1] // 640 for block in blocks] == [0, 0, 0, 0, 0, 1, 1, 1, 1, 5]


def test_long_codes_are_decoded_in_constant_memory() -> None:
    codec, sessions = open_light()
    codes = random_codes(1100)
    blocks = list(codec.decode_stream(codes))
    audio = np.concatenate(blocks, axis=1)
    assert max(size[2] for size in sessions["synthesis"].sizes) <= codec_module.BLOCK + 2 * codec_module.MARGIN
    assert max(block.shape[1] for block in blocks) <= 640 * codec_module.BLOCK
    assert distance(audio, whole(codec, codes)) < 1e-6
    np.testing.assert_array_equal(codec.decode(codes), audio)
    np.testing.assert_array_equal(codec.decode(codes[0].astype(np.int16)), audio)


def test_blocks_are_as_small_as_the_sessions_take_them(monkeypatch: pytest.MonkeyPatch) -> None:
    codec, sessions = open_light()
    codes, audio = random_codes(100), np.random.default_rng(0).standard_normal((1, 64_000), np.float32)
    expected, encoded = whole(codec, codes), codec.encode(audio)
    for session in sessions.values():
        session.sizes.clear()
    monkeypatch.setattr(LightSession, "limits", {"codes": (1, 20)})
    assert distance(np.concatenate(in_pieces(codec, codes, 70, 30), axis=1), expected) < 1e-6
    np.testing.assert_array_equal(codec.encode(audio), encoded)
    assert {name: max(size[2] for size in sessions[name].sizes) for name in ("dequantizer", "recurrence", "synthesis", "quantizer")} == {
        "dequantizer": 20 - 2 * codec_module.MARGIN,
        "recurrence": 20 - 2 * codec_module.MARGIN + 2 * codec_module.EDGE,
        "synthesis": 20,
        "quantizer": 20,
    }


@pytest.mark.parametrize(
    ("length", "expected"),
    [
        (5, [3, 2, 1, 0, 1, 2, 3, 4, 3, 2, 1]),
        (4, [3, 2, 1, 0, 1, 2, 3, 2, 1, 0]),
        (3, [None, 2, 1, 0, 1, 2, None, 2, 1]),
        (1, [None, None, None, 0, None, None, None]),
    ],
)
def test_ends_are_mirrored_as_officially(length: int, expected: list[int | None]) -> None:
    """What is too short is first filled up with silence, and as much is cut from the end again."""
    latents = np.arange(1.0, length + 1, dtype=np.float32)[None, None]
    values = [0.0 if index is None else index + 1.0 for index in expected]
    np.testing.assert_array_equal(pad_ends(latents, "reflect")[0, 0], values)
    np.testing.assert_array_equal(pad_ends(latents, "constant")[0, 0], [0, 0, 0, *latents[0, 0], 0, 0, 0])


# Encoding


def test_codes_are_those_of_the_mean_of_the_channels_at_32_khz() -> None:
    codec = open_light()[0]
    audio = signals.audio("vidmuse", 1.0, 44100, 2)
    mono = resample_audio(audio, 44100, 32000, "julius").mean(axis=0)
    codes = codec.encode(audio, sample_rate=44100)
    np.testing.assert_array_equal(codes, codec.encode(mono))
    assert codes.shape == (1, 4, -(-len(mono) // 640))
    assert codes.dtype == np.int64
    assert len(np.unique(codes)) > 20


def test_long_audio_is_quantised_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    codec, sessions = open_light()
    audio = np.random.default_rng(0).standard_normal(640 * 21 + 1).astype(np.float32)
    codes = codec.encode(audio)
    monkeypatch.setattr(codec_module, "_QUANTISED", 8)
    np.testing.assert_array_equal(codec.encode(audio), codes)
    assert [size[2] for size in sessions["quantizer"].sizes] == [22, 8, 8, 6]


def test_files_go_both_ways(tmp_path: Path) -> None:
    codec = open_light(identity="0" * 64)[0]
    audio = signals.audio("vidmuse", 0.5, 44100, 2)
    write_audio(tmp_path / "a.wav", audio, 44100)
    encoded = codec.encode_file(tmp_path / "a.wav", tmp_path / "a.safetensors")
    assert (encoded.values.shape, encoded.bits, encoded.samples) == ((1, 25, 4), (8, 8, 8, 8), 16000)
    assert codec.decode_file(tmp_path / "a.safetensors", tmp_path / "b.wav") == 16000
    decoded = musicrt.runtime.audio.read_audio(tmp_path / "b.wav")[0]
    np.testing.assert_allclose(decoded, codec.decode(encoded.values.transpose(0, 2, 1))[:, :16000], atol=1e-6)
    assert codec.roundtrip_file(tmp_path / "a.wav", tmp_path / "c.flac", {}, {}) == 16000


def test_progress_of_the_codec() -> None:
    codec, calls = open_light()[0], []
    codec.decode(random_codes(600), on_progress=lambda *call: calls.append(call))
    codec.encode(np.zeros(900, np.float32), on_progress=lambda *call: calls.append(call))
    assert calls == [(1, 3), (2, 3), (3, 3), (3, 3), (1, 1)]


@pytest.mark.parametrize(
    ("codes", "says"),
    [
        (random_codes(3)[:, :3], "got codes of shape [1, 3, 3], expected [batch, 4, n]"),
        (random_codes(3).transpose(0, 2, 1), "got codes of shape [1, 3, 4]"),
        (random_codes(0), "got codes of shape [1, 4, 0]"),
        (random_codes(3)[0, 0], "got codes of shape [3]"),
        (random_codes(3).astype(float), "got codes of dtype float64"),
        (random_codes(3) - CARD, "expected 0 to 255"),
        (random_codes(3) + CARD, "expected 0 to 255"),
        (random_codes(1, batch=65), "got codes of 65 signals, expected up to 64"),
        ([[1, 2], [3]], "got codes of several lengths"),
    ],
)
def test_wrong_codes(codes: Codes, says: str) -> None:
    codec = open_light()[0]
    for call in (codec.decode, codec.decode_stream):
        with refused(InputError, says):
            call(codes)


def test_wrong_audio(tmp_path: Path) -> None:
    codec = open_light()[0]
    with refused(InputError, "the array holds no samples"):
        codec.encode(np.zeros(0, np.float32))
    with refused(InputError, "NaN"):
        codec.encode(np.full(9, np.nan, np.float32))
    with refused(AudioError, "none.wav: no such file"):
        codec.encode(tmp_path / "none.wav")
