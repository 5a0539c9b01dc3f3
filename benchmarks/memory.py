"""Peak memory of tasks beside what they cannot do without: the weights in use and the activations of the networks."""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any, Self

from benchmarks.results import say
from musicrt.runtime.bundle import Bundle
from musicrt.runtime.measure import Measurement, markdown_table, peak_memory_mb, run_isolated
from musicrt.runtime.model import load
from musicrt.runtime.precision import ORT


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
    def kind(self) -> str:
        """The task without its size."""
        return self.task.split(",")[0]

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "measurement": self.measurement.to_json()}

    @classmethod
    def from_answer(cls, backend: str, task: str, answer: Mapping[str, Any]) -> Self:
        """From what `use_once` gave."""
        return cls(backend, task, Measurement.from_json(answer["measurement"]), answer["heap_mb"], answer["mapped_mb"])


def measure_uses(
    suite: str, backends: Sequence[str], tasks: Mapping[str, Mapping[str, Any]], common: Mapping[str, Any]
) -> tuple[list[Use], dict[str, float]]:
    """All tasks on all backends, each in a process of its own, and by backend the peak of one that has opened the bundle only.

    suite: a module with `run_task(bundle, backend, threads, **task)`, which gives what `use_once` does. tasks: arguments by name.
    common: `bundle` and `threads`.
    """
    uses, idle = [], {}
    for backend in backends:
        asked = {**common, "backend": backend}
        idle[backend] = run_isolated(f"{__name__}:open_only", asked)["peak_mb"]
        for name, task in tasks.items():
            say(f"{backend}: {name} …")
            uses.append(Use.from_answer(backend, name, run_isolated(f"{suite}:run_task", {**asked, **task})))
    return uses, idle


def open_only(bundle: str, backend: str, threads: int | None) -> dict[str, float]:
    """In a fresh process: what is there before any work."""
    with load(bundle, backend=backend, threads=threads):
        return {"peak_mb": peak_memory_mb()}


def use_once(name: str, call: Callable[[], object], seconds: float) -> dict[str, Any]:
    """In a fresh process that has done nothing yet: one call, the peak, and who holds what memory after it. seconds: of audio."""
    start = time.perf_counter()
    call()
    measured = Measurement(name, (time.perf_counter() - start,), seconds, (peak_memory_mb(),))
    return {"measurement": measured.to_json(), **resident_mb()}


def resident_mb() -> dict[str, float]:
    """Resident memory of this process by what holds it; zeros where the system does not tell."""
    status = Path("/proc/self/status")
    lines = dict(line.split(":", 1) for line in status.read_text().splitlines()) if status.is_file() else {}
    heap, mapped = (int(lines.get(name, "0 kB").split()[0]) * 1024 / 1e6 for name in ("RssAnon", "RssFile"))
    return {"heap_mb": heap, "mapped_mb": mapped}


def weights_mb(bundle: Path, stages: Iterable[str], flavour: str = ORT) -> float:
    """Weights that the graphs of some stages hold or refer to, each once (needs onnx). flavour: of the graphs."""
    import onnx

    opened, seen, total = Bundle.open(bundle), set(), 0
    for stage in stages:
        path, _ = opened.graph(stage, flavour)
        for tensor in onnx.load(path, load_external_data=False).graph.initializer:
            place = {entry.key: entry.value for entry in tensor.external_data}
            if not place:
                total += len(tensor.SerializeToString())
            elif place["offset"] not in seen:
                seen.add(place["offset"])
                total += int(place["length"])
    return total / 1e6


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


def render_uses(
    uses: Sequence[Use], idle: Mapping[str, float], weights: Mapping[str, float], activations: Mapping[str, float], notes: str
) -> str:
    """A row for each use, and what the columns mean. weights: in use, by `kind`; activations: by `kind` or by whole name of a task."""
    header = ("task", "backend", "peak MB", "weights in use", "activations", "peak : both", "heap", "mapped", "s")
    rows = []
    for use in uses:
        held, needed = weights[use.kind], activations.get(use.task, activations.get(use.kind))
        both = ("–", "–") if needed is None else (f"{needed:.0f}", f"{use.peak_mb / (held + needed):.2f}")
        sizes = (f"{value:.0f}" for value in (use.heap_mb, use.mapped_mb))
        rows.append([use.task, use.backend, f"{use.peak_mb:.0f}", f"{held:.0f}", *both, *sizes, f"{use.measurement.p50:.1f}"])
    before = ", ".join(f"{backend} {peak:.0f} MB" for backend, peak in idle.items())
    table = markdown_table(header, rows, text_columns=2)
    return f"{table}\n\nPeak of a process that has opened the bundle and run nothing: {before}.\n\n{' '.join(notes.split())}"
