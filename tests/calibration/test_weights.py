"""Lowered weights, caches and keys: on a small graph, and on the tiny language model."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("onnxruntime")
pytest.importorskip("onnx_ir")

import onnx_ir as ir
import onnxruntime as ort

from musicrt.calibration.attention import round_feeds
from musicrt.calibration.calibrate import Calibration, calibrate_int8
from musicrt.calibration.weights import Packed, find_linears, lower, lower_linears
from musicrt.runtime.backends.onnxruntime import OnnxCpu
from musicrt.runtime.bundle import Bundle
from musicrt.runtime.errors import ConfigError
from musicrt.runtime.model import Model
from musicrt.runtime.models.vidmuse.frames import Clip
from musicrt.runtime.models.vidmuse.pipeline import Pipeline
from musicrt.runtime.precision import INT8, ORT, Int8
from musicrt.runtime.verify import relative_error, verify_bundle
from tests.conftest import refused

WIDTH, HIDDEN = 96, 160


def _random(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def _network() -> ir.Model:
    """x -> x @ w1.T + b -> @ w2, the first a Gemm with a bias and the second a MatMul; and a Gemm of another factor."""
    x = ir.Value(name="x", shape=ir.Shape(["rows", WIDTH]), type=ir.TensorType(ir.DataType.FLOAT))
    arrays = {"a.weight": _random(HIDDEN, WIDTH), "a.bias": _random(HIDDEN, seed=1), "b.weight": _random(HIDDEN, WIDTH, seed=2)}
    values = {name: ir.Value(name=name, const_value=ir.Tensor(array, name=name)) for name, array in arrays.items()}
    first = ir.node("Gemm", [x, values["a.weight"], values["a.bias"]], {"transB": 1})
    second = ir.node("MatMul", [first.outputs[0], values["b.weight"]])
    third = ir.node("Gemm", [second.outputs[0], values["a.weight"]], {"transB": 1, "alpha": 0.5})
    for index, node in enumerate((first, second, third)):
        node.outputs[0].name = f"y{index}"
    outputs = [first.outputs[0], second.outputs[0], third.outputs[0]]
    for value in outputs:
        value.type, value.shape = ir.TensorType(ir.DataType.FLOAT), ir.Shape(["rows", None])
    graph = ir.Graph([x], outputs, nodes=[first, second, third], initializers=list(values.values()), opset_imports={"": 20}, name="g")
    return ir.Model(graph, ir_version=10)


def _run(model: ir.Model, x: np.ndarray) -> list[np.ndarray]:
    settings = ort.SessionOptions()
    settings.intra_op_num_threads = 1
    session = ort.InferenceSession(ir.to_proto(model).SerializeToString(), settings, providers=["CPUExecutionProvider"])
    return [np.asarray(value) for value in session.run(None, {"x": x})]


@pytest.mark.parametrize(("bits", "error"), [(8, 0.007), (4, 0.13)])
@pytest.mark.parametrize("block", [32, 64, 128])
def test_weights_are_packed_as_the_operator_reads_them(bits: int, block: int, error: float) -> None:
    matrix = _random(HIDDEN, WIDTH)
    packed = Packed.of(matrix, bits, block)
    blocks = -(-WIDTH // block)
    assert packed.values.shape == (HIDDEN, blocks, block * bits // 8)
    assert packed.scales.shape == (HIDDEN, blocks)
    assert error / 10 < relative_error({"w": packed.unpack(bits, block, WIDTH)}, {"w": matrix}) < error


@pytest.mark.parametrize(("bits", "error"), [(8, 0.015), (4, 0.15)])
def test_a_small_graph_computes_with_lowered_weights(bits: int, error: float) -> None:
    x, model = _random(5, WIDTH, seed=3), _network()
    expected = _run(_network(), x)
    assert lower_linears(model, Int8("weights", bits=bits, block=32)) == ["a.weight", "b.weight"]
    assert [node.op_type for node in model.graph] == ["MatMulNBits", "MatMulNBits", "Gemm"]  # the last has a factor
    assert sorted(model.graph.initializers) == [
        "a.bias", "a.weight", *(f"{name}.weight.{part}" for name in "ab" for part in (f"int{bits}", "scales"))
    ]  # fmt: skip
    produced = _run(model, x)
    for want, got in zip(expected, produced, strict=True):
        assert error / 100 < relative_error({"y": got}, {"y": want}) < error
    exact = x @ Packed.of(_random(HIDDEN, WIDTH), bits, 32).unpack(bits, 32, WIDTH).T + _random(HIDDEN, seed=1)
    assert relative_error({"y": produced[0]}, {"y": exact}) < 0.01  # what is left is the rounding of x


def test_what_is_kept_stays_float32() -> None:
    model = _network()
    assert lower_linears(model, Int8("weights", keep=("b",))) == ["a.weight"]
    assert lower_linears(_network(), Int8("weights"), keep=["a.weight"]) == ["b.weight"]
    with refused(ConfigError, "3 bits", "4 or 8"):
        lower_linears(_network(), Int8("weights", bits=3))


@pytest.fixture(scope="module")
def lowered(tiny_bundles: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Calibration:
    """A copy of VidMuse's tiny bundle that has the flavour."""
    folder = tmp_path_factory.mktemp("lowered") / "bundle"
    shutil.copytree(tiny_bundles("vidmuse"), folder)
    return calibrate_int8(folder, seconds=0.5, threads=1)


