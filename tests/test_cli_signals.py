"""A command that is interrupted or told to end: its exit code says so, and nothing half-written stays."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from musicrt.runtime.audio_writer import write_audio

pytest.importorskip("onnxruntime")


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such signals")
@pytest.mark.parametrize(("sent", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGKILL, -9)])
def test_a_signal_ends_a_job_and_takes_its_file_along(sent: signal.Signals, code: int, tmp_path: Path) -> None:
    source, target = tmp_path / "song.wav", tmp_path / "out.wav"
    write_audio(source, np.random.default_rng(0).uniform(-0.1, 0.1, (1, 60 * 44100)).astype(np.float32), 44100)
    target.write_bytes(b"what was there before")
    command = [sys.executable, "-m", "musicrt.cli", "roundtrip", "embedded", str(source), str(target), "--steps", "8"]
    job = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        pause = threading.Event()
        while not list(tmp_path.glob(".out.wav.*")) and job.poll() is None:
            pause.wait(0.02)
        pause.wait(0.5)
        job.send_signal(sent)
        said = "".join(job.communicate(timeout=60))
    finally:
        job.kill()
    assert job.returncode == code, said
    assert "Traceback" not in said
    left = sorted(path.name for path in tmp_path.iterdir())
    assert left[-2:] == ["out.wav", "song.wav"]
    assert all(name.startswith(".out.wav.") for name in left[:-2])
    assert len(left[:-2]) == (sent == signal.SIGKILL)  # which nobody can tidy up after
    assert target.read_bytes() == b"what was there before"
