"""`musicrt batch` as far as it goes without Ray; `tests/bulk` has the rest."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.command import call, fails

WHERE = ("--bundle", "embedded", "--input", ".", "--output", "out")


def test_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    for name in [name for name in sys.modules if name.startswith("musicrt.bulk.")]:
        monkeypatch.delitem(sys.modules, name)
    fails(3, "batch", "encode", *WHERE, says=("ray needs ray, which is not installed: pip install 'musicrt[ray]'",))


def test_what_is_wrong_is_said_before_anything_starts(tmp_path: Path) -> None:
    pytest.importorskip("ray")
    fails(3, "batch", "decode", *WHERE, "--guidance", "2", says=("music2latent has no option 'guidance'",))
    fails(3, "batch", "generate", *WHERE, says=("music2latent can't generate",))
    fails(3, "batch", "encode", "--bundle", "embedded", "--input", tmp_path, "--output", tmp_path / "o", says=("holds nothing to work on",))
    assert not list(tmp_path.iterdir())


def test_usage() -> None:
    assert {"encode", "decode", "generate"} <= set(call("batch", "--help").out.split())
    said = call("batch", "decode", "--help").out
    assert "--steps" in said
    assert "(music2latent" in said
    assert "--steps" not in call("batch", "encode", "--help").out
    call("batch", "encode", "--bundle", "embedded", status=2)
