"""One large stage in every way of computing it that a CPU has: float32, bfloat16, 8-bit integers; torch, ONNX Runtime, OpenVINO.

    python -m benchmarks.lowered --bundle BUNDLE --stage estimator --sizes guidance=1 rows=512 --config transformer2D.num_layers=1 --out OUT

All ways run in turn in one process, on the same random inputs, and are held against torch in float32. With `--config` the stage is
another one than that of the bundle, of random weights: a layer of a network of which all layers cost the same, say. Integers are static,
with ranges from the very inputs (`static`), or rounded on the fly (`weights`). Beside the time by the clock stands that of all cores
together, which does not count what other processes take. The rate is that of products as counted in the graph; the machine's own is
measured in the same run.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.results import describe_run, launch, say, suite_parser, write_results
from musicrt.runtime.bench.peaks import SIZE, run_products
from musicrt.runtime.bundle import Bundle
from musicrt.runtime.errors import BackendError, InputError
from musicrt.runtime.measure import markdown_table
from musicrt.runtime.precision import Int8, Precision
from musicrt.runtime.registry import build_spec, system_module
from musicrt.runtime.spec import StageSpec
from musicrt.runtime.verify import probe_inputs, relative_error

Call = Callable[[], Mapping[str, Any]]
REFERENCE = "torch float32"
_SEED = 11


def main(arguments: Sequence[str]) -> None:
    """Run the suite. Raises MusicRTError."""
    parser = suite_parser("lowered", "A stage in every way of computing it.")
    parser.add_argument("--stage", required=True)
    parser.add_argument("--sizes", nargs="*", default=[], metavar="AXIS=N", help="of the inputs; what the spec is tuned for by default")
    parser.add_argument("--config", nargs="*", default=[], metavar="NAME=VALUE", help="hyper-parameters to change, a.b=VALUE in JSON")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--only", nargs="+", help="ways to run; the first is the reference: torch float32")
    options = parser.parse_args(arguments)
    bundle = Bundle.open(options.bundle)
    config = change_config(dict(bundle.spec.config), options.config)
    stage = build_spec(bundle.spec.system, config, "benchmark").stage(options.stage)
    sizes = {axis.name: axis.optimum for axis in stage.axes} | {name: int(n) for name, n in (one.split("=") for one in options.sizes)}
    feeds = probe_inputs(stage, sizes, _SEED)
    settings = {"stage": options.stage, "sizes": options.sizes, "config": options.config, "repeats": options.repeats}
    content = describe_run("lowered", options.bundle, settings, options.threads)
    with tempfile.TemporaryDirectory(prefix="musicrt-lowered-") as folder:
        ways = open_ways(options, bundle, stage, config, feeds, Path(folder))
        rows, operations = time_ways(ways, options.repeats), count_operations(ways[REFERENCE])
    content |= {"rows": rows, "operations": operations, "peaks": run_products(options.threads)}
    write_results(options.out, content, render(rows, operations, content["peaks"]))


def change_config(config: dict[str, Any], changes: Sequence[str]) -> dict[str, Any]:
    """Raises InputError."""
    config = json.loads(json.dumps(config))
    for change in changes:
        path, _, value = change.partition("=")
        *groups, name = path.split(".")
        place = config
        for group in groups:
            place = place.get(group, {})
        if name not in place:
            raise InputError(f"got --config {change!r}, expected the name of a hyper-parameter, such as {next(iter(config))}")
        place[name] = json.loads(value)
    return config


def open_ways(
    options: argparse.Namespace, bundle: Bundle, stage: StageSpec, config: Mapping[str, Any], feeds: Mapping[str, Any], folder: Path
) -> dict[str, Call]:
    """All that can run here, by name."""
    import onnx
    import onnx_ir as ir
    import torch

    from musicrt.calibration.lowering import LoweredStage
    from musicrt.calibration.static import IntegerGraph
    from musicrt.calibration.weights import lower_linears
    from musicrt.export.graphs import trace_stage
    from musicrt.runtime.backends.onnxruntime import OnnxCpu
    from musicrt.runtime.backends.openvino import OpenvinoCpu
    from musicrt.runtime.backends.torch import load_bundle_stages
    from musicrt.runtime.verify import probe_sizes

    if options.threads:
        torch.set_num_threads(options.threads)
    if options.config:
        module = system_module(bundle.spec.system, "stages").build_stages(config)[stage.name]
        _fill(module)
    else:
        module = load_bundle_stages(bundle)[stage.name]
    module = module.eval().requires_grad_(False)
    inputs = [torch.from_numpy(feeds[tensor.name]) for tensor in stage.inputs]

    def in_torch(dtype: torch.dtype | None) -> Mapping[str, Any]:
        with torch.inference_mode(), torch.autocast("cpu", dtype or torch.bfloat16, enabled=dtype is not None):
            made = module(*inputs)
        values = made if isinstance(made, tuple) else (made,)
        return {tensor.name: value.float().numpy() for tensor, value in zip(stage.outputs, values, strict=True)}

    plain, static, light = (folder / f"{name}.onnx" for name in ("graph", "static", "weights"))
    say("graphs …")
    ir.save(trace_stage(stage, module, probe_inputs(stage, probe_sizes(stage, 2), _SEED)), plain)
    graph = IntegerGraph(stage, plain)
    onnx.save(LoweredStage(graph, graph, [dict(feeds)], (), "minmax", options.threads).model, static)
    model = ir.load(plain)
    lower_linears(model, Int8("weights"))
    ir.save(model, light)
    backend = OnnxCpu(threads=options.threads)

    def in_onnxruntime(path: Path) -> Call:
        session = backend.open_graph(stage, path)
        return lambda: session.run(feeds)

    def in_openvino(path: Path, precision: Precision) -> Call:
        if reason := OpenvinoCpu.obstacle():
            raise BackendError(reason)
        session = OpenvinoCpu(threads=options.threads, precision=precision).open_graph(stage, path, integers=precision == "int8")
        return lambda: session.run(feeds)

    makers: dict[str, Callable[[], Call]] = {
        REFERENCE: lambda: lambda: in_torch(None),
        "torch bfloat16": lambda: lambda: in_torch(torch.bfloat16),
        "onnxruntime float32": lambda: in_onnxruntime(plain),
        "onnxruntime int8 static": lambda: in_onnxruntime(static),
        "onnxruntime int8 weights": lambda: in_onnxruntime(light),
        "openvino float32": lambda: in_openvino(plain, "float32"),
        "openvino bfloat16": lambda: in_openvino(plain, "bfloat16"),
        "openvino int8 static": lambda: in_openvino(static, "int8"),
    }
    ways: dict[str, Call] = {}
    for name, make in makers.items():
        if options.only and name not in (REFERENCE, *options.only):
            continue
        try:
            ways[name] = make()
        except BackendError as error:
            say(f"{name}: left out, {error}")
    return ways


def _fill(module: Any) -> None:
    """Random weights that keep the variance of what passes through them."""
    import torch

    torch.manual_seed(_SEED)
    with torch.no_grad():
        for parameter in module.parameters():
            fan = int(np.prod(parameter.shape[1:])) if parameter.dim() > 1 else 400
            parameter.normal_(0, fan**-0.5)


def time_ways(ways: Mapping[str, Call], repeats: int, rest: float = 0.2) -> dict[str, dict[str, Any]]:
    """Of each way: seconds by the clock and of all cores in each repeat, in turn with the others, and the distance from the first."""
    rows: dict[str, dict[str, Any]] = {name: {"times": [], "cores": []} for name in ways}
    expected: dict[str, Any] = {}
    for index in range(repeats + 1):
        for name, call in ways.items():
            time.sleep(rest)
            begun, busy = time.perf_counter(), time.process_time()
            produced = call()
            taken = time.perf_counter() - begun, time.process_time() - busy
            if not index:  # warms up
                say(f"{name}: {taken[0]:.2f} s")
                expected = expected or {key: np.array(value) for key, value in produced.items()}
                rows[name]["error"] = relative_error({key: np.asarray(value) for key, value in produced.items()}, expected)
                continue
            rows[name]["times"].append(taken[0])
            rows[name]["cores"].append(taken[1])
    return rows


def count_operations(call: Call) -> dict[str, float]:
    """Multiplications and additions of a call in torch: of attention, and of all other products."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    fused = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu  # which the counter does not know
    with FlopCounterMode(display=False, custom_mapping={fused: _count_attention}) as counter:
        call()
    counted = {str(name): float(count) for name, count in counter.get_flop_counts()["Global"].items()}
    attention = sum(count for name, count in counted.items() if "attention" in name)
    return {"products": sum(counted.values()) - attention, "attention": attention}


