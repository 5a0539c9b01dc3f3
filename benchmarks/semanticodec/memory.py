"""Peak memory of encode and decode beside what they cannot do without: the weights in use and the activations of one window.

Peak: resident memory of a fresh process over its whole life (VmHWM), interpreter, libraries and loading included.
Weights in use: bytes of the initialisers of the graphs of the stages that the task runs, those that graphs share counted once.
Activations: the most that torch's allocator held at once, beyond weights and inputs, while the networks as officially run took one
segment (encode) or one evaluation, VAE and vocoder of a whole window (decode); so what a straightforward implementation needs.
Heap and mapped: resident memory of the process at its end, by what holds it; mapped are weights and libraries, read from files.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import Any

from benchmarks.results import describe_run, launch, say, suite_parser, write_results
from benchmarks.semanticodec.workload import GUIDANCE, Workload
from musicrt.runtime.backends.onnxruntime import FLAVOUR
from musicrt.runtime.bundle import Bundle
from musicrt.runtime.measure import Measurement, markdown_table, peak_memory_mb, run_isolated
from musicrt.runtime.model import load

STAGES = {
    "encode": ("audiomae", "semantic", "residual", "acoustic"),
    "decode": ("embedding", "conditioning", "timesteps", "denoiser", "vae", "vocoder"),
}
"""What the two tasks run."""
_PARTS = {"encode": STAGES["encode"], "decode": ("embedding", "unet", "vae", "vocoder")}


@dataclass(frozen=True)
class Use:
    """A task in a process of its own; sizes in MB of 10**6 bytes."""

    backend: str
    task: str
    measurement: Measurement
    heap_mb: float
    mapped_mb: float

    @property
    def peak_mb(self) -> float:
        return self.measurement.peaks_mb[0]

    @property
    def way(self) -> str:
        """encode or decode."""
        return self.task.split(",")[0]


def main(arguments: Sequence[str]) -> None:
    """Run the suite. Raises MusicRTError."""
    parser = suite_parser("semanticodec.memory", "Peak memory of encode and decode beside weights and activations.")
    parser.add_argument("--checkpoint", type=Path, required=True, help="the official checkpoint that the bundle was made from")
    parser.add_argument("--backends", nargs="+", default=["onnxruntime-cpu", "torch-cpu"], help="default: %(default)s")
    parser.add_argument("--seconds", type=float, nargs="+", default=[10.0, 60.0], help="lengths of the audio (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=2, help="sampling steps, on which memory does not depend (default: %(default)s)")
    options = parser.parse_args(arguments)
    settings = {"seconds": options.seconds, "steps": options.steps, "guidance": GUIDANCE}
    content = describe_run("memory", options.bundle, settings, options.threads)
    bundle, asked = str(options.bundle), {"bundle": str(options.bundle), "checkpoint": str(options.checkpoint)}
    weights = {way: weights_mb(options.bundle, stages) for way, stages in STAGES.items()}
    say("activations …")
    activations = run_isolated(f"{_MODULE}:measure_activations", {**asked, "threads": options.threads})
    uses, idle = [], {}
    for backend in options.backends:
        common = {"bundle": bundle, "backend": backend, "threads": options.threads}
        idle[backend] = run_isolated(f"{_MODULE}:open_only", common)["peak_mb"]
        for way in STAGES:
            for seconds in options.seconds:
                say(f"{backend}: {way}, {seconds:g} s …")
                answer = run_isolated(f"{_MODULE}:run_task", {**common, "way": way, "seconds": seconds, "steps": options.steps})
                uses.append(Use(backend, f"{way}, {seconds:g} s", Measurement.from_json(answer.pop("measurement")), **answer))
    content |= {
        "weights_mb": weights,
        "activations_mb": activations,
        "idle_mb": idle,
        "uses": [{**asdict(use), "measurement": use.measurement.to_json()} for use in uses],
    }
    write_results(options.out, content, render(uses, idle, weights, activations))


def weights_mb(bundle: Path, stages: Iterable[str]) -> float:
    """Weights that the graphs of some stages hold or refer to, each once (needs onnx)."""
    import onnx

    opened, seen, total = Bundle.open(bundle), set(), 0
    for stage in stages:
        path, _ = opened.graph(stage, FLAVOUR)
        for tensor in onnx.load(path, load_external_data=False).graph.initializer:
            place = {entry.key: entry.value for entry in tensor.external_data}
            if not place:
                total += len(tensor.SerializeToString())
            elif place["offset"] not in seen:
                seen.add(place["offset"])
                total += int(place["length"])
    return total / 1e6


def measure_activations(bundle: str, checkpoint: str, threads: int | None) -> dict[str, float]:
    """In a fresh process: the activations of each of the official networks for one segment or window, in MB."""
    import torch

    from benchmarks.semanticodec.baselines import Eager
    from benchmarks.semanticodec.official import example_inputs

    config = Bundle.open(bundle).spec.config
    eager, work = Eager(Path(checkpoint), config, threads), Workload.build(config, 10.0)
    onednn: Any = torch.backends.mkldnn
    found = {}
    for part in dict.fromkeys(part for parts in _PARTS.values() for part in parts):
        call = partial(eager.run, part, *example_inputs(part, work))
        onednn.enabled = part != "residual"  # whose LSTM it would run after reordering the weights, in every call
        call()  # what is made once is no activation
        found[part] = allocated_mb(call)
    return found


def allocated_mb(call: Callable[[], object]) -> float:
    """The most that torch's allocator held at once of what it gave out during a call."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as profiler:
        call()
    with tempfile.TemporaryDirectory(prefix="musicrt-memory-") as folder:
        path = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(path))
        events = json.loads(path.read_text())["traceEvents"]
    changes = sorted((event for event in events if event.get("name") == "[memory]"), key=lambda event: float(event["ts"]))
    held: Iterator[int] = accumulate((event["args"]["Bytes"] for event in changes), initial=0)
    return max(held) / 1e6


