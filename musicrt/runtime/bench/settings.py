"""What a benchmark is asked, and the command that asks it again."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any, get_args

from musicrt.runtime.errors import InputError
from musicrt.runtime.precision import Precision
from musicrt.runtime.spec import ModelSpec

PARTS = ("encode", "decode", "generate", "stages")
"""What can be measured; `generate` where the system makes music for videos."""
SEED = 7
"""Of everything that is drawn: noise of samplers, inputs of stages, matrices."""


@dataclass(frozen=True)
class Settings:
    """How a bundle is measured.

    seconds: length of the audio. repeats: timed calls of each thing, shared by `rounds` fresh processes. steps: of a decode; None: the
    system's default, the rows say how many ran. threads: CPU threads inside an operator; None: all.
    backends, precisions: each of the backends in each of the precisions that it offers; empty: all that are usable here, in their first.
    against: names of `AGAINST`, measured in turn with them; the first is what the others are compared with.
    parts: of `PARTS`; empty: all that the system has. stages: by name; empty: all. sizes: axes of stages that differ from those of
    so many seconds.
    batches: signals of one call; concurrency: threads that call, each by itself. Empty: throughput is not measured.
    """

    seconds: float = 1.5
    repeats: int = 5
    rounds: int = 2
    steps: int | None = None
    threads: int | None = None
    backends: Sequence[str] = ()
    precisions: Sequence[Precision] = ()
    against: Sequence[str] = ()
    parts: Sequence[str] = ()
    stages: Sequence[str] = ()
    sizes: Mapping[str, int] = field(default_factory=dict)
    batches: Sequence[int] = ()
    concurrency: Sequence[int] = ()

    def check(self, spec: ModelSpec, generates: bool) -> None:
        """Raises InputError for names, axes or counts that there are not; `generates`: whether the system makes music for videos."""
        _check_names("precision", self.precisions, get_args(Precision))
        _check_names("part", self.parts, PARTS if generates else [part for part in PARTS if part != "generate"])
        _check_names("stage", self.stages, [stage.name for stage in spec.stages])
        axes = {axis.name for stage in spec.stages for axis in stage.axes}
        _check_names("axis", list(self.sizes), sorted(axes))
        if self.repeats < 1 or self.rounds < 1:
            raise InputError(f"got {self.repeats} repeats in {self.rounds} rounds, expected at least one of each")
        if (self.batches or self.concurrency) and self.parts and not {"encode", "decode"} & set(self.parts):
            raise InputError(f"got numbers for throughput and the parts {', '.join(self.parts)}, expected encode or decode among them")
        for count in (*self.batches, *self.concurrency):
            if count < 1:
                raise InputError(f"got {count} as a number of signals or threads, expected 1 or more")

    def to_json(self) -> dict[str, Any]:
        """Everything, as JSON values."""
        return {**asdict(self), "seed": SEED}

    @property
    def command(self) -> str:
        """The command line that measures the same."""
        words = ["musicrt", "bench", "BUNDLE"]
        names = {"backends": "backend", "precisions": "precision", "parts": "what"}
        for one in fields(self):
            value = getattr(self, one.name)
            if value == one.default or value in ((), [], {}):
                continue
            if isinstance(value, Mapping):
                value = [f"{axis}={size}" for axis, size in value.items()]
            flag = f"--{names.get(one.name, one.name)}"
            if one.name in ("backends", "precisions"):
                words += [word for name in value for word in (flag, name)]
            else:
                words += [flag, str(value) if isinstance(value, int | float) else ",".join(map(str, value))]
        return shlex.join(words)


def _check_names(kind: str, names: Sequence[str], known: Sequence[str]) -> None:
    for name in names:
        if name not in known:
            raise InputError(f"unknown {kind} {name!r}; known: {', '.join(known)}")
