"""The hunt for what half precision can't hold, in a graph where an overflow is built in."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from musicrt.runtime.bundle import EMBEDDED, Bundle
from musicrt.runtime.errors import BundleError
from musicrt.runtime.manifest import CalibrationEntry
from musicrt.runtime.precision import Half, Tolerance, is_pin, kept_name
from musicrt.runtime.registry import build_spec
from musicrt.runtime.spec import StageSpec
from musicrt.runtime.tensors import Axis, TensorSpec
from musicrt.runtime.verify import probe_inputs, relative_error
from tests.command import call
from tests.conftest import refused

torch = pytest.importorskip("torch")
ir = pytest.importorskip("onnx_ir")
pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")

from torch import Tensor, nn  # noqa: E402 - needs what was asked for above

from musicrt.calibration import half_range  # noqa: E402
from musicrt.calibration.half_range import LARGEST, Found, calibrate_half, fits, hunt  # noqa: E402
from musicrt.export.graphs import trace_stage  # noqa: E402
from musicrt.export.rounding import round_values  # noqa: E402
from musicrt.runtime.backends.onnxruntime import OnnxCpu  # noqa: E402
from musicrt.runtime.backends.torch import TorchSession, load_bundle_stages  # noqa: E402

WIDTH = 16
X = TensorSpec("x", "float32", (Axis("batch", 1, 1, 8), Axis("columns", 1, 4, 64), WIDTH))
STAGE = StageSpec("hot", "", (X,), (dataclasses.replace(X, name="y"),), Tolerance(1e-5), half=Half(3e-3))


class Square(nn.Module):
    """Goes to about 400 ** 2, and back."""

    def forward(self, x: Tensor) -> Tensor:
        large = 400.0 * x
        return large * large * 0.001


class Hot(nn.Module):
    """Two layers, and between them a module that leaves the range."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.square, self.last = nn.Linear(WIDTH, WIDTH), Square(), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.last(self.square(self.first(x)))
        return result


def run_half(stage: StageSpec, path: Path) -> float:
    """Distance of the graph in half precision, every value rounded, from torch."""
    module = Hot().eval().requires_grad_(False)
    model = trace_stage(stage, module, probe_inputs(stage, {"batch": 2, "columns": 5}, 1), "trt")
    ir.save(round_values(model), path)
    feeds = probe_inputs(stage, {"batch": 3, "columns": 7}, 2)
    with OnnxCpu(threads=1).open_graph(stage, path) as session, np.errstate(all="ignore"):
        return relative_error(session.run(feeds), TorchSession(stage, module).run(feeds))


@pytest.fixture(scope="module")
def found() -> Any:
    feeds = [probe_inputs(STAGE, {"batch": 2, "columns": 9}, seed) for seed in (3, 4)]
    return hunt(STAGE, Hot().eval().requires_grad_(False), feeds, threads=1)


def test_nodes_around_an_overflow_are_pinned_and_no_others(found: Any) -> None:
    assert [pin.partition("/")[0] for pin in found.pins] == ["square", "square"]  # who makes the large value, and who takes it
    assert all(is_pin(pin) and "mul" in pin.lower() for pin in found.pins)
    assert 100.0 < found.largest < LARGEST


def test_pins_make_the_difference(found: Any, tmp_path: Path) -> None:
    assert STAGE.half is not None
    pinned = dataclasses.replace(STAGE, half=dataclasses.replace(STAGE.half, modules=found.pins))
    without, with_pins = run_half(STAGE, tmp_path / "a.onnx"), run_half(pinned, tmp_path / "b.onnx")
    assert with_pins < 3e-3
    assert not without < 1e-2


def test_pinned_nodes_are_named_for_the_engines(found: Any) -> None:
    assert STAGE.half is not None
    pinned = dataclasses.replace(STAGE, half=dataclasses.replace(STAGE.half, modules=found.pins))
    model = trace_stage(pinned, Hot().eval().requires_grad_(False), probe_inputs(STAGE, {"batch": 2, "columns": 5}, 1), "trt")
    kept = [str(node.name) for node in model.graph if str(node.name).startswith("float32:")]
    assert sorted(kept) == sorted(kept_name(pin, pin.partition("/")[2]) for pin in found.pins)


def test_what_half_precision_holds() -> None:
    ordinary = np.linspace(-3.0, 3.0, 101, dtype=np.float32)
    assert fits(ordinary)
    assert fits(np.zeros(3, np.float32))
    assert fits(np.array([65504.0], np.float32))
    assert not fits(np.array([65536.0], np.float32))
    assert not fits(np.array([np.nan], np.float32))
    assert not fits(ordinary * np.float32(1e-6)), "numbers below 6e-5 have fewer bits"


def test_pins_of_the_manifest_reach_the_spec() -> None:
    spec = build_spec("music2latent", {}, "full")
    pinned = spec.pinned({"encoder": ["encoder.conv_inp/node_conv2d"], "frontend": ["a/b"]})
    half = pinned.stage("encoder").half
    assert half is not None
    assert half.modules == ("encoder.conv_inp/node_conv2d",)
    assert pinned.stage("frontend").half is None
    assert pinned.stage("decoder") == spec.stage("decoder")
    assert spec.pinned({}) is spec
    entry = CalibrationEntry(inputs="", inputs_sha256="0" * 64, tools={})
    assert entry.pins == {}


def test_pins_are_stored_shown_and_kept_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the command to the graph; what is hunted is set here."""
    path, pin = Path(shutil.copytree(EMBEDDED, tmp_path / "bundle")), "encoder.conv_inp/node_conv2d"
    hunted: list[str] = []

    def find(stage: StageSpec, _module: object, feeds: list[Any], _threads: int | None) -> Found:
        assert feeds
        hunted.append(stage.name)
        return Found((pin,) if stage.name == "encoder" else (), 12.0)

    monkeypatch.setattr(half_range, "hunt", find)
    out = call("calibrate", path, "--target", "gpu-fp16", "--seconds", "0.2", "--threads", "1").out
    assert hunted == ["encoder", "pyramid", "denoiser", "decoder"]
    assert f"encoder: float32 because half precision can't hold it: {pin}" in out
    assert out in call("inspect", path).out
    bundle = Bundle.open(path, check="hashes")
    assert bundle.manifest.calibrations["gpu-fp16"].pins == {"encoder": [pin]}
    stage = bundle.spec.stage("encoder")
    model = trace_stage(stage, load_bundle_stages(bundle)["encoder"], probe_inputs(stage, {"batch": 2, "latents": 3}, 1), "trt")
    kept = {str(node.name): node for node in model.graph if str(node.name).startswith("float32:")}
    assert list(kept) == [f"float32:{pin}/node_conv2d"]
    assert {value.dtype for value in kept[f"float32:{pin}/node_conv2d"].inputs if value is not None} == {ir.DataType.FLOAT}
    monkeypatch.setattr(Bundle, "flavours", ["ort", "trt"])
    assert calibrate_half(path, seconds=0.2, threads=1).pins == {"encoder": [pin]}  # the same ones: the graphs have them
    monkeypatch.setattr(half_range, "hunt", lambda *_: Found(("encoder.conv_out/node_conv1d_5",), 1.0))
    with refused(BundleError, "trt graphs with other nodes in float32 than the 4 found now", "export it anew"):
        calibrate_half(path, seconds=0.2, threads=1)
