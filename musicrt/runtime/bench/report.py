"""What a benchmark found, as JSON and as Markdown."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from musicrt.runtime.bench.contenders import REFERENCE, Contender
from musicrt.runtime.bench.operations import Work
from musicrt.runtime.bench.settings import SEED, Settings
from musicrt.runtime.bench.throughput import Load
from musicrt.runtime.measure import Measurement, markdown_table


@dataclass(frozen=True)
class Row:
    """A measurement, and whose it is."""

    contender: Contender
    measurement: Measurement

    @property
    def backend(self) -> str:
        """Of the contender."""
        return self.contender.backend

    @property
    def precision(self) -> str:
        """What the contender computes in."""
        return self.contender.precision


@dataclass(frozen=True)
class Roof:
    """How near a stage comes to the machine's peaks: what it achieves in a second, its shares, and what would hold it back there."""

    gflops: float
    compute_share: float
    gigabytes: float
    memory_share: float
    bound: str


@dataclass(frozen=True)
class Report:
    """What `bench_bundle` found.

    skipped: the reason for each that was not measured. reference: from whose results end to end errors are distances. base: the name of
    whom the others are compared with. peaks: see `measure_peaks`. sizes: of the axes of each stage. work: of stages, by flavour.
    loads: throughput of each contender.
    """

    bundle: Mapping[str, Any]
    settings: Settings
    environment: Mapping[str, Any]
    rows: tuple[Row, ...]
    skipped: Mapping[str, str]
    reference: Contender = REFERENCE
    base: str | None = None
    peaks: Mapping[str, float] = field(default_factory=dict)
    sizes: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    work: Mapping[str, Mapping[str, Work]] = field(default_factory=dict)
    loads: Mapping[Contender, list[Load]] = field(default_factory=dict)

    def ratio(self, row: Row) -> float | None:
        """How many times as fast as the base it is, by medians; None without one."""
        for other in self.rows:
            if other.contender.name == self.base and other.measurement.name == row.measurement.name:
                return other.measurement.p50 / row.measurement.p50
        return None

    def work_of(self, row: Row) -> Work | None:
        """Of a stage; None where it was not counted, for what is no stage, and on a GPU, whose peaks are not measured."""
        return self.work.get(row.contender.flavour, {}).get(row.measurement.name) if row.contender.on_cpu else None

    def roof(self, row: Row) -> Roof | None:
        """Of a stage whose work was counted. Products in 8-bit integers are held against the peak of float32: another was not measured."""
        work = self.work_of(row)
        if work is None or not self.peaks:
            return None
        seconds, gflops, copy = row.measurement.p50, self.peaks.get(row.precision, self.peaks["float32"]), self.peaks["copy"]
        shares = work.compute_share(seconds, gflops), work.memory_share(seconds, copy)
        return Roof(work.gflop / seconds, shares[0], work.weights / 1e9 / seconds, shares[1], work.bound(gflops, copy))

    def to_json(self) -> str:
        """All raw values and statistics."""
        rows = []
        for row in self.rows:
            roof = self.roof(row)
            whose = {"contender": row.contender.name, "backend": row.backend, "precision": row.precision}
            rows.append({**whose, **row.measurement.to_json(), "ratio": self.ratio(row), "roof": None if roof is None else asdict(roof)})
        content = {
            "bundle": dict(self.bundle),
            "command": self.settings.command,
            "settings": self.settings.to_json(),
            "environment": dict(self.environment),
            "reference": self.reference.to_json(),
            "base": self.base,
            "peaks": dict(self.peaks),
            "sizes": {name: dict(axes) for name, axes in self.sizes.items()},
            "work": {flavour: {name: asdict(work) for name, work in stages.items()} for flavour, stages in self.work.items()},
            "rows": rows,
            "throughput": [{**one.to_json(), **load.to_json()} for one, loads in self.loads.items() for load in loads],
            "skipped": dict(self.skipped),
        }
        return json.dumps(content, indent=1)

    def to_markdown(self) -> str:
        """Tables, what they were measured with, and what was left out."""
        machine, settings = self.environment, self.settings
        threads = f"{settings.threads or 'all'} threads" + ("" if settings.threads else f" of {machine['cores']} cores")
        head = [
            f"{self.bundle['system']}, variant {self.bundle['variant']}, weights {self.bundle['identity'][:12]}",
            f"`{settings.command}`: synthetic music of {settings.seconds:g} s, seed {SEED}; {settings.repeats} repeats in "
            f"{min(settings.rounds, settings.repeats)} rounds of fresh processes; {threads}. {describe_machine(machine)}",
        ]
        sections = [
            *head,
            self._times(),
            _TIMES_NOTE.format(reference=f"{self.reference.name} in {self.reference.precision}"),
            *self._roofs(),
            *self._throughput(),
        ]
        return "\n\n".join([*sections, *(f"Not measured: {name}: {reason}" for name, reason in self.skipped.items())])

    def _times(self) -> str:
        header = ["contender", "precision", "what", "note", "median ms", "p95 ms", "p99 ms", "real-time factor", "error", "peak MB"]
        header += ["cold start s", "idle CPU", *([f"times as fast as {self.base}"] if self.base else [])]
        return markdown_table(header, [self._cells(row) for row in self.rows], text_columns=4)

    def _cells(self, row: Row) -> list[str]:
        m = row.measurement
        cells = [row.contender.name, row.precision, m.name, m.note, *(f"{value * 1e3:.1f}" for value in (m.p50, m.p95, m.p99))]
        cells += [_number(m.real_time_factor, ".3f"), _number(m.error, ".1e"), _number(m.peak_mb, ".0f"), _number(m.cold_start, ".2f")]
        return [*cells, _number(m.idle_cpu, ".1%"), *([_number(self.ratio(row), ".2f")] if self.base else [])]

    def _roofs(self) -> list[str]:
        """The table of shares of the machine's peaks."""
        rows = []
        for row in self.rows:
            roof, work = self.roof(row), self.work_of(row)
            if roof is not None and work is not None:
                rates = [f"{work.gflop:.3g}", f"{roof.gflops:.1f}", f"{roof.compute_share:.0%}"]
                bytes_ = [f"{work.weights / 1e6:.1f}", f"{roof.gigabytes:.2f}", f"{roof.memory_share:.0%}"]
                rows.append([row.contender.name, row.precision, row.measurement.name, roof.bound, *rates, *bytes_])
        if not rows:
            return []
        header = ("contender", "precision", "stage", "bound by", "GFLOP", "GFLOP/s", "of peak", "weights MB", "GB/s", "of a copy")
        products = ", ".join(f"{rate:.0f} GFLOP/s in {name}" for name, rate in self.peaks.items() if name not in ("copy", "read"))
        moved = f"a copy moves {self.peaks['copy']:.1f} GB/s, reads and writes counted, a read {self.peaks['read']:.1f} GB/s"
        note = (
            f"The machine in the same run: products of large matrices {products}; {moved}. GFLOP: convolutions, products and attention "
            "(that over caches left out) in the graphs; integers are held against the peak of float32. Weights: bytes that operators read "
            "once; other precisions of float32 graphs keep them in float32. Bound by: what would take longer at these peaks."
        )
        return [markdown_table(header, rows, text_columns=4), note]

    def _throughput(self) -> list[str]:
        """The table of throughput."""
        rows = []
        for one, loads in self.loads.items():
            for load in loads:
                single = next(other for other in loads if (other.part, other.by) == (load.part, load.by))
                count = f"{load.throughput:.2f}", f"{load.throughput / single.throughput:.2f}"
                rows.append([one.name, one.precision, load.part, load.by, str(load.count), *count])
        if not rows:
            return []
        header = ("contender", "precision", "what", "by", "count", "audio s/s", "times the first")
        note = "Batch: signals of one call. Concurrency: threads that call one pipeline at once; operators have the threads named above."
        return [markdown_table(header, rows, text_columns=4), note]


def describe_machine(environment: Mapping[str, Any]) -> str:
    """In one line."""
    versions = ", ".join(f"{name} {version}" for name, version in environment.get("versions", {}).items())
    words: Iterable[str] = (f"{environment['cpu']}, {environment['cores']} cores", f"Python {environment.get('python', '?')}", versions)
    return ", ".join(word for word in words if word)


_TIMES_NOTE = (
    "Real-time factor: processing time for each second of audio. Error: relative L2, of integers the share that differs; end to end "
    "against {reference}, of stages against the run recorded when the bundle was made. Cold start: from the start of the process "
    "to the first result. Idle CPU: of one core, in the second after the last call."
)


def _number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)
