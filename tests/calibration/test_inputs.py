"""What calibration listens to, and what it keeps of it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile

from musicrt.calibration.capture import Recorder, RecordingSession, Reservoir, smallest
from musicrt.calibration.inputs import gather_inputs
from musicrt.runtime.errors import InputError
from musicrt.runtime.fake_session import FakeSession
from musicrt.runtime.registry import build_spec
from tests.conftest import refused

RATE = 8000


def write(path: Path, seconds: float, *, channels: int = 1, level: float = 0.3) -> None:
    samples = level * np.random.default_rng(len(path.name)).standard_normal((round(seconds * RATE), channels))
    soundfile.write(path, samples, RATE)


def test_synthetic_music_is_always_the_same_and_never_both() -> None:
    first, second = (gather_inputs("synthetic", RATE, seconds=0.5) for _ in range(2))
    assert first.sha256 == second.sha256 != gather_inputs("synthetic", RATE, seconds=0.6).sha256
    assert [piece.name for piece in first.calibrating] == ["chords", "band"]
    assert [piece.name for piece in first.judging] == ["solo"]
    for piece in first.pieces:
        assert piece.audio.shape == (4000,)
        assert piece.audio.dtype == np.float32
        assert 0.1 < np.abs(piece.audio).max() <= 1.0


def test_folder_gives_the_beginnings_of_its_audio_files(tmp_path: Path) -> None:
    for name in ("b.wav", "a.flac", "d.wav", "c.wav"):
        write(tmp_path / name, 1.0, channels=2)
    (tmp_path / "notes.txt").write_text("no audio")
    (tmp_path / ".hidden.wav").write_bytes(b"RIFF")
    inputs = gather_inputs(tmp_path, 2 * RATE, seconds=0.5)
    assert [piece.name for piece in inputs.calibrating] == ["a.flac", "b.wav", "d.wav"]
    assert [piece.name for piece in inputs.judging] == ["c.wav"]
    assert {piece.audio.shape for piece in inputs.pieces} == {(RATE,)}
    assert inputs.words == "4 audio files, 0.5 s of each; 1 not read"
    assert len(gather_inputs(tmp_path, RATE, most=2).pieces) == 2


def test_a_single_file_is_cut_in_two(tmp_path: Path) -> None:
    write(tmp_path / "only.wav", 1.0)
    inputs = gather_inputs(tmp_path, RATE)
    assert [piece.name for piece in inputs.pieces] == ["only.wav, first half", "only.wav, second half"]
    assert [len(piece.audio) for piece in inputs.pieces] == [4000, 4000]
    assert not np.array_equal(inputs.calibrating[0].audio, inputs.judging[0].audio)


def test_hostile_folders_are_refused(tmp_path: Path) -> None:
    with refused(InputError, tmp_path / "missing", "expected one with audio files, or 'synthetic'"):
        gather_inputs(tmp_path / "missing", RATE)
    with refused(InputError, tmp_path, "holds no audio to calibrate with"):
        gather_inputs(tmp_path, RATE)
    (tmp_path / "bad.wav").write_bytes(b"RIFF\0\0\0\0WAVEfmt ")
    write(tmp_path / "short.wav", 0.01)
    write(tmp_path / "silent.wav", 1.0, level=0.0)
    soundfile.write(tmp_path / "broken.wav", np.full(RATE, np.nan, np.float32), RATE, subtype="FLOAT")
    (tmp_path / "folder.wav").mkdir()
    with refused(InputError, "holds no audio to calibrate with; the first of 4 files: ", "bad.wav"):
        gather_inputs(tmp_path, RATE)
    with refused(InputError, "0.01 s", "at least 0.1 s"):
        gather_inputs("synthetic", RATE, seconds=0.01)


def test_reservoir_keeps_few_and_any(tmp_path: Path) -> None:
    del tmp_path
    kept = []
    for _ in range(2):
        reservoir = Reservoir(most=8)
        for index in range(1000):
            reservoir.offer({"x": np.full(3, index)})
        kept.append([int(feeds["x"][0]) for feeds in reservoir.feeds])
    assert kept[0] == kept[1]
    assert len(set(kept[0])) == 8
    assert max(kept[0]) > 500 > min(kept[0])
    assert reservoir.offered == 1000


def test_reservoir_is_bounded_in_bytes_and_copies() -> None:
    reservoir = Reservoir(most=8, limit=100)
    value = np.zeros(10, np.float32)  # 40 bytes: two fit
    for _ in range(5):
        reservoir.offer({"x": value})
    value += 1
    assert len(reservoir.feeds) == 2
    assert all(not feeds["x"].any() for feeds in reservoir.feeds)
    reservoir.offer({"x": np.zeros(1000)})
    assert len(reservoir.feeds) == 1
    assert smallest([{"x": np.zeros(3)}, {"x": np.zeros(2)}])["x"].shape == (2,)


@pytest.mark.parametrize("bound", [False, True])
def test_calls_are_recorded_however_they_are_made(bound: bool) -> None:
    stage = build_spec("music2latent", {}, "full").stage("conditioning")
    recorder = Recorder()
    recorder.doing = "decode"
    sizes = {"steps": 2}
    feeds = {"sigma": np.ones(2, np.float32)}
    results = {tensor.name: np.zeros(tensor.resolve(sizes), np.float32) for tensor in stage.outputs}
    with RecordingSession(FakeSession(stage), recorder) as session:
        call = session.bind(feeds, results) if bound else (lambda: session.run(feeds))
        call()
        feeds["sigma"] *= 3
        call()
        recorder.recording = False
        call()
    assert [float(one["sigma"][0]) for one in recorder.feeds("conditioning")] == [1.0, 3.0]
    assert recorder.seen == {"decode": {"conditioning"}}
    assert recorder.feeds("encoder") == []
