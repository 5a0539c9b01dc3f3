"""The Ray that work runs on: one of this machine's own, or a cluster that is there."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass

import ray
from ray.exceptions import RayError

from musicrt.runtime.errors import BackendError, InputError, MusicRTError
from musicrt.runtime.select import BACKENDS

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # it reports to its makers unless that is said before it starts


@dataclass(frozen=True)
class Pool:
    """Workers, and what each of them holds: cores and GPUs, which may be a share of one. lot: files that a worker is given at once."""

    workers: int
    cpus: int
    gpus: float = 0.0
    lot: int = 16


@contextlib.contextmanager
def connected(address: str | None = None) -> Iterator[None]:
    """Ray, for a while. address: of a cluster, or `auto`; by default RAY_ADDRESS, else one of this machine's own. Raises BackendError.

    A program that has Ray already keeps it as it is.
    """
    if ray.is_initialized():
        yield
        return
    where = address or os.environ.get("RAY_ADDRESS") or "local"
    try:
        ray.init(address=where, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise BackendError(f"Ray can't be reached at {where!r} ({last_line(error)}); check the address, or leave it out") from error
    try:
        yield
    finally:
        ray.shutdown()


@contextlib.contextmanager
def as_our_errors() -> Iterator[None]:
    """An error of ours that comes from a worker is that error again; any other one of Ray's is a BackendError."""
    try:
        yield
    except RayError as error:
        cause = getattr(error, "cause", None)
        if isinstance(cause, MusicRTError):
            raise cause from None
        raise BackendError(f"Ray ended the work: {last_line(error)}; see its logs") from error


def plan_pool(backend: str, workers: int | None = None, threads: int | None = None, gpus: float | None = None, lot: int = 16) -> Pool:
    """What a pool is where it is not said: one thread for each worker, a GPU where the backend runs on one, and all that there is room for.

    Of `auto`, a GPU where the cluster has any. Raises InputError, BackendError.
    """
    there = ray.cluster_resources()
    if gpus is None:
        kinds = [BACKENDS[backend]] if backend in BACKENDS else list(BACKENDS.values())
        gpus = float(any(kind.device == "cuda" for kind in kinds) and (backend != "auto" or there.get("GPU", 0.0) >= 1))
    cpus = threads or 1
    room = [there.get("CPU", 0.0) // cpus, *([there.get("GPU", 0.0) // gpus] if gpus else [])]
    if min(room) < 1:
        has = f"{there.get('CPU', 0):g} and {there.get('GPU', 0):g}"
        raise BackendError(f"a worker needs {cpus} cores and {gpus:g} GPUs, this cluster has {has}; ask for less")
    if lot < 1 or (workers is not None and not 1 <= workers <= min(room)):
        raise InputError(f"got {workers} workers and lots of {lot} files, expected 1 to {min(room):g} workers, and at least one file")
    return Pool(workers or int(min(room)), cpus, gpus, lot)


def last_line(error: BaseException) -> str:
    """The last line of what an error says, which in Ray's is the cause."""
    return (str(error).strip().splitlines() or [type(error).__name__])[-1].strip()[:300]
