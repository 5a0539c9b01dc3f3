"""The soak in its short form; and that it tells what leaks, and what is wrong."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

import musicrt
from benchmarks.soak.clients import EXPECTED
from benchmarks.soak.judge import FEWEST, FLOORS, Sample, judge
from musicrt.runtime.errors import InputError

pytest.importorskip("onnxruntime")
on_linux = pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="only Linux tells what a process holds")


def run(module: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """In a process of its own, which holds nothing of other tests."""
    command = [sys.executable, "-m", module, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=Path(__file__).parents[2])
    assert done.returncode == 0, done.stderr
    return done


@on_linux
def test_nothing_grows_and_everything_is_right(tmp_path: Path) -> None:
    where = ["--bundle", musicrt.EMBEDDED, "--threads", "1", "--out", tmp_path / "made"]
    run("benchmarks.soak", *where, "--seconds", "0", "--lengths", "0.3", "--clients", "2", "--queue", "3")
    content = json.loads((tmp_path / "made.json").read_text())
    assert content["faults"] == []
    assert len(content["samples"]) >= FEWEST
    assert sum(content["events"].values()) == content["submitted"] > 100
    seen = {(one["kind"], one["outcome"]) for one in content["outcomes"]}
    assert {kind for kind, _ in seen} == EXPECTED.keys()
    assert {outcome for _, outcome in seen} == {"done", "cancelled", "expired", "refused", "invalid"}
    assert "**all went as it has to be.**" in (tmp_path / "made.md").read_text()


@on_linux
def test_leaks_and_wrong_bits_are_seen(tmp_path: Path) -> None:
    report = run("tests.benchmarks.leaky", tmp_path).stdout
    for watched in FLOORS:
        assert f"- {watched} grew by" in report
    assert "- submit: wrong, " in report
    assert "of which the service had" in report
    assert "**not all went as it has to be:**" in report


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
