"""Measuring a bundle: contenders in turn, every measurement in a fresh process."""

from __future__ import annotations

import tempfile
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from musicrt.runtime.bench.contenders import REFERENCE, Contender, Field
from musicrt.runtime.bench.operations import Work
from musicrt.runtime.bench.peaks import run_peaks
from musicrt.runtime.bench.report import Report, Row
from musicrt.runtime.bench.rounds import in_turn, split_repeats
from musicrt.runtime.bench.settings import PARTS, Settings
from musicrt.runtime.bench.throughput import Load
from musicrt.runtime.bundle import Bundle
from musicrt.runtime.errors import BackendError
from musicrt.runtime.measure import Measurement, describe_environment, run_isolated
from musicrt.runtime.registry import system_module

OnWork = Callable[[str, int, int], None]
"""Called with what comes next, how many measurements are done, and how many there are."""


def bench_bundle(bundle: Path | str, settings: Settings, on_work: OnWork = lambda _text, _done, _total: None) -> Report:
    """Measure a bundle as the settings say.

    Raises BundleError; BackendError: unknown, not usable here, or failed; InputError for wrong settings and audio that is too short. Of
    the contenders of `Settings.against`, those that can't run here are left out and reported with the reason.
    """
    opened = Bundle.open(bundle)
    pipeline = system_module(opened.spec.system, "pipeline").Pipeline
    settings.check(opened.spec, hasattr(pipeline, "rehearse"))
    parts = [part for part in PARTS if (part in settings.parts if settings.parts else part != "generate" or hasattr(pipeline, "rehearse"))]
    return _Run(opened, settings, Field.find(opened, settings), parts, on_work).report()


class _Run:
    """One benchmark: the field, what was found so far, and who failed."""

    def __init__(self, bundle: Bundle, settings: Settings, field: Field, parts: Sequence[str], on_work: OnWork) -> None:
        self.bundle, self.settings, self.field, self.parts, self.on_work = bundle, settings, field, parts, on_work
        self.rounds = split_repeats(settings.repeats, min(settings.rounds, settings.repeats))
        self.failed: dict[str, str] = {}
        self.found: dict[Contender, dict[str, list[Measurement]]] = {one: defaultdict(list) for one in field.contenders}
        self.peaks: dict[str, float] = {}
        loads = sum(bool(counts) for counts in (settings.batches, settings.concurrency))
        self.done, self.total = 0, len(field.contenders) * (len(parts) * len(self.rounds) + loads)

    def report(self) -> Report:
        """Measure everything."""
        settings, opened = self.settings, self.bundle
        common: dict[str, Any] = {"seconds": settings.seconds, "steps": settings.steps, "threads": settings.threads}
        environment = describe_environment(settings.threads)
        first = self._first()
        asked = {"bundle": str(opened.path), "contender": first.to_json(), "sizes": dict(settings.sizes), **common}
        sizes = run_isolated(f"{_CALLS}:size_stages", asked)
        sizes = {name: axes for name, axes in sizes.items() if not settings.stages or name in settings.stages}
        with tempfile.TemporaryDirectory(prefix="musicrt-bench-") as folder:
            common["folder"] = folder
            described = {"stages": sizes, "resized": bool(settings.sizes), "reference": first.to_json()}
            if {"encode", "decode"} & set(self.parts) or settings.batches or settings.concurrency:
                self.on_work("reference", self.done, self.total)
                asked = {"bundle": str(opened.path), "contender": first.to_json(), "decoded": "decode" in self.parts, **common}
                run_isolated(f"{_CALLS}:leave_results", asked)
            for index, repeats in enumerate(self.rounds):
                self._measure_peaks(environment["cores"])
                for part in self.parts:
                    self._run_round(index, part, {**common, **described, "repeats": repeats})
            loads = self._measure_throughput(common)
        self._measure_peaks(environment["cores"])
        rows = [Row(one, Measurement.merge(measured)) for one in self._left for measured in self.found[one].values()]
        return Report(
            bundle={"system": opened.spec.system, "variant": opened.spec.variant, "identity": opened.identity},
            settings=settings,
            environment=environment,
            rows=tuple(rows),
            skipped={**self.field.skipped, **self.failed},
            reference=first,
            base=next((name for name in self.field.rivals if name not in self.failed), None),
            peaks=self.peaks,
            sizes=sizes if "stages" in self.parts else {},
            work=self._count_work(sizes) if "stages" in self.parts else {},
            loads=loads,
        )

    @property
    def _left(self) -> list[Contender]:
        return [one for one in self.field.contenders if one.name not in self.failed]

    def _first(self) -> Contender:
        """Whose results the others are held against: torch in float32, where it is installed."""
        return REFERENCE if REFERENCE.obstacle(self.bundle) is None else self.field.contenders[0]

    def _run_round(self, index: int, part: str, arguments: Mapping[str, Any]) -> None:
        """One part of all contenders in turn."""
        for one in in_turn(self.field.contenders, index):
            answer = self._ask(one, f"{_CALLS}:time_part", f"{part}, round {index + 1}", {**arguments, "part": part})
            for values in answer.get("measurements", ()):
                self.found[one][values["name"]].append(Measurement.from_json(values))

    def _measure_throughput(self, common: Mapping[str, Any]) -> dict[Contender, list[Load]]:
        found: dict[Contender, list[Load]] = defaultdict(list)
        parts = [part for part in self.parts if part in ("encode", "decode")]
        for by, counts in (("batch", self.settings.batches), ("concurrency", self.settings.concurrency)):
            for one in self.field.contenders if counts and parts else ():
                asked = {**common, "by": by, "parts": parts, "counts": list(counts), "repeats": self.settings.repeats}
                answer = self._ask(one, f"{_THROUGHPUT}:time_loads", by, asked)
                found[one] += [Load.from_json(values) for values in answer.get("loads", ())]
        return {one: loads for one, loads in found.items() if one in self._left}

    def _ask(self, one: Contender, target: str, text: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """In a fresh process; an empty answer of a rival that fails, which is left out from then on. Raises MusicRTError."""
        self.done += 1
        if one.name in self.failed:
            return {}
        self.on_work(f"{text}: {one.name} {one.precision}", self.done - 1, self.total)
        try:
            return run_isolated(target, {"bundle": str(self.bundle.path), "contender": one.to_json(), **arguments})
        except BackendError as error:
            if one.name not in self.field.rivals:
                raise
            self.failed[one.name] = str(error)
            return {}

    def _measure_peaks(self, cores: int) -> None:
        """Before each round and after all: the best counts, as anything else on the machine lowers it."""
        found = run_peaks(self.settings.threads, cores)
        self.peaks = {name: max(rate, self.peaks.get(name, 0.0)) for name, rate in found.items()}

    def _count_work(self, sizes: Mapping[str, Mapping[str, int]]) -> dict[str, dict[str, Work]]:
        """By flavour, ORT or INT8, and stage; nothing without ONNX Runtime."""
        if _COUNTER.obstacle(self.bundle) is not None:
            return {}
        found: dict[str, dict[str, Work]] = {}
        for flavour in sorted({one.flavour for one in self._left if one.on_cpu}):
            asked = {"bundle": str(self.bundle.path), "flavour": flavour, "sizes": sizes, "threads": self.settings.threads}
            counted = run_isolated("musicrt.runtime.bench.operations:count_stages", asked)
            found[flavour] = {name: Work(**values) for name, values in counted.items()}
        return found


_COUNTER = Contender("onnxruntime-cpu", "onnxruntime-cpu", "float32")
_CALLS = "musicrt.runtime.bench.calls"
_THROUGHPUT = "musicrt.runtime.bench.throughput"
