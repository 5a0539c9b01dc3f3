"""What ONNX files may refer to: weights of their own bundle, and operators that exports make."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from musicrt.runtime.bundle import EMBEDDED, Bundle
from musicrt.runtime.errors import BundleError
from musicrt.runtime.graph_file import OPERATORS, check_graph
from tests.conftest import refused

pytest.importorskip("onnx")
import onnx

WEIGHTS = "weights.safetensors"


def make_model(location: str = WEIGHTS, domain: str = "", kind: str = "Add", **entries: str) -> onnx.ModelProto:
    """One node with a weight whose data lie outside."""
    weight = onnx.TensorProto(name="w", data_type=onnx.TensorProto.FLOAT, dims=[2], data_location=onnx.TensorProto.EXTERNAL)
    for key, value in {"location": location, "offset": "8", "length": "8", **entries}.items():
        weight.external_data.add(key=key, value=value)
    values = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [2]) for name in "xy"]
    node = onnx.helper.make_node(kind, ["x", "w"], ["y"], domain=domain)
    graph = onnx.helper.make_graph([node], "g", values[:1], values[1:], [weight])
    return onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)])


def write(folder: Path, content: onnx.ModelProto | bytes, name: str = "a.onnx") -> Path:
    (folder / WEIGHTS).write_bytes(bytes(16))
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.SerializeToString())
    return path


def inside(wrap: str) -> onnx.ModelProto:
    """A foreign operator where graphs can hide it."""
    model, hidden = make_model(), make_model(domain="custom", kind="Evil").graph
    node = model.graph.node.add(op_type="If", input=["c"])
    if wrap == "graph":
        node.attribute.add(name="then_branch", type=onnx.AttributeProto.GRAPH).g.CopyFrom(hidden)
    else:
        node.attribute.add(name="graphs", type=onnx.AttributeProto.GRAPHS).graphs.add().CopyFrom(hidden)
    return model


def weight_inside(wrap: str) -> onnx.ModelProto:
    """Foreign weights where graphs can hide them."""
    model, weight = make_model(), make_model("/etc/passwd").graph.initializer[0]
    attribute = model.graph.node[0].attribute.add(name="value")
    match wrap:
        case "tensor":
            attribute.t.CopyFrom(weight)
        case "tensors":
            attribute.tensors.add().CopyFrom(weight)
        case "sparse":
            attribute.sparse_tensor.values.CopyFrom(weight)
        case _:
            model.graph.sparse_initializer.add().indices.CopyFrom(weight)
    return model


def with_functions() -> onnx.ModelProto:
    model = make_model()
    model.functions.add(name="f", domain="custom")
    return model


def location_twice() -> onnx.ModelProto:
    model = make_model("/etc/passwd")
    model.graph.initializer[0].external_data.add(key="location", value=WEIGHTS)
    return model


def with_training() -> onnx.ModelProto:
    model = make_model()
    model.training_info.add()
    return model


def test_graph_of_known_operators_and_weights_passes(tmp_path: Path) -> None:
    check_graph(write(tmp_path, make_model()), [WEIGHTS])
    check_graph(write(tmp_path, make_model(domain="ai.onnx")), [WEIGHTS])
    for domain, kinds in OPERATORS.items():
        for kind in kinds:
            check_graph(write(tmp_path, make_model(domain=domain, kind=kind)), [WEIGHTS])


WRONG: dict[str, tuple[Callable[[], onnx.ModelProto], str]] = {
    "parent": (lambda: make_model("../weights.safetensors"), "'../weights.safetensors'"),
    "absolute": (lambda: make_model("/etc/passwd"), "'/etc/passwd'"),
    "memory": (lambda: make_model("*/_ORT_MEM_ADDR_/*"), "_ORT_MEM_ADDR_"),
    "itself": (lambda: make_model("a.onnx"), "'a.onnx'"),
    "other spelling": (lambda: make_model("./weights.safetensors"), "'./weights.safetensors'"),
    "zero byte": (lambda: make_model("weights.safetensors\0"), r"\x00"),
    "empty": (lambda: make_model(""), "lie in ''"),
    "far offset": (lambda: make_model(offset="9"), "ends at byte 17 of weights.safetensors, which has 16"),
    "huge offset": (lambda: make_model(offset=str(2**63)), str(2**63)),
    "long offset": (lambda: make_model(offset="1" * 5000), "offset '111"),
    "negative length": (lambda: make_model(length="-1"), "length '-1'"),
    "other entry": (lambda: make_model(basepath="/"), "'basepath'"),
    "location twice": (location_twice, "each once"),
    "foreign domain": (lambda: make_model(domain="custom"), "'Add' of 'custom'"),
    "foreign operator": (lambda: make_model(domain="com.microsoft", kind="EPContext"), "'EPContext' of 'com.microsoft'"),
    "in a branch": (lambda: inside("graph"), "'Evil' of 'custom'"),
    "in branches": (lambda: inside("graphs"), "'Evil' of 'custom'"),
    "functions": (with_functions, "functions of its own"),
    "training": (with_training, "training"),
    **{f"in a {wrap}": (partial(weight_inside, wrap), "'/etc/passwd'") for wrap in ("tensor", "tensors", "sparse", "initializer")},
}


@pytest.mark.parametrize("name", WRONG)
def test_graph_that_refers_elsewhere_is_refused(tmp_path: Path, name: str) -> None:
    make, word = WRONG[name]
    path = write(tmp_path, make())
    with refused(BundleError, path, word, "do not use this bundle"):
        check_graph(path, [WEIGHTS])


def test_each_of_several_values_of_a_field_is_checked(tmp_path: Path) -> None:
    """Protobuf puts messages together that come twice, and takes the last of two strings."""
    good, bad = make_model(), make_model("/etc/passwd")
    for content in (good.SerializeToString() + bad.SerializeToString(), bad.SerializeToString() + good.SerializeToString()):
        with refused(BundleError, "'/etc/passwd'"):
            check_graph(write(tmp_path, content), [WEIGHTS])


def nested(levels: int) -> bytes:
    """Nodes in attributes in nodes …, by hand."""
    content = b""
    for _ in range(levels):
        for tag in (b"\x32", b"\x2a", b"\x0a"):  # g, attribute, node
            content = tag + varint(len(content)) + content
    return b"\x3a" + varint(len(content)) + content


def varint(number: int) -> bytes:
    digits = [number >> shift & 127 for shift in range(0, max(number.bit_length(), 1), 7)]
    return bytes(digit | 128 for digit in digits[:-1]) + bytes(digits[-1:])


DAMAGED: dict[str, bytes] = {
    "text": b"This is text, and no graph.\n",
    "cut": make_model().SerializeToString()[:-3],
    "group": b"\x0b\x0c",
    "wire type 7": b"\x0f",
    "endless number": b"\x08" + b"\xff" * 20,
    "length beyond the end": b"\x3a\x7f",
    "huge length": b"\x3a" + varint(2**63),
    "field 0": b"\x02\x00",
    "graph as a number": b"\x38\x01",
    "deep": nested(2000),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_damaged_graph_is_refused(tmp_path: Path, name: str) -> None:
    path = write(tmp_path, DAMAGED[name])
    with refused(BundleError, path):
        check_graph(path, [WEIGHTS])


def test_suffix_and_size_are_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """ONNX Runtime reads a file that ends in .ort as something else."""
    with refused(BundleError, "a.ort", "ends in .onnx"):
        check_graph(write(tmp_path, make_model(), "a.ort"), [WEIGHTS])
    path = write(tmp_path, make_model())
    monkeypatch.setenv("MUSICRT_LIMITS", "graph_bytes=100")
    with refused(BundleError, path, "at most 100", "MUSICRT_LIMITS=graph_bytes="):
        check_graph(path, [WEIGHTS])
    with refused(BundleError, tmp_path / "none.onnx", "can't be read"):
        check_graph(tmp_path / "none.onnx", [])


@pytest.mark.parametrize("system", ["music2latent", "semanticodec", "mucodec", "vidmuse"])
def test_graphs_of_all_systems_pass(tiny_bundles: Callable[[str], Path], system: str) -> None:
    bundle = Bundle.open(tiny_bundles(system) if system != "music2latent" else EMBEDDED)
    for stage in bundle.spec.stages:
        for flavour in bundle.flavours:
            bundle.graph(stage.name, flavour)
