"""Whole files through MuCodec: encoded audio, its bits, its channels, and the way back."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile

from musicrt.runtime.encoded import load_encoded
from musicrt.runtime.errors import EncodedError, InputError
from tests.conftest import refused
from tests.runtime.mucodec_codecs import Watched, music, open_light


@pytest.fixture
def light() -> Watched:
    return open_light(codebooks=2, identity="a" * 64)


@pytest.fixture
def song(tmp_path: Path) -> Path:
    """Stereo, 1.5 s at 44.1 kHz."""
    soundfile.write(tmp_path / "song.wav", music(66_150).T, 44_100, subtype="FLOAT")
    return tmp_path / "song.wav"


def test_a_file_of_codes_knows_what_it_takes_to_decode_it(light: Watched, song: Path, tmp_path: Path) -> None:
    codec, _ = light
    codec.encode_file(song, tmp_path / "song.codes", fit="length")
    encoded = load_encoded(tmp_path / "song.codes")
    assert (encoded.kind, encoded.bits, encoded.values.shape) == ("tokens", (9, 9), (1, 38, 2))
    assert (encoded.samples, encoded.source_rate, encoded.sample_rate) == (72_000, 44_100, 48_000)
    np.testing.assert_array_equal(encoded.values.transpose(0, 2, 1), codec.encode(song, fit="length"))
    assert abs(encoded.bit_rate - 450) < 10


def test_file_is_decoded_to_stereo_of_its_length(light: Watched, song: Path, tmp_path: Path) -> None:
    codec, _ = light
    encoded = codec.encode_file(song, tmp_path / "song.codes", fit="length")
    assert codec.decode_file(tmp_path / "song.codes", tmp_path / "out.wav", steps=2, seed=1, fit="length") == 72_000
    sound, rate = soundfile.read(tmp_path / "out.wav", dtype="float32")
    assert (sound.shape, rate) == ((72_000, 2), 48_000)
    expected = codec.decode(encoded.values.transpose(0, 2, 1), steps=2, seed=1, fit="length")
    assert np.abs(sound.T - expected[:, :72_000]).max() < 1e-3


def test_file_keeps_a_length_that_decodes_to_a_sample_less(light: Watched, tmp_path: Path) -> None:
    """55680 samples are 29 codes, which are 55679 samples."""
    codec, _ = light
    soundfile.write(tmp_path / "a.wav", music(55_680).T, 48_000, subtype="FLOAT")
    encoded = codec.encode_file(tmp_path / "a.wav", tmp_path / "a.codes", fit="length")
    assert encoded.values.shape == (1, 29, 2)
    assert codec.decode_file(tmp_path / "a.codes", tmp_path / "b.wav", steps=1, seed=1, fit="length") == 55_680
    sound, _ = soundfile.read(tmp_path / "b.wav", dtype="float32")
    assert sound.shape == (55_680, 2)
    assert not sound[-1].any()
    assert sound[-2].all()


def test_mono_comes_back_as_stereo(light: Watched, tmp_path: Path) -> None:
    codec, sessions = light
    soundfile.write(tmp_path / "mono.wav", music(20_000, 1).T, 48_000, subtype="FLOAT")
    options = {"fit": "length"}
    assert codec.roundtrip_file(tmp_path / "mono.wav", tmp_path / "out.wav", options, options) == 20_000
    assert soundfile.info(tmp_path / "out.wav").channels == codec.output_channels(1) == 2
    assert len(sessions["estimator"].calls) == 50, "as the official script"
    codec.roundtrip_file(tmp_path / "mono.wav", tmp_path / "out.wav", options, {**options, "steps": 3})
    assert len(sessions["estimator"].calls) == 53


def test_prompt_may_be_a_file(light: Watched, song: Path, tmp_path: Path) -> None:
    codec, sessions = light
    codec.encode_file(song, tmp_path / "song.codes", fit="length")
    codec.decode_file(tmp_path / "song.codes", tmp_path / "out.wav", steps=1, seed=1, fit="length", prompt=song)
    assert len(sessions["vae-encoder"].calls) == 2


def test_wrong_files_and_options_are_refused(light: Watched, song: Path, tmp_path: Path) -> None:
    codec, _ = light
    with refused(InputError, "mucodec has no option 'eta'", "fit"):
        codec.roundtrip_file(song, tmp_path / "out.wav", {}, {"eta": 1.0})
    with refused(InputError, "'tiny'"):
        codec.roundtrip_file(song, tmp_path / "out.wav", {}, {"fit": "tiny"})
    codec.encode_file(song, tmp_path / "song.codes", fit="length")
    other, _ = open_light(codebooks=2, identity="b" * 64)
    with refused(EncodedError, "other weights"):
        other.decode_file(tmp_path / "song.codes", tmp_path / "out.wav")
    nameless, _ = open_light()
    with refused(InputError, "tied to a bundle"):
        nameless.encode_file(song, tmp_path / "again.codes")
    assert not (tmp_path / "out.wav").exists()
    assert not (tmp_path / "again.codes").exists()
