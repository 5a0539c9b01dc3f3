"""The runner of recorded cases and its command, with a made-up system whose only stage doubles its input."""

from __future__ import annotations

import importlib
import json
import math
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from musicrt.runtime.errors import CheckpointError, InputError
from tests.reference import runner, signals
from tests.reference.__main__ import main
from tests.reference.case import Case
from tests.reference.fill import Layout, fill
from tests.reference.signals import Array


class Doubler:
    """Runner of the made-up system `doubler`; backend "broken" can't be opened, "off" computes something else."""

    opened: list[tuple[str, str, Layout, list[str]]]
    closed: int

    def __init__(self, checkpoint: Path, layout: Layout, backend: str, workspace: Path) -> None:
        if backend == "broken":
            raise OSError("no such\ndevice")
        assert list(workspace.iterdir()) == []
        files = sorted(path.name for path in checkpoint.rglob("*") if path.is_file())
        Doubler.opened.append((checkpoint.name, backend, layout, files))
        self.factor = np.float32(3 if backend == "off" else 2)

    def run(self, case: Case) -> dict[str, Array]:
        if case.stage == "crash":
            raise ZeroDivisionError("by\n  zero")
        if case.stage == "silent":
            return {}
        if case.stage != "double":
            raise runner.UnknownStageError(case.stage)
        return {"y": case.inputs["x"] * self.factor + (case.noise[0] if case.noise else np.float32(0))}

    def close(self) -> None:
        Doubler.closed += 1


def record(folder: Path, name: str, stage: str = "double", output: str = "y", **changes: Any) -> Path:
    x, noise = signals.unit("in", (3, 4)), signals.normal("draw", (3, 4))
    info = {
        "format": 2,
        "system": "doubler",
        "stage": stage,
        "checkpoint": {"layout": None, "given": None, "salt": ""},
        "inputs": {"x": {"generator": "unit", "args": ["in", [3, 4]]}},
        "noise": [{"name": "draw", "shape": [3, 4]}],
        "options": {},
        "outputs": {output: {"key": "y", "select": "whole", "shape": [3, 4], "dtype": "float32", "atol": 1e-6, "rel_l2": 1e-6}},
        **changes,
    }
    path = folder / "cases" / f"{name}.safetensors"
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({"y": 2 * x + noise}, path, {"case": json.dumps(info)})
    return path


@pytest.fixture(autouse=True)
def doubler(monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("tests.reference.systems.doubler")
    module.__dict__["Runner"] = Doubler
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(Doubler, "opened", [], raising=False)
    monkeypatch.setattr(Doubler, "closed", 0, raising=False)


def test_run_folder_gives_a_row_per_case_and_backend(tmp_path: Path) -> None:
    record(tmp_path, "a")
    record(tmp_path, "b", noise=[])
    rows = runner.run_folder(tmp_path, ["good", "off"])
    seen = {(row.path.stem, row.backend): row.passed for row in rows}
    assert seen == {("a", "good"): True, ("b", "good"): False, ("a", "off"): False, ("b", "off"): False}
    assert all(row.detail.startswith("y: max") and row.tolerance == 1e-6 for row in rows)
    assert next(row.error for row in rows if row.passed) < 1e-6 < min(row.error for row in rows if not row.passed)


def test_one_runner_per_checkpoint_and_backend(tmp_path: Path) -> None:
    (tmp_path / "layout-x.json").write_text(json.dumps({"files": {"w.npy": {"format": "npy", "tensors": {"w": [[2], "float32"]}}}}))
    for name, salt in [("a", ""), ("b", "salt"), ("c", "")]:
        record(tmp_path, name, checkpoint={"layout": "layout-x.json", "given": None, "salt": salt})
    record(tmp_path, "d")
    assert len(runner.run_folder(tmp_path, ["one", "two"])) == 8
    assert [(backend, files) for _, backend, _, files in Doubler.opened] == [
        *[("one", ["w.npy"]), ("two", ["w.npy"])] * 2,
        *[("one", []), ("two", [])],
    ]
    assert len({name for name, *_ in Doubler.opened}) == 3
    assert [layout for *_, layout, _ in Doubler.opened][-1] == {}
    assert Doubler.closed == 6


def test_salted_checkpoints_have_other_weights_and_given_tensors_stay(tmp_path: Path) -> None:
    layout = {"files": {"w.safetensors": {"format": "safetensors", "tensors": {"w": [[2], "float32"], "v": [[2], "float32"]}}}}
    (tmp_path / "layout-x.json").write_text(json.dumps(layout))
    save_file({"v": np.array([1, 2], np.float32)}, tmp_path / "given-x.safetensors")
    with runner.Checkpoints() as checkpoints:
        keys = [runner.CheckpointKey(tmp_path, "doubler", "layout-x.json", "given-x.safetensors", salt) for salt in ("", "s/", "")]
        folders, layouts = zip(*map(checkpoints.get, keys), strict=True)
        plain, salted = (load_file(folder / "w.safetensors") for folder in folders[:2])
        assert folders[0] == folders[2]
    assert layouts == (layout,) * 3
    np.testing.assert_array_equal(salted["w"], fill("s/w", (2,), "shift"))
    np.testing.assert_array_equal(plain["w"], fill("w", (2,), "shift"))
    assert plain["v"].tolist() == salted["v"].tolist() == [1, 2]
    assert not folders[0].exists()


def test_files_of_the_folder_come_before_vendored_and_shared_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shared = tmp_path / "shared"
    (shared / "music2latent").mkdir(parents=True)
    monkeypatch.setenv("MUSICRT_REFERENCE", str(shared))
    key = runner.CheckpointKey(tmp_path / "mine", "music2latent", None, None, "")
    (shared / "music2latent" / "layout-tiny.json").touch()
    (shared / "music2latent" / "layout-other.json").touch()
    assert key.find("layout-other.json") == shared / "music2latent" / "layout-other.json"
    assert key.find("layout-tiny.json") == runner.DATA / "music2latent" / "layout-tiny.json"
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "layout-tiny.json").touch()
    assert key.find("layout-tiny.json") == tmp_path / "mine" / "layout-tiny.json"
    with pytest.raises(CheckpointError, match=r"layout-none\.json of music2latent is in none of .*MUSICRT_REFERENCE"):
        key.find("layout-none.json")
    monkeypatch.setenv("MUSICRT_REFERENCE", str(tmp_path / "absent"))
    with pytest.raises(InputError, match="which is no folder"):
        key.find("layout-tiny.json")


