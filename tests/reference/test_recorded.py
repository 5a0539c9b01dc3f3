"""The recorded runs of the official code: the vendored ones always, all others with `-m full` where they are at hand."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from musicrt.runtime import select
from tests.conftest import ForSystem
from tests.reference.case import load_case
from tests.reference.runner import DATA, CheckpointKey, Row, find_cases, run_cases, shared_reference

BACKENDS = (("torch-cpu",), ("onnxruntime-cpu", "openvino-cpu"))
"""Those of one bundle together, which is exported once for them."""


def by_checkpoint() -> list[object]:
    """The vendored cases of each checkpoint, with its system: tests of their own, as each may take a minute to export."""
    groups: dict[CheckpointKey, list[Path]] = {}
    for path in find_cases(DATA):
        groups.setdefault(CheckpointKey.of(load_case(path)), []).append(path)
    return [pytest.param(key.system, paths, id=f"{key.system}-{key.layout}") for key, paths in groups.items()]


@pytest.mark.parametrize("backends", BACKENDS, ids=" ".join)
@pytest.mark.parametrize(("system", "paths"), by_checkpoint())
def test_vendored_cases(
    system: str, paths: list[Path], backends: Sequence[str], tiny_bundles: ForSystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    for backend in backends:
        if reason := select.BACKENDS[backend].obstacle():
            pytest.skip(f"{backend}: {reason}")
    if "torch-cpu" not in backends:
        monkeypatch.setenv("MUSICRT_TINY_BUNDLE", str(tiny_bundles(system)))  # exporting it again takes a minute
    check(paths, backends)


@pytest.mark.full
@pytest.mark.parametrize("backends", BACKENDS, ids=" ".join)
@pytest.mark.parametrize("system", sorted(folder.name for folder in DATA.iterdir() if folder.is_dir()))
def test_other_cases(system: str, backends: Sequence[str]) -> None:
    """Those of full size, and those of tiny networks that take long."""
    shared = shared_reference()
    if shared is None:
        pytest.skip("the other recordings are not at hand; set MUSICRT_REFERENCE to their folder")
    vendored = {path.name for path in find_cases(DATA / system)}
    check([path for path in find_cases(shared / system) if path.name not in vendored], backends)


def check(paths: Sequence[Path], backends: Sequence[str]) -> None:
    rows = list(run_cases(paths, backends))
    assert len(rows) == len(paths) * len(backends) > 0
    assert [describe(row) for row in rows if not row.passed] == []


def describe(row: Row) -> str:
    return f"{row.path.stem} on {row.backend}: {row.detail}"
