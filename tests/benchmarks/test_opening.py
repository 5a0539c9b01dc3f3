"""The suite on opening stages, in short."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

import musicrt
from benchmarks import opening


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="tells kinds of memory by /proc")
def test_weights_in_a_file_are_nobodys_own(tmp_path: Path) -> None:
    arguments = ["--bundle", str(musicrt.EMBEDDED), "--stage", "pyramid", "--sizes", "latents=4", "batch=1"]
    opening.main([*arguments, "--rounds", "1", "--repeats", "1", "--threads", "1", "--out", str(tmp_path / "made")])
    content = json.loads((tmp_path / "made.json").read_text())
    ((packed,), (plain,), (mapped,)) = (content["rows"][way] for way in opening.WAYS)
    assert packed["error"] == 0.0
    assert plain["error"] < 1e-5
    assert mapped["error"] < 1e-5
    assert mapped["memory"]["own"]["opened"] < packed["memory"]["own"]["opened"]
    assert content["packed_bytes"] > 1e6
    assert "| packed in a file |" in (tmp_path / "made.md").read_text()
