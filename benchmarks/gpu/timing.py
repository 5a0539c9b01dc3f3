"""Time on a GPU: events on its stream, what its memory gives, and what it was busy with."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from musicrt.runtime.cuda.device import Device
from musicrt.runtime.errors import BackendError
from musicrt.runtime.session import Array
from musicrt.runtime.spec import StageSpec

_COPIED = 512_000_000
"""Bytes of an array that no cache holds."""


@dataclass(frozen=True)
class Activity:
    """What a GPU did in some stretch of time. launches: kernels and copies; busy, gaps: seconds with one of them running, and with none."""

    launches: int
    busy: float
    gaps: float

    @classmethod
    def of(cls, stretches: Iterable[tuple[float, float]]) -> Activity:
        """Of kernels and copies that ran from when to when, in seconds; several may have run at once."""
        launches, busy, reached = 0, 0.0, None
        first = 0.0
        for begin, end in sorted(stretches):
            if reached is None:
                first = reached = begin
            launches += 1
            busy += max(end - max(begin, reached), 0.0)
            reached = max(reached, end)
        return cls(launches, busy, 0.0 if reached is None else reached - first - busy)


def time_on(device: Device, work: Callable[[], object]) -> float:
    """Seconds between two events on the device's stream, with the work in between."""
    from cuda.core import EventOptions

    options = EventOptions(timing_enabled=True)
    start = device.core_stream.record(options=options)
    work()
    end = device.core_stream.record(options=options)
    end.sync()
    return float(end - start) / 1e3


def copy_speed(device: Device) -> float:
    """Bytes per second that a copy within the memory reads and writes, the best of ten."""
    from cuda.bindings import driver

    source, target = (device.empty((_COPIED,), "uint8") for _ in range(2))
    device.clear(source)

    def copy() -> None:
        (failed,) = driver.cuMemcpyDtoDAsync(target.address, source.address, _COPIED, driver.CUstream(device.stream))
        if int(failed) != 0:
            raise BackendError(f"CUDA failed: {failed}; look for other programs on the GPU")

    return 2 * _COPIED / min(time_on(device, copy) for _ in range(10))


def trace(work: Callable[[], object]) -> Activity | None:
    """What the GPU does in a call, as torch's profiler sees it; None where torch has no CUDA."""
    if not _has_torch():
        return None
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        work()
    events = [event.time_range for event in profiler.events() or () if event.device_type.name == "CUDA"]
    return Activity.of((event.start / 1e6, event.end / 1e6) for event in events)


def time_torch(stage: StageSpec, module: Callable[..., object], feeds: Mapping[str, Array], repeats: int, mode: str | None) -> list[float]:
    """Seconds of calls of a torch module on the GPU, whose inputs lie there. mode: of torch.compile; None: eager. Raises BackendError."""
    import torch

    call = module if mode is None else torch.compile(module, mode=mode)
    inputs = [torch.from_numpy(feeds[tensor.name].copy()).cuda() for tensor in stage.feeds]
    times = []
    with torch.inference_mode():
        try:
            for number in range(repeats + 3):  # compiling, warming up, recording
                start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
                start.record()
                call(*inputs)
                end.record()
                end.synchronize()
                if number >= 3:
                    times.append(start.elapsed_time(end) / 1e3)
        except RuntimeError as error:
            raise BackendError(f"torch failed: {' '.join(str(error).split())[:300]}") from error
    return times


def _has_torch() -> bool:
    if not importlib.util.find_spec("torch"):
        return False
    import torch

    return torch.cuda.is_available()
