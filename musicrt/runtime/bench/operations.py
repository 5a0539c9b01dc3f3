"""What a stage has to do at least: operations of its products, and bytes of its weights, as ONNX Runtime ran its graph."""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from musicrt.runtime.backends.onnxruntime import SLEEPING, OnnxCpu, make_options
from musicrt.runtime.bench.settings import SEED
from musicrt.runtime.bundle import Bundle
from musicrt.runtime.precision import ORT
from musicrt.runtime.session import Array
from musicrt.runtime.verify import typed_inputs


@dataclass(frozen=True)
class Work:
    """Of one run. gflop: 10**9 multiplications and additions of convolutions, products and attention; weights: bytes that are read."""

    gflop: float
    weights: float

    def compute_share(self, seconds: float, gflops: float) -> float:
        """Of a machine that gives so many GFLOP/s."""
        return self.gflop / seconds / gflops

    def memory_share(self, seconds: float, gigabytes: float) -> float:
        """Of a memory that moves so many GB/s, were the weights all that is read."""
        return self.weights / 1e9 / seconds / gigabytes

    def bound(self, gflops: float, gigabytes: float) -> Literal["compute", "memory"]:
        """Which of the two takes longer at the machine's peak: the roof that the stage is under."""
        return "compute" if self.gflop / gflops >= self.weights / 1e9 / gigabytes else "memory"


def count_stages(bundle: str, flavour: str, sizes: Mapping[str, Mapping[str, int]], threads: int | None) -> dict[str, Any]:
    """In a fresh process: the `Work` of stages, by name, at these sizes of their axes, in the graphs of a flavour.

    Operations are those of the graphs in float32, whose products other precisions compute as well.
    """
    opened, found = Bundle.open(bundle), {}
    for name, axes in sizes.items():
        work = {one: _count(opened, name, one, axes, threads) for one in {ORT, flavour}}
        found[name] = asdict(Work(work[ORT].gflop, work[flavour].weights))
    return found


def _count(bundle: Bundle, stage: str, flavour: str, sizes: Mapping[str, int], threads: int | None) -> Work:
    path, _ = bundle.graph(stage, flavour)
    feeds = typed_inputs(bundle.spec.stage(stage).in_flavour(flavour), sizes, SEED)
    nodes = [event["args"] for event in profile_graph(path, feeds, threads, 1, packed=False)]
    return Work(sum(count_flop(node) for node in nodes) / 1e9, sum(count_weights(node) for node in nodes))


def profile_graph(path: Path, feeds: Mapping[str, Array], threads: int | None, runs: int, *, packed: bool = True) -> list[dict[str, Any]]:
    """ONNX Runtime's profile of so many runs: a node each time an operator ran, in their order. With the options of OnnxCpu.

    packed: weights in the order that kernels want, as is usual; then most of them and their shapes are missing in the profile.
    """
    import onnxruntime as ort

    options = make_options(threads, SLEEPING if packed else {**SLEEPING, "session.disable_prepacking": "1"})
    with tempfile.TemporaryDirectory(prefix="musicrt-profile-") as folder:
        options.enable_profiling = True
        options.profile_file_prefix = str(Path(folder) / "profile")
        session = ort.InferenceSession(str(path), options, providers=[OnnxCpu.provider])
        for _ in range(runs):
            session.run(None, dict(feeds))
        return nodes_of(json.loads(Path(session.end_profiling()).read_text()))


def nodes_of(events: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The events of a profile that are runs of operators."""
    nodes = [dict(event) for event in events if event.get("cat") == "Node" and event["name"].endswith("_kernel_time")]
    return sorted(nodes, key=lambda event: float(event["ts"]))


def count_weights(node: Mapping[str, Any]) -> float:
    """Bytes of weights that an operator reads: all that it has, but of a table the rows that it looks up. node: as for `count_flop`."""
    weights = float(node.get("parameter_size", 0))
    return min(weights, float(node["output_size"])) if node["op_name"] == "Gather" else weights


def count_flop(node: Mapping[str, Any]) -> float:
    """Operations of a convolution, a product, attention or the products of an LSTM, from their shapes; 0 for others.

    Attention over a cache (`GroupQueryAttention`) is among the others: how much of it is filled is no shape.
    node: `op_name`, and `input_type_shape` and `output_type_shape`, lists of {type: shape}, as in a profile of weights that are not packed.
    """
    inputs, outputs = ([next(iter(entry.values())) for entry in node[f"{side}_type_shape"]] for side in ("input", "output"))
    if node["op_name"] in ("Conv", "FusedConv"):
        return float(2 * math.prod(outputs[0]) * math.prod(inputs[1][1:]))
    if node["op_name"] in ("MatMul", "FusedMatMul", "Gemm"):
        a, b, out = (math.prod(shape[-2:]) for shape in (inputs[0], inputs[1], outputs[0]))
        return float(2 * math.prod(outputs[0]) * math.sqrt(a * b / out))  # m k * k n / (m n), whatever is transposed
    if node["op_name"] == "ConvTranspose":
        return float(2 * math.prod(inputs[0]) * math.prod(inputs[1][1:]))
    if node["op_name"] == "LSTM":
        steps, batch = inputs[0][:2]
        return float(2 * steps * batch * (math.prod(inputs[1]) + math.prod(inputs[2])))
    if node["op_name"] == "MultiHeadAttention":
        return float(2 * inputs[1][-2] * (math.prod(inputs[0]) + math.prod(outputs[0])))  # scores, and what they weigh
    return 0.0
