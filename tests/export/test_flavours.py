"""Bundles with graphs in half precision: what is stored, checked, verified, and added to those that exist."""

from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from musicrt.runtime.bundle import Bundle
from musicrt.runtime.errors import BackendError, BundleError, Cancelled, ConfigError, VerificationError
from musicrt.runtime.manifest_file import MANIFEST
from musicrt.runtime.verify import verify_bundle
from tests.conftest import ForSystem, refused
from tests.export.graph_types import ONNX_FLOAT, ONNX_HALF, assert_typed, float_types

pytest.importorskip("torch")
ir = pytest.importorskip("onnx_ir")
pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")

from musicrt.export import flavours as flavours_module  # noqa: E402 - needs what was asked for above
from musicrt.export.flavours import add_flavour  # noqa: E402


@pytest.fixture(scope="module")
def both(half_bundles: ForSystem) -> Bundle:
    """MuCodec's tiny bundle with both flavours: it has convolutions, transformers, positions, a vocoder."""
    return Bundle.open(half_bundles("mucodec"))


def test_bundle_has_every_stage_in_half_precision(both: Bundle) -> None:
    assert both.flavours == ["ort", "trt"]
    assert both.manifest.more_weights["trt"].path == "stages/weights.half.safetensors"
    whole = {"frontend", "quantizer", "dequantizer", "normfeat", "timesteps", "prompt-frontend"}
    for stage in both.spec.stages:
        _, graph = both.graph(stage.name, "trt")
        assert graph.opset == 24
        if stage.name in whole:
            assert (graph.precision, graph.tolerance) == ("float32", stage.tolerance.rel_l2)
            assert graph.error <= graph.tolerance
        else:
            assert stage.half is not None
            assert (graph.precision, graph.tolerance) == ("float16", stage.half.tolerance)
            assert 2e-4 < graph.error < graph.tolerance, stage.name


def test_graphs_of_a_bundle_are_typed(both: Bundle) -> None:
    for stage in both.spec.stages:
        model = ir.load(both.graph(stage.name, "trt")[0])
        types = {dtype for one in model.graph for dtype in float_types(one)}
        assert types == ({ONNX_FLOAT} if stage.half is None else {ONNX_HALF, ONNX_FLOAT})
        if stage.half is not None:
            assert_typed(model, stage)
            convolutions = [float_types(one) for one in model.graph if one.op_type in ("Conv", "MatMul", "Attention", "Gemm")]
            assert convolutions.count({ONNX_HALF}) >= len(convolutions) - 1, stage.name


def test_half_weights_are_stored_once(both: Bundle) -> None:
    from safetensors import safe_open

    def dtypes(name: str) -> Counter[str]:
        with safe_open(both.path / "stages" / name, "np") as file:
            return Counter(file.get_slice(key).get_dtype() for key in file.keys())  # noqa: SIM118 - no mapping

    assert dtypes("weights.safetensors").keys() == {"F32"}
    found = dtypes("weights.half.safetensors")
    assert found["F16"] > 20 * found["F32"], "float32 of islands lies in the other file"
    assert both.manifest.more_weights["trt"].bytes < both.manifest.weights.bytes / 2


def test_half_bundle_passes_verification(both: Bundle) -> None:
    checks = verify_bundle(both.path, backend="onnxruntime-cpu", flavour="trt", threads=1)
    assert all(check.ok for check in checks)
    assert {check.stage: check.tolerance for check in checks} == {stage.name: stage.tolerance_of("trt") for stage in both.spec.stages}
    assert max(check.error for check in checks) > 3e-4, "these are the graphs in half precision"
    with refused(BackendError, "torch-cpu", "'trt'"):
        verify_bundle(both.path, backend="torch-cpu", flavour="trt")


def test_flavour_is_added_once(both: Bundle) -> None:
    with refused(BundleError, both.path, "has trt graphs already"):
        add_flavour(both.path, "trt")
    with refused(ConfigError, "'int8'", "trt"):
        add_flavour(both.path, "int8")


def test_half_weights_are_checked(both: Bundle, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(both.path, tmp_path / "bundle"))
    weights = copy / "stages" / "weights.half.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    Bundle.open(copy)
    with refused(BundleError, weights, "SHA-256"):
        Bundle.open(copy, check="hashes")
    weights.unlink()
    with refused(BundleError, "weights.half.safetensors"):
        Bundle.open(copy)


def test_bundle_without_the_flavour_says_how_to_add_it(tiny_bundle: Path) -> None:
    with refused(BundleError, "'trt'", "musicrt add-flavour"):
        Bundle.open(tiny_bundle).graph("encoder", "trt")


@pytest.mark.parametrize("error", [Cancelled("enough"), KeyboardInterrupt(), VerificationError("stage encoder: too far")])
def test_what_fails_leaves_the_bundle_as_it_was(copy_bundle: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    def write(*_: Any) -> None:
        (copy_bundle / "stages" / "weights.half.safetensors").write_bytes(b"begun")
        raise error

    monkeypatch.setattr(flavours_module, "write_flavour", write)
    before = {path: path.stat().st_mtime_ns for path in copy_bundle.rglob("*") if path.is_file()}
    with pytest.raises(type(error)):
        add_flavour(copy_bundle, "trt")
    assert {path: path.stat().st_mtime_ns for path in copy_bundle.rglob("*") if path.is_file()} == before
    assert (copy_bundle / MANIFEST).is_file()
