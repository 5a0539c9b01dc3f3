"""SemantiCodec on whole files: encoded audio of packed tokens, written and read with a bundle."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile

import musicrt
from musicrt.runtime.errors import EncodedError, InputError, OutputError
from musicrt.runtime.models.semanticodec.pipeline import Pipeline
from tests.conftest import ForSystem, refused
from tests.runtime.semanticodec_codecs import music, open_tiny, random_tokens

PCM_24 = 2.0**-23


@pytest.fixture(scope="module")
def codec(tiny_bundles: ForSystem) -> Iterator[Pipeline]:
    pytest.importorskip("onnxruntime")
    with musicrt.load(tiny_bundles("semanticodec"), backend="onnxruntime-cpu", threads=1) as pipeline:
        yield pipeline


@pytest.fixture
def song(tmp_path: Path) -> Path:
    """A stereo file of 1.2 s, 19203 samples at 16 kHz."""
    soundfile.write(tmp_path / "song.wav", music(52928, 2).T, 44100, subtype="FLOAT")
    return tmp_path / "song.wav"


def read(path: Path) -> tuple[np.ndarray, int]:
    audio, rate = soundfile.read(path, dtype="float32", always_2d=True)
    return audio.T, rate


def test_tokens_of_a_file_are_packed(codec: Pipeline, song: Path, tmp_path: Path) -> None:
    encoded = codec.encode_file(song, tmp_path / "a.tokens")
    np.testing.assert_array_equal(encoded.values, codec.encode(song))
    assert encoded.values.shape == (1, 32, 2)
    assert (encoded.system, encoded.kind, encoded.bits) == ("semanticodec", "tokens", (9, 8))
    assert (encoded.sample_rate, encoded.source_rate, encoded.samples) == (16000, 44100, 19203)
    assert encoded.identity == codec.model.identity
    assert encoded.bit_rate == 32 * 17 / (19203 / 16000)
    assert codec.model.spec.bit_rate == 25 * 17
    loaded = musicrt.load_encoded(tmp_path / "a.tokens")
    assert replace(loaded, values=encoded.values, name=encoded.name) == encoded
    np.testing.assert_array_equal(loaded.values, encoded.values)
    assert (tmp_path / "a.tokens").stat().st_size < 1000, "68 bytes of tokens, a header, and the record of what they were made with"


def test_file_decodes_to_the_length_of_the_original(codec: Pipeline, song: Path, tmp_path: Path) -> None:
    encoded = codec.encode_file(song, tmp_path / "a.tokens")
    options = {"steps": 2, "seed": 3, "guidance": 1.5, "sampler": "dpm-solver++"}
    assert codec.decode_file(tmp_path / "a.tokens", tmp_path / "b.wav", **options) == 19203
    audio, rate = read(tmp_path / "b.wav")
    assert (audio.shape, rate) == ((1, 19203), 16000)
    expected = codec.decode(encoded.values, steps=2, seed=3, guidance=1.5, sampler="dpm-solver++")
    assert expected.shape == (1, 1, 32 * 640)
    np.testing.assert_allclose(audio, expected[0, :, :19203], rtol=0, atol=PCM_24)


def test_channels_make_the_round_trip(codec: Pipeline, song: Path, tmp_path: Path) -> None:
    """The number of channels is that of the tokens, not that of the file."""
    decoding = {"steps": 1, "seed": 0}
    assert codec.roundtrip_file(song, tmp_path / "first.wav", {}, decoding) == 19203
    assert codec.roundtrip_file(song, tmp_path / "each.wav", {"channels": "each"}, decoding) == 19203
    first, each = read(tmp_path / "first.wav")[0], read(tmp_path / "each.wav")[0]
    assert (first.shape, each.shape) == ((1, 19203), (2, 19203))
    np.testing.assert_allclose(each[:1], first, rtol=0, atol=1e-5)
    assert np.abs(each[1] - each[0]).max() > 0.01
    codec.encode_file(song, tmp_path / "a.tokens", channels="each")
    codec.decode_file(tmp_path / "a.tokens", tmp_path / "b.wav", **decoding)
    np.testing.assert_array_equal(read(tmp_path / "b.wav")[0], each)


def test_bundle_gives_the_tokens_of_the_checkpoint(codec: Pipeline, tiny_checkpoints: ForSystem, song: Path) -> None:
    """ONNX Runtime against PyTorch."""
    with open_tiny(tiny_checkpoints("semanticodec")) as torch_codec:
        assert torch_codec.config == codec.config
        np.testing.assert_array_equal(torch_codec.encode(song, channels="each"), codec.encode(song, channels="each"))


def test_progress_and_options_go_through(codec: Pipeline, song: Path, tmp_path: Path) -> None:
    calls: list[tuple[int, int]] = []
    codec.encode_file(song, tmp_path / "a.tokens", on_progress=lambda *call: calls.append(call))
    codec.decode_file(tmp_path / "a.tokens", tmp_path / "b.wav", steps=2, on_progress=lambda *call: calls.append(call))
    assert calls == [(1, 1), (1, 2), (2, 2)]
    with refused(InputError, "semanticodec has no option 'chunking'; it has steps, guidance, eta, sampler, seed"):
        codec.decode_file(tmp_path / "a.tokens", tmp_path / "c.wav", chunking="overlap")
    with refused(InputError, "semanticodec has no option 'steps'; it has channels"):
        codec.encode_file(song, tmp_path / "c.tokens", steps=3)
    with refused(OutputError, "missing"):
        codec.roundtrip_file(song, tmp_path / "missing" / "c.wav", {}, {})
    assert {path.name for path in tmp_path.iterdir()} == {"song.wav", "a.tokens", "b.wav"}


def test_tokens_of_another_bundle_are_refused(codec: Pipeline, song: Path, tmp_path: Path) -> None:
    encoded = codec.encode_source(song)
    for other, words in (
        (replace(encoded, identity="0" * 64), ["other weights", "0" * 12]),
        (replace(encoded, system="music2latent"), ["holds music2latent"]),
        (replace(encoded, sample_rate=44100), ["44100 Hz", "16000 Hz"]),
    ):
        with refused(EncodedError, *words):
            codec.decode_encoded(other, tmp_path / "b.wav")
    with refused(InputError, "semantic codes", "0 to 511"):
        codec.decode_encoded(replace(encoded, values=random_tokens(5) + 300), tmp_path / "b.wav")
    assert not (tmp_path / "b.wav").exists()


def test_tokens_without_a_bundle_are_no_file(tiny_checkpoints: ForSystem, song: Path, tmp_path: Path) -> None:
    with open_tiny(tiny_checkpoints("semanticodec")) as codec, refused(InputError, "comes from none", "export"):
        codec.encode_file(song, tmp_path / "a.tokens")
