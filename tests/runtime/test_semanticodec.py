"""SemantiCodec's encode: files and arrays, rates, channels, lengths, batches."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from musicrt.runtime.fake_session import FakeSession
from musicrt.runtime.models.semanticodec.lengths import SEGMENT, token_count
from musicrt.runtime.models.semanticodec.pipeline import Pipeline
from musicrt.runtime.resampling import resample_audio
from tests.conftest import ForSystem
from tests.runtime.semanticodec_codecs import Tokens, music, open_tiny, rewire


@pytest.fixture(scope="module")
def codec(tiny_checkpoints: ForSystem) -> Iterator[Pipeline]:
    with open_tiny(tiny_checkpoints("semanticodec")) as pipeline:
        yield pipeline


def test_array_and_file_encode_to_the_same(codec: Pipeline, tmp_path: Path) -> None:
    audio = music(32000)
    soundfile.write(tmp_path / "a.wav", audio.T, 16000, subtype="FLOAT")
    tokens = codec.encode(audio)
    assert tokens.shape == (1, 52, 2)
    assert tokens.dtype == np.int64
    assert (tokens.min(axis=(0, 1)) >= 0).all()
    assert (tokens.max(axis=(0, 1)) < [512, 256]).all()
    assert min(len(np.unique(codes)) for codes in tokens[0].T) > 10
    for same in (audio[0], audio.astype(np.float64), tmp_path / "a.wav", str(tmp_path / "a.wav")):
        np.testing.assert_array_equal(codec.encode(same), tokens)


@pytest.mark.parametrize("rate", [8000, 22050, 44100, 48000])
def test_other_rates_are_resampled_as_officially(codec: Pipeline, tmp_path: Path, rate: int) -> None:
    audio = music(20000)[:, :19999]
    expected = codec.encode(resample_audio(audio, rate, 16000, "sinc"))
    assert expected.shape == (1, token_count(-(-19999 * 16000 // rate), 2), 2)
    np.testing.assert_array_equal(codec.encode(audio, sample_rate=rate), expected)
    soundfile.write(tmp_path / "a.wav", audio.T, rate, subtype="FLOAT")
    np.testing.assert_array_equal(codec.encode(tmp_path / "a.wav"), expected)


def test_channels_are_kept_one_by_one(codec: Pipeline, tmp_path: Path) -> None:
    audio = music(20000, 3)
    alone = [codec.encode(channel) for channel in audio]
    assert (alone[0] != alone[1]).any()
    np.testing.assert_array_equal(codec.encode(audio), alone[0])
    np.testing.assert_array_equal(codec.encode(audio, channels="first"), alone[0])
    np.testing.assert_array_equal(codec.encode(audio, channels="each"), np.concatenate(alone))
    soundfile.write(tmp_path / "a.wav", audio.T, 16000, subtype="FLOAT")
    np.testing.assert_array_equal(codec.encode(tmp_path / "a.wav", channels="each"), np.concatenate(alone))


@pytest.mark.parametrize(
    ("samples", "frames", "segments"),
    [
        (1, 4, 1),
        (2559, 4, 1),
        (2560, 8, 1),
        (16000, 29, 1),
        (SEGMENT - 1, 256, 1),
        (SEGMENT, 260, 2),
        (SEGMENT + 1, 260, 2),
        (3 * SEGMENT, 768, 3),
        (1_144_321, 7 * 256, 7),
    ],
)
def test_lengths_are_the_official_ones(codec: Pipeline, samples: int, frames: int, segments: int) -> None:
    """For three segments, rounding wants no token of the silent one behind them; after seven it asks for a token that is not there."""
    watched, sessions = rewire(codec)
    assert watched.encode(music(samples)).shape == (1, frames, 2)
    assert len(sessions["audiomae"].calls) == segments


def test_silence_does_not_know_its_length(codec: Pipeline) -> None:
    """All of it is cut as padding, and its log energies are the floor everywhere."""
    tokens = codec.encode(np.zeros(100_000, np.float32))
    assert tokens.shape == (1, 160, 2)
    np.testing.assert_array_equal(codec.encode(np.zeros(16000, np.float32)), tokens[:, :29])


def test_tokens_know_what_follows_in_their_segment_only(codec: Pipeline) -> None:
    audio = music(2 * SEGMENT + 5000)
    whole, cut = codec.encode(audio), codec.encode(audio[:, : SEGMENT + 50_000])
    np.testing.assert_array_equal(cut[:, :256], whole[:, :256])
    assert (cut[0, 256:300] != whole[0, 256:300]).any()


@pytest.fixture(scope="module")
def many(codec: Pipeline, tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Any], list[Tokens]]:
    """Seven segments in five signals, and the tokens of each signal alone."""
    path = tmp_path_factory.mktemp("audio") / "a.wav"
    soundfile.write(path, music(10000, 2).T, 22050, subtype="FLOAT")
    audio: list[Any] = [music(16000), music(2 * SEGMENT + 16000), path, music(5000, 2)[1], np.zeros(3, np.float32)]
    return audio, [codec.encode(one, max_batch_size=1) for one in audio]


@pytest.mark.parametrize(("batch", "sizes"), [(1, [1] * 7), (3, [3, 3, 1]), (16, [7])])
def test_batch_of_signals_encodes_as_each_alone(
    codec: Pipeline, many: tuple[list[Any], list[Tokens]], batch: int, sizes: list[int]
) -> None:
    """The LSTM gets the segments of all signals together, the other stages one by one."""
    audio, alone = many
    watched, sessions = rewire(codec)
    encoded = watched.encode_batch(audio, max_batch_size=batch)
    assert len(encoded) == len(audio)
    for tokens, expected in zip(encoded, alone, strict=True):
        np.testing.assert_array_equal(tokens, expected)
    assert [len(call["mask"]) for call in sessions["residual"].calls] == sizes
    for stage in ("audiomae", "semantic", "acoustic"):
        assert [len(next(iter(call.values()))) for call in sessions[stage].calls] == [1] * 7


def test_lstm_gets_no_more_segments_than_it_takes(
    codec: Pipeline, many: tuple[list[Any], list[Tokens]], monkeypatch: pytest.MonkeyPatch
) -> None:
    audio, alone = many
    watched, sessions = rewire(codec)
    monkeypatch.setattr(FakeSession, "limits", {"batch": (1, 2)})
    for tokens, expected in zip(watched.encode_batch(audio), alone, strict=True):
        np.testing.assert_array_equal(tokens, expected)
    assert [len(call["mask"]) for call in sessions["residual"].calls] == [2, 2, 2, 1]


def test_channels_of_a_batch_are_batched(codec: Pipeline) -> None:
    audio = [music(SEGMENT + 3000, 2), music(9000, 3)]
    watched, sessions = rewire(codec)
    encoded = watched.encode_batch(audio, channels="each", max_batch_size=4)
    assert [tokens.shape for tokens in encoded] == [(2, 264, 2), (3, 16, 2)]
    for tokens, channels in zip(encoded, audio, strict=True):
        np.testing.assert_array_equal(tokens, np.concatenate([codec.encode(channel) for channel in channels]))
    assert [len(call["mask"]) for call in sessions["residual"].calls] == [4, 3]


def test_mask_ends_with_the_audio(codec: Pipeline) -> None:
    """Of 20000 samples the last frame that is not silent is the 125th: 125 of 1024 frames, rounded up to tokens."""
    watched, sessions = rewire(codec)
    watched.encode_batch([music(20000), music(SEGMENT + 1)])
    (call,) = sessions["residual"].calls
    assert call["mask"].sum(axis=1).tolist() == [32, 256, 0]
    assert (np.diff(call["mask"], axis=1) <= 0).all()


def test_empty_batch_gives_nothing(codec: Pipeline) -> None:
    assert codec.encode_batch([]) == []
    assert codec.decode_batch([]) == []
