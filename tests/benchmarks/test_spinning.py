"""The suite on idle threads, in short."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

import musicrt
from benchmarks import spinning
from musicrt.runtime.backends.onnxruntime import SPINNING


def test_suite_compares_both_ways(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SPINNING, "0")
    spinning.main(
        ["--bundle", str(musicrt.EMBEDDED), "--seconds", "0.2", "--repeats", "2", "--rounds", "1", "--out", str(tmp_path / "made")]
    )
    content = json.loads((tmp_path / "made.json").read_text())
    assert content["calls"].keys() == spinning.WAYS.keys()
    for rounds in content["calls"].values():
        assert len(rounds) == 1
        assert [len(call) for call in rounds[0]] == [3, 3]
        assert all(value >= 0 for call in rounds[0] for value in call)
    assert "| sleeping | 1 |" in (tmp_path / "made.md").read_text()
    assert os.environ[SPINNING] == "0", "the caller's own setting is back"


def test_table_says_how_much_more_spinning_takes() -> None:
    calls = {"sleeping": [[[1.0, 2.0, 0.0]]], "spinning": [[[1.5, 5.0, 0.1]]]}
    assert "Spinning takes 1.50 times the time and 2.50 times the CPU time" in spinning.render(calls)
