"""The site of pages and API reference: links lead somewhere, every public name is there, and docstrings say what is to be said."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

import musicrt
from tests.docs.blocks import ROOT

FAULTY = """
# A page

[no file](none.md), [no anchor](#none), [an anchor](#a-page)

```{eval-rst}
.. automodule:: faulty
```
"""
MODULE = '''
"""A module."""

from __future__ import annotations

from numpy.typing import NDArray


def say_nothing() -> None: ...


def give(size: int) -> NDArray[float]:
    """So many numbers. size: of them."""
    raise ValueError
'''


def build(source: Path, target: Path, *options: str) -> subprocess.CompletedProcess[str]:
    pytest.importorskip("sphinx")
    pytest.importorskip("myst_parser")
    command = [sys.executable, "-m", "sphinx", "--fail-on-warning", "--quiet", "-c", str(ROOT / "docs" / "site"), *options]
    return subprocess.run([*command, str(source), str(target)], cwd=source, capture_output=True, text=True, check=False)


def test_site_is_made_without_a_warning(tmp_path: Path) -> None:
    done = build(ROOT, tmp_path)
    assert done.returncode == 0, done.stderr
    text = (tmp_path / "docs" / "site" / "api.html").read_text()
    documented = {name.rpartition(".")[2] for name in re.findall(r'id="(musicrt\.[\w.]+)"', text)}
    assert set(musicrt.__all__) - {"__version__"} <= documented
    assert "docs/site/index.html" in (tmp_path / "index.html").read_text()


def test_faults_are_found(tmp_path: Path) -> None:
    (tmp_path / "page.md").write_text(FAULTY)
    (tmp_path / "faulty.py").write_text(MODULE)
    done = build(tmp_path, tmp_path / "out", "-D", "root_doc=page", "-D", "include_patterns=page.md")
    assert done.returncode == 1
    warnings = [line for line in done.stderr.splitlines() if "WARNING: " in line]
    faults = ["function faulty.say_nothing has no docstring", "faulty.give says no shape", "faulty.give says nothing of what it raises"]
    faults += ["'none.md'", "'none'"]
    assert all(sum(fault in line for line in warnings) == 1 for fault in faults), done.stderr
    assert len(warnings) == len(faults), done.stderr
