"""`musicrt build`, `inspect --engines`, and what `doctor` says of engines."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from musicrt.runtime.tensorrt_family import FAMILIES
from tests.command import call, fails
from tests.conftest import ForSystem


def run(*arguments: str | Path) -> str:
    return call(*arguments).out


@pytest.fixture(scope="module")
def bundle(half_bundles: ForSystem, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle with half graphs to build engines of."""
    pytest.importorskip("tensorrt_rtx")
    return Path(shutil.copytree(half_bundles("music2latent"), tmp_path_factory.mktemp("command") / "bundle"))


BUILD = ("--engine", "tensorrt-rtx", "--target", "sm_89,sm_120", "--stages", "frontend,conditioning")


def test_engines_are_built_once_and_shown(bundle: Path) -> None:
    first = json.loads(run("build", bundle, *BUILD, "--json"))
    assert [(one["stage"], one["targets"]) for one in first] == [("frontend", ["sm_89", "sm_120"]), ("conditioning", ["sm_89", "sm_120"])]
    assert all(one["seconds"] > 0 for one in first)
    assert "was there" in run("build", bundle, *BUILD)
    shown = run("inspect", bundle, "--engines")
    assert "tensorrt-rtx-sm_89+sm_120" in shown
    assert "network definition" in shown
    listed = json.loads(run("inspect", bundle, "--engines", "--json"))
    assert [one["stage"] for one in listed] == ["frontend", "conditioning"]
    assert all(layer["precision"] != "float16" for one in listed for layer in one["layers"])
    assert json.loads(run("inspect", bundle, "--json"))["engines"].keys() == {"tensorrt-rtx-sm_89+sm_120"}


def test_what_can_not_be_built_is_one_line(bundle: Path) -> None:
    fails(3, "build", bundle, "--engine", "tensorrt-rtx", "--target", "sm_90", says=("'sm_90'", "sm_89"))
    fails(3, "build", bundle, "--engine", "tensorrt-rtx", "--profile", "fast", says=("fast", "latency"))
    fails(3, "build", bundle, "--engine", "tensorrt-rtx", "--stages", "coder", says=("'coder'", "encoder"))
    fails(6, "build", bundle, "--engine", "tensorrt-lean", says=("'tensorrt-lean'", "tensorrt-rtx"))
    fails(4, "build", "embedded", "--engine", "tensorrt-rtx", says=("'trt'", "add-flavour"))
    fails(4, "inspect", "embedded", "--engines", says=("has no engines", "musicrt build"))


def test_doctor_says_where_engines_can_be_built() -> None:
    report = json.loads(run("doctor", "--json"))
    assert report["engines"] == {name: family.build_obstacle() for name, family in FAMILIES.items()}
    assert "tensorrt-rtx" in report["backends"]
    for name, family in FAMILIES.items():
        can = "can not" if family.build_obstacle() else "can"
        assert f"engines {can} be built here with {name}" in run("doctor")
