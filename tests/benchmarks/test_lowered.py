"""The suite of one stage in every way of computing it, on a tiny transformer."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("onnxruntime")
pytest.importorskip("openvino")

from benchmarks import lowered
from musicrt.runtime.errors import InputError
from tests.conftest import ForSystem, refused


def test_every_way_is_timed_and_held_against_torch(tiny_bundles: ForSystem, tmp_path: Path) -> None:
    where = ["--bundle", str(tiny_bundles("mucodec")), "--stage", "estimator", "--threads", "1", "--out", str(tmp_path / "layer")]
    ways = ["onnxruntime float32", "onnxruntime int8 weights", "openvino int8 static"]
    lowered.main([*where, "--sizes", "guidance=1", "rows=4", "--repeats", "2", "--only", *ways])
    content = json.loads((tmp_path / "layer.json").read_text())
    rows = content["rows"]
    assert list(rows) == [lowered.REFERENCE, *ways]
    assert all(len(row["times"]) == len(row["cores"]) == 2 for row in rows.values())
    assert rows[lowered.REFERENCE]["error"] == 0
    assert rows["onnxruntime float32"]["error"] < 1e-5
    assert 1e-3 < rows["onnxruntime int8 weights"]["error"] < 0.05
    assert 1e-3 < rows["openvino int8 static"]["error"] < 0.3
    assert content["operations"]["attention"] > 0
    assert content["operations"]["products"] > content["operations"]["attention"]
    text = (tmp_path / "layer.md").read_text()
    assert "| openvino int8 static |" in text
    assert str(tmp_path) not in text + json.dumps(content)


def test_a_hyper_parameter_may_be_changed_but_not_invented() -> None:
    config = {"a": {"layers": 4}, "b": 1}
    assert lowered.change_config(config, ["a.layers=1", "b=2"]) == {"a": {"layers": 1}, "b": 2}
    assert config["b"] == 1
    for wrong in ("a.depth=1", "c.layers=1"):
        with refused(InputError, wrong, "hyper-parameter"):
            lowered.change_config(config, [wrong])


def test_the_table_has_both_kinds_of_seconds() -> None:
    rows = {
        lowered.REFERENCE: {"times": [4.0, 4.0], "cores": [8.0, 8.0], "error": 0.0},
        "other": {"times": [2.0, 1.0], "cores": [2.0, 2.0], "error": 0.01},
    }
    text = lowered.render(rows, {"products": 3e9, "attention": 1e9}, {"float32": 100.0})
    assert "| other | 1.50 (1.00) | 2.67 | 2.00 | 4.00 | 4 | 1.0e-02 |" in text
    assert "4 GFLOP, 25% of them attention" in text
