"""Runs recorded cases: writes their checkpoints, hands them to the runner of their system, and compares what comes out."""

from __future__ import annotations

import contextlib
import importlib
import json
import math
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Protocol, Self, TypeVar

from safetensors.numpy import load_file

from musicrt.runtime.errors import CheckpointError, InputError, MusicRTError
from tests.reference.case import Case, Verdict, load_case
from tests.reference.fill import Layout, write_files
from tests.reference.signals import Array

DATA = Path(__file__).parent / "data"
_BESIDE = Path(__file__).parents[3] / "shared" / "reference"
_Result = TypeVar("_Result")


class UnknownStageError(MusicRTError):
    """A system's runner does not know a stage: raise `UnknownStageError(case.stage)`."""

    def __init__(self, stage: str) -> None:
        super().__init__(f"no runner for stage {stage}")


class SystemRunner(Protocol):
    """Computes the cases of one checkpoint on one backend: the class `Runner` of `tests.reference.systems.<system>`."""

    def __init__(self, checkpoint: Path, layout: Layout, backend: str, workspace: Path) -> None:
        """`checkpoint`: folder of the official files (read only; empty, with layout {}, for cases without weights).

        `workspace`: an empty folder of this runner's own, removed after `close`; its parent is that of the same checkpoint on all backends.
        """

    def run(self, case: Case) -> dict[str, Array]:
        """The whole outputs of a case by name. Raises UnknownStageError."""

    def close(self) -> None:
        """Free what the runner holds."""


@dataclass(frozen=True)
class Row:
    """One case on one backend. `error`, `tolerance`, `detail`: those of its worst output, or of what went wrong."""

    path: Path
    stage: str
    backend: str
    passed: bool
    error: float
    tolerance: float
    detail: str


class CheckpointKey(NamedTuple):
    """What makes a checkpoint distinct; `folder` holds `cases/` and is searched first for the other files."""

    folder: Path
    system: str
    layout: str | None
    given: str | None
    salt: str

    @classmethod
    def of(cls, case: Case) -> CheckpointKey:
        """The checkpoint that a case was recorded with."""
        asked = case.info["checkpoint"]
        return cls(case.path.parent.parent, case.info["system"], asked["layout"], asked.get("given"), asked.get("salt", ""))

    def find(self, name: str) -> Path:
        """A layout or given file: beside the cases, in the vendored data, or in the shared reference. Raises CheckpointError."""
        shared = shared_reference()
        folders = [self.folder, DATA / self.system, *([shared / self.system] if shared else [])]
        for folder in folders:
            if (folder / name).is_file():
                return folder / name
        looked = ", ".join(map(str, folders))
        raise CheckpointError(f"{name} of {self.system} is in none of {looked}; put it beside cases/ or set MUSICRT_REFERENCE")


class Checkpoints:
    """Writes each distinct checkpoint once, into a temporary folder that lives as long as the `with` block."""

    def __init__(self) -> None:
        self._root = tempfile.TemporaryDirectory(prefix="musicrt-reference-")
        self._written: dict[CheckpointKey, tuple[Path, Layout]] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._root.cleanup()

    def get(self, key: CheckpointKey) -> tuple[Path, Layout]:
        """Folder of the official files, and the layout: an empty folder and {} for cases without weights. Raises CheckpointError."""
        if key not in self._written:
            layout: Layout = json.loads(key.find(key.layout).read_text()) if key.layout else {"files": {}}
            given = load_file(key.find(key.given)) if key.given else {}
            out = Path(self._root.name) / f"{len(self._written)}-{key.system}"
            write_files(layout, given, key.salt, out)
            self._written[key] = out, layout if key.layout else {}
        return self._written[key]


def shared_reference() -> Path | None:
    """The folder of full-size recordings: $MUSICRT_REFERENCE, or shared/reference beside the repository. Raises InputError."""
    if asked := os.environ.get("MUSICRT_REFERENCE"):
        if not Path(asked).is_dir():
            raise InputError(f"MUSICRT_REFERENCE is {asked}, which is no folder; set it to a folder with one folder per system")
        return Path(asked)
    return _BESIDE if _BESIDE.is_dir() else None


