"""Runs that are killed and started again, as commands in processes of their own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import musicrt
from tests.runtime.audio_files import noise, save

pytest.importorskip("ray")
pytest.importorskip("onnxruntime")
from pyarrow import parquet

FILES = 24
WAIT = 100


def start(way: str, source: Path, target: Path, *options: str) -> subprocess.Popen[str]:
    where = ("--bundle", "embedded", "--input", str(source), "--output", str(target), "--backend", "onnxruntime-cpu", "--workers", "1")
    command = [sys.executable, "-m", "musicrt.cli", "batch", way, *where, "--lot", "2", *options]
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment, start_new_session=True)


def results(folder: Path) -> dict[str, int]:
    found = [path for form in ("safetensors", "parquet") for path in folder.rglob(f"*.{form}")] if folder.exists() else ()
    return {path.relative_to(folder).as_posix(): path.stat().st_mtime_ns for path in found if not path.name.startswith(".")}


def kill(program: subprocess.Popen[str], target: Path) -> dict[str, int]:
    """Kill a run once it has a result; those that are there when its workers have ended, too."""
    end = time.monotonic() + WAIT
    while not results(target) and time.monotonic() < end and program.poll() is None:
        time.sleep(0.002)
    program.kill()
    _, error = program.communicate()
    assert program.returncode == -signal.SIGKILL, error
    time.sleep(2.0)
    return results(target)


def test_killed_runs_go_on_where_they_were(tmp_path: Path) -> None:
    music, codes, audio = tmp_path / "music", tmp_path / "codes", tmp_path / "audio"
    for index in range(FILES):
        (music / f"{index % 3}").mkdir(parents=True, exist_ok=True)
        save(music / f"{index % 3}" / f"{index // 3}.wav", noise(1, 60_000, seed=index))
    (music / "broken.wav").write_bytes(b"none")
    before = kill(start("encode", music, codes), codes)
    assert 0 < len(before) < FILES
    (codes / "0").mkdir(exist_ok=True)
    (codes / "0" / ".0.wav.safetensors.abcd_123.safetensors").touch()  # what a killed worker may leave

    again = start("encode", music, codes)
    out, error = again.communicate(timeout=WAIT)
    assert again.returncode == 3, error
    assert f"{FILES - len(before)} made" in out
    assert f"{len(before)} there before, 1 failed" in out
    assert error.splitlines()[-1].startswith(
        f"error: 1 of {FILES + 1} files failed, listed in {codes / 'failed.jsonl'}; broken.wav: can't read"
    )
    after = results(codes)
    assert len(after) == FILES
    assert {name: after[name] for name in before} == before
    assert not list(codes.rglob(".*.safetensors"))

    options = ("--form", "parquet", "--seed", "7", "--steps", "1")
    before = kill(start("decode", codes, audio, *options), audio)
    assert 0 < len(before) < FILES // 2
    again = start("decode", codes, audio, *options)
    out, error = again.communicate(timeout=WAIT)
    assert again.returncode == 0, error
    assert f"{2 * len(before)} there before, 0 failed" in out
    after = results(audio)
    assert {name: after[name] for name in before} == before
    rows = [row for name in after for row in parquet.read_table(audio / name).to_pylist()]
    assert sorted(row["name"] for row in rows) == sorted(results(codes))
    with musicrt.load(backend="onnxruntime-cpu", threads=1) as codec:
        codec.decode_file(codes / rows[-1]["name"], tmp_path / "alone.wav", steps=1, seed=7)
    assert rows[-1]["bytes"] == (tmp_path / "alone.wav").read_bytes()
