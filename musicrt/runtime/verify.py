"""Holds a bundle's stages against the torch network, or, without torch, against what it gave when the bundle was made."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from musicrt.runtime.backend import Backend
from musicrt.runtime.backends.torch import TorchCpu
from musicrt.runtime.bundle import Bundle
from musicrt.runtime.errors import BundleError
from musicrt.runtime.manifest import OutputProbe, Probe
from musicrt.runtime.noise import normal_columns, philox
from musicrt.runtime.precision import LOWERED, Precision
from musicrt.runtime.select import select_backend
from musicrt.runtime.session import Array
from musicrt.runtime.spec import StageSpec

_PROBED = 64  # values kept of each output
_AS_FAR = 2.0  # two results that are equally far from a third one are sqrt(2) times as far apart, of the 64 values give or take some
_UNRELATED = 1.3  # less than sqrt(2), the distance of two signals of one power that have nothing in common
_LARGEST_PROBE = 1 << 26  # elements of all inputs and outputs of a stage; no network of full size has half as many


@dataclass(frozen=True)
class StageCheck:
    """How far a stage is from its reference: the `relative_error` of its worst output.

    A graph in 8-bit integers is held against its own run at calibration, and may be as far from it as both are from float32: where a sum is
    rounded the other way, all that follows is another choice among equally good ones. How far it is from float32 is in the manifest.
    """

    stage: str
    backend: str
    reference: str
    error: float
    tolerance: float
    precision: Precision = "float32"

    @property
    def ok(self) -> bool:
        return self.error <= self.tolerance  # False for NaN


def verify_bundle(
    path: Path | str,
    *,
    backend: str = "auto",
    flavour: str | None = None,
    threads: int | None = None,
    precision: Precision | None = None,
    trusted_key: Path | str | None = None,
) -> list[StageCheck]:
    """Check the hash of every file, then run every stage. Raises BundleError, BackendError; judge by `StageCheck.ok`.

    flavour: the graphs to run, where a backend can run others than its own: ONNX Runtime runs those for TensorRT (`trt`, `trt-int8`) as
    well. Of half precision it rounds weights only on a CPU, not what comes in between; export has measured both.
    precision, trusted_key: see `load`.
    """
    bundle = Bundle.open(path, check="hashes", trusted_key=trusted_key)
    runner, choice = select_backend(backend, threads=threads, precision=precision)
    runner = runner if flavour is None else runner.with_flavour(flavour)
    runner.check_bundle(bundle)
    is_reference = (choice.name, choice.precision) == (TorchCpu.name, "float32")
    torch_runner = TorchCpu(threads=threads) if TorchCpu.obstacle() is None and not is_reference else None
    checks = []
    for stage in bundle.spec.stages:
        entry = bundle.manifest.stages[stage.name]
        graph = entry.graphs.get(runner.flavour)
        own = graph.probe if graph and runner.flavour in LOWERED else None  # the others are held against export, or torch
        probe = own or entry.probe
        if not _fits(probe, stage):
            raise BundleError(f"{path}: the recorded run of stage {stage.name!r} does not fit its tensors; export the bundle again")
        size = sum(math.prod(tensor.resolve(probe.sizes)) for tensor in (*stage.feeds, *stage.outputs))
        if size > _LARGEST_PROBE:
            raise BundleError(
                f"{path}: the recorded run of stage {stage.name!r} has {size} values, expected at most {_LARGEST_PROBE}; "
                "export the bundle again"
            )
        feeds = probe_inputs(stage, probe.sizes, probe.seed)
        with runner.open_session(bundle, stage.name) as session:
            outputs = session.run({tensor.name: feeds[tensor.name].astype(tensor.dtype) for tensor in session.stage.feeds})
        errors = [probe_error(probe, outputs)]
        if torch_runner is not None and own is None:
            with torch_runner.open_session(bundle, stage.name) as reference:
                errors.append(relative_error(outputs, reference.run(feeds)))
        if own is not None:
            against, tolerance = "recorded at calibration", _tolerance(bundle, stage, runner)
            if not stage.in_flavour(runner.flavour).has_integer_values:
                tolerance = min(_AS_FAR * relative_error(_values(own), _values(entry.probe)), _UNRELATED)
        else:
            against = "recorded at export" if torch_runner is None else torch_runner.name
            tolerance = _tolerance(bundle, stage, runner)
        checks.append(StageCheck(stage.name, choice.name, against, float(np.max(errors)), tolerance, choice.precision))
    return checks


def _tolerance(bundle: Bundle, stage: StageSpec, runner: Backend) -> float:
    """A stage that was not lowered is what it is in the flavour beneath."""
    return stage.tolerance_of(bundle.flavour_of(stage.name, runner.flavour), runner.precision)


def probe_sizes(stage: StageSpec, base: int) -> dict[str, int]:
    """Sizes of a stage's axes for a test run, all different: base, base + 1, …"""
    return {axis.name: min(max(base + i, axis.minimum), axis.maximum) for i, axis in enumerate(stage.axes)}


