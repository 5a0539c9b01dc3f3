"""A module with the part of TensorRT's API that runs engines, and a GPU to go with it: host memory, and a record of all calls."""

from __future__ import annotations

import enum
from typing import Any

import numpy as np

from musicrt.runtime.cuda.array import DeviceArray
from musicrt.runtime.session import Array
from musicrt.runtime.spec import StageSpec, updated_name
from tests.runtime import fake_gpu

__version__ = "1.7.1.116"
calls: list[tuple[Any, ...]] = []
settings: dict[str, Any] = {}


def named(kind: str) -> list[tuple[Any, ...]]:
    """What follows the name in all calls of one."""
    return [call[1:] for call in calls if call[0] == kind]


class ExecutionContextAllocationStrategy(enum.Enum):
    STATIC, ON_PROFILE_CHANGE, USER_MANAGED = range(3)


class DynamicShapesKernelSpecializationStrategy(enum.Enum):
    LAZY, EAGER, NONE = range(3)


class DataType(enum.Enum):
    FLOAT, HALF, INT64 = "float32", "float16", "int64"


class RuntimeConfig:
    def __init__(self) -> None:
        self.strategy = ExecutionContextAllocationStrategy.STATIC
        self.dynamic_shapes_kernel_specialization_strategy = DynamicShapesKernelSpecializationStrategy.LAZY

    def set_execution_context_allocation_strategy(self, strategy: ExecutionContextAllocationStrategy) -> None:
        self.strategy = strategy


class Severity(enum.Enum):
    INTERNAL_ERROR, ERROR, WARNING, INFO, VERBOSE = range(5)


class ILogger:
    """Those of the real one take no arguments either."""


class IErrorRecorder:
    pass


class Context:
    """Takes every call, unless `settings["refuse"]` names it; doubles each input into the output of the same place."""

    def __init__(self) -> None:
        self.error_recorder: Any = None

    def set_optimization_profile_async(self, index: int, stream: int) -> bool:
        return self._note("profile", index, stream)

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        return self._note("shape", name, shape)

    def infer_shapes(self) -> list[str]:
        return []

    def update_device_memory_size_for_shapes(self) -> int:
        return int(settings.get("scratch", 1000))

    def set_device_memory(self, address: int, size: int) -> None:
        self._note("memory", address, size)

    def set_tensor_address(self, name: str, address: int) -> bool:
        return self._note("address", name, address)

    def execute_async_v3(self, stream: int) -> bool:
        if not self._note("execute", stream):
            return False
        addresses = {call[1]: call[2] for call in calls if call[0] == "address"}
        memory = {name: FakeDevice.memory[address] for name, address in addresses.items()}
        settings["device"].enqueue(("run",), lambda: settings["compute"](memory))
        return True

    def _note(self, *call: Any) -> bool:
        calls.append(call)
        if settings.get("refuse") == call[0]:
            settings["logger"].log(Severity.ERROR, f"no {call[0]} today")
            return False
        return True


class Engine:
    """Has the tensors of `settings["stage"]`."""

    def __init__(self) -> None:
        stage: StageSpec = settings["stage"]
        self._dtypes = {tensor.name: DataType(tensor.dtype) for tensor in (*stage.feeds, *stage.outputs)}
        self._dtypes |= {updated_name(state.name): DataType(state.dtype) for state in stage.states}
        self.num_io_tensors = len(self._dtypes)

    def get_tensor_name(self, index: int) -> str:
        return list(self._dtypes)[index]

    def get_tensor_dtype(self, name: str) -> DataType:
        return self._dtypes[name]

    def create_runtime_config(self) -> RuntimeConfig:
        return RuntimeConfig()

    def create_execution_context(self, how: ExecutionContextAllocationStrategy | RuntimeConfig) -> Context | None:
        if isinstance(how, RuntimeConfig):
            calls.append(("context", how.strategy.name, how.dynamic_shapes_kernel_specialization_strategy.name))
        else:
            calls.append(("context", how.name))
        return None if settings.get("refuse") == "context" else Context()


class Runtime:
    def __init__(self, logger: Any) -> None:
        settings["logger"] = logger

    def deserialize_cuda_engine(self, data: bytes) -> Engine | None:
        calls.append(("deserialize", len(data)))
        if settings.get("refuse") == "deserialize":
            settings["logger"].log(Severity.ERROR, "the plan\nis of another version")
            return None
        return Engine()


class Refitter:
    def __init__(self, engine: Engine, logger: Any) -> None:
        del engine, logger

    def refit_cuda_engine(self) -> bool:
        calls.append(("refit",))
        return True


class OnnxParserRefitter:
    def __init__(self, refitter: Refitter, logger: Any) -> None:
        del refitter, logger

    def refit_from_file(self, path: str) -> bool:
        calls.append(("weights", path))
        return settings.get("refuse") != "weights"


class FakeDevice(fake_gpu.FakeDevice):
    """Knows its memory by address."""

    memory: dict[int, Array] = {}  # noqa: RUF012 - one GPU

    def __init__(self, stream: int | None = None, *, graphs: bool = True) -> None:
        super().__init__(stream, graphs=graphs)
        settings["device"] = self

    def allocate(self, size: int) -> Any:
        buffer = super().allocate(size)
        calls.append(("allocate", size))
        self.memory[buffer.handle] = fake_gpu.memory_of(DeviceArray(buffer.handle, (size,), np.dtype(np.uint8), buffer))
        return buffer
