"""From a bundle and representative inputs to a flavour of 8-bit integers, or to the reason why it can't have one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from musicrt.calibration.capture import Feeds, Recorder
from musicrt.calibration.engine_graphs import EngineGraph, EngineWeights
from musicrt.calibration.generation import Peaks, Script
from musicrt.calibration.graphs import StageGraph
from musicrt.calibration.inputs import Inputs, gather_inputs
from musicrt.calibration.light import LightStage
from musicrt.calibration.listening import listen, tool_versions
from musicrt.calibration.lowering import LoweredStage, lowered_sessions
from musicrt.calibration.quality import Run, make_pipeline, measure_runs, missed, run_pieces
from musicrt.calibration.ranges import METHODS, Method
from musicrt.calibration.search import Round, search
from musicrt.calibration.static import IntegerGraph
from musicrt.calibration.store import store_lowered
from musicrt.runtime.backends.onnxruntime import OnnxCpu
from musicrt.runtime.bundle import TARGET_OF, Bundle
from musicrt.runtime.errors import ConfigError, InputError, VerificationError
from musicrt.runtime.files import changing
from musicrt.runtime.manifest import CalibrationEntry, GateEntry
from musicrt.runtime.precision import INT8, LOWERED, TRT_INT8, Gate, Int8

OnWork = Callable[[str, int, int], None]
"""Called with what is being done, how many parts of it are done and how many there are."""


@dataclass(frozen=True)
class Calibration:
    """What a calibration for `target` found. `entry`: what the manifest says of it; `noise`: by stage and layer, where it was measured."""

    bundle: Bundle
    target: str
    entry: CalibrationEntry
    rounds: list[Round]
    noise: Mapping[str, Mapping[str, float]]
    reference: list[Run]
    result: list[Run]

    @property
    def complaint(self) -> str:
        """Of each missed gate what was wanted and what was found."""
        return "; ".join(
            f"{gate.wanted}, got {'nothing' if gate.value is None else format(gate.value, '.3g')}"
            for gate in self.entry.gates
            if not gate.holds
        )

    @property
    def passed(self) -> bool:
        return all(gate.holds for gate in self.entry.gates)


def calibrate_int8(
    path: str | Path,
    source: str | Path = "synthetic",
    *,
    flavour: str = INT8,
    seconds: float = 6.0,
    steps: int | None = None,
    ranges: Method = "minmax",
    rounds: int | None = None,
    force: bool = False,
    threads: int | None = None,
    on_work: OnWork = lambda _text, _done, _total: None,
    on_result: Callable[[Calibration], object] = lambda _: None,
) -> Calibration:
    """Give the bundle at `path` a flavour of 8-bit integers, in the place of the one that it may have.

    flavour: `int8` for CPUs, of the float32 graphs, or `trt-int8` for TensorRT, of those in half precision, which run on a CPU here too.
    source: a folder of audio files, or "synthetic". seconds: of each piece. steps: of a decode; the system's own number if None.
    ranges: how those of activations are found. rounds: of un-quantising at most, each of which runs the pipeline once more; 0: lower all
    that may be, measure and judge; None: as many as the gates take. force: keep a result that misses a gate of the system.
    on_result: called before the result is stored, or refused: a report can be written either way.

    Needs no torch. Raises BundleError, InputError, OutputError; BackendError, also where the bundle lacks the graphs that it takes;
    ConfigError where the system has nothing to lower; VerificationError where a gate is missed: the bundle then is as it was.
    """
    if ranges not in METHODS:
        raise InputError(f"got ranges {ranges!r}, expected {', '.join(METHODS)}")
    if rounds is not None and rounds < 0:
        raise InputError(f"got {rounds} rounds of un-quantising, expected 0 or more; leave it out for as many as the gates take")
    with changing(Bundle.open(path).path):
        bundle = Bundle.open(path, check="hashes")
        bundle.require_flavour(LOWERED[flavour])
        if not any(stage.int8 for stage in bundle.spec.stages):
            raise ConfigError(f"{bundle.spec.system} has no stage that may be lowered; say in its spec how (`StageSpec.int8`)")
        inputs = gather_inputs(source, bundle.spec.sample_rate, seconds=seconds)
        stages, found = _calibrate(bundle, flavour, inputs, steps, ranges, rounds, force, threads, on_work)
        on_result(found)
        if not found.passed and not force:
            raise VerificationError(
                f"{bundle.path}: {found.complaint}; nothing was changed; "
                f"calibrate with other inputs{'' if rounds is None else ' or more rounds'}, or keep the result as it is with --force"
            )
        on_work("storing", 0, 1)
        changed = store_lowered(bundle, flavour, {name: stage.model for name, stage in stages.items()}, found.entry, threads)
    return Calibration(changed, found.target, found.entry, found.rounds, found.noise, found.reference, found.result)


def _calibrate(
    bundle: Bundle,
    flavour: str,
    inputs: Inputs,
    steps: int | None,
    ranges: Method,
    most: int | None,
    force: bool,
    threads: int | None,
    on_work: OnWork,
) -> tuple[dict[str, LoweredStage], Calibration]:
    backend, recorder = OnnxCpu(threads=threads), Recorder()
    peaks, script, seconds = Peaks(bundle.spec), Script.of(bundle.spec), inputs.seconds
    on_work("listening", 0, 1)
    with make_pipeline(bundle, script.wrap(peaks.wrap(recorder.wrap(lambda name: backend.open_session(bundle, name))))) as codec:
        reference = listen(codec, inputs, recorder, bundle.spec, steps)
        peaks.look()
        script.play(codec, seconds)
    stages = _lower_stages(bundle, flavour, recorder, peaks, ranges, threads, on_work)
    if not stages:
        raise ConfigError(f"{bundle.path}: nothing went into a stage that may be lowered; use other inputs")
    latest: list[Run] = []
    beneath = backend.with_flavour(LOWERED[flavour])

    def measure() -> dict[str, float]:
        with make_pipeline(bundle, script.wrap(lowered_sessions(stages, lambda name: beneath.open_session(bundle, name)))) as codec:
            latest[:] = run_pieces(codec, inputs.judging, steps, reference)
            chosen = script.play(codec, seconds)
        return measure_runs(latest, reference, bundle.spec.sample_rate) | chosen

    gates = bundle.spec.gates
    rounds = search(stages, gates, recorder.seen, measure, on_work, most)
    described = {name: stage.describe() for name, stage in stages.items()}
    # The search leaves these alone: no layers of one stage are worth more than what is heard in the end.
    gates = (*gates, *(Gate(f"{name} distance", most=stage.stage.tolerance_of(flavour)) for name, stage in stages.items()))
    quality = {**rounds[-1].quality, **{f"{name} distance": entry.error for name, entry in described.items()}}
    entry = CalibrationEntry(
        inputs=inputs.words,
        inputs_sha256=inputs.sha256,
        tools=tool_versions(),
        stages=described,
        quality=dict(quality),
        gates=[_judge(gate, quality) for gate in gates],
        forced=force and bool(missed(gates, quality)),
    )
    noise = {name: stage.noise for name, stage in stages.items() if stage.noise}
    return stages, Calibration(bundle, TARGET_OF[flavour], entry, rounds, noise, reference, list(latest))


def _lower_stages(
    bundle: Bundle, flavour: str, recorder: Recorder, peaks: Peaks, ranges: Method, threads: int | None, on_work: OnWork
) -> dict[str, LoweredStage]:
    """All stages that may be lowered, that something went into, and that have something to lower."""
    asked = [stage.name for stage in bundle.spec.stages if stage.int8 is not None and recorder.feeds(stage.name)]
    made: dict[str, LoweredStage] = {}
    for done, name in enumerate(asked):
        on_work(f"lowering {name}", done, len(asked))
        stage = _LOWERING[flavour](bundle, name, recorder.feeds(name), peaks, ranges, threads)
        if stage is not None:
            made[name] = stage
    return made


def _lower_for_cpu(bundle: Bundle, name: str, feeds: list[Feeds], peaks: Peaks, ranges: Method, threads: int | None) -> LoweredStage:
    int8 = bundle.spec.stage(name).int8 or Int8()
    if int8.method == "weights":
        return LightStage(StageGraph.open(bundle, name), feeds, peaks.ranges, threads)
    graph = IntegerGraph.open(bundle, name)
    return LoweredStage(graph, graph, feeds, int8.keep, ranges, threads)


def _lower_for_engine(
    bundle: Bundle, name: str, feeds: list[Feeds], _peaks: Peaks, ranges: Method, threads: int | None
) -> LoweredStage | None:
    """None where only keys would be lowered, which engines keep in half precision, or where all layers are in float32."""
    int8 = bundle.spec.stage(name).int8 or Int8()
    if not int8.bits:
        return None
    kind = EngineWeights if int8.method == "weights" else EngineGraph
    stage = LoweredStage(kind.open(bundle, name), StageGraph.open(bundle, name), feeds, int8.keep, ranges, threads)
    return stage if stage.candidates else None


_LOWERING = {INT8: _lower_for_cpu, TRT_INT8: _lower_for_engine}


def _judge(gate: Gate, quality: Mapping[str, float]) -> GateEntry:
    value = quality.get(gate.measure)
    return GateEntry(measure=gate.measure, least=gate.least, most=gate.most, value=value, holds=gate.holds(value))
