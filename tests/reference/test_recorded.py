"""The recorded runs of the official code: the vendored ones always, the full-size ones with `-m full` where they are at hand."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.conftest import ForSystem
from tests.reference.runner import DATA, Row, find_cases, run_folder, shared_reference

BACKENDS = ("torch-cpu", "onnxruntime-cpu")


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("system", sorted(folder.name for folder in DATA.iterdir() if folder.is_dir()))
def test_vendored_cases(system: str, backend: str, tiny_bundles: ForSystem, monkeypatch: pytest.MonkeyPatch) -> None:
    if not backend.startswith("torch"):
        monkeypatch.setenv("MUSICRT_TINY_BUNDLE", str(tiny_bundles(system)))  # exporting it again takes a minute
    check(DATA / system, backend, "*")


@pytest.mark.full
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("system", sorted(folder.name for folder in DATA.iterdir() if folder.is_dir()))
def test_full_size_cases(system: str, backend: str) -> None:
    shared = shared_reference()
    if shared is None:
        pytest.skip("the full-size recordings are not at hand; set MUSICRT_REFERENCE to their folder")
    check(shared / system, backend, "full-*")


def check(folder: Path, backend: str, pattern: str) -> None:
    rows = run_folder(folder, [backend], pattern)
    assert len(rows) == len(find_cases(folder, pattern)) > 0
    assert [describe(row) for row in rows if not row.passed] == []


def describe(row: Row) -> str:
    return f"{row.path.stem} on {row.backend}: {row.detail}"
