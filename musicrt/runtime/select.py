"""Chooses the backend that runs a bundle, and says why each other one does not."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from numbers import Integral
from typing import Literal, get_args

from musicrt.runtime.backend import Backend
from musicrt.runtime.backends.onnxruntime import OnnxCpu, OnnxCuda
from musicrt.runtime.backends.openvino import OpenvinoCpu
from musicrt.runtime.backends.tensorrt import Tensorrt, TensorrtRtx
from musicrt.runtime.backends.torch import TorchCpu, TorchCuda
from musicrt.runtime.errors import BackendError
from musicrt.runtime.precision import Precision

BACKENDS: dict[str, type[Backend]] = {
    kind.name: kind for kind in (Tensorrt, TensorrtRtx, OnnxCuda, TorchCuda, OnnxCpu, OpenvinoCpu, TorchCpu)
}
"""In the order in which `auto` tries them."""
_MOST_THREADS = 1024


@dataclass(frozen=True)
class Choice:
    """The backend that runs, in words, and what it computes in; `reasons`: why each one before it was passed over."""

    name: str
    description: str
    reasons: dict[str, str] = field(default_factory=dict)
    precision: Precision = "float32"

    def __str__(self) -> str:
        return f"{self.name} ({self.precision}, {self.description})"


def check_precisions(names: Sequence[str] | None) -> list[Precision] | None:
    """The same as precisions. Raises BackendError for one that is not known."""
    known = get_args(Precision)
    for name in names or ():
        if name not in known:
            raise BackendError(f"unknown precision {name!r}; known: {', '.join(known)}")
    return None if names is None else [precision for name in names for precision in known if precision == name]


def select_backend(
    requested: str = "auto",
    *,
    device: Literal["cpu", "cuda"] | None = None,
    threads: int | None = None,
    stream: int | None = None,
    graphs: bool = True,
    precision: Precision | None = None,
    probe: Callable[[Backend], None] | None = None,
) -> tuple[Backend, Choice]:
    """Make a backend. `requested`: a name of BACKENDS, or "auto": the first that can run here.

    device: narrows "auto" down. stream: a CUDA stream of the caller's, which only backends on a GPU take. graphs: whether CUDA graphs are
    wanted. precision: what networks are computed in; None: what each kind takes by itself. probe: tried on each GPU backend before "auto"
    takes it; a BackendError of it is a reason not to.
    Raises BackendError when what was asked for can't run here.
    """
    if threads is not None and (isinstance(threads, bool) or not isinstance(threads, Integral) or not 1 <= threads <= _MOST_THREADS):
        raise BackendError(f"got {threads!r} threads, expected a whole number from 1 to {_MOST_THREADS}")
    check_precisions(None if precision is None else [precision])
    if requested != "auto" and requested not in BACKENDS:
        raise BackendError(f"unknown backend {requested!r}; known: auto, {', '.join(BACKENDS)}")
    reasons: dict[str, str] = {}
    for name, kind in BACKENDS.items():
        if requested not in ("auto", name) or device not in (None, kind.device):
            continue
        obstacle = (kind.precision_obstacle(precision) if precision else None) or kind.obstacle()
        if obstacle is None:
            try:
                backend = kind(threads=threads, stream=stream, graphs=graphs, precision=precision)
                if probe is not None and requested == "auto" and kind.device == "cuda":
                    probe(backend)
                return backend, Choice(name, backend.describe(), reasons, backend.precision)
            except BackendError as error:
                obstacle = str(error)
        reasons[name] = obstacle
    where = f"here in {precision}" if precision else "here"
    found = "; ".join(f"{name} can't run {where}: {reason}" for name, reason in reasons.items())
    raise BackendError(f"{found}; musicrt doctor lists what {'each backend computes in' if precision else 'runs'} here")
