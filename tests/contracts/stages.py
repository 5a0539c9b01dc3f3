"""Every stage of every system with its tiny hyper-parameters, and sessions, inputs and results of stages."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest

from musicrt.runtime.backends.tensorrt import TensorrtSession
from musicrt.runtime.checks import check_array
from musicrt.runtime.cuda.device import Arena
from musicrt.runtime.cuda.engine import OpenEngine, open_plan
from musicrt.runtime.fake_session import FakeSession
from musicrt.runtime.manifest import ProfileEntry
from musicrt.runtime.registry import build_spec, system_names
from musicrt.runtime.select import BACKENDS
from musicrt.runtime.session import Array, Session
from musicrt.runtime.spec import StageSpec
from musicrt.runtime.tensorrt_messages import messages_of
from musicrt.runtime.verify import probe_inputs, probe_sizes
from tests.conftest import tiny_layout
from tests.runtime import fake_tensorrt

Feeds = dict[str, Array]
OpenStage = Callable[[str, str, str], Session]

SPECS = {system: build_spec(system, tiny_layout(system)["config"], "tiny") for system in system_names()}
STAGES = [(system, stage.name) for system, spec in SPECS.items() for stage in spec.stages]
# Those of TensorRT run engines on a GPU: here their session runs on a fake of its API, whose engines compute what `fake_session` does.
ENGINE = "engine"
USABLE = [name for name, backend in BACKENDS.items() if backend.obstacle() is None and not name.startswith("tensorrt")]
EVERYWHERE = [pytest.param((kind, *stage), id="-".join((kind, *stage))) for kind in (*USABLE, "fake", ENGINE) for stage in STAGES]


def fake_session(stage: StageSpec) -> FakeSession:
    """Its outputs have the right shapes and depend on every input."""

    def compute(feeds: Mapping[str, Array]) -> Mapping[str, Array]:
        sizes: dict[str, int] = {}
        for tensor in stage.feeds:
            check_array(tensor, feeds[tensor.name], sizes, stage.name)
        level = 1 + sum(float(np.abs(feeds[tensor.name]).sum(dtype=np.float64)) for tensor in stage.inputs) % 1000  # float16 holds it
        for state in stage.states:
            feeds[state.name][:, :, 0] = level
        return {tensor.name: np.full(tensor.resolve(sizes), level, tensor.dtype) for tensor in stage.outputs}

    return FakeSession(stage, compute)


def engine_session(stage: StageSpec) -> TensorrtSession:
    """A session of an engine for all sizes of the spec, on a GPU of host memory. One at a time."""
    inner = fake_session(stage)

    def compute(memory: dict[str, Array]) -> None:
        shapes = {call[1]: call[2] for call in fake_tensorrt.calls if call[0] == "shape"}
        feeds = {}
        for tensor in stage.feeds:
            count = int(np.prod(shapes[tensor.name]))
            feeds[tensor.name] = memory[tensor.name].view(tensor.dtype)[:count].reshape(shapes[tensor.name])
        for name, value in inner.run(feeds).items():
            memory[name][: value.nbytes] = np.ascontiguousarray(value).reshape(-1).view(np.uint8)

    fake_tensorrt.calls.clear()
    fake_tensorrt.settings.clear()
    fake_tensorrt.FakeDevice.memory.clear()
    fake_tensorrt.settings.update(compute=compute, stage=stage)
    whole = ProfileEntry(bucket="whole", axes={axis.name: (axis.minimum, axis.optimum, axis.maximum) for axis in stage.axes})
    messages, device = messages_of(fake_tensorrt), fake_tensorrt.FakeDevice()
    opened = open_plan(fake_tensorrt, stage.name, Path(__file__), messages)
    return TensorrtSession(stage, OpenEngine(fake_tensorrt, stage, opened, [whole], messages), device, Arena(device))


def make_feeds(stage: StageSpec, base: int = 2, seed: int = 1) -> Feeds:
    feeds = probe_inputs(stage, probe_sizes(stage, base), seed)
    return {tensor.name: feeds[tensor.name].astype(tensor.dtype) for tensor in stage.feeds}


def make_results(stage: StageSpec, base: int = 2) -> Feeds:
    """Buffers that no stage leaves as they are: see `is_untouched`."""
    sizes = probe_sizes(stage, base)
    return {
        tensor.name: np.full(tensor.resolve(sizes), -1 if tensor.dtype == "int64" else np.nan, tensor.dtype) for tensor in stage.outputs
    }


def is_untouched(result: Array) -> bool:
    return bool((result == -1).all() if result.dtype == np.int64 else np.isnan(result).all())


def states_of(session: Session) -> set[str]:
    return {state.name for state in session.states}