def open_only(bundle: str, backend: str, threads: int | None) -> dict[str, float]:
    """In a fresh process: what is there before any work."""
    with load(bundle, backend=backend, threads=threads):
        return {"peak_mb": peak_memory_mb()}


def run_task(bundle: str, backend: str, threads: int | None, way: str, seconds: float, steps: int) -> dict[str, Any]:
    """In a fresh process: one encode or decode, as a user calls it."""
    codec = load(bundle, backend=backend, threads=threads)
    work = Workload.build(codec.model.spec.config, seconds)
    start = time.perf_counter()
    if way == "encode":
        codec.encode(work.audio())
    else:
        for _ in codec.decode_stream(work.tokens, steps=steps, guidance=GUIDANCE, seed=0):
            pass
    measured = Measurement(way, (time.perf_counter() - start,), seconds, (peak_memory_mb(),))
    return {"measurement": measured.to_json(), **resident_mb()}


def resident_mb() -> dict[str, float]:
    """Resident memory of this process by what holds it; zeros where the system does not tell."""
    status = Path("/proc/self/status")
    lines = dict(line.split(":", 1) for line in status.read_text().splitlines()) if status.is_file() else {}
    heap, mapped = (int(lines.get(name, "0 kB").split()[0]) * 1024 / 1e6 for name in ("RssAnon", "RssFile"))
    return {"heap_mb": heap, "mapped_mb": mapped}


def render(uses: Sequence[Use], idle: Mapping[str, float], weights: Mapping[str, float], activations: Mapping[str, float]) -> str:
    """Tables, and what their columns mean."""
    header = ("task", "backend", "peak MB", "weights in use", "activations", "peak : both", "heap", "mapped", "s")
    most = {way: max(activations[part] for part in parts) for way, parts in _PARTS.items()}
    rows = [
        [
            use.task,
            use.backend,
            *(f"{value:.0f}" for value in (use.peak_mb, weights[use.way], most[use.way])),
            f"{use.peak_mb / (weights[use.way] + most[use.way]):.2f}",
            *(f"{value:.0f}" for value in (use.heap_mb, use.mapped_mb)),
            f"{use.measurement.p50:.1f}",
        ]
        for use in uses
    ]
    before = ", ".join(f"{backend} {peak:.0f} MB" for backend, peak in idle.items())
    parts = markdown_table(("network", "activations, MB"), [[part, f"{value:.1f}"] for part, value in activations.items()])
    notes = " ".join((__doc__ or "").split("\n\n")[1].split())
    sections = [markdown_table(header, rows, text_columns=2), f"Peak of a process that has opened the bundle and run nothing: {before}."]
    return "\n\n".join([*sections, notes, "## Activations of one segment or window", parts])


_MODULE = "benchmarks.semanticodec.memory"

if __name__ == "__main__":
    sys.exit(launch(main))
