"""The members of the TensorRT family: they share one Python API, and what differs between them is written down here, as data.

`tensorrt` (10 and 11: data centre, Jetson) builds on the machine that runs the engine. `tensorrt-rtx` (GeForce, RTX) builds anywhere,
for one or several GPU architectures. Nothing else in the package asks which of the two it works with.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from musicrt.runtime.driver import cuda_obstacle
from musicrt.runtime.errors import BackendError

TARGETS = ("sm_75", "sm_80", "sm_86", "sm_89", "sm_120", "sm_121")
"""Architectures that engines can be built for ahead of time, in the words of the CUDA compilers."""
_TYPES = {"FLOAT": "float32", "HALF": "float16", "BF16": "bfloat16"}


@dataclass(frozen=True)
class Family:
    """One member. `name`: also that of its backend and of the extra that installs it. `module`: what is imported.

    ahead: whether it builds for given targets on a machine without a GPU; else for the GPU of the machine only.
    targets: what is built for where none is named (nothing: the GPU of the machine).
    flags: names of builder flags that every engine gets.
    oldest, newest: the versions whose API is the one used here, the first included, the second not.
    """

    name: str
    module: str
    ahead: bool
    targets: tuple[str, ...]
    flags: tuple[str, ...]
    oldest: str
    newest: str

    @property
    def install(self) -> str:
        """The command that installs it."""
        return f"pip install 'musicrt[{self.name}]'"

    def load(self) -> Any:
        """Its Python module. Raises BackendError where it is not installed, can't be imported, or is of another version."""
        if not importlib.util.find_spec(self.module):
            raise BackendError(f"{self.name} is not installed ({self.install})")
        try:
            module = importlib.import_module(self.module)
        except (ImportError, OSError) as error:
            raise BackendError(f"{self.name} can't be imported ({error})") from None
        version = str(module.__version__)
        if not _numbers(self.oldest) <= _numbers(version) < _numbers(self.newest):
            raise BackendError(f"{self.name} {version} is installed, expected {self.oldest} or newer, below {self.newest} ({self.install})")
        return module

    def build_obstacle(self) -> str | None:
        """Why no engines can be built here; None if they can."""
        if not self.ahead and (reason := cuda_obstacle()):
            return f"{reason}; {self.name} builds on the machine that runs the engine"
        return self._load_obstacle()

    def run_obstacle(self) -> str | None:
        """Why no engines can run here; None if they can. The driver comes first: some calls crash without one."""
        if reason := cuda_obstacle() or self._load_obstacle():
            return reason
        missing = [name for name in ("cuda.core", "cuda.bindings") if not _is_there(name)]
        return f"{missing[0].replace('.', '-')} is not installed ({self.install})" if missing else None

    def _load_obstacle(self) -> str | None:
        try:
            self.load()
        except BackendError as error:
            return str(error)
        return None


FAMILIES: Mapping[str, Family] = {
    one.name: one
    for one in (
        # 10.14 is the first with attention as a layer.
        Family("tensorrt", "tensorrt", ahead=False, targets=(), flags=(), oldest="10.14", newest="12"),
        # All memory is the caller's: what else is allocated at run time would rule out the capture of CUDA graphs.
        Family(
            "tensorrt-rtx",
            "tensorrt_rtx",
            ahead=True,
            targets=("sm_80", "sm_86", "sm_89", "sm_120"),
            flags=("REQUIRE_USER_ALLOCATION",),
            oldest="1.5",
            newest="2",
        ),
    )
}


def find_family(name: str) -> Family:
    """The member called `name`. Raises BackendError for an unknown one."""
    if name not in FAMILIES:
        raise BackendError(f"unknown engine {name!r}; known: {', '.join(FAMILIES)}")
    return FAMILIES[name]


def type_name(trt: Any, dtype: Any) -> str:
    """A type of TensorRT in the words of numpy."""
    name = str(trt.DataType(dtype).name)
    return _TYPES.get(name, name.lower())


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".") if part.isdecimal())


def _is_there(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # its parent is not there
        return False