def test_the_language_model_chooses_alike(lowered: Calibration) -> None:
    quality = lowered.entry.quality
    assert lowered.passed
    assert 0.85 < quality["generate top-1"] <= 1  # of 2048 tokens that are nearly as likely: the weights are random
    assert 1e-5 < quality["generate KL"] < 0.01
    assert 22 < quality["generate SNR dB"] < 45
    entries = {name: (entry.method, entry.layers) for name, entry in lowered.entry.stages.items()}
    assert (entries.pop("cross"), entries.pop("lm")) == (("weights", 0), ("weights", 13))
    assert {method for method, _ in entries.values()} == {"static"}


def test_no_float_copy_of_a_lowered_weight_is_left(lowered: Calibration) -> None:
    bundle = lowered.bundle
    plain, made = (ir.load(bundle.graph("lm", flavour)[0]) for flavour in (ORT, INT8))
    weights = {linear.name: linear.matrix().size for linear in find_linears(plain)}
    assert len(weights) == 13
    assert not weights.keys() & made.graph.initializers.keys()
    places = {value.const_value.location for value in made.graph.initializers.values() if isinstance(value.const_value, ir.ExternalTensor)}
    assert places == {"weights.safetensors", "weights.int8.safetensors"}  # the embeddings stay where they are
    stored = (bundle.path / bundle.manifest.more_weights[INT8].path).stat().st_size
    added = [value for name, value in made.graph.initializers.items() if name not in plain.graph.initializers]
    own = sum(value.const_value.nbytes for value in added if value.const_value is not None)
    assert sum(weights.values()) < own < 1.12 * sum(weights.values())  # a scale of 4 bytes for 64 weights, and those of caches
    assert own < stored  # in which there are those of other stages
    shared = {name for name, stage in bundle.manifest.stages.items() if stage.graphs[INT8] == stage.graphs[ORT]}
    assert shared == {stage.name for stage in bundle.spec.stages if stage.int8 is None}


def test_states_change_in_place_and_keys_stay(lowered: Calibration) -> None:
    bundle, sizes = lowered.bundle, {"batch": 1, "tokens": 7, "null_tokens": 5, "columns": 1, "capacity": 16}
    with OnnxCpu(threads=1).with_flavour(INT8).open_session(bundle, "lm") as session:
        assert session.limits["columns"] == (1, 1)
        assert [tensor.name for tensor in session.inputs] == ["tokens", "length"]
        assert {state.dtype for state in session.states} == {"int8"}
        random = np.random.default_rng(0)
        states = {state.name: random.integers(-127, 128, state.resolve(sizes), np.int8) for state in session.states}
        before = {name: array.copy() for name, array in states.items()}
        logits = np.zeros(session.outputs[0].resolve(sizes), np.float32)
        feeds = {**states, "tokens": np.ones((1, 4, 1), np.int64), "length": np.array([3], np.int64)}
        session.bind(feeds, {"logits": logits})()
    for name, array in states.items():
        changed = np.flatnonzero((array != before[name]).any((0, 1, 3)))
        assert changed.tolist() == ([3] if name.startswith(("key", "value")) else []), name
    assert np.isfinite(logits).all()
    assert logits.std() > 0.1


