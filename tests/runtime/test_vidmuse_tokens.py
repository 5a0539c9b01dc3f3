"""The tokens of music for a video, in a file of encoded audio."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from musicrt.runtime.audio import read_audio
from musicrt.runtime.encoded import load_encoded
from musicrt.runtime.errors import Cancelled, InputError, OutputError
from tests.conftest import refused
from tests.runtime.progress import Recorder
from tests.runtime.vidmuse_codecs import clip, open_light


def test_tokens_decode_to_the_music(tmp_path: Path) -> None:
    pipeline, tokens, decoded = open_light(identity="0" * 64)[0], tmp_path / "a.safetensors", tmp_path / "decoded.wav"
    assert pipeline.generate_file(clip(), tmp_path / "a.wav", tokens, duration=0.5, seed=3, loudness=False) == 16_000
    encoded = load_encoded(tokens)
    expected = pipeline.generate_tokens(clip(), duration=0.5, seed=3)
    np.testing.assert_array_equal(encoded.values, expected.transpose(0, 2, 1))
    assert (encoded.bits, encoded.sample_rate, encoded.source_rate, encoded.samples) == ((8, 8, 8, 8), 32_000, 32_000, 16_000)
    assert pipeline.decode_file(tokens, decoded) == 16_000
    np.testing.assert_array_equal(read_audio(decoded)[0], read_audio(tmp_path / "a.wav")[0])
    assert pipeline.generate_file(clip(), tmp_path / "loud.wav", tmp_path / "b.safetensors", duration=0.5, seed=3) == 16_000
    np.testing.assert_array_equal(load_encoded(tmp_path / "b.safetensors").values, encoded.values)  # loudness is a matter of the audio


def test_what_fails_leaves_neither_file(tmp_path: Path) -> None:
    pipeline, audio, tokens = open_light(identity="0" * 64)[0], tmp_path / "a.wav", tmp_path / "a.safetensors"
    with refused(Cancelled, "enough"):
        pipeline.generate_file(clip(), audio, tokens, duration=1, on_progress=Recorder(5))
    assert list(tmp_path.iterdir()) == []
    recorder = Recorder()
    with refused(InputError, "a.wav twice, expected one file for the music and another one for its tokens"):
        pipeline.generate_file(clip(), audio, tmp_path / "." / "a.wav", duration=1, on_progress=recorder)
    with refused(OutputError, "none/a.safetensors"):
        pipeline.generate_file(clip(), audio, tmp_path / "none" / "a.safetensors", duration=1, on_progress=recorder)
    with refused(InputError, "tied to a bundle"):
        open_light()[0].generate_file(clip(), audio, tokens, duration=1, on_progress=recorder)
    video = tmp_path / "clip.mp4"
    video.touch()
    with refused(InputError, "clip.mp4 as the video and as the file to write"):
        pipeline.generate_file(video, audio, video, on_progress=recorder)
    assert recorder.calls == []
    assert list(tmp_path.iterdir()) == [video]
