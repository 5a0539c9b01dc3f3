"""Opening the contenders of any system. Importing this needs no torch."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

from benchmarks.rounds import BASELINES
from musicrt.runtime.errors import InputError
from musicrt.runtime.model import load
from musicrt.runtime.precision import Precision
from musicrt.runtime.select import BACKENDS


class Opened:
    """A bundle on one backend, as a user opens it."""

    def __init__(self, bundle: str, backend: str, threads: int | None) -> None:
        """backend: its name, or with a precision `NAME:PRECISION`. Raises BundleError, BackendError, InputError."""
        name, precision = split_name(backend)
        self.codec = load(bundle, backend=name, threads=threads, precision=precision)


def split_name(contender: str) -> tuple[str, Precision | None]:
    """The backend and the precision of a contender. Raises InputError for a precision that there is not."""
    name, _, precision = contender.partition(":")
    known = {one: one for one in get_args(Precision)}
    if precision and precision not in known:
        raise InputError(f"got the contender {contender!r}, expected one of the precisions {', '.join(known)} behind the colon")
    return name, known.get(precision)


def open_contender(
    system: str, name: str, *, bundle: str, checkpoint: str, plain: str, config: Mapping[str, Any], threads: int | None
) -> Any:
    """The `Contender` of a system's `workload`: one of BASELINES, or the bundle on a backend. `plain`: folder of the plain export.

    A system's folder has `Eager` in `baselines`, `OnBackend` in `contenders`, and `PlainOnnx` if it is exported plainly. Raises InputError.
    """
    if name not in BASELINES and split_name(name)[0] not in BACKENDS:
        known = ", ".join((*BASELINES, *BACKENDS))
        raise InputError(f"unknown contender {name!r}; known: {known}, a backend also with a precision, as in onnxruntime-cpu:int8")
    ways = importlib.import_module(f"benchmarks.{system}.{'baselines' if name == 'eager' else 'contenders'}")
    if name == "eager":
        return ways.Eager(Path(checkpoint), config, threads)
    if name != "plain-onnx":
        return ways.OnBackend(bundle, name, threads)
    if not hasattr(ways, "PlainOnnx"):
        raise InputError(f"got the contender plain-onnx, which {system} has not; leave it out of --contenders")
    return ways.PlainOnnx(Path(plain), config, threads)
