"""What `musicrt doctor` finds out about a machine, for people and for programs. Of names and paths it holds those in variables only."""

from __future__ import annotations

import importlib.metadata
import os
import re
from collections.abc import Mapping
from typing import Literal

from pydantic import BaseModel, ConfigDict

import musicrt
from musicrt.runtime.backend import Backend
from musicrt.runtime.driver import cuda_obstacle, driver_version, list_gpus
from musicrt.runtime.limits import DEFAULTS, limit_of
from musicrt.runtime.measure import describe_environment
from musicrt.runtime.precision import Precision
from musicrt.runtime.processor import known_flags
from musicrt.runtime.select import BACKENDS
from musicrt.runtime.tensorrt_family import FAMILIES

_PREFIX = "MUSICRT_"  # of the environment variables of this package
_REQUIREMENT = re.compile(r"([\w.-]+)(?:\[([\w,-]+)\])?.*?(?:extra == ['\"]([\w-]+)['\"])?\)?")


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Gpu(_Part):
    """architecture: such as "sm_89"."""

    name: str
    architecture: str
    memory_gb: float


class Machine(_Part):
    """cores: those that this process may run on. flags: instructions of the CPU that the backends' speed depends on. cuda: what the
    NVIDIA driver speaks, such as "13.0"; None without one, and `no_gpu` says why.
    """

    system: str
    cpu: str
    flags: list[str]
    cores: int
    memory_gb: float | None
    cuda: str | None
    gpus: list[Gpu]
    no_gpu: str | None


class BackendState(_Part):
    """obstacle: why it does not run here, None where it does; then `precisions` are what it computes in, and `refused` the others, with
    reasons.
    """

    device: Literal["cpu", "cuda"]
    obstacle: str | None
    precisions: list[Precision]
    refused: dict[Precision, str]


class Report(_Part):
    """What runs here, and why the rest does not.

    auto: the backend that "auto" takes for a bundle that has what it runs; None: none. engines: why engines can't be built with each kind
    of TensorRT; None where they can. packages: versions of those that this one can use, by name. extras: of each, the packages that are
    missing; empty where this package was not installed. limits: those in force (`MUSICRT_LIMITS`). environment: our variables that are
    set.
    """

    format: Literal["musicrt-doctor 1"] = "musicrt-doctor 1"
    version: str
    python: str
    machine: Machine
    backends: dict[str, BackendState]
    auto: str | None
    engines: dict[str, str | None]
    packages: dict[str, str]
    extras: dict[str, list[str]]
    limits: dict[str, int]
    environment: dict[str, str]


def examine() -> Report:
    """Look at this machine. Raises InputError for a `MUSICRT_LIMITS` that says nothing sensible."""
    seen = describe_environment()
    backends = {name: _state_of(kind) for name, kind in BACKENDS.items()}
    needed = _requirements()
    versions = {name: version for names in needed.values() for name in names if (version := _version_of(name)) is not None}
    return Report(
        version=musicrt.__version__,
        python=seen["python"],
        machine=Machine(
            **{name: seen[name] for name in ("system", "cpu", "cores", "memory_gb")},
            flags=known_flags(),
            cuda=driver_version(),
            gpus=[Gpu(name=name, architecture=architecture, memory_gb=size) for name, architecture, size in list_gpus()],
            no_gpu=cuda_obstacle(),
        ),
        backends=backends,
        auto=next((name for name, state in backends.items() if state.obstacle is None), None),
        engines={name: family.build_obstacle() for name, family in FAMILIES.items()},
        packages=dict(sorted(versions.items())),
        extras={extra: [name for name in names if name not in versions] for extra, names in needed.items() if extra},
        limits={name: limit_of(name) for name in DEFAULTS},
        environment={name: value for name, value in sorted(os.environ.items()) if name.startswith(_PREFIX)},
    )


def _state_of(kind: type[Backend]) -> BackendState:
    obstacle = kind.obstacle()
    refused = {} if obstacle else {one: why for one in kind.precisions if (why := kind.precision_obstacle(one))}
    offered = [] if obstacle else [one for one in kind.precisions if one not in refused]
    return BackendState(device=kind.device, obstacle=obstacle, precisions=offered, refused=refused)


def _requirements() -> Mapping[str, list[str]]:
    """Names of the packages that each extra installs, with those of the extras that it is made of; "" is what there always is."""
    try:
        lines = importlib.metadata.requires("musicrt") or []
    except importlib.metadata.PackageNotFoundError:
        return {}
    needed: dict[str, list[tuple[str, str]]] = {}
    for line in lines:
        if found := _REQUIREMENT.fullmatch(line.strip()):
            name, more, extra = found.groups(default="")
            needed.setdefault(extra, []).append((name, more))

    def names_of(extra: str) -> list[str]:
        names: dict[str, None] = {}
        for name, more in needed.get(extra, []):
            inner = [one for part in more.split(",") for one in names_of(part)] if name == "musicrt" else [name]
            names.update(dict.fromkeys(inner))
        return list(names)

    return {extra: names_of(extra) for extra in needed}


def _version_of(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
