"""One backend in a process of its own: its loops against those of the host, and what a step takes in each way."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.gpu.cases import HOST, LOOP, Case, open_case
from benchmarks.gpu.checks import Check, check_kernels
from benchmarks.gpu.timing import Activity, copy_speed, time_on, time_torch, trace
from benchmarks.memory import weights_mb
from musicrt.runtime.bundle import Bundle
from musicrt.runtime.cuda.device import Device
from musicrt.runtime.errors import BackendError
from musicrt.runtime.measure import Measurement
from musicrt.runtime.model import load
from musicrt.runtime.select import BACKENDS

EAGER, COMPILED = "torch, eager, the network only", "torch.compile, the network only"
_NEAR = 1e-3
"""Of signals: noise by position differs in last bits, which a network in half precision makes more of."""


def check_device() -> dict[str, Any]:
    """In a fresh process: the GPU, its memory, and all kernels. Raises BackendError."""
    device = Device()
    checks = [check.to_json() for check in check_kernels(device)]
    return {"gpu": device.name, "architecture": device.architecture, "copy": copy_speed(device), "checks": checks}


def measure_backend(bundle: str, backend: str, threads: int | None, seconds: float, steps: int, repeats: int) -> dict[str, Any]:
    """In a fresh process: a backend that can run the bundle. Raises BackendError, BundleError where it can't."""
    with load(bundle, backend=backend, threads=threads) as codec:
        case = open_case(codec, seconds, steps)
        rows = time_ways(case, backend, repeats)
        if backend == "torch-cuda":
            rows += _time_network(bundle, case, repeats)
        stage, description = case.session.stage.name, str(codec.backend)
    floor = weights_mb(Path(bundle), [stage], BACKENDS[backend].flavour) * 1e6 if importlib.util.find_spec("onnx") else None
    return {"backend": description, "stage": stage, "steps": case.steps, "weights": floor, "rows": rows}


def time_ways(case: Case, backend: str, repeats: int) -> list[dict[str, Any]]:
    """Every way to run a loop: its time for a step, its distance from the host's (of that itself: from run to run), what the GPU did."""
    ways, rows = case.ways(), list[dict[str, Any]]()
    expected = ways[HOST]()
    for name, run in ways.items():
        title = f"{backend}, {name}"
        try:
            check = _compare(title, run(), expected)  # warms up, too
        except BackendError as error:
            if name != LOOP:  # which some drivers and backends do not have
                raise
            rows.append(_row(Measurement(name, (math.nan,), note="not run"), Check(title, math.nan, 0.0, str(error)), None))
            continue
        times = tuple(time_on(case.device, run) / case.steps for _ in range(repeats))
        rows.append(_row(Measurement(name, times, error=check.error), check, trace(run)))
    return rows


def _row(measurement: Measurement, check: Check | None, activity: Activity | None) -> dict[str, Any]:
    return {
        "measurement": measurement.to_json(),
        "check": None if check is None else check.to_json(),
        "activity": None if activity is None else asdict(activity),
    }


def _time_network(bundle: str, case: Case, repeats: int) -> Iterator[dict[str, Any]]:
    """A step of the network alone, in torch without our loops."""
    from musicrt.runtime.backends.torch import load_bundle_stages

    stage = case.session.stage
    module = load_bundle_stages(Bundle.open(bundle))[stage.name].cuda()
    for name, mode in ((EAGER, None), (COMPILED, "max-autotune")):
        try:
            measured = Measurement(name, tuple(time_torch(stage, module, case.feeds(), repeats, mode)))
        except BackendError as error:
            measured = Measurement(name, (math.nan,), note=str(error))
        yield _row(measured, None, None)


def _compare(name: str, got: NDArray[Any], expected: NDArray[Any]) -> Check:
    if got.dtype.kind == "i":
        return Check(name, float(np.mean(got != expected)), 0.0)
    return Check(name, float(np.linalg.norm(got - expected) / np.linalg.norm(expected)), _NEAR)