def _count_attention(query: Sequence[int], key: Sequence[int], _value: Sequence[int], *_: object, **__: object) -> int:
    """Of shapes [batch, heads, n, width]: both products of equally wide keys and values."""
    return 4 * int(np.prod(query)) * key[2]


def render(rows: Mapping[str, Mapping[str, Any]], operations: Mapping[str, float], peaks: Mapping[str, float]) -> str:
    """The table of the suite."""
    total, cells = sum(operations.values()), []
    base, busy = (float(np.median(rows[REFERENCE][key])) for key in ("times", "cores"))
    for name, row in rows.items():
        clock, cores = float(np.median(row["times"])), float(np.median(row["cores"]))
        spent = [f"{clock:.2f} ({min(row['times']):.2f})", f"{base / clock:.2f}", f"{cores:.2f}", f"{busy / cores:.2f}"]
        cells.append([name, *spent, f"{total / min(row['times']) / 1e9:.0f}", f"{row['error']:.1e}"])
    header = ("", "s, median (best)", "times as fast", "s of all cores", "times as fast", "GFLOP/s at best", "distance")
    share = operations["attention"] / total if total else 0.0
    machine = ", ".join(f"{name} {rate:.0f} GFLOP/s" for name, rate in peaks.items())
    notes = (
        f"{total / 1e9:.0f} GFLOP, {share:.0%} of them attention, which integers leave in float32. "
        f"A product of {SIZE} x {SIZE} matrices in NumPy or torch, the best of 5 in the same run: {machine}."
    )
    return f"{markdown_table(header, cells)}\n\n{notes} Distance: relative L2 from {REFERENCE}."


if __name__ == "__main__":
    sys.exit(launch(main))
