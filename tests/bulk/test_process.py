"""The process that has the pipeline, without Ray around it."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

import musicrt
from musicrt.bulk.job import plan_job
from musicrt.bulk.process import JobProcess, PipelineLostError
from musicrt.runtime.errors import AudioError, BackendError
from tests.bulk.jobs import Poisoned
from tests.conftest import refused
from tests.runtime.audio_files import noise, save

pytest.importorskip("onnxruntime")


def test_file_that_ends_it_is_told_and_the_next_one_is_done(tmp_path: Path) -> None:
    for name in ("good", "crash", "memory"):
        save(tmp_path / f"{name}.wav", noise(1, 22_050))
    (tmp_path / "none.wav").write_bytes(b"none")
    bundle = Path(shutil.copytree(musicrt.EMBEDDED, tmp_path / "bundle"))
    process = JobProcess(Poisoned.of(plan_job("encode", bundle, backend="onnxruntime-cpu")))
    with refused(AudioError, "none.wav"):
        process.run(tmp_path / "none.wav", tmp_path / "a.st")
    with refused(BackendError, "it ended its worker's process two times, the last time by SIGSEGV, mostly a crash in a library; "):
        process.run(tmp_path / "crash.wav", tmp_path / "a.st")
    assert process.run(tmp_path / "good.wav", tmp_path / "a.st") == 0.5
    assert musicrt.load_encoded(tmp_path / "a.st").seconds == 0.5
    shutil.rmtree(bundle)
    with pytest.raises(PipelineLostError, match=f"can't be opened again: .*{bundle}"):
        process.run(tmp_path / "memory.wav", tmp_path / "b.st")
