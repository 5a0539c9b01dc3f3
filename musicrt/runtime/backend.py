"""What opens sessions: one kind of runtime, on a CPU or a GPU."""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from musicrt.runtime.driver import device_obstacle
from musicrt.runtime.errors import BackendError
from musicrt.runtime.precision import INT8, ORT, Precision
from musicrt.runtime.processor import bfloat16_obstacle
from musicrt.runtime.session import Session

if TYPE_CHECKING:
    from musicrt.runtime.cuda.device import Device


class Backend(ABC):
    """Opens sessions of one kind. Subclasses name what they are and write the three methods."""

    name: ClassVar[str]
    device: ClassVar[Literal["cpu", "cuda"]]
    extra: ClassVar[str]  # the extra of this package that installs it
    flavour: str = ORT  # of the graphs that it runs
    lowered: ClassVar[str] = INT8  # the flavour that it runs with the precision int8
    precisions: ClassVar[tuple[Precision, ...]] = ("float32",)
    """What it can compute networks in; the first if nobody asks."""

    def __init__(
        self, *, threads: int | None = None, stream: int | None = None, graphs: bool = True, precision: Precision | None = None
    ) -> None:
        """threads: CPU threads inside an operator; None: as many as the process may use.

        stream: the handle of a CUDA stream of the caller's, on which all work is enqueued then; graphs: whether CUDA graphs are wanted.
        precision: one of `precisions`; with int8 it runs the flavour `lowered`.
        Raises BackendError where a stream can't be worked on, or the precision can't be had.
        """
        self.precision: Precision = precision or self.precisions[0]
        if reason := self.precision_obstacle(self.precision):
            raise BackendError(f"{self.name} can't run here in {self.precision}: {reason}")
        if stream is not None and (reason := "it works on the host" if self.device == "cpu" else device_obstacle()):
            raise BackendError(f"{self.name} takes no CUDA stream: {reason}")
        self.threads, self.stream, self.graphs = threads, stream, graphs
        if self.precision == "int8":
            self.flavour = self.lowered

    @property
    def gpu(self) -> Device | None:
        """That of all its sessions; None: they work on host memory."""
        return None

    def turn(self) -> contextlib.AbstractContextManager[None]:
        """That of the calling thread on `gpu`, where there is one: sessions are opened in it."""
        return self.gpu.turn() if self.gpu else contextlib.nullcontext()

    @classmethod
    @abstractmethod
    def obstacle(cls) -> str | None:
        """Why this backend can't run on this machine; None if it can."""

    @classmethod
    def precision_obstacle(cls, precision: Precision) -> str | None:
        """Why it can't compute in that on this machine; None if it can, the packages provided."""
        if precision not in cls.precisions:
            return f"it computes in {' or '.join(cls.precisions)}, not in {precision}"
        return bfloat16_obstacle() if precision == "bfloat16" and cls.device == "cpu" else None

    def with_flavour(self, flavour: str) -> Self:
        """This backend on graphs of another flavour. Raises BackendError if it can't run those."""
        if flavour != self.flavour:
            raise BackendError(f"{self.name} runs no {flavour!r} graphs, only {self.flavour!r}; leave the flavour out")
        return self

    def check_bundle(self, bundle: Any) -> None:
        """Raises BackendError where a `Bundle` lacks what this backend runs. By default it lacks nothing."""
        del bundle

    @abstractmethod
    def open_session(self, bundle: Any, stage: str) -> Session:
        """Open a stage of a `Bundle`. Raises BackendError, BundleError."""

    @abstractmethod
    def describe(self) -> str:
        """What truly runs: package, version, provider, threads."""


_NO_MEMORY = ("bad_alloc", "bad allocation", "allocate memory", "failed to allocate", "out of memory", "can't alloc")


def failure(stage: str, library: str, error: Exception) -> BackendError:
    """What a library raised while it opened or ran a stage, as an error of ours; that it lacked memory is said first."""
    said = " ".join(str(error).split())
    if isinstance(error, MemoryError) or any(words in said.lower() for words in _NO_MEMORY):
        remedy = "ask for less at once: shorter audio or windows, smaller batches, fewer workers"
        return BackendError(f"{stage}: {library} got not enough memory; {remedy}")
    return BackendError(f"{stage}: {library} failed: {said[:300]}")
