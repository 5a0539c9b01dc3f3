"""A run that is killed and started again, as a command in processes of its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.runtime.audio_files import noise, save

pytest.importorskip("ray")
pytest.importorskip("onnxruntime")

FILES = 40
WAIT = 100


def start(source: Path, target: Path) -> subprocess.Popen[str]:
    where = ("--bundle", "embedded", "--input", str(source), "--output", str(target), "--backend", "onnxruntime-cpu", "--workers", "1")
    command = [sys.executable, "-m", "musicrt.cli", "batch", "encode", *where, "--lot", "2"]
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment, start_new_session=True)


def results(folder: Path) -> dict[str, int]:
    found = folder.rglob("*.safetensors") if folder.exists() else ()
    return {path.relative_to(folder).as_posix(): path.stat().st_mtime_ns for path in found if not path.name.startswith(".")}


def test_killed_run_goes_on_where_it_was(tmp_path: Path) -> None:
    source, target = tmp_path / "music", tmp_path / "out"
    for index in range(FILES):
        (source / f"{index % 3}").mkdir(parents=True, exist_ok=True)
        save(source / f"{index % 3}" / f"{index // 3}.wav", noise(1, 60_000, seed=index))
    (source / "broken.wav").write_bytes(b"none")
    first = start(source, target)
    end = time.monotonic() + WAIT
    while not results(target) and time.monotonic() < end and first.poll() is None:
        time.sleep(0.002)
    first.kill()
    _, error = first.communicate()
    assert first.returncode == -signal.SIGKILL, error
    (target / "0").mkdir(exist_ok=True)
    (target / "0" / ".0.wav.safetensors.abcd_123.safetensors").touch()  # what a killed worker may leave
    before = dict[str, int]()
    while before != (found := results(target)):  # the workers end with the program
        before = found
        time.sleep(4.0)
    assert 0 < len(before) < FILES

    second = start(source, target)
    out, error = second.communicate(timeout=WAIT)
    assert second.returncode == 3, error
    assert f"{FILES - len(before)} made" in out
    assert f"{len(before)} there before, 1 failed" in out
    assert error.splitlines()[-1].startswith(
        f"error: 1 of {FILES + 1} files failed, listed in {target / 'failed.jsonl'}; broken.wav: can't read"
    )
    after = results(target)
    assert len(after) == FILES
    assert {name: after[name] for name in before} == before
    assert not list(target.rglob(".*.safetensors"))
