"""What is measured of the nano codec: the metrics are right, the baselines have their rate, and the suite runs."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import musicrt
from benchmarks.nano import quality
from benchmarks.nano.baselines import eight_bits, mel_codec, narrow_band
from musicrt.calibration.metrics import (
    chroma_agreement,
    compare,
    mel_distance,
    onset_agreement,
    onsets,
    pitch_agreement,
    pitches,
    signal_to_noise,
)
from musicrt.runtime.errors import InputError
from tests.conftest import refused
from tools.nano.dataset import own_held_out, to_integers

RATE = 44100
TIME = np.arange(RATE) / RATE


def tone(frequency: float) -> np.ndarray:
    """A second of a note with eight harmonics, begun twice."""
    sound = sum(np.sin(2 * np.pi * frequency * i * TIME) / i for i in range(1, 9))
    return np.asarray(0.3 * sound * np.exp(-6 * (TIME % 0.5)), np.float32)


def test_pitch() -> None:
    assert np.nanmedian(pitches(tone(440.0), RATE)) == pytest.approx(69.0, abs=0.1)
    assert np.nanmedian(pitches(tone(110.0), RATE)) == pytest.approx(45.0, abs=0.1)
    assert np.isnan(pitches(np.zeros(RATE), RATE)).all()
    assert pitch_agreement(tone(220.0), tone(440.0), RATE) > 0.9  # an octave
    assert pitch_agreement(tone(220.0), tone(233.1), RATE) < 0.1  # a semitone


def test_chroma() -> None:
    assert chroma_agreement(tone(440.0), tone(440.0), RATE) == pytest.approx(1.0)
    assert chroma_agreement(tone(440.0), tone(466.2), RATE) < 0.3


def test_onsets() -> None:
    assert onsets(tone(440.0), RATE)[0] == pytest.approx(0.5, abs=0.03)
    late = np.roll(tone(440.0), RATE // 5)
    assert onset_agreement(tone(440.0), tone(330.0), RATE) == 1.0
    assert onset_agreement(tone(440.0), late, RATE) == 0.0
    assert onset_agreement(np.zeros(RATE), np.zeros(RATE), RATE) == 1.0


def test_distances() -> None:
    sound = tone(440.0)
    assert signal_to_noise(sound, 0 * sound) == 0.0
    assert signal_to_noise(sound, 0.9 * sound) == pytest.approx(20.0, abs=0.01)
    assert mel_distance(sound, sound, RATE) == 0.0
    noise = np.random.default_rng(0).standard_normal(RATE)
    assert mel_distance(noise, noise / 2, RATE) == pytest.approx(6.02, abs=0.01)
    assert compare(sound, sound, RATE)["STFT"] == 0.0


def test_eight_bits() -> None:
    values = eight_bits(np.linspace(-2, 2, 5001), -1.0, 1.0)
    assert len(np.unique(values)) == 256
    assert (values.min(), values.max()) == (-1.0, 1.0)


def test_baselines() -> None:
    sound = tone(440.0)
    kept = narrow_band(sound, RATE, 1378.125)
    assert kept.shape == sound.shape
    low = np.abs(np.fft.rfft(kept))
    assert low[800:].max() < 0.01 * low.max()  # nothing above half the rate
    made = mel_codec(sound, RATE, 64, 2048)
    assert made.shape == sound.shape
    assert mel_distance(sound, made, RATE) < 0.5 * mel_distance(sound, 0 * sound, RATE)
    assert pitch_agreement(sound, made, RATE) > 0.6


def test_suite(tmp_path: Path) -> None:
    made = dict(own_held_out(1, seconds=1.5))
    (tmp_path / "held-out").mkdir()
    np.save(tmp_path / "held-out" / "audio.npy", np.concatenate([to_integers(audio) for audio in made.values()]))
    (tmp_path / "held-out" / "names.json").write_text(json.dumps({name: len(audio) for name, audio in made.items()}))
    out = tmp_path / "made" / "quality"
    quality.main(["--bundle", str(musicrt.EMBEDDED), "--data", str(tmp_path), "--threads", "1", "--out", str(out)])
    content = json.loads(out.with_suffix(".json").read_text())
    assert content["settings"]["values a second"] == 1378
    assert {row["sound"] for row in content["sounds"]} == set(made)
    silent = [row["SNR dB"] for row in content["sounds"] if row["codec"] == "silence"]
    assert silent == [0.0, 0.0]
    assert "| nano, 8 bits |" in out.with_suffix(".md").read_text().replace("  ", " ")


def test_missing_sounds(tmp_path: Path) -> None:
    with refused(InputError, tmp_path / "held-out", "tools.nano.dataset"):
        quality.read_sounds(tmp_path / "held-out", 1, 100)


def test_the_embedded_bundle_keeps_melody_and_rhythm() -> None:
    """On an unseen melody in a timbre that training never heard."""
    melody = dict(own_held_out(2, seconds=3.0))["own-melodies.1"]
    with musicrt.load(backend="onnxruntime-cpu", threads=1) as codec:
        decoded = codec.decode(codec.encode(melody, tail="pad"), seed=1)[0, : len(melody)]
    kept = compare(melody, decoded, RATE)
    assert kept["pitch"] > 0.8
    assert kept["chroma"] > 0.7
    assert kept["onsets"] > 0.4
    assert kept["STFT"] < 0.75 * compare(melody, np.zeros_like(melody), RATE)["STFT"]
