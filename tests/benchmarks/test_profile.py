"""The operator profile, on a made-up trace and on the tiny bundle."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import profile
from musicrt.runtime.errors import InputError


def test_operations_follow_from_shapes() -> None:
    def flop(name: str, inputs: list[list[int]], output: list[int]) -> float:
        shapes = [{"float": shape} for shape in inputs]
        return profile.count_flop({"op_name": name, "input_type_shape": shapes, "output_type_shape": [{"float": output}]})

    assert flop("Conv", [[1, 8, 10, 10], [16, 8, 3, 3], [16]], [1, 16, 10, 10]) == 2 * 1600 * 72
    assert flop("MatMul", [[5, 3, 4], [5, 4, 7]], [5, 3, 7]) == 2 * 5 * 3 * 4 * 7
    assert flop("FusedMatMul", [[5, 4, 3], [5, 4, 7]], [5, 3, 7]) == 2 * 5 * 3 * 4 * 7
    assert flop("ConvTranspose", [[1, 8, 10], [8, 4, 16], [4]], [1, 4, 51]) == 2 * 10 * 8 * 4 * 16
    assert flop("LSTM", [[7, 1, 3], [2, 20, 3], [2, 20, 5], [2, 40]], [7, 2, 1, 5]) == 2 * 7 * 2 * 20 * (3 + 5)
    assert flop("Add", [[5, 5], [5, 5]], [5, 5]) == 0


def test_operators_are_means_over_the_runs_after_the_first() -> None:
    def event(start: int, name: str, microseconds: int, cat: str = "Node") -> dict[str, Any]:
        shapes = {"input_type_shape": [{"float": [4, 8]}, {"float": [8, 2]}], "output_type_shape": [{"float": [4, 2]}]}
        return {"cat": cat, "ts": start, "name": f"{name}_kernel_time", "dur": microseconds, "args": {"op_name": name, **shapes}}

    runs = [(9000, 9000), (100, 10), (300, 30)]
    events = [event(10 * i + j, name, times[j]) for i, times in enumerate(runs) for j, name in enumerate(("MatMul", "Add"))]
    product, addition = profile.count_operators([event(99, "Session", 1, "Session"), *reversed(events)], 2)
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
