"""Chooses the backend that runs a bundle, and says why each other one does not."""

from __future__ import annotations

from dataclasses import dataclass, field

from musicrt.runtime.backends.onnxruntime import OnnxCpu, OnnxCuda
from musicrt.runtime.backends.torch import TorchCpu, TorchCuda
from musicrt.runtime.errors import BackendError
from musicrt.runtime.session import Backend

BACKENDS: dict[str, type[Backend]] = {kind.name: kind for kind in (OnnxCuda, TorchCuda, OnnxCpu, TorchCpu)}
"""In the order in which `auto` tries them."""


@dataclass(frozen=True)
class Choice:
    """The backend that runs, in words; `reasons`: why each one before it was passed over."""

    name: str
    description: str
    reasons: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.name} ({self.description})"


def select_backend(requested: str = "auto", *, threads: int | None = None) -> tuple[Backend, Choice]:
    """Make a backend. `requested`: a name of BACKENDS, or "auto". Raises BackendError when it can't run here."""
    if threads is not None and threads < 1:
        raise BackendError(f"got {threads} threads, expected 1 or more")
    if requested != "auto" and requested not in BACKENDS:
        raise BackendError(f"unknown backend {requested!r}; known: auto, {', '.join(BACKENDS)}")
    reasons: dict[str, str] = {}
    for name in BACKENDS if requested == "auto" else (requested,):
        obstacle = BACKENDS[name].obstacle()
        if obstacle is None:
            backend = BACKENDS[name](threads=threads)
            return backend, Choice(name, backend.describe(), reasons)
        reasons[name] = obstacle
    raise BackendError("; ".join(f"{name} can't run here: {reason}" for name, reason in reasons.items()))
