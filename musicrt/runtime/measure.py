"""Measuring calls: raw times, peak memory and cold start, each contender in a fresh process of its own."""

from __future__ import annotations

import importlib
import importlib.metadata
import json
import logging
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from itertools import chain
from pathlib import Path
from typing import Any, Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from musicrt.runtime import errors
from musicrt.runtime.errors import BackendError, InputError, MusicRTError
from musicrt.runtime.processor import count_cores

T = TypeVar("T")
_PACKAGES = ("musicrt", "numpy", "scipy", "onnxruntime", "onnxruntime-gpu", "openvino", "torch")
_CHILD = "from musicrt.runtime.measure import serve; serve()"
_started = time.time()  # overwritten in a child of `run_isolated` by the moment at which it was started


@dataclass(frozen=True)
class Measurement:
    """What was measured of one call, raw; the statistics are properties.

    times: seconds of each repeat. audio_seconds: audio that one call makes or consumes. peaks_mb, cold_starts, idle: one value for
    each process that took part; the last is `idle_cpu`. error: relative L2 distance from the reference.
    """

    name: str
    times: tuple[float, ...]
    audio_seconds: float | None = None
    peaks_mb: tuple[float, ...] = ()
    cold_starts: tuple[float, ...] = ()
    error: float | None = None
    note: str = ""
    idle: tuple[float, ...] = ()

    @property
    def p50(self) -> float:
        """Median time in seconds."""
        return float(np.percentile(self.times, 50))

    @property
    def p95(self) -> float:
        """95th percentile of the times in seconds, interpolated between the repeats."""
        return float(np.percentile(self.times, 95))

    @property
    def p99(self) -> float:
        """99th percentile of the times in seconds, interpolated between the repeats."""
        return float(np.percentile(self.times, 99))

    @property
    def real_time_factor(self) -> float | None:
        """Median processing time for each second of audio; below 1 is faster than real time."""
        return self.p50 / self.audio_seconds if self.audio_seconds else None

    @property
    def peak_mb(self) -> float | None:
        """Highest peak memory of any process, in MB of 10**6 bytes."""
        return max(self.peaks_mb, default=None)

    @property
    def cold_start(self) -> float | None:
        """Median seconds from the start of a process to its first result."""
        return float(np.median(self.cold_starts)) if self.cold_starts else None

    @property
    def idle_cpu(self) -> float | None:
        """Median CPU seconds of a process in a second in which it had nothing to do."""
        return float(np.median(self.idle)) if self.idle else None

    def to_json(self) -> dict[str, Any]:
        """Raw values and statistics as JSON values."""
        statistics = ("p50", "p95", "p99", "real_time_factor", "peak_mb", "cold_start", "idle_cpu")
        return {**asdict(self), **{name: getattr(self, name) for name in statistics}}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """The inverse of `to_json`."""
        known = {field.name: values[field.name] for field in fields(cls) if field.name in values}
        arguments: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in known.items()}
        return cls(**arguments)

    @classmethod
    def merge(cls, parts: Sequence[Self]) -> Self:
        """One measurement from those of several processes: raw values together, the rest as in the first. Raises InputError."""
        names = sorted({part.name for part in parts})
        if len(names) != 1:
            raise InputError(f"got measurements of {', '.join(names) or 'nothing'}, expected those of one call")
        return replace(
            parts[0],
            times=tuple(chain.from_iterable(part.times for part in parts)),
            peaks_mb=tuple(chain.from_iterable(part.peaks_mb for part in parts)),
            cold_starts=tuple(chain.from_iterable(part.cold_starts for part in parts)),
            idle=tuple(chain.from_iterable(part.idle for part in parts)),
        )


def measure(call: Callable[[], object], warmup: int = 1, repeats: int = 5) -> tuple[float, ...]:
    """Seconds of each of `repeats` calls, after `warmup` calls that are not timed. Raises InputError."""
    if warmup < 0 or repeats < 1:
        raise InputError(f"got {warmup} warm-up calls and {repeats} repeats, expected 0 or more and 1 or more")
    for _ in range(warmup):
        call()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return tuple(times)


def measure_task(name: str, call: Callable[[], T], repeats: int, audio_seconds: float | None = None) -> tuple[Measurement, T]:
    """In a fresh process: a call with its cold start, the peak of the process, and what it does when idle; and what it gave."""
    result = call()
    cold = since_start()  # the first call is the warm-up of the others
    times, peak = measure(call, 0, repeats), peak_memory_mb()
    return Measurement(name, times, audio_seconds, (peak,), (cold,), idle=(measure_idle(),)), result