def test_a_step_is_near_that_of_float32(tiny_bundles: Callable[[str], Path]) -> None:
    """With caches and weights, with either of them, and with two videos at once."""
    bundle = Bundle.open(tiny_bundles("vidmuse"))
    stage, sizes = bundle.spec.stage("lm"), {"batch": 2, "tokens": 40, "null_tokens": 5, "columns": 1, "capacity": 16}
    random = np.random.default_rng(0)
    feeds: dict[str, Any] = {t.name: random.standard_normal(t.resolve(sizes), np.float32) for t in stage.feeds if t.dtype == "float32"}
    feeds |= {"tokens": random.integers(0, 2049, (2, 4, 1)), "length": np.array([11], np.int64)}
    assert stage.int8 is not None
    ranges = {name: np.full((4, 16), 4.0, np.float32) for name in stage.int8.tensors.values()}
    path, _ = bundle.graph("lm", ORT)
    with OnnxCpu(threads=1).open_session(bundle, "lm") as session:
        expected = session.run({name: array.copy() for name, array in feeds.items()})
    errors = []
    for int8 in (replace(stage.int8, bits=0), replace(stage.int8, tensors={}), stage.int8, replace(stage.int8, bits=4, block=32)):
        own = replace(stage, int8=int8)
        model = ir.to_proto(lower(ir.load(path), own, ranges)).SerializeToString()
        with OnnxCpu(threads=1).open_model(own.in_flavour(INT8), model, path.parent) as session:
            errors.append(relative_error(session.run(round_feeds(own, feeds, ranges)), expected))
    caches, weights, both, four = errors
    assert 1e-3 < caches < 0.02
    assert 1e-3 < weights < 0.02
    assert max(caches, weights) < both < 0.03
    assert 0.03 < four < 0.3


def test_generation_from_end_to_end(lowered: Calibration) -> None:
    frames = np.random.default_rng(1).integers(0, 256, (3, 4, 32, 32), np.uint8)
    clips = [Clip.from_tensors(frames[:, :2], frames), Clip.from_tensors(frames[:, 2:], frames)]
    with Pipeline(Model.open(lowered.bundle.path, backend="onnxruntime-cpu", precision="int8", threads=1)) as pipeline:
        codes = pipeline.generate_tokens(clips[0], duration=0.4, seed=3)
        both = pipeline.generate_token_batch(clips, duration=0.4, seed=3)
        again = pipeline.generate_tokens(clips[0], duration=0.4, seed=3, prompt=codes[:, :, :8])
        audio = pipeline.decode(codes)
    assert codes.shape == (1, 4, 20)
    assert 0 <= codes.min() < codes.max() < 2048
    np.testing.assert_array_equal(both[0], codes)  # a row of a batch is computed as it is alone
    np.testing.assert_array_equal(again[:, :, :8], codes[:, :, :8])  # a prompt is fed column by column
    assert audio.shape == (1, 20 * 640)
    assert np.isfinite(audio).all()


def test_the_bundle_is_verified(lowered: Calibration) -> None:
    checks = verify_bundle(lowered.bundle.path, backend="onnxruntime-cpu", precision="int8", threads=1)
    assert [check.stage for check in checks if not check.ok] == []
    assert {check.reference for check in checks if check.stage in ("cross", "lm")} == {"recorded at calibration"}


def test_ranges_are_needed(tiny_bundles: Callable[[str], Path]) -> None:
    bundle = Bundle.open(tiny_bundles("vidmuse"))
    path, _ = bundle.graph("lm", ORT)
    with refused(ConfigError, "lm", "cross_key_0", "saw no values"):
        lower(ir.load(path), bundle.spec.stage("lm"), {})
    with refused(ConfigError, "visual", "no lowered weights"):
        lower(ir.load(path), bundle.spec.stage("visual"), {})
