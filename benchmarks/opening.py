"""What opening a stage in ONNX Runtime takes, and what of its weights stays in memory that no other process shares.

    python -m benchmarks.opening --bundle BUNDLE --stage lm --out OUT

Kernels want weights in an order of their own: ONNX Runtime brings them into it when a session is opened, in the memory of the process.
Without that they stay where the file is mapped, and each call works on them as they are. With the packed ones written into a file beside
an optimised graph, as version 1.31 can, that file is mapped in their place: it fits one kind of CPU and one version of ONNX Runtime. Each
way is a fresh process, in turn over the rounds. Linux only.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.results import describe_run, launch, say, suite_parser, write_results
from musicrt.runtime.backends.onnxruntime import SLEEPING, make_options
from musicrt.runtime.bundle import Bundle
from musicrt.runtime.errors import InputError
from musicrt.runtime.measure import markdown_table, measure, run_isolated
from musicrt.runtime.precision import ORT
from musicrt.runtime.session import Array
from musicrt.runtime.verify import probe_inputs, relative_error

WAYS: Mapping[str, Mapping[str, str]] = {
    "packed when opened": {},
    "not packed": {"session.disable_prepacking": "1"},
    "packed in a file": {},
}
"""Entries of a session's configuration, by way; the last one opens what `pack` has written."""
_GRAPH, _WEIGHTS, _OUTPUTS = "packed.onnx", "packed.data", "outputs.npz"
_SEED = 13


def main(arguments: Sequence[str]) -> None:
    """Run the suite. Raises MusicRTError."""
    parser = suite_parser("opening", "What opening a stage takes, and which memory its weights stay in.")
    parser.add_argument("--stage", required=True)
    parser.add_argument("--sizes", nargs="*", default=[], metavar="AXIS=N", help="of the inputs; what the spec is tuned for by default")
    parser.add_argument("--repeats", type=int, default=5, help="calls of each process after the first (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="processes of each way (default: %(default)s)")
    options = parser.parse_args(arguments)
    if not Path("/proc/self/status").is_file():
        raise InputError("the kinds of memory that a process has can't be told here; run the suite on Linux")
    settings = {name: getattr(options, name) for name in ("stage", "sizes", "repeats", "rounds")}
    content = describe_run("opening", options.bundle, settings, options.threads)
    graph, _ = Bundle.open(options.bundle).graph(options.stage, ORT)
    with tempfile.TemporaryDirectory(prefix="musicrt-opening-") as folder:
        packed = Path(folder) / _GRAPH
        asked: dict[str, Any] = {"bundle": str(options.bundle), "threads": options.threads, "folder": folder}
        run_isolated(f"{_MODULE}:pack", {"graph": str(graph), "target": str(packed), "threads": options.threads})
        asked |= {"stage": options.stage, "repeats": options.repeats}
        asked["sizes"] = {name: int(size) for name, size in (one.split("=") for one in options.sizes)}
        rows: dict[str, list[dict[str, Any]]] = {way: [] for way in WAYS}
        for done in range(options.rounds):
            for way, entries in WAYS.items():
                say(f"round {done + 1}: {way}")
                path = packed if way == "packed in a file" else graph
                rows[way].append(run_isolated(f"{_MODULE}:open_stage", {**asked, "graph": str(path), "entries": dict(entries)}))
        content |= {"rows": rows, "packed_bytes": (Path(folder) / _WEIGHTS).stat().st_size}
    write_results(options.out, content, render(rows, content["packed_bytes"]))


def pack(graph: str, target: str, threads: int | None) -> dict[str, Any]:
    """In a fresh process: write the optimised graph, and a file of its weights in the order of this machine's kernels."""
    settings = make_options(threads, {**SLEEPING, "session.save_external_prepacked_constant_initializers": "1"})
    settings.optimized_model_filepath = target
    settings.add_session_config_entry("session.optimized_model_external_initializers_file_name", _WEIGHTS)
    settings.add_session_config_entry("session.optimized_model_external_initializers_min_size_in_bytes", "1024")
    _open(graph, settings)
    return {}


def open_stage(
    bundle: str,
    stage: str,
    graph: str,
    sizes: Mapping[str, int],
    entries: Mapping[str, str],
    repeats: int,
    threads: int | None,
    folder: str,
) -> dict[str, Any]:
    """In a fresh process: seconds of opening and of calls, MB that are its own and that are mapped, the distance from the first process."""
    spec = Bundle.open(bundle).spec.stage(stage)
    feeds = probe_inputs(spec, {axis.name: axis.optimum for axis in spec.axes} | dict(sizes), _SEED)
    settings = make_options(threads, {**SLEEPING, **entries})
    before, begun = _memory(), time.perf_counter()
    session = _open(graph, settings)
    opened, after = time.perf_counter() - begun, _memory()
    begun = time.perf_counter()
    produced: list[Array] = session.run(None, feeds)
    first = time.perf_counter() - begun
    times = measure(lambda: session.run(None, feeds), 0, repeats)
    used = _memory()
    values: dict[str, Any] = {str(index): np.asarray(value) for index, value in enumerate(produced)}
    kept = Path(folder) / _OUTPUTS
    if not kept.exists():
        np.savez(kept, **values)
    with np.load(kept, allow_pickle=False) as reference:
        error = relative_error(values, dict(reference))
    memory = {name: {"opened": after[name] - before[name], "used": used[name] - before[name]} for name in before}
    return {"opened": opened, "first": first, "times": times, "memory": memory, "error": error}


def _open(graph: str, settings: Any) -> Any:
    import onnxruntime as ort

    return ort.InferenceSession(graph, settings, providers=["CPUExecutionProvider"])


def _memory() -> dict[str, float]:
    """MB of 10**6 bytes that this process alone has, and that files are mapped to."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return {name: int(lines[key].split()[0]) * 1024 / 1e6 for name, key in (("own", "RssAnon"), ("mapped", "RssFile"))}


def render(rows: Mapping[str, Sequence[Mapping[str, Any]]], packed_bytes: int) -> str:
    """The table: medians over the processes."""
    header = ("weights", "opened in s", "own MB", "mapped MB", "first call s", "later calls s", "own MB then", "mapped MB then", "distance")

    def middle(values: Sequence[float]) -> float:
        return statistics.median(values)

    cells = []
    for way, runs in rows.items():
        own, mapped = ({at: middle([run["memory"][kind][at] for run in runs]) for at in ("opened", "used")} for kind in ("own", "mapped"))
        cells.append(
            [
                way,
                f"{middle([run['opened'] for run in runs]):.2f}",
                f"{own['opened']:.0f}",
                f"{mapped['opened']:.0f}",
                f"{middle([run['first'] for run in runs]):.3f}",
                f"{middle([middle(run['times']) for run in runs]):.3f}",
                f"{own['used']:.0f}",
                f"{mapped['used']:.0f}",
                f"{max(run['error'] for run in runs):.1e}",
            ]
        )
    return (
        f"{markdown_table(header, cells)}\n\nThe file of packed weights has {packed_bytes / 1e6:.0f} MB. Distance: from the first process."
    )


_MODULE = "benchmarks.opening"  # not __name__, which is __main__ where this is run

if __name__ == "__main__":
    sys.exit(launch(main))