def probe_inputs(stage: StageSpec, sizes: Mapping[str, int], seed: int) -> dict[str, Array]:
    """Test inputs and states, a pure function of the spec, the sizes and the seed."""
    feeds: dict[str, Array] = {}
    for index, tensor in enumerate(stage.feeds):
        shape = tensor.resolve(sizes)
        count = math.prod(shape)
        if tensor.values == "codes":
            feeds[tensor.name] = _draw_codes(seed, count, tensor.codes, index).reshape(shape)
            continue
        values = normal_columns(seed, -(-count // 4) * 4, range(1), channel=index, draw=0).reshape(-1)[:count].reshape(shape)
        values *= np.float32(tensor.scale)
        feeds[tensor.name] = np.exp(values) if tensor.values == "positive" else values
    return feeds


def typed_inputs(stage: StageSpec, sizes: Mapping[str, int], seed: int) -> dict[str, Array]:
    """The same in the dtypes of a stage as a graph of one flavour has it, see `StageSpec.in_flavour`."""
    feeds = probe_inputs(stage, sizes, seed)
    return {tensor.name: feeds[tensor.name].astype(tensor.dtype, copy=False) for tensor in stage.feeds}


def _draw_codes(seed: int, count: int, codes: int, channel: int) -> NDArray[np.int64]:
    """Whole numbers from 0 to `codes` - 1: [count]."""
    quads = np.arange(-(-count // 4), dtype=np.uint32)
    rest = np.zeros_like(quads)
    words = np.stack(philox((quads, rest, rest + np.uint32(channel), rest), seed), axis=-1)
    return words.reshape(-1)[:count].astype(np.int64) % codes


def record_probe(sizes: Mapping[str, int], seed: int, outputs: Mapping[str, Array]) -> Probe:
    """Keep a few values of every output."""
    recorded = {}
    for name, value in outputs.items():
        stride = max(value.size // _PROBED, 1)
        recorded[name] = OutputProbe(shape=list(value.shape), stride=stride, values=[float(v) for v in value.reshape(-1)[::stride]])
    return Probe(sizes=dict(sizes), seed=seed, outputs=recorded)


def _fits(probe: Probe, stage: StageSpec) -> bool:
    """Whether all that was recorded has the names and sizes of the stage's tensors."""
    axes = {axis.name: axis for axis in stage.axes}
    if probe.sizes.keys() != axes.keys() or probe.outputs.keys() != {tensor.name for tensor in stage.outputs}:
        return False
    if not all(axis.minimum <= probe.sizes[name] <= axis.maximum for name, axis in axes.items()):
        return False
    shapes = {tensor.name: tensor.resolve(probe.sizes) for tensor in stage.outputs}
    return all(
        tuple(recorded.shape) == shapes[name] and len(recorded.values) == -(-math.prod(shapes[name]) // recorded.stride)
        for name, recorded in probe.outputs.items()
    )


def probe_error(probe: Probe, outputs: Mapping[str, Array]) -> float:
    """`relative_error` of the worst output against the recorded values."""
    produced = {name: outputs[name].reshape(-1)[:: recorded.stride] for name, recorded in probe.outputs.items()}
    return relative_error(produced, _values(probe))


def _values(probe: Probe) -> dict[str, Array]:
    return {name: np.array(recorded.values) for name, recorded in probe.outputs.items()}


def relative_error(outputs: Mapping[str, Array], expected: Mapping[str, Array]) -> float:
    """Distance of the worst output: relative L2, NaN if any value is not finite; of integers the share that differs."""
    return float(np.max([_distance(outputs[name], want.astype(np.float64)) for name, want in expected.items()]))


def _distance(value: Array, want: NDArray[np.float64]) -> float:
    if np.issubdtype(value.dtype, np.integer):
        return float(np.mean(value != want))
    return float(np.linalg.norm(value.astype(np.float64) - want) / max(float(np.linalg.norm(want)), 1e-30))
