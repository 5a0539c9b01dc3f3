"""Whole audio files through a codec: encode, decode and round trip, and what fails before the work."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from numpy.typing import NDArray

from musicrt.runtime.encoded import Encoded, load_encoded, save_encoded
from musicrt.runtime.errors import AudioError, Cancelled, EncodedError, InputError, OutputError
from musicrt.runtime.model import Model
from musicrt.runtime.models.music2latent.pipeline import Pipeline
from musicrt.runtime.record_reader import read_record
from tests.conftest import refused
from tests.reference import signals


def music(samples: int, channels: int = 1) -> NDArray[np.float32]:
    return signals.audio("encoded", samples / 44100, 44100, channels)


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
    np.testing.assert_array_equal(soundfile.read(tmp_path / "c.flac")[0], soundfile.read(tmp_path / "b.flac")[0])
    one, other = read_record(tmp_path / "b.flac"), read_record(tmp_path / "c.flac")
    assert one is not None
    assert other == one.model_copy(update={"input": None})  # there was no file in between


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