@pytest.mark.parametrize(
    ("changes", "detail"),
    [
        ({"stage": "triple"}, "no runner for stage triple"),
        ({"system": "unheard_of"}, "no runner for stage double"),
        ({"stage": "crash"}, "ZeroDivisionError: by zero"),
        ({"stage": "silent"}, "y: not produced"),
        ({"stage": "silent", "output": "trace/y"}, "bad.safetensors: nothing was compared; produce at least one recorded output"),
        ({"format": 1}, "has case format 1, expected 2"),
        ({"checkpoint": {"layout": "layout-none.json", "given": None, "salt": ""}}, "layout-none.json of doubler is in none of"),
        ({"checkpoint": {}}, "KeyError: 'layout'"),
        ({"inputs": {}}, "KeyError: 'x'"),
    ],
)
def test_a_case_that_cannot_run_fails_and_the_others_go_on(changes: dict[str, Any], detail: str, tmp_path: Path) -> None:
    record(tmp_path, "bad", **changes)
    record(tmp_path, "good")
    rows = {row.path.stem: row for row in runner.run_folder(tmp_path, ["any"])}
    assert detail in rows["bad"].detail
    assert (rows["bad"].passed, rows["bad"].error) == (False, math.inf)
    assert rows["good"].passed


def test_a_backend_that_cannot_open_fails_all_its_cases(tmp_path: Path) -> None:
    record(tmp_path, "a")
    record(tmp_path, "b")
    rows = runner.run_folder(tmp_path, ["broken", "fine"])
    assert [(row.backend, row.passed) for row in rows] == [("broken", False)] * 2 + [("fine", True)] * 2
    assert {row.detail for row in rows if not row.passed} == {"OSError: no such device"}


def test_a_broken_system_module_is_not_taken_for_a_missing_one(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: str) -> ModuleType:
        raise ModuleNotFoundError("No module named 'gone'", name="gone")

    assert runner.find_runner("unheard_of") is None
    monkeypatch.setattr(importlib, "import_module", fail)
    with pytest.raises(ModuleNotFoundError, match="gone"):
        runner.find_runner("doubler")


def test_command_passes_and_prints_a_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record(tmp_path, "first")
    assert main([str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["case", "stage", "backend", "error", "tolerance", "verdict"]
    assert [line.split()[:3] for line in lines[1:3]] == [["first", "double", "torch-cpu"], ["first", "double", "onnxruntime-cpu"]]
    assert {line.index("passed") for line in lines[1:3]} == {lines[0].index("verdict")}
    assert lines[3:] == ["2 passed, 0 failed"]


def test_command_fails_with_details(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record(tmp_path / "one", "good")
    record(tmp_path / "one", "odd", stage="odd")
    assert main([str(tmp_path), "--backend", "fine", "off"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[1:5]] == ["one/good", "one/odd", "one/good", "one/odd"]
    assert lines[2].endswith("FAILED  no runner for stage odd")
    assert lines[-1] == "1 passed, 3 failed"


def test_command_selects_cases_and_widens_tolerances(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record(tmp_path, "good")
    record(tmp_path, "odd", stage="odd")
    assert main([str(tmp_path), "--case", "go*", "--backend", "off", "--slack", "1e9"]) == 0
    assert capsys.readouterr().out.endswith("1 passed, 0 failed\n")


def test_command_without_cases_exits_with_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record(tmp_path, "good")
    assert main([str(tmp_path), "--case", "none-*"]) == 2
    captured = capsys.readouterr()
    assert (captured.out, captured.err.count("\n")) == ("", 1)
    assert "is called none-*" in captured.err
    run = [sys.executable, "-m", "tests.reference", str(tmp_path / "cases")]
    done = subprocess.run(run, cwd=Path(__file__).parents[2], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"no cases in {tmp_path / 'cases'}; expected")
