"""Imports point one way, and a system's name appears in its own folder only."""

from __future__ import annotations

import ast
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from musicrt.runtime.registry import system_names

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "musicrt"
SYSTEMS = PACKAGE / "runtime" / "models"

# The lazy table of public names (and the same for type checkers), and the folder of the embedded bundle.
ALLOWED = {
    ("__init__.py", "musicrt.runtime.models.music2latent.facade"),
    ("__init__.py", "models.music2latent.facade"),
    ("__init__.py", "musicrt.runtime.models.mucodec.facade"),
    ("__init__.py", "models.mucodec.facade"),
    ("__init__.py", "MuCodec"),
    ("__init__.py", "musicrt.runtime.models.semanticodec.facade"),
    ("__init__.py", "models.semanticodec.facade"),
    ("__init__.py", "SemantiCodec"),
    ("__init__.py", "musicrt.runtime.models.vidmuse.facade"),
    ("__init__.py", "models.vidmuse.facade"),
    ("__init__.py", "VidMuse"),
    ("runtime/bundle.py", "music2latent-nano"),
}


def test_contracts_are_kept() -> None:
    pytest.importorskip("importlinter")
    code = "from importlinter.cli import lint_imports_command; lint_imports_command()"
    done = subprocess.run([sys.executable, "-c", code, "--no-cache"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "4 kept, 0 broken" in done.stdout


def test_contract_on_systems_names_all_shared_code() -> None:
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    listed = next(contract["source_modules"] for contract in contracts if contract["name"] == "Shared code knows no system")
    inside = {f"musicrt.{name}" for name in modules_in(PACKAGE)} | {f"musicrt.runtime.{name}" for name in modules_in(PACKAGE / "runtime")}
    assert sorted(listed) == sorted(inside - {"musicrt.runtime", "musicrt.runtime.models"})


def test_no_shared_code_mentions_a_system() -> None:
    mentions = {
        (path.relative_to(PACKAGE).as_posix(), word)
        for system in system_names()
        for path in PACKAGE.rglob("*.py")
        if SYSTEMS / system not in path.parents
        for word in words_of(path)
        if system in word.lower()
    }
    assert mentions == ALLOWED


def modules_in(folder: Path) -> set[str]:
    """Names of the modules and packages right inside of a package."""
    files = {path.stem for path in folder.glob("*.py") if path.stem != "__init__"}
    return files | {path.parent.name for path in folder.glob("*/__init__.py")}


def words_of(path: Path) -> Iterator[str]:
    """Every identifier and string of a source file, docstrings left out."""
    tree = ast.parse(path.read_text())
    documentation = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in documentation:
            yield node.value
        for field in ("id", "attr", "arg", "name", "asname", "module"):
            value = getattr(node, field, None)
            if isinstance(value, str):
                yield value


def test_words_are_found_wherever_they_hide(tmp_path: Path) -> None:
    source = '''
"""In a docstring."""
import aa.one as two
from three import four
class Five:
    """In a docstring."""
    six: seven = 8
def nine(ten: int, *, eleven=f"twelve {13}") -> None:
    if ten.fourteen == "fifteen":
        call(sixteen=17)
# in a comment
'''
    (tmp_path / "a.py").write_text(source)
    expected = "aa.one two three four Five six seven nine ten ten int eleven twelve fourteen fifteen call sixteen"
    assert sorted(word.strip() for word in words_of(tmp_path / "a.py")) == sorted(expected.split())
