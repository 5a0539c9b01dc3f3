"""Every line that the package logs has an event, and the docs have all of them."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "musicrt"
LEVELS = {"debug", "info", "warning", "error", "exception", "critical", "log"}


def calls_of(tree: ast.Module) -> Iterator[ast.Call]:
    """Those of the module's logger."""
    for node in ast.walk(tree):
        match node:
            case ast.Call(func=ast.Attribute(value=ast.Name(id="_LOG"), attr=name)) if name in LEVELS:
                yield node


def events_of(tree: ast.Module) -> list[str]:
    """Values of "event" in all dictionaries that are written out."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Dict):
            pairs = {key.value: value for key, value in zip(node.keys, node.values, strict=True) if isinstance(key, ast.Constant)}
            if isinstance(event := pairs.get("event"), ast.Constant):
                found.append(str(event.value))
    return found


def test_a_program_that_configures_no_logging_hears_nothing() -> None:
    code = "import logging, musicrt; logging.getLogger('musicrt').error('loud'); logging.getLogger('musicrt.tensorrt').error('loud')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("", "")


def test_every_line_has_an_event_that_is_documented() -> None:
    events: set[str] = set()
    for path in PACKAGE.rglob("*.py"):
        text = path.read_text()
        tree = ast.parse(text)
        calls, found = list(calls_of(tree)), events_of(tree)
        assert all("extra" in [keyword.arg for keyword in call.keywords] for call in calls), path
        assert len(found) == len(calls), path
        assert "getLogger" not in text or re.findall(r'getLogger\("([^"]+)"\)', text)[0].startswith(("musicrt", "httpx", "ray")), path
        events |= set(found)
    table = (ROOT / "docs" / "embedding.md").read_text()
    assert set(re.findall(r"^\| `(\w+)` \| (?:DEBUG|INFO|WARNING|ERROR)", table, re.MULTILINE)) == events
