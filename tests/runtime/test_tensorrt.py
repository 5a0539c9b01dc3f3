"""The backends for TensorRT, as far as that goes without a GPU: what is refused and why, and the order of calls on a fake of its API."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from musicrt.runtime.backends.tensorrt import TensorrtSession
from musicrt.runtime.cuda.array import DeviceArray
from musicrt.runtime.cuda.device import Arena
from musicrt.runtime.cuda.engine import OpenEngine, open_plan
from musicrt.runtime.errors import BackendError, EngineError, InputError
from musicrt.runtime.manifest import ProfileEntry
from musicrt.runtime.precision import Tolerance
from musicrt.runtime.spec import StageSpec
from musicrt.runtime.tensorrt_messages import messages_of
from musicrt.runtime.tensors import Axis, TensorSpec
from tests.conftest import refused
from tests.runtime import fake_tensorrt as fake
from tests.runtime.fake_tensorrt import named

BATCH, LENGTH, ROOM = Axis("batch", 1, 1, 8), Axis("length", 1, 4, 64), Axis("room", 1, 8, 64)
X, Y = TensorSpec("x", "float32", (BATCH, LENGTH)), TensorSpec("y", "float32", (BATCH, LENGTH))
CACHE = TensorSpec("cache", "float16", (BATCH, ROOM))
STAGE = StageSpec("small", "", (X,), (Y,), Tolerance(1e-5), states=(CACHE,))
PROFILES = [
    ProfileEntry(bucket="latency", axes={"batch": (1, 1, 2), "length": (1, 4, 8), "room": (1, 8, 16)}),
    ProfileEntry(bucket="throughput", axes={"batch": (1, 8, 8), "length": (1, 4, 4), "room": (1, 8, 8)}),
]


def compute(memory: dict[str, Any]) -> None:
    """y = 2 x, as far as both go, and the states are all ones."""
    memory["y"].view(np.float32)[...] = 2 * memory["x"].view(np.float32)[: memory["y"].nbytes // 4]
    assert memory["updated_cache"] is memory["cache"]
    memory["updated_cache"].view(np.float16)[...] = 1


@pytest.fixture(autouse=True)
def settings() -> Iterator[dict[str, Any]]:
    fake.calls.clear()
    fake.settings.clear()
    fake.settings.update(compute=compute, stage=STAGE)
    yield fake.settings
    fake.settings.clear()


def open_session(arena: Arena | None = None, device: fake.FakeDevice | None = None) -> TensorrtSession:
    device = device or fake.FakeDevice()
    messages = messages_of(fake)
    opened = open_plan(fake, "small", Path(__file__), messages)
    return TensorrtSession(STAGE, OpenEngine(fake, STAGE, opened, PROFILES, messages), device, arena or Arena(device))


def feeds(batch: int = 1, length: int = 4, room: int = 8) -> dict[str, Any]:
    return {"x": np.arange(batch * length, dtype=np.float32).reshape(batch, length), "cache": np.zeros((batch, room), np.float16)}


def test_a_call_sets_all_that_tensorrt_wants_in_its_order() -> None:
    session = open_session()
    given = feeds()
    outputs = session.run(given)
    np.testing.assert_array_equal(outputs["y"], [[0, 2, 4, 6]])
    assert (given["cache"] == 1).all()
    order = list(dict.fromkeys(call[0] for call in fake.calls if call[0] != "allocate"))
    assert order == ["deserialize", "context", "profile", "shape", "memory", "address", "execute"]
    assert named("context") == [("USER_MANAGED",)]
    assert named("profile") == [(0, 77)]
    assert named("shape") == [("x", (1, 4)), ("cache", (1, 8))]
    assert [name for name, _ in named("address")] == ["x", "cache", "y", "updated_cache"]
    assert dict(named("address"))["cache"] == dict(named("address"))["updated_cache"]
    assert named("execute") == [(77,)]


def test_shapes_are_set_again_only_when_they_change() -> None:
    session = open_session()
    for _ in range(3):
        session.run(feeds())
    assert len(named("profile")) == 1
    assert len(named("shape")) == 2
    allocated = len(named("allocate"))
    session.run(feeds(length=3))  # smaller: in the same memory
    assert len(named("shape")) == 4
    assert len(named("allocate")) == allocated
    session.run(feeds(batch=8))
    assert named("profile") == [(0, 77), (1, 77)]
    assert named("shape")[-2:] == [("x", (8, 4)), ("cache", (8, 8))]


def test_sizes_beyond_every_profile_are_refused() -> None:
    session = open_session()
    with refused(InputError, "small", "length 9", "latency", "throughput", "length 1 to 8", "--profile"):
        session.run(feeds(length=9))
    assert named("execute") == []
    assert session.run(feeds())["y"].shape == (1, 4)


@pytest.mark.parametrize("call", ["profile", "shape", "address", "execute"])
def test_refused_call_is_an_error_with_its_reason(call: str, settings: dict[str, Any]) -> None:
    session = open_session()
    settings["refuse"] = call
    with refused(BackendError, "small", f"no {call} today"):
        session.run(feeds())
    settings["refuse"] = ""
    assert session.run(feeds())["y"].shape == (1, 4)  # nothing is taken for done


def test_plan_and_context_that_do_not_open(settings: dict[str, Any]) -> None:
    settings["refuse"] = "deserialize"
    with refused(EngineError, "small", "the plan is of another version", f"delete {Path(__file__).parent}, then build the engines again"):
        open_session()
    settings["refuse"] = "context"
    with refused(EngineError, "small", "no execution context"):
        open_session()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"states": (replace(CACHE, dtype="float32"),)}, ("'cache'", "is float16, expected float32")),
        ({"inputs": (replace(X, dtype="float16"),)}, ("'x'", "is float32, expected float16")),
        ({"outputs": (Y, replace(Y, name="z"))}, ("'z'", "is missing, expected float32")),
        ({"states": ()}, ("'cache'", "is float16, expected missing")),
    ],
)
def test_plan_of_another_spec_is_refused(changes: dict[str, Any], words: tuple[str, ...]) -> None:
    """Its bytes would be read as what they are not."""
    messages, stage = messages_of(fake), replace(STAGE, **changes)
    with refused(EngineError, "small", *words, "export the bundle again, then build its engines"):
        OpenEngine(fake, stage, open_plan(fake, "small", Path(__file__), messages), PROFILES, messages)


def test_shapes_of_bound_calls_have_contexts_of_their_own() -> None:
    """What a graph was recorded of may not get other shapes after that."""
    device = fake.FakeDevice()
    session = open_session(device=device)

    def bind(length: int) -> Any:
        x, y = device.empty((1, length), np.float32), device.empty((1, length), np.float32)
        return session.bind_device({"x": x, **session.new_states({"batch": 1, "room": 8})}, {"y": y})

    first, second, other = bind(4), bind(4), bind(3)
    for call in (first, second, other, first, second, other):
        call()
    session.run(feeds(length=5))
    assert named("context") == [("USER_MANAGED",), ("USER_MANAGED", "EAGER"), ("USER_MANAGED", "EAGER")]
    assert [shape for name, shape in named("shape") if name == "x"] == [(1, 4), (1, 3), (1, 5)]
    del first, second, call
    bind(4)
    assert len(named("context")) == 4  # what nobody calls is not kept


def test_arrays_at_odd_addresses_are_refused() -> None:
    device = fake.FakeDevice()
    session, x = open_session(device=device), device.empty((1, 4), np.float32)
    moved = DeviceArray(x.address + 4, x.shape, x.dtype, x)
    with refused(InputError, "small", "x begins at 0x", "a multiple of 256 bytes", "pass a copy"):
        session.bind_device({"x": moved, **session.new_states({"batch": 1, "room": 8})}, {"y": device.empty((1, 4), np.float32)})


def test_scratch_memory_is_shared_and_grows(settings: dict[str, Any]) -> None:
    device = fake.FakeDevice()
    arena = Arena(device)
    first, second = open_session(arena, device), open_session(arena, device)
    first.run(feeds())
    settings["scratch"] = 5000
    second.run(feeds())
    first.run(feeds())
    (small, _), (large, _), (again, size) = named("memory")
    assert small != large == again
    assert size == 1000  # as much as it asked for, in the larger one
    assert arena.size == 5000
    order = [call for call in device.calls if call in (("wait",), ("allocate", 5000))]
    assert order == [("wait",), ("wait",), ("allocate", 5000), ("wait",), ("wait",)]  # the small one goes when nothing uses it
    assert device.generation == 2


def test_arrays_on_the_gpu_are_bound_without_copies() -> None:
    device = fake.FakeDevice(stream=5)
    session = open_session(device=device)
    x, y = device.empty((1, 4), np.float32), device.empty((1, 4), np.float32)
    states = session.new_states({"batch": 1, "room": 8})
    device.upload(feeds()["x"], x)
    call = session.bind_device({"x": x, **states}, {"y": y})
    assert named("execute") == []
    call()
    call()
    assert named("execute") == [(5,), (5,)]
    assert dict(named("address")) == {
        "x": x.address,
        "cache": states["cache"].address,
        "y": y.address,
        "updated_cache": states["cache"].address,
    }
    assert device.named("wait") == []
    result = np.empty((1, 4), np.float32)
    device.download(y, result)
    np.testing.assert_array_equal(result, [[0, 2, 4, 6]])


def test_arrays_on_the_gpu_are_checked() -> None:
    device = fake.FakeDevice()
    session = open_session(device=device)
    x, y = device.empty((1, 4), np.float32), device.empty((1, 4), np.float32)
    states = session.new_states({"batch": 1, "room": 8})
    with refused(InputError, "small", "['x', 'y']", "cache"):
        session.bind_device({"x": x}, {"y": y})
    with refused(InputError, "small", "x is float16"):
        session.bind_device({"x": device.empty((1, 4), np.float16), **states}, {"y": y})
    with refused(InputError, "small", "y has shape [1, 5]"):
        session.bind_device({"x": x, **states}, {"y": device.empty((1, 5), np.float32)})
    with refused(BackendError, "ndarray", "__cuda_array_interface__"):
        session.bind_device({"x": np.zeros((1, 4), np.float32), **states}, {"y": y})
    session.close()
    with refused(BackendError, "closed"):
        session.bind_device({"x": x, **states}, {"y": y})


def test_arrays_of_other_packages_are_taken() -> None:
    class Foreign:
        def __init__(self, strides: Any = None) -> None:
            self.__cuda_array_interface__ = {"shape": (2, 3), "typestr": "<f2", "data": (4096, False), "version": 3, "strides": strides}

    array = DeviceArray.of(Foreign())
    assert (array.address, array.shape, array.dtype.name, array.nbytes) == (4096, (2, 3), "float16", 12)
    assert DeviceArray.of(array) is array
    assert array.__cuda_array_interface__["data"] == (4096, False)
    with refused(BackendError, "C-contiguous"):
        DeviceArray.of(Foreign((2, 4)))
