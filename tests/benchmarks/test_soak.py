"""The soak in its short form; and that it tells what leaks, and what is wrong."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import pytest
from numpy.typing import NDArray

import musicrt
from benchmarks.soak.clients import EXPECTED
from benchmarks.soak.judge import FEWEST, FLOORS, Sample, judge
from benchmarks.soak.report import render
from benchmarks.soak.rounds import soak
from benchmarks.soak.workload import Workload
from musicrt.runtime.errors import InputError
from musicrt.runtime.model import Model
from musicrt.runtime.models.music2latent.pipeline import Pipeline

pytest.importorskip("onnxruntime")
on_linux = pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="only Linux tells what a process holds")


@on_linux
def test_nothing_grows_and_everything_is_right(tmp_path: Path) -> None:
    """In a process of its own, which holds nothing of other tests."""
    where = ["--bundle", str(musicrt.EMBEDDED), "--threads", "1", "--out", str(tmp_path / "made")]
    command = [sys.executable, "-m", "benchmarks.soak", *where, "--seconds", "0", "--lengths", "0.3", "--clients", "2", "--queue", "3"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=Path(__file__).parents[2])
    assert done.returncode == 0, done.stderr
    content = json.loads((tmp_path / "made.json").read_text())
    assert content["faults"] == []
    assert len(content["samples"]) >= FEWEST
    assert sum(content["events"].values()) == content["submitted"] > 100
    seen = {(one["kind"], one["outcome"]) for one in content["outcomes"]}
    assert {kind for kind, _ in seen} == EXPECTED.keys()
    assert {outcome for _, outcome in seen} == {"done", "cancelled", "expired", "refused", "invalid"}
    assert "**all went as it has to be.**" in (tmp_path / "made.md").read_text()


class Leaky(Pipeline):
    """Keeps memory, a file and a thread of each call that encodes, and once it is `broken`, decodes another bit.

    4 MB a call, because a process that has run other tests holds gigabytes, of which a share may be growth that is none.
    """

    def __init__(self, model: Model, file: Path) -> None:
        super().__init__(model)
        self._file, self._end, self.broken = file, threading.Event(), False
        self._kept: list[tuple[NDArray[Any], TextIO, threading.Thread]] = []

    def encode_batch(self, *arguments: Any, **options: Any) -> list[NDArray[np.float32]]:
        thread = threading.Thread(target=self._end.wait)
        thread.start()
        self._kept.append((np.ones(1_000_000, np.float32), self._file.open("w"), thread))
        return super().encode_batch(*arguments, **options)

    def decode_batch(self, *arguments: Any, **options: Any) -> list[NDArray[np.float32]]:
        results = super().decode_batch(*arguments, **options)
        if self.broken:
            results[0].flat[-1] = np.nextafter(results[0].flat[-1], np.float32(2))
        return results

    def close(self) -> None:
        self._end.set()
        for _, file, thread in self._kept:
            file.close()
            thread.join()
        super().close()


@on_linux
def test_leaks_and_wrong_bits_are_seen(tmp_path: Path) -> None:
    with Leaky(Model.open(musicrt.EMBEDDED, backend="onnxruntime-cpu", threads=1), tmp_path / "file") as codec:
        work = Workload.prepare(codec, [0.3], None, tmp_path)
        codec.broken = True
        findings = soak(codec, work, tmp_path, seconds=0, clients=1, workers=2, queue=2, steps=None)
    faults = "; ".join(findings.faults)
    for watched in FLOORS:
        assert f"{watched} grew by" in faults
    assert "submit: wrong, " in faults
    assert "of which the service had" in render(findings)
    assert "not all went as it has to be" in render(findings)


def samples_of(values: Sequence[float]) -> list[Sample]:
    return [Sample(float(second), 0, value, 9, 4) for second, value in enumerate(values)]


@pytest.mark.parametrize(("leak", "flat"), [(0.0, True), (-1.0, True), (0.2, False)])
def test_growth_is_told_from_noise(leak: float, flat: bool) -> None:
    """Over a minute, in MB a second. What comes during the warm-up does not count."""
    noise = np.random.default_rng(0).normal(size=60)
    values = 200 + noise + leak * np.arange(60) + np.where(np.arange(60) < 20, -50, 0)
    samples = samples_of(values.tolist())
    trend = judge(samples, "memory_mb")
    assert trend.is_flat is flat
    assert trend.grown == pytest.approx(39 * leak, abs=1.0)
    assert judge(samples, "files").is_flat


def test_a_few_samples_tell_nothing() -> None:
    with pytest.raises(InputError, match=f"got {FEWEST - 1} samples"):
        judge(samples_of([1.0] * (FEWEST - 1)), "memory_mb")
