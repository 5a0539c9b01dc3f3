"""The operator profile, on a made-up trace and on the tiny bundle."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import profile
from musicrt.runtime.errors import InputError


def test_operators_are_means_over_the_runs_after_the_first() -> None:
    def node(name: str, microseconds: int) -> dict[str, Any]:
        return {"name": f"{name}_1", "dur": microseconds, "args": {"op_name": name}}

    runs = [(9000, 9000), (100, 10), (300, 30)]
    nodes = [node(name, times[j]) for times in runs for j, name in enumerate(("MatMul", "Add"))]
    product, addition = profile.count_operators(nodes, 2, {"MatMul_1": 2.0 * 4 * 8 * 2})
    assert (product.name, product.nodes, addition.name) == ("MatMul", 1.0, "Add")
    assert product.seconds == pytest.approx(200e-6)
    assert addition.seconds == pytest.approx(20e-6)
    assert product.speed == pytest.approx(2 * 4 * 8 * 2 / 1e9 / 200e-6)
    assert addition.speed is None


def test_the_profile_suite_counts_the_operators_of_a_stage(tiny_bundle: Path, tmp_path: Path) -> None:
    pytest.importorskip("onnx")
    out = tmp_path / "profile"
    profile.main(["--bundle", str(tiny_bundle), "--out", str(out), "--seconds", "0.05", "--threads", "1", "--stages", "encoder"])
    content = json.loads(out.with_suffix(".json").read_text())
    nodes = {operator["name"]: operator["nodes"] for operator in content["stages"]["encoder"]}
    assert nodes["Conv"] == int(nodes["Conv"]) > 10
    assert content["peak_gflops"][0] > 1.0
    with pytest.raises(InputError, match="unknown stage 'nothing'"):
        profile.main(["--bundle", str(tiny_bundle), "--out", str(out), "--stages", "nothing"])
