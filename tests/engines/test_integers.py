"""Graphs and engines in 8-bit integers: every layer that is meant to be one of integers is, nothing else, and who asks gets them."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("tensorrt_rtx")
pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

import onnx

from musicrt.calibration.calibrate import calibrate_int8
from musicrt.calibration.engine_graphs import EngineGraph, EngineWeights
from musicrt.calibration.store import store_lowered
from musicrt.engines import compile as compiling
from musicrt.engines.build import build_engines
from musicrt.engines.inspect import inspect_engines
from musicrt.engines.layers import PRODUCTS, Layer, read_layers, read_nodes, undeclared
from musicrt.runtime.backends import tensorrt as backend_module
from musicrt.runtime.backends.tensorrt import TensorrtRtx
from musicrt.runtime.bundle import EMBEDDED, Bundle
from musicrt.runtime.errors import BackendError, EngineError, InputError
from musicrt.runtime.precision import TRT, TRT_INT8
from musicrt.runtime.registry import system_names
from musicrt.runtime.spec import StageSpec
from musicrt.runtime.tensorrt_family import FAMILIES
from musicrt.runtime.tensorrt_messages import messages_of
from musicrt.runtime.verify import verify_bundle
from tests.command import call
from tests.conftest import ForSystem, refused

PLAIN, INTEGERS = "tensorrt-rtx-sm_89", "tensorrt-rtx-sm_89-int8"
LOWERED = ["visual", "local", "global", "fuse", "lm", "codec-encoder", "synthesis"]
BUILT = {INTEGERS: ["fuse", "lm", "synthesis"], PLAIN: ["cross", "quantizer"]}


@pytest.fixture(scope="module")
def made(half_bundles: ForSystem, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A calibrated bundle of random weights, which need not keep the gates, and engines of some stages."""
    path = Path(shutil.copytree(half_bundles("vidmuse"), tmp_path_factory.mktemp("integers") / "bundle"))
    calibrate_int8(path, flavour=TRT_INT8, seconds=0.3, rounds=0, force=True, threads=1)
    build_engines(path, targets=["sm_89"], stages=[stage for stages in BUILT.values() for stage in stages], precision="int8")
    return path


def parse(stage: StageSpec, path: Path) -> list[Layer]:
    """The layers that TensorRT makes of a graph, before it builds anything."""
    trt = FAMILIES["tensorrt-rtx"].load()
    builder = trt.Builder(messages_of(trt).logger)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, messages_of(trt).logger)
    assert compiling._parse(parser, stage, path)
    return read_layers(trt, network, read_nodes(path))


@pytest.mark.parametrize("system", system_names())
def test_every_lowered_layer_is_one_of_integers_in_the_network(system: str, half_bundles: ForSystem, tmp_path: Path) -> None:
    bundle = Bundle.open(half_bundles(system))
    for entry in bundle.weight_files(TRT):
        shutil.copy(bundle.path / entry.path, tmp_path)
    for stage in bundle.spec.stages:
        if stage.int8 is None or not stage.int8.bits:
            continue
        static = stage.int8.method == "static"
        graph = (EngineGraph if static else EngineWeights).open(bundle, stage.name)
        ranges = dict.fromkeys(graph.values_of(graph.layers), (-4.0, 4.0))
        onnx.save(graph.lower(graph.layers, ranges), path := tmp_path / f"{stage.name}.onnx")
        layers = parse(graph.stage, path)
        lowered = {layer.node: layer.int8 for layer in layers if layer.int8 != "none"}
        assert lowered == dict.fromkeys((layer.node for layer in graph.layers), "all" if static else "weights"), stage.name
        assert len(lowered) >= 4
        others = [layer for layer in layers if layer.type in PRODUCTS and layer.int8 == "none" and layer.operator.startswith("Conv")]
        assert all(layer.precision == "float32" for layer in others), stage.name
        assert undeclared(stage, layers) == []


def test_stages_that_are_not_lowered_share_graphs_and_engines(made: Path) -> None:
    bundle = Bundle.open(made, check="hashes")
    assert bundle.flavours == ["ort", "trt", "trt-int8"]
    for stage in bundle.spec.stages:
        graphs = bundle.manifest.stages[stage.name].graphs
        if stage.name not in LOWERED:
            assert graphs[TRT_INT8] == graphs[TRT]
            continue
        entry = graphs[TRT_INT8]
        assert (entry.precision, entry.file.path) == ("int8", f"stages/{stage.name}.trt-int8.onnx")
        assert 1e-3 < entry.error < 0.3
    assert bundle.manifest.more_weights[TRT_INT8].path == "stages/weights.trt-int8.safetensors"
    whole = {path.stem: path.stat().st_size for path in (made / "stages").glob("weights*")}
    assert 0.2 * whole["weights.half"] < whole["weights.trt-int8"] < 0.6 * whole["weights.half"]
    engines = bundle.manifest.engines
    assert {folder: sorted(plans) for folder, plans in engines.items()} == BUILT
    again = build_engines(made, targets=["sm_89"], stages=BUILT[PLAIN])
    assert [one.seconds for one in again] == [None, None]


