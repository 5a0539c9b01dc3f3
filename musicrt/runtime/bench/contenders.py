"""Who is measured: the bundle on a backend, in a precision."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Self

from musicrt.runtime.backend import Backend
from musicrt.runtime.backends.torch import TorchCpu
from musicrt.runtime.bench.compiled import TorchCompiled
from musicrt.runtime.bench.settings import Settings
from musicrt.runtime.bundle import Bundle
from musicrt.runtime.errors import BackendError
from musicrt.runtime.model import Model, load
from musicrt.runtime.precision import INT8, ORT, Precision
from musicrt.runtime.registry import system_module
from musicrt.runtime.select import BACKENDS, Choice

_KINDS: Mapping[str, type[Backend]] = {**BACKENDS, TorchCompiled.name: TorchCompiled}


@dataclass(frozen=True)
class Contender:
    """A backend and what it computes in, by the name that tables have for both."""

    name: str
    backend: str
    precision: Precision

    def to_json(self) -> dict[str, Any]:
        """As the arguments of a process of its own."""
        return asdict(self)

    @property
    def key(self) -> tuple[str, Precision]:
        """What it does, whatever its name."""
        return self.backend, self.precision

    @property
    def on_cpu(self) -> bool:
        """Whether it runs where the machine's peaks are measured."""
        return _KINDS[self.backend].device == "cpu"

    @property
    def flavour(self) -> str:
        """The graphs whose weights it reads on a CPU, or others of the same size."""
        return INT8 if self.precision == "int8" else ORT

    def obstacle(self, bundle: Bundle) -> str | None:
        """Why it can't run the bundle here; None if it can."""
        kind = _KINDS[self.backend]
        if reason := kind.precision_obstacle(self.precision) or kind.obstacle():
            return reason
        try:
            kind(precision=self.precision).check_bundle(bundle)
        except BackendError as error:
            return str(error)
        return None

    def open(self, bundle: str, threads: int | None) -> Any:
        """The pipeline of a bundle, as a user has it. Raises BackendError, BundleError."""
        if self.backend in BACKENDS:
            return load(bundle, backend=self.backend, threads=threads, precision=self.precision)
        opened, runner = Bundle.open(bundle), _KINDS[self.backend](threads=threads, precision=self.precision)
        choice = Choice(self.name, runner.describe(), precision=self.precision)
        model = Model(opened.spec, lambda stage: runner.open_session(opened, stage), choice, identity=opened.identity)
        return system_module(opened.spec.system, "pipeline").Pipeline(model)


REFERENCE = Contender("torch", TorchCpu.name, "float32")
"""What errors are distances from."""
AGAINST: Mapping[str, Contender] = {
    one.name: one
    for one in (
        REFERENCE,
        Contender(TorchCompiled.name, TorchCompiled.name, "float32"),
        Contender("torch-bf16", TorchCpu.name, "bfloat16"),
    )
}
"""What users would run otherwise: the same networks in PyTorch, eager, compiled, and in bfloat16."""


@dataclass(frozen=True)
class Field:
    """Those that are measured, and the reason for each that is not. `rivals`: the names of those of `AGAINST`."""

    contenders: tuple[Contender, ...]
    skipped: Mapping[str, str]
    rivals: tuple[str, ...] = ()

    @classmethod
    def find(cls, bundle: Bundle, settings: Settings) -> Self:
        """Raises BackendError for an unknown name, a backend asked for that can't run here in any of the precisions, or if none can."""
        for name in settings.backends:
            if name not in BACKENDS:
                raise BackendError(f"unknown backend {name!r}; known: {', '.join(BACKENDS)}")
        for name in settings.against:
            if name not in AGAINST:
                raise BackendError(f"unknown contender {name!r}; known: {', '.join(AGAINST)}")
        rivals = [AGAINST[name] for name in dict.fromkeys(settings.against)]
        named = [kind for kind in BACKENDS.values() if not settings.backends or kind.name in settings.backends]
        asked = [Contender(kind.name, kind.name, precision) for kind in named for precision in settings.precisions or kind.precisions[:1]]
        asked = [one for one in asked if one.key not in {rival.key for rival in rivals}]
        obstacles = {one: one.obstacle(bundle) for one in (*rivals, *asked)}
        own = [one for one in asked if obstacles[one] is None]
        useless = {one.name for one in asked} - {one.name for one in own}
        if useless and (settings.backends or not own):
            told = {f"{one.name} can't run here in {one.precision}: {obstacles[one]}": one.name for one in asked}
            raise BackendError("; ".join(words for words, name in told.items() if name in useless))
        skipped = {f"{one.name} in {one.precision}": reason for one, reason in obstacles.items() if reason is not None}
        there = [one for one in rivals if obstacles[one] is None]
        return cls((*there, *own), skipped, tuple(one.name for one in there))


def names_of(contenders: Sequence[Contender]) -> list[str]:
    """For people: a precision stands behind the name where one backend has several."""
    names = [one.name for one in contenders]
    return [one.name if names.count(one.name) == 1 else f"{one.name} {one.precision}" for one in contenders]
