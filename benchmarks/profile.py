"""Where the time of a bundle's stages goes in ONNX Runtime, by type of operator, and how near that is to the machine's peak."""

from __future__ import annotations

import json
import math
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.results import describe_run, launch, say, suite_parser, write_results
from musicrt.runtime.backends.onnxruntime import OnnxCpu
from musicrt.runtime.bundle import Bundle
from musicrt.runtime.errors import InputError
from musicrt.runtime.measure import markdown_table, measure, run_isolated
from musicrt.runtime.model import load
from musicrt.runtime.spec import ORT
from musicrt.runtime.verify import probe_inputs

_OPSET = 20
_MATMUL = 2048  # rows and columns of the matrices whose product stands for the machine's peak


@dataclass(frozen=True)
class Operator:
    """All nodes of one type in one run of a stage. `gflop`: multiplications and additions, where they are known."""

    name: str
    nodes: float
    seconds: float
    gflop: float

    @property
    def speed(self) -> float | None:
        """GFLOP/s."""
        return self.gflop / self.seconds if self.gflop and self.seconds else None


def main(arguments: Sequence[str]) -> None:
    """Run the suite. Raises MusicRTError."""
    parser = suite_parser("profile", "Operator profile of the stages of a bundle in ONNX Runtime on the CPU.")
    parser.add_argument("--seconds", type=float, default=1.5, help="length of the audio (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=3, help="profiled runs (default: %(default)s)")
    parser.add_argument("--stages", nargs="+", help="default: all that the graph computes on a CPU")
    options = parser.parse_args(arguments)
    settings = {"seconds": options.seconds, "repeats": options.repeats}
    content = describe_run("profile", options.bundle, settings, options.threads)
    spec = Bundle.open(options.bundle).spec
    stages = options.stages or [stage.name for stage in spec.stages if not stage.host]
    unknown = set(stages) - {stage.name for stage in spec.stages}
    if unknown:
        raise InputError(f"unknown stage {min(unknown)!r}; known: {', '.join(stage.name for stage in spec.stages)}")
    profiles: dict[str, list[Operator]] = {}
    peaks = []
    for stage in stages:
        say(f"{stage} …")
        asked = {"bundle": str(options.bundle), "stage": stage, **settings, "threads": options.threads}
        answer = run_isolated("benchmarks.profile:profile_stage", asked)
        profiles[stage] = [Operator(**values) for values in answer["operators"]]
        peaks.append(answer["peak_gflops"])
    content["peak_gflops"] = peaks
    content["stages"] = {stage: [asdict(operator) for operator in operators] for stage, operators in profiles.items()}
    write_results(options.out, content, render(profiles, max(peaks)))


def profile_stage(bundle: str, stage: str, seconds: float, repeats: int, threads: int | None) -> dict[str, Any]:
    """In a fresh process: profile `repeats` runs of a stage after one that is not counted, and time a matrix product."""
    with load(bundle, backend=OnnxCpu.name, threads=threads) as codec:
        sizes = codec.axis_sizes(seconds)
    opened = Bundle.open(bundle)
    path, _ = opened.graph(stage, ORT)
    with tempfile.TemporaryDirectory(prefix="musicrt-profile-") as folder:
        session = _open_graph(str(path), threads, Path(folder) / "profile")
        feeds = probe_inputs(opened.spec.stage(stage), sizes, 1)
        for _ in range(repeats + 1):
            session.run(None, feeds)
        events = json.loads(Path(session.end_profiling()).read_text())
    operators = count_operators(events, repeats)
    return {"operators": [asdict(operator) for operator in operators], "peak_gflops": matmul_speed(threads)}


def _open_graph(model: str | bytes, threads: int | None, profile: Path | None = None) -> Any:
    """A session with the options of OnnxCpu, which has none for a profile."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.enable_mem_pattern = False
    if threads:
        options.intra_op_num_threads = threads
    if profile:
        options.enable_profiling = True
        options.profile_file_prefix = str(profile)
    return ort.InferenceSession(model, options, providers=[OnnxCpu.provider])


def count_operators(events: Iterable[Mapping[str, Any]], repeats: int) -> list[Operator]:
    """Operators of one run, the slowest first: means over the last `repeats` of the `repeats + 1` runs in a profile."""
    nodes = [event for event in events if event.get("cat") == "Node" and event["name"].endswith("_kernel_time")]
    nodes.sort(key=lambda event: event["ts"])
    nodes = nodes[len(nodes) // (repeats + 1) :]
    found: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for event in nodes:
        found[event["args"]["op_name"]].append((event["dur"] / 1e6, count_flop(event["args"]) / 1e9))
    operators = [
        Operator(name, len(values) / repeats, sum(value[0] for value in values) / repeats, sum(value[1] for value in values) / repeats)
        for name, values in found.items()
    ]
    return sorted(operators, key=lambda operator: -operator.seconds)


def count_flop(node: Mapping[str, Any]) -> float:
    """Floating-point operations of a convolution, a matrix product or the products of an LSTM, from their shapes; 0 for others.

    node: `op_name`, and `input_type_shape` and `output_type_shape`, lists of {type: shape}, as in a profile.
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
    return 0.0


def matmul_speed(threads: int | None) -> float:
    """GFLOP/s of a large float32 matrix product in ONNX Runtime, the best of five."""
    from onnx import TensorProto, helper

    a, b, c = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [_MATMUL, _MATMUL]) for name in "abc")
    graph = helper.make_graph([helper.make_node("MatMul", ["a", "b"], ["c"])], "product", [a, b], [c])
    model = helper.make_model_gen_version(graph, opset_imports=[helper.make_opsetid("", _OPSET)])
    session = _open_graph(model.SerializeToString(), threads)
    feeds = dict(zip("ab", np.random.default_rng(4).standard_normal((2, _MATMUL, _MATMUL), np.float32), strict=True))
    return 2.0 * _MATMUL**3 / min(measure(lambda: session.run(None, feeds), 1, 5)) / 1e9


def render(profiles: Mapping[str, Sequence[Operator]], peak: float) -> str:
    """A table for each stage."""
    sections = [
        f"Peak: {peak:.0f} GFLOP/s, a {_MATMUL} x {_MATMUL} float32 matrix product in ONNX Runtime in the same processes. "
        "Times are the sums of single operators and include what profiling costs."
    ]
    for stage, operators in profiles.items():
        total = sum(operator.seconds for operator in operators)
        flop = sum(operator.gflop for operator in operators)
        rows = [
            [
                operator.name,
                f"{operator.nodes:.0f}",
                f"{operator.seconds * 1e3:.2f}",
                f"{operator.seconds / total:.1%}",
                f"{operator.speed:.1f}" if operator.speed else "",
                f"{operator.speed / peak:.0%}" if operator.speed else "",
            ]
            for operator in operators
            if operator.seconds / total >= 0.002
        ]
        rows.append(["all", "", f"{total * 1e3:.2f}", "", f"{flop / total:.1f}", f"{flop / total / peak:.0%}"])
        header = ("operator", "nodes", "ms", "share", "GFLOP/s", "of peak")
        sections += [f"## {stage}: {flop:.2f} GFLOP in convolutions and matrix products", markdown_table(header, rows)]
    return "\n\n".join(sections)


if __name__ == "__main__":
    sys.exit(launch(main))