def test_engines_say_what_computes_in_integers(made: Path) -> None:
    bundle = Bundle.open(made)
    calibration = bundle.manifest.calibrations["gpu-int8"]
    found = {one.stage: one for one in inspect_engines(bundle)}
    assert list(calibration.stages) == LOWERED
    assert {name: one.integers for name, one in found.items() if one.integers} == {
        name: calibration.stages[name].layers for name in BUILT[INTEGERS]
    }
    for name in BUILT[INTEGERS]:
        one = found[name]
        assert (one.entry.precision, one.entry.flavour, one.undeclared) == ("int8", TRT_INT8, [])
        assert one.totals["int8 weights" if name == "lm" else "int8"] == one.integers > 4
    assert found["lm"].totals["int8"] == 0
    shown = json.loads(call("inspect", made, "--engines", "--json").out)
    assert {one["stage"] for one in shown if one["precision"] == "int8"} == set(BUILT[INTEGERS])
    assert "calibrated for gpu-int8" in call("inspect", made).out


def test_graphs_run_on_a_cpu_as_well(made: Path) -> None:
    checks = verify_bundle(made, backend="onnxruntime-cpu", flavour=TRT_INT8, threads=1)
    assert all(check.ok for check in checks)
    assert [check.stage for check in checks if check.reference == "recorded at calibration"] == LOWERED


def test_who_asks_for_integers_gets_them_or_the_command(made: Path, half_bundles: ForSystem, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend_module, "gpu_architecture", lambda: "sm_89")
    backend, bundle = TensorrtRtx(precision="int8"), Bundle.open(made)
    flavours = {name: backend._choose(bundle, name).flavour for names in BUILT.values() for name in names}
    assert flavours == {"fuse": TRT_INT8, "lm": TRT_INT8, "synthesis": TRT_INT8, "cross": TRT, "quantizer": TRT}
    with refused(EngineError, "'fuse'", "none at all", "--engine tensorrt-rtx"):
        TensorrtRtx()._choose(bundle, "fuse")
    with refused(EngineError, "'visual'", "none at all", "--engine tensorrt-rtx --precision int8"):
        backend.check_bundle(bundle)
    with refused(BackendError, "'trt-int8'", "--target gpu-int8"):
        backend.check_bundle(Bundle.open(half_bundles("vidmuse")))
    with refused(InputError, "'bfloat16'", "float16 or int8"):
        build_engines(made, precision="bfloat16")


def test_what_the_builder_says_of_scales_is_left_out(caplog: pytest.LogCaptureFixture) -> None:
    messages = messages_of(FAMILIES["tensorrt-rtx"].load())
    for line in ("(foreignNode) Converting conv weight scales to fp32.", "something else"):
        messages._take("WARNING", line)
    assert [record.message for record in caplog.records if record.levelno >= logging.WARNING] == ["something else"]


def test_bundle_without_graphs_in_half_precision_says_how_to_get_them() -> None:
    with refused(BackendError, "'trt'", "musicrt add-flavour"):
        calibrate_int8(EMBEDDED, flavour=TRT_INT8)


def test_what_is_calibrated_again_has_other_engines(made: Path) -> None:
    """Changes the bundle, and comes last."""
    bundle = Bundle.open(made)
    plans = bundle.manifest.engines[INTEGERS]
    entry = bundle.manifest.calibrations["gpu-int8"]
    graph = EngineGraph.open(bundle, "fuse")
    ranges: Any = dict.fromkeys(graph.values_of(graph.layers), (-4.0, 4.0))
    models = {"fuse": graph.lower(graph.layers, ranges)}
    changed = store_lowered(bundle, TRT_INT8, models, entry.model_copy(update={"stages": {"fuse": entry.stages["fuse"]}}), 1)
    assert list(changed.manifest.engines) == [PLAIN]
    assert not any((made / file.path).exists() for plan in plans.values() for file in (plan.file, plan.report))
    assert changed.flavour_of("fuse", TRT_INT8) == TRT_INT8
    assert changed.flavour_of("lm", TRT_INT8) == TRT
    assert not (made / "stages/lm.trt-int8.onnx").exists()