def measure_idle(seconds: float = 1.0) -> float:
    """CPU seconds that this process takes, in all its threads, while it waits so long."""
    busy = time.process_time()
    time.sleep(seconds)
    return time.process_time() - busy


def peak_memory_mb() -> float:
    """Peak resident memory of this process so far, in MB of 10**6 bytes. Raises InputError where the system does not tell."""
    try:
        import resource
    except ImportError:
        raise InputError(f"peak memory can't be measured on {platform.system()}; run the benchmark on Linux or macOS") from None
    status = Path("/proc/self/status")
    if status.is_file():  # Linux: ru_maxrss goes on from the peak of the process that started this one
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024 / 1e6
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1e6 if sys.platform == "darwin" else peak * 1024 / 1e6


def since_start() -> float:
    """Seconds since `run_isolated` started this process, so interpreter and imports included."""
    return time.time() - _started


def run_isolated(target: str, arguments: Mapping[str, Any], environment: Mapping[str, str] | None = None) -> dict[str, Any]:
    """Call `target`, "module:function", in a fresh Python process; arguments and result pass as JSON.

    environment: variables that it has beside those of this process.
    Raises the MusicRTError that `target` raises; for any other failure BackendError with the end of what the process wrote to stderr.
    """
    with tempfile.TemporaryDirectory(prefix="musicrt-measure-") as folder:
        answer = Path(folder) / "answer.json"
        # The child finds modules where this process does, however that came about.
        paths = {"PYTHONPATH": os.pathsep.join(path or str(Path.cwd()) for path in sys.path)}
        request = {"target": target, "arguments": dict(arguments), "answer": str(answer), "started": time.time()}
        process = subprocess.run(
            [sys.executable, "-c", _CHILD],
            input=json.dumps(request),
            capture_output=True,
            text=True,
            check=False,
            env={**os.environ, **(environment or {}), **paths},
        )
        if process.returncode or not answer.is_file():
            said = " | ".join(line.strip() for line in process.stderr.strip().splitlines()[-3:]) or "it wrote nothing to stderr"
            raise BackendError(f"{target} failed in a process of its own (exit code {process.returncode}): {said}")
        content = json.loads(answer.read_text())
        if "error" in content:
            raise getattr(errors, content["error"], MusicRTError)(content["message"])
        result: dict[str, Any] = content["result"]
        return result


def serve() -> None:
    """The other side of `run_isolated`: read a request from stdin, call, write the answer."""
    global _started
    logging.basicConfig()
    request = json.load(sys.stdin)
    _started = request["started"]
    module, _, function = request["target"].partition(":")
    try:
        content = {"result": getattr(importlib.import_module(module), function)(**request["arguments"])}
    except MusicRTError as error:
        content = {"error": type(error).__name__, "message": str(error)}
    Path(request["answer"]).write_text(json.dumps(content))


def describe_environment(threads: int | None = None) -> dict[str, Any]:
    """What a measurement depends on besides the code. Holds neither host name nor paths."""
    versions = {}
    for name in _PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {
        "system": f"{platform.system()} {platform.machine()}",
        "cpu": _cpu_model(),
        "cores": count_cores(),
        "memory_gb": _memory_gb(),
        "load_average": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        "threads": threads,
        "python": platform.python_version(),
        "versions": versions,
    }


def _cpu_model() -> str:
    file = Path("/proc/cpuinfo")
    lines = file.read_text().splitlines() if file.is_file() else []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.processor() or platform.machine()


def _memory_gb() -> float | None:
    if "SC_PHYS_PAGES" not in getattr(os, "sysconf_names", {}):
        return None
    return round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 1e9, 1)


def synthesise_music(seconds: float, sample_rate: int, channels: int = 1) -> NDArray[np.float32]:
    """A signal to measure with, always the same: decaying chords and a little noise, float32 [channels, samples] in [-1, 1]."""
    time_axis = np.arange(round(seconds * sample_rate)) / sample_rate
    noise = np.random.default_rng(20240808).standard_normal((channels, len(time_axis)))
    signal = 0.01 * noise
    for channel in range(channels):
        for voice, ratio in enumerate((1.0, 1.25, 1.5, 2.0)):
            phase = 2.0 * np.pi * 110.0 * ratio * (1 + channel) * time_axis
            beat = np.exp(-3.0 * ((time_axis * 2.0 + voice / 4.0) % 1.0))
            signal[channel] += 0.08 * beat * (np.sin(phase) + 0.5 * np.sin(3.0 * phase))
    return signal.astype(np.float32)


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]], text_columns: int = 1) -> str:
    """A table whose first columns are text and whose others are numbers."""
    lines = [header, [*["---"] * text_columns, *["---:"] * (len(header) - text_columns)], *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
