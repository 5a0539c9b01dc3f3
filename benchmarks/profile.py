"""Where the time of a bundle's stages goes in ONNX Runtime, by type of operator, and how near that is to the machine's peak."""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from benchmarks.results import describe_run, launch, say, suite_parser, write_results
from musicrt.runtime.backends.onnxruntime import OnnxCpu
from musicrt.runtime.bench.operations import count_flop, profile_graph
from musicrt.runtime.bench.peaks import SIZE, run_products
from musicrt.runtime.bundle import Bundle
from musicrt.runtime.errors import InputError
from musicrt.runtime.measure import markdown_table, run_isolated
from musicrt.runtime.model import load
from musicrt.runtime.precision import ORT
from musicrt.runtime.verify import probe_inputs


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
        peaks.append(run_products(options.threads)["float32"])
    content["peak_gflops"] = peaks
    content["stages"] = {stage: [asdict(operator) for operator in operators] for stage, operators in profiles.items()}
    write_results(options.out, content, render(profiles, max(peaks)))


def profile_stage(bundle: str, stage: str, seconds: float, repeats: int, threads: int | None) -> dict[str, Any]:
    """In a fresh process: profile `repeats` runs of a stage after one that is not counted."""
    with load(bundle, backend=OnnxCpu.name, threads=threads) as codec:
        sizes = codec.axis_sizes(seconds)
    opened = Bundle.open(bundle)
    path, _ = opened.graph(stage, ORT)
    feeds = probe_inputs(opened.spec.stage(stage), sizes, 1)
    # Packed weights have no shapes any more: operations come from a run with others.
    flop = {node["name"]: count_flop(node["args"]) for node in profile_graph(path, feeds, threads, 1, packed=False)}
    operators = count_operators(profile_graph(path, feeds, threads, repeats + 1), repeats, flop)
    return {"operators": [asdict(operator) for operator in operators]}


def count_operators(nodes: Sequence[Mapping[str, Any]], repeats: int, flop: Mapping[str, float]) -> list[Operator]:
    """Operators of one run, the slowest first: means over the last `repeats` of the `repeats + 1` runs in a profile.

    flop: operations of each node, by its name; 0 for others.
    """
    nodes = nodes[len(nodes) // (repeats + 1) :]
    found: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for event in nodes:
        found[event["args"]["op_name"]].append((event["dur"] / 1e6, flop.get(event["name"], 0.0) / 1e9))
    operators = [
        Operator(name, len(values) / repeats, sum(value[0] for value in values) / repeats, sum(value[1] for value in values) / repeats)
        for name, values in found.items()
    ]
    return sorted(operators, key=lambda operator: -operator.seconds)


def render(profiles: Mapping[str, Sequence[Operator]], peak: float) -> str:
    """A table for each stage."""
    sections = [
        f"Peak: {peak:.0f} GFLOP/s, a {SIZE} x {SIZE} float32 matrix product in NumPy or torch in the same run. "
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
