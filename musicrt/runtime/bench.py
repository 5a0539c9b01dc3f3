"""`musicrt bench`: every stage of a bundle, and encode and decode as a whole, on every backend that works here."""

from __future__ import annotations

import importlib.util
import json
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from musicrt.runtime.backends.torch import TorchCpu
from musicrt.runtime.bundle import Bundle
from musicrt.runtime.errors import BackendError
from musicrt.runtime.measure import (
    Measurement,
    describe_environment,
    markdown_table,
    measure,
    peak_memory_mb,
    run_isolated,
    since_start,
    synthesise_music,
)
from musicrt.runtime.model import load
from musicrt.runtime.pipeline import options_of
from musicrt.runtime.select import BACKENDS
from musicrt.runtime.session import Backend
from musicrt.runtime.spec import Precision
from musicrt.runtime.verify import probe_inputs, relative_error, verify_bundle

_SEED = 7
_HEADER = ("backend", "precision", "what", "note", "median ms", "p95 ms", "real-time factor", "error", "peak MB", "cold start s")


@dataclass(frozen=True)
class Row:
    """A measurement, the backend it belongs to, and what that computed in."""

    backend: str
    precision: Precision
    measurement: Measurement


@dataclass(frozen=True)
class Report:
    """What `bench_bundle` found. `skipped`: the reason for each backend that was not measured."""

    bundle: dict[str, Any]
    settings: dict[str, Any]
    environment: dict[str, Any]
    rows: tuple[Row, ...]
    skipped: dict[str, str]

    def to_json(self) -> str:
        """All raw values and statistics."""
        rows = [{"backend": row.backend, "precision": row.precision, **row.measurement.to_json()} for row in self.rows]
        content = {"bundle": self.bundle, "settings": self.settings, "environment": self.environment, "rows": rows, "skipped": self.skipped}
        return json.dumps(content, indent=1)

    def to_markdown(self) -> str:
        """A table, what it was measured with, and what was left out."""
        machine, settings = self.environment, ", ".join(f"{name} {value}" for name, value in self.settings.items() if value is not None)
        lines = [
            f"{self.bundle['system']}, variant {self.bundle['variant']}: {settings}; {machine['cpu']}, {machine['cores']} cores",
            "",
            markdown_table(_HEADER, [_cells(row) for row in self.rows], text_columns=4),
            "",
            "Real-time factor: processing time for each second of audio. Error: relative L2, of integers the share that differs; end to "
            "end against torch-cpu in float32, of stages as `musicrt verify` has it. Cold start: from the start of the process to the "
            "first result.",
            *(f"Not measured: {name}: {reason}" for name, reason in self.skipped.items()),
        ]
        return "\n".join(lines)


def bench_bundle(
    bundle: Path | str,
    backends: Sequence[str] | None = None,
    seconds: float = 1.5,
    repeats: int = 5,
    steps: int | None = None,
    threads: int | None = None,
    precisions: Sequence[Precision] | None = None,
) -> Report:
    """Measure a bundle on `backends`, by default all that are usable here; each in fresh processes.

    seconds: length of the audio. steps: of a decode, the system's default if None; the rows say how many ran.
    threads: CPU threads inside an operator. precisions: each backend in all of these that it offers; None: in its first.
    Raises BundleError, BackendError: unknown, not usable here, or failed; InputError for audio that is too short.
    """
    opened = Bundle.open(bundle)
    for name in backends or ():
        if name not in BACKENDS:
            raise BackendError(f"unknown backend {name!r}; known: {', '.join(BACKENDS)}")
    named = [kind for kind in BACKENDS.values() if backends is None or kind.name in backends]
    asked = [(kind, precision) for kind in named for precision in precisions or kind.precisions[:1]]
    obstacles = {(kind.name, precision): _obstacle(kind, precision, opened) for kind, precision in asked}
    chosen = [key for key, obstacle in obstacles.items() if obstacle is None]
    useless = {kind.name for kind in named} - dict(chosen).keys()
    if useless and (backends or not chosen):
        told = {f"{name} can't run here in {precision}: {reason}": name for (name, precision), reason in obstacles.items()}
        raise BackendError("; ".join(words for words, name in told.items() if name in useless))
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="musicrt-bench-") as folder:
        common = {"bundle": str(bundle), "seconds": seconds, "repeats": repeats, "steps": steps, "threads": threads}
        common["values"] = str(Path(folder) / "values.npy")  # the first encode leaves them for every decode
        for name, precision in chosen:
            for function in (measure_encode, measure_decode, measure_stages):
                answer = run_isolated(f"{__name__}:{function.__name__}", {**common, "backend": name, "precision": precision})
                rows += [Row(name, precision, Measurement.from_json(values)) for values in answer["measurements"]]
    return Report(
        bundle={"system": opened.spec.system, "variant": opened.spec.variant, "identity": opened.identity},
        settings={"seconds": seconds, "repeats": repeats, "steps": steps, "threads": threads},
        environment=describe_environment(threads),
        rows=tuple(rows),
        skipped={f"{name} in {precision}": obstacle for (name, precision), obstacle in obstacles.items() if obstacle is not None},
    )


