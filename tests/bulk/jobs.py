"""Jobs for tests of workers, which import them from here."""

from __future__ import annotations

import os
import signal
from dataclasses import fields
from pathlib import Path
from typing import Any, Self

from musicrt.bulk.job import Job


class Like(Job):
    """Another job in all but what it does with files."""

    @classmethod
    def of(cls, job: Job) -> Self:
        return cls(**{field.name: getattr(job, field.name) for field in fields(job)})


class Poisoned(Like):
    """Files called `crash…` end what measures them, and those called `memory…` what encodes them."""

    def measure(self, source: Path) -> float:
        if source.name.startswith("crash"):
            os.kill(os.getpid(), signal.SIGSEGV)
        return super().measure(source)

    def run(self, codec: Any, source: Path, target: Path, *more: Any) -> None:
        if source.name.startswith("memory"):
            os.kill(os.getpid(), signal.SIGKILL)
        super().run(codec, source, target, *more)


class Telling(Like):
    """Writes which GPUs the pipeline's process sees."""

    def run(self, codec: Any, source: Path, target: Path, *more: Any) -> None:
        del codec, source, more
        target.write_text(os.environ.get("CUDA_VISIBLE_DEVICES", "all"))
