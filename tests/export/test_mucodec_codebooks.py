"""MuCodec with four codebooks on both backends: the recorded runs, with only those stages exported that differ from one codebook."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from musicrt.runtime.errors import InputError
from musicrt.runtime.session import Session
from musicrt.runtime.verify import probe_inputs, probe_sizes
from tests.conftest import refused
from tests.reference.case import load_case
from tests.reference.fill import write_files
from tests.reference.runner import DATA

for module in ("torch", "onnx_ir", "onnxscript", "onnxruntime"):
    pytest.importorskip(module)

import onnx_ir as ir  # noqa: E402 - needs what was asked for above

from musicrt.export.graphs import trace_stage  # noqa: E402
from musicrt.runtime.backends.onnxruntime import OnnxCpu  # noqa: E402
from musicrt.runtime.checkpoint import read_checkpoint  # noqa: E402
from musicrt.runtime.models.mucodec.stages import load_stages  # noqa: E402
from tests.reference.systems.mucodec import Runner  # noqa: E402

FOLDER = DATA / "mucodec"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    layout, folder = json.loads((FOLDER / "layout-tiny4.json").read_text()), tmp_path_factory.mktemp("checkpoint") / "tiny4"
    write_files(layout, load_file(FOLDER / "given-tiny4.safetensors"), "", folder)
    (folder / "layout.json").write_text(json.dumps(layout))
    return folder


@pytest.fixture(scope="module")
def runner(checkpoint: Path) -> Runner:
    """The network in PyTorch."""
    return Runner(checkpoint, json.loads((checkpoint / "layout.json").read_text()), "torch-cpu", checkpoint)


@pytest.fixture(scope="module")
def graphs(runner: Runner, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Session]:
    """Both stages that know of codebooks, in ONNX Runtime."""
    folder, spec = tmp_path_factory.mktemp("graphs"), runner.codec.model.spec
    modules = load_stages(read_checkpoint(spec.checkpoint, runner.checkpoint), spec.config)
    sessions: dict[str, Session] = {}
    for stage in (spec.stage(name) for name in ("quantizer", "dequantizer")):
        path = folder / f"{stage.name}.onnx"
        ir.save(trace_stage(stage, modules[stage.name], probe_inputs(stage, probe_sizes(stage, 2), 1)), path)
        sessions[stage.name] = OnnxCpu().open_graph(stage, path)
    return sessions


@pytest.mark.parametrize("name", ["quantize", "dequantize", "fetch-codes"])
@pytest.mark.parametrize("backend", ["torch-cpu", "onnxruntime-cpu"])
def test_four_codebooks_as_recorded(
    runner: Runner, graphs: dict[str, Session], monkeypatch: pytest.MonkeyPatch, name: str, backend: str
) -> None:
    if backend == "onnxruntime-cpu":
        model = runner.codec.model
        own = model.session
        monkeypatch.setattr(model, "session", lambda stage: graphs.get(stage) or own(stage))
    case = load_case(FOLDER / "tiny4" / f"tiny4-{name}.safetensors")
    verdicts = case.compare(runner.run(case))
    assert verdicts
    assert [f"{verdict.output}: {verdict.detail}" for verdict in verdicts if not verdict.ok] == []


@pytest.mark.parametrize("count", [1, 2, 3])
def test_fewer_codebooks_are_taken(runner: Runner, graphs: dict[str, Session], count: int) -> None:
    codes = np.random.default_rng(0).integers(0, 512, (2, count, 5))
    expected = runner.run_stage("dequantizer", codes=codes)["quantised"]
    np.testing.assert_allclose(graphs["dequantizer"].run({"codes": codes})["quantised"], expected, atol=1e-5)
    whole = np.concatenate([codes, np.zeros((2, 4 - count, 5), np.int64)], axis=1)
    assert np.abs(runner.run_stage("dequantizer", codes=whole)["quantised"] - expected).max() > 0.1


def test_more_codebooks_are_refused(graphs: dict[str, Session]) -> None:
    with refused(InputError, "dequantizer", "codes", "codebooks is from 1 to 4"):
        graphs["dequantizer"].run({"codes": np.zeros((1, 5, 3), np.int64)})
