"""Music2Latent's encode and decode: chunks, batches, seeds, and what they refuse."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from musicrt.runtime.errors import AudioError, InputError, MusicRTError
from musicrt.runtime.models.music2latent.pipeline import Pipeline
from musicrt.runtime.resampling import resample_audio
from tests.conftest import refused
from tests.runtime.music2latent_codecs import CHUNK, EDGE, HOP, STEP, assert_close, music, random_latents

# Encode


def test_array_and_file_encode_to_the_same(codec: Pipeline, tmp_path: Path) -> None:
    audio = music(9000, 2)
    soundfile.write(tmp_path / "a.wav", audio.T, 44100, subtype="FLOAT")
    latents = codec.encode(audio)
    assert latents.shape == (2, 8, (9000 - EDGE) // STEP)
    assert latents.dtype == np.float32
    assert np.std(latents) > 0.5
    for path in (tmp_path / "a.wav", str(tmp_path / "a.wav")):
        np.testing.assert_array_equal(codec.encode(path), latents)


def test_one_dimension_is_one_channel(codec: Pipeline) -> None:
    audio = music(5000)
    np.testing.assert_array_equal(codec.encode(audio[0]), codec.encode(audio))


def test_channels_are_encoded_independently(codec: Pipeline) -> None:
    audio = music(5000, 6)
    together = codec.encode(audio)
    for channel in range(6):
        np.testing.assert_array_equal(together[channel : channel + 1], codec.encode(audio[channel]))


@pytest.mark.parametrize("batch", [1, 3, 64])
def test_batch_of_signals_encodes_as_each_alone(codec: Pipeline, tmp_path: Path, batch: int) -> None:
    signal_list: list[Any] = [music(5000, 2), music(9000), music(5000)[0], music(20_000, 3)]
    soundfile.write(tmp_path / "a.wav", music(9000, 2).T, 44100, subtype="FLOAT")
    signal_list.append(tmp_path / "a.wav")
    encoded = codec.encode_batch(signal_list, max_batch_size=batch, max_waveform_length=CHUNK)
    assert len(encoded) == len(signal_list)
    for latents, signal in zip(encoded, signal_list, strict=True):
        assert_close(latents, codec.encode(signal, max_waveform_length=CHUNK))


def test_empty_batch_gives_nothing(codec: Pipeline) -> None:
    assert codec.encode_batch([]) == []
    assert codec.decode_batch([]) == []


def test_first_chunk_is_encoded_as_if_alone(codec: Pipeline) -> None:
    audio = music(20_000)
    chunked = codec.encode(audio, max_waveform_length=CHUNK + 100)  # rounded down to whole latents
    alone = codec.encode(audio[:, : CHUNK + EDGE])
    assert alone.shape[-1] == 8
    np.testing.assert_array_equal(chunked[..., :8], alone)
    assert chunked.shape == codec.encode(audio).shape
    assert np.linalg.norm(chunked - codec.encode(audio)) > 0.1, "the norms see a whole chunk"


@pytest.mark.parametrize("samples", [704, 705, 1215, 1216, 1217, 5000])
def test_crop_follows_the_official_formula(codec: Pipeline, samples: int) -> None:
    latents = codec.encode(music(samples))
    assert latents.shape[-1] == ((samples - EDGE) // HOP) // 8 == codec.latent_length(samples, "crop")
    kept = codec.decoded_length(latents.shape[-1])
    assert samples - 8 * HOP < kept <= samples
    np.testing.assert_array_equal(codec.encode(music(samples)[:, :kept]), latents)


@pytest.mark.parametrize("samples", [0, 1, EDGE - 1, EDGE, EDGE + 1, 703, 704, 705, 1216, 1217])
def test_pad_loses_nothing(codec: Pipeline, samples: int) -> None:
    audio = music(2000)[:, :samples]
    latents = codec.encode(audio, tail="pad")
    length = codec.decoded_length(latents.shape[-1])
    assert samples <= length < max(samples + STEP, STEP + EDGE + 1)
    np.testing.assert_array_equal(latents, codec.encode(np.pad(audio, ((0, 0), (0, length - samples)))))


def test_too_short_audio_is_refused_with_its_name_and_a_way_out(codec: Pipeline, tmp_path: Path) -> None:
    soundfile.write(tmp_path / "short.wav", np.zeros(703), 44100)
    with refused(InputError, "the array", 703, 704, "tail='pad'"):
        codec.encode(np.zeros(703, np.float32))
    with refused(InputError, "short.wav", 703, 704):
        codec.encode(tmp_path / "short.wav")


def test_silence_encodes_to_finite_latents(codec: Pipeline) -> None:
    assert np.isfinite(codec.encode(np.zeros((1, 3000), np.float32))).all()


def test_arrays_and_files_of_other_rates_are_resampled(codec: Pipeline, tmp_path: Path) -> None:
    audio = music(9600, 2)
    expected = codec.encode(resample_audio(audio, 48000, 44100))
    np.testing.assert_array_equal(codec.encode(audio, sample_rate=48000), expected)
    soundfile.write(tmp_path / "a.wav", audio.T, 48000, subtype="FLOAT")
    assert_close(codec.encode(tmp_path / "a.wav"), expected, 1e-4)
    np.testing.assert_array_equal(codec.encode(audio, sample_rate=44100), codec.encode(audio))
    with refused(InputError, "sample rate", 0):
        codec.encode(audio, sample_rate=0)


def test_features_have_their_own_width(codec: Pipeline) -> None:
    features = codec.encode(music(5000, 2), extract_features=True)
    assert features.shape == (2, codec.config.feature_channels, codec.latent_length(5000, "crop"))
    with refused(InputError, "features can't be decoded"):
        codec.decode(features)


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"tail": "wrap"}, "'wrap'"),
        ({"max_batch_size": 0}, "max_batch_size 0"),
        ({"max_batch_size": 65}, "from 1 to 64"),
        ({"max_batch_size": True}, "max_batch_size True"),
        ({"max_batch_size": 1.5}, "max_batch_size 1.5"),
        ({"max_waveform_length": -1}, "max_waveform_length -1"),
        ({"max_waveform_length": STEP - 1}, "at least 512"),
    ],
)
def test_wrong_encode_options_are_refused(codec: Pipeline, options: dict[str, Any], word: str) -> None:
    with refused(InputError, word):
        codec.encode(music(2000), **options)


@pytest.mark.parametrize(
    ("audio", "kind"),
    [
        (np.zeros(2000, np.int16), InputError),
        (np.zeros((1, 1, 2000), np.float32), InputError),
        (np.full(2000, np.nan, np.float32), InputError),
        (np.zeros((2000, 2), np.float32).tolist(), InputError),
        ("no such file.wav", AudioError),
    ],
    ids=["integers", "three axes", "NaN", "list", "missing file"],
)
def test_wrong_audio_is_refused(codec: Pipeline, audio: Any, kind: type[MusicRTError]) -> None:
    with refused(kind):
        codec.encode(audio)


# Decode


@pytest.mark.parametrize("channels", [1, 2, 6])
@pytest.mark.parametrize("steps", [1, 3])
def test_decoded_audio_has_the_official_shape(codec: Pipeline, channels: int, steps: int) -> None:
    audio = codec.decode(random_latents(5, channels), seed=1, steps=steps)
    assert audio.shape == (channels, 5 * STEP + EDGE)
    assert audio.dtype == np.float32
    assert np.abs(audio).max() <= 1.0
    assert np.std(audio) > 0.01


def test_two_dimensions_and_other_floats_are_taken(codec: Pipeline) -> None:
    latents = random_latents(5)
    expected = codec.decode(latents, seed=1)
    for same in (latents[0], latents.astype(np.float64), np.asfortranarray(latents), np.repeat(latents, 2, -1)[..., ::2]):
        np.testing.assert_array_equal(codec.decode(same, seed=1), expected)
    half = latents.astype(np.float16)
    np.testing.assert_array_equal(codec.decode(half, seed=1), codec.decode(half.astype(np.float32), seed=1))


def test_latents_are_not_changed(codec: Pipeline) -> None:
    latents = random_latents(5)
    kept = latents.copy()
    codec.decode(latents, seed=1, steps=2)
    np.testing.assert_array_equal(latents, kept)


@pytest.mark.parametrize("steps", [1, 2])
@pytest.mark.parametrize("batch", [1, 3, 64])
def test_batch_of_latents_decodes_as_each_alone(codec: Pipeline, batch: int, steps: int) -> None:
    signal_list = [random_latents(5, 2), random_latents(9), random_latents(5, 1, seed=1)[0], random_latents(16, 3)]
    decoded = codec.decode_batch(signal_list, seed=3, steps=steps, max_batch_size=batch, max_waveform_length=CHUNK)
    assert len(decoded) == len(signal_list)
    for audio, latents in zip(decoded, signal_list, strict=True):
        assert_close(audio, codec.decode(latents, seed=3, steps=steps, max_waveform_length=CHUNK))


def test_seed_decides_the_result(codec: Pipeline) -> None:
    latents = random_latents(6)
    first = codec.decode(latents, seed=7)
    np.testing.assert_array_equal(codec.decode(latents, seed=7), first)
    np.testing.assert_array_equal(codec.decode(latents, seed=np.int64(7)), first)  # type: ignore[arg-type]
    unlike = [codec.decode(latents, seed=8), codec.decode(latents, seed=2**64 - 1), codec.decode(latents), codec.decode(latents)]
    for i, one in enumerate([first, *unlike]):
        assert all(np.linalg.norm(one - other) > 0.1 for other in [first, *unlike][:i])


def test_seed_means_the_same_noise_in_every_chunk_and_batch(codec: Pipeline) -> None:
    latents = random_latents(19, 2)
    expected = codec.decode(latents, seed=7, max_waveform_length=CHUNK)
    for batch in (2, 3, 64):
        assert_close(codec.decode(latents, seed=7, max_waveform_length=CHUNK, max_batch_size=batch), expected)
    first = codec.decode(latents[..., :8], seed=7)
    alone = 8 * STEP  # samples that no later frame reaches
    np.testing.assert_array_equal(expected[:, :alone], first[:, :alone])


def test_channels_get_different_noise(codec: Pipeline) -> None:
    audio = codec.decode(np.repeat(random_latents(6), 2, axis=0), seed=7)
    assert np.linalg.norm(audio[0] - audio[1]) > 0.1


@pytest.mark.parametrize("seed", [-1, 2**64, 1.5, True, "7"])
def test_wrong_seed_is_refused(codec: Pipeline, seed: Any) -> None:
    with refused(InputError, "seed", repr(seed)):
        codec.decode(random_latents(2), seed=seed)


@pytest.mark.parametrize("steps", [0, -1, 1.5, True, "2", None])
def test_wrong_steps_are_refused(codec: Pipeline, steps: Any) -> None:
    with refused(InputError, "denoising steps", repr(steps)):
        codec.decode(random_latents(2), steps=steps)
    with refused(InputError, "denoising steps", repr(steps)):
        codec.decode_stream(random_latents(2), steps=steps)


WIDTH = "expected finite float latents [channels, 8, L]"
WRONG_LATENTS: dict[str, Any] = {
    "one axis": np.zeros(8, np.float32),
    "four axes": np.zeros((1, 1, 8, 4), np.float32),
    "no axis": np.float32(0.0),
    "another width": np.zeros((1, 7, 4), np.float32),
    "transposed": np.zeros((1, 4, 8), np.float32),
    "no latents": np.zeros((1, 8, 0), np.float32),
    "no channels": np.zeros((0, 8, 4), np.float32),
    "integers": np.zeros((1, 8, 4), np.int64),
    "complex": np.zeros((1, 8, 4), np.complex64),
    "objects": np.zeros((1, 8, 4), object),
    "text": np.zeros((1, 8, 4), "U1"),
    "NaN": np.full((1, 8, 4), np.nan, np.float32),
    "infinite": np.full((1, 8, 4), np.inf, np.float32),
    "list": np.zeros((1, 8, 4)).tolist(),
    "nothing": None,
}


@pytest.mark.parametrize("name", WRONG_LATENTS)
def test_wrong_latents_are_refused(codec: Pipeline, name: str) -> None:
    with refused(InputError, WIDTH):
        codec.decode(WRONG_LATENTS[name])
    with refused(InputError, WIDTH):
        codec.decode_batch([random_latents(2), WRONG_LATENTS[name]])
    with refused(InputError, WIDTH):
        codec.decode_stream(WRONG_LATENTS[name])


@pytest.mark.parametrize("options", [{"max_batch_size": 0}, {"max_waveform_length": 0}, {"max_waveform_length": 511}])
def test_wrong_decode_options_are_refused(codec: Pipeline, options: Any) -> None:
    with refused(InputError, *options):
        codec.decode(random_latents(2), **options)


# Backends


@pytest.mark.parametrize("steps", [1, 2])
def test_torch_and_onnxruntime_agree(codec: Pipeline, torch_codec: Pipeline, steps: int) -> None:
    audio = music(9000, 2)
    latents = codec.encode(audio)
    assert_close(torch_codec.encode(audio), latents, 1e-4)
    decoded = codec.decode(latents, seed=5, steps=steps)
    assert_close(torch_codec.decode(latents, seed=5, steps=steps), decoded, 1e-4)
    assert codec.backend.name == "onnxruntime-cpu"
    assert torch_codec.backend.name == "torch-cpu"
