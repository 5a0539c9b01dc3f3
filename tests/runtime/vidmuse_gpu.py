"""VidMuse with its language model on a fake GPU."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from musicrt.runtime.loops.sampling import Tokens
from musicrt.runtime.models.vidmuse.pipeline import Pipeline
from tests.runtime.fake_gpu import Call, FakeDevice, FakeGpuSession
from tests.runtime.host_kernels import HostKernels
from tests.runtime.vidmuse_codecs import clip, open_light

COLUMNS = 15
"""Of a window of 12 timesteps, behind the first column."""


class Gpu(FakeDevice):
    """Has graphs with loops: the host runs the body until a kernel has set its condition to 0. Kernels have one thread, which is quick."""

    @functools.cached_property
    def kernels(self) -> HostKernels:
        return HostKernels(lambda name, work: self.enqueue(("launch", name), work), sorting=1)

    def record_loop(self, work: Callable[[int], None]) -> Callable[[], None]:
        condition = np.zeros(1, np.uint32)
        body = self.record(lambda: work(condition.ctypes.data))

        def replay() -> None:
            self.calls.append(("loop",))
            condition[0] = 1
            while condition[0]:
                body()

        return replay


def open_on(device: Gpu, limits: Mapping[str, tuple[int, int]] | None = None, flavour: str = "ort") -> Pipeline:
    """The light pipeline, with its language model on a device."""
    pipeline, sessions = open_light(limits=limits, flavour=flavour)
    pipeline.model._sessions["lm"] = FakeGpuSession(sessions["lm"], device)
    return pipeline


def write(pipeline: Pipeline, batch: int = 1, timesteps: int = 12, **options: Any) -> Tokens:
    return np.concatenate(pipeline.generate_window([clip(first=9 * row) for row in range(batch)], timesteps, **options))


def names(calls: list[Call]) -> list[str]:
    """Kernels by their own names, all else by what was called."""
    return [call[call[0] == "launch"] for call in calls]