def _obstacle(kind: type[Backend], precision: Precision, bundle: Bundle) -> str | None:
    """Why a backend can't run the bundle here in that precision."""
    if reason := kind.precision_obstacle(precision) or kind.obstacle():
        return reason
    try:
        kind(precision=precision).check_bundle(bundle)
    except BackendError as error:
        return str(error)
    return None


def measure_encode(
    bundle: str, backend: str, precision: Precision, seconds: float, repeats: int, threads: int | None, values: str, **_: Any
) -> dict[str, Any]:
    """In a fresh process: `encode` as a whole. Leaves its result in the file `values` unless it is there."""
    codec = load(bundle, backend=backend, threads=threads, precision=precision)
    audio = synthesise_music(seconds, codec.sample_rate)
    encoded = codec.encode(audio)
    cold = since_start()  # the first call is the warm-up of the others
    times, peak = measure(lambda: codec.encode(audio), 0, repeats), peak_memory_mb()
    if not Path(values).exists():
        np.save(values, encoded)
    error = None
    if _has_torch_reference(backend, precision):
        error = relative_error({"": encoded}, {"": load(bundle, backend=TorchCpu.name, threads=threads).encode(audio)})
    return {"measurements": [Measurement("encode", times, seconds, (peak,), (cold,), error).to_json()]}


def measure_decode(
    bundle: str,
    backend: str,
    precision: Precision,
    seconds: float,
    repeats: int,
    steps: int | None,
    threads: int | None,
    values: str,
    **_: Any,
) -> dict[str, Any]:
    """In a fresh process: `decode` of the file `values` as a whole."""
    encoded = np.load(values, allow_pickle=False)
    codec = load(bundle, backend=backend, threads=threads, precision=precision)
    options = {} if steps is None else {"steps": steps}
    codec.check_options(codec.decode_stream, options)
    if "seed" in options_of(codec.decode_stream):
        options["seed"] = _SEED
    audio = codec.decode(encoded, **options)
    cold = since_start()
    times, peak = measure(lambda: codec.decode(encoded, **options), 0, repeats), peak_memory_mb()
    error = None
    if _has_torch_reference(backend, precision):
        reference = load(bundle, backend=TorchCpu.name, threads=threads)
        error = relative_error({"": audio}, {"": reference.decode(encoded, **options)})
    ran = codec.axis_sizes(seconds, steps).get("steps")
    name = "decode" if ran is None else f"decode, {ran} step{'s' if ran > 1 else ''}"
    return {"measurements": [Measurement(name, times, audio.shape[-1] / codec.sample_rate, (peak,), (cold,), error).to_json()]}


def measure_stages(
    bundle: str, backend: str, precision: Precision, seconds: float, repeats: int, steps: int | None, threads: int | None, **_: Any
) -> dict[str, Any]:
    """In a fresh process: every stage by itself, one item: so many seconds, or what a window of the system has."""
    codec = load(bundle, backend=backend, threads=threads, precision=precision)
    sizes, window = codec.axis_sizes(seconds, steps), codec.window_seconds(seconds)
    measurements = []
    for stage in codec.model.spec.stages:
        feeds = probe_inputs(stage, sizes, _SEED)
        session = codec.model.session(stage.name)
        times = measure(partial(session.run, feeds), 1, repeats)
        note = "graph; the pipeline uses an FFT instead" if stage.host else ""
        measurements.append(Measurement(stage.name, times, window, note=note))
    errors = {check.stage: check.error for check in verify_bundle(bundle, backend=backend, threads=threads, precision=precision)}
    return {"measurements": [{**m.to_json(), "error": errors[m.name]} for m in measurements]}


def _has_torch_reference(backend: str, precision: Precision) -> bool:
    """Whether there is torch in float32 to hold something else against."""
    return (backend, precision) != (TorchCpu.name, "float32") and importlib.util.find_spec("torch") is not None


def _cells(row: Row) -> list[str]:
    m = row.measurement

    def number(value: float | None, form: str) -> str:
        return "" if value is None else format(value, form)

    return [
        row.backend,
        row.precision,
        m.name,
        m.note,
        f"{m.p50 * 1e3:.1f}",
        f"{m.p95 * 1e3:.1f}",
        number(m.real_time_factor, ".3f"),
        number(m.error, ".1e"),
        number(m.peak_mb, ".0f"),
        number(m.cold_start, ".2f"),
    ]