def find_cases(folder: Path, pattern: str = "*") -> list[Path]:
    """Case files whose name matches, of `folder`/cases and of `folder`/<system>/cases."""
    files = [*sorted(folder.glob("cases/*.safetensors")), *sorted(folder.glob("*/cases/*.safetensors"))]
    return [file for file in files if fnmatchcase(file.stem, pattern)]


def find_runner(system: str) -> type[SystemRunner] | None:
    """The runner of a system, None where it has no module. Raises whatever importing the module raises."""
    name = f"tests.reference.systems.{system}"
    try:
        module = importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name == name:
            return None
        raise
    runner: type[SystemRunner] = module.Runner
    return runner


def run_folder(folder: Path, backends: Sequence[str], pattern: str = "*", slack: float = 1.0) -> list[Row]:
    """One row per case and backend. `slack` widens the float tolerances."""
    return list(run_cases(find_cases(folder, pattern), backends, slack))


def run_cases(paths: Sequence[Path], backends: Sequence[str], slack: float = 1.0) -> Iterator[Row]:
    """The same as it goes, checkpoint by checkpoint, so that no more than one runner holds memory."""
    groups: dict[CheckpointKey, list[Case]] = {}
    for path in paths:
        loaded = _guarded(partial(_load, path))
        if isinstance(loaded, _Failure):
            yield from (_failed(path, "?", backend, loaded) for backend in backends)
        else:
            groups.setdefault(loaded[0], []).append(loaded[1])
    with Checkpoints() as checkpoints:
        for key, cases in groups.items():
            with tempfile.TemporaryDirectory(prefix="musicrt-workspace-") as root:
                for backend in backends:
                    workspace = Path(root) / backend
                    workspace.mkdir()
                    yield from _run_group(cases, backend, partial(_open, key, backend, checkpoints, workspace), slack)


def _run_group(cases: Sequence[Case], backend: str, open_runner: Callable[[], SystemRunner | None], slack: float) -> Iterator[Row]:
    with contextlib.ExitStack() as stack:
        runner = _guarded(open_runner)
        if isinstance(runner, _Failure):
            yield from (_failed(case.path, case.stage, backend, runner) for case in cases)
            return
        if runner:
            stack.callback(runner.close)
        for case in cases:
            verdicts = _guarded(partial(_run_case, runner, case, slack))
            if isinstance(verdicts, _Failure):
                yield _failed(case.path, case.stage, backend, verdicts)
            else:
                yield _judged(case, backend, verdicts)


def _load(path: Path) -> tuple[CheckpointKey, Case]:
    case = load_case(path)
    return CheckpointKey.of(case), case


def _open(key: CheckpointKey, backend: str, checkpoints: Checkpoints, workspace: Path) -> SystemRunner | None:
    runner = find_runner(key.system)
    return runner(*checkpoints.get(key), backend, workspace) if runner else None


def _run_case(runner: SystemRunner | None, case: Case, slack: float) -> list[Verdict]:
    if runner is None:
        raise UnknownStageError(case.stage)
    verdicts = case.compare(runner.run(case), slack)
    if not verdicts:
        raise InputError(f"{case.path.name}: nothing was compared; produce at least one recorded output")
    return verdicts


def _judged(case: Case, backend: str, verdicts: Sequence[Verdict]) -> Row:
    worst = max(verdicts, key=lambda v: (not v.ok, v.error / v.tolerance if v.tolerance else v.error))
    others = sum(not v.ok for v in verdicts) - 1
    detail = f"{worst.output}: {worst.detail}" + (f" (and {others} more outputs)" if others > 0 else "")
    return Row(case.path, case.stage, backend, worst.ok, worst.error, worst.tolerance, detail)


def _failed(path: Path, stage: str, backend: str, failure: _Failure) -> Row:
    return Row(path, stage, backend, False, math.inf, 0.0, failure.text)


@dataclass(frozen=True)
class _Failure:
    text: str


def _guarded(work: Callable[[], _Result]) -> _Result | _Failure:
    """What `work` returns, or in one line what it raised."""
    try:
        return work()
    except MusicRTError as error:
        text = str(error)
    except Exception as error:  # code under test may fail in any way, and one failed case must not hide the others
        text = f"{type(error).__name__}: {error}"
    return _Failure(" ".join(text.split()))
