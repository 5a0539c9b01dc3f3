"""What the runners of all systems share: the model under test, made when it is first needed, and stages by name."""

from __future__ import annotations

import json
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, Generic, TypeVar

from musicrt.export.bundle import export_bundle
from musicrt.export.checkpoints import hash_tensors
from musicrt.runtime.bundle import identity_of
from musicrt.runtime.checkpoint import read_checkpoint
from musicrt.runtime.errors import BackendError
from musicrt.runtime.manifest_file import read_manifest
from musicrt.runtime.model import Model
from musicrt.runtime.pipeline import Codec
from musicrt.runtime.registry import build_spec, fit_spec
from musicrt.runtime.select import Choice
from musicrt.runtime.session import Session
from tests.reference.case import Case
from tests.reference.runner import UnknownStageError
from tests.reference.signals import Array

Outputs = dict[str, Array]
Pipeline = TypeVar("Pipeline", bound=Codec)


class CodecRunner(ABC, Generic[Pipeline]):
    """See `tests.reference.runner.SystemRunner`. torch-cpu loads the checkpoint itself; other backends run its bundle."""

    def __init__(
        self, pipeline: type[Pipeline], system: str, values: dict[str, Any], checkpoint: Path, backend: str, workspace: Path
    ) -> None:
        """`values`: the official hyper-parameters of the checkpoint."""
        self.pipeline, self.system, self.values = pipeline, system, values
        self.checkpoint, self.backend, self.workspace = checkpoint, backend, workspace

    @property
    @abstractmethod
    def stages(self) -> Mapping[str, Callable[[Case], Outputs]]:
        """What computes the cases of each stage, by the names of CASES.md."""

    @cached_property
    def codec(self) -> Pipeline:
        """The model under test; made when the first case needs weights."""
        if self.backend == "torch-cpu":
            return self.pipeline(Model.open_checkpoint(self.system, self.checkpoint, self.values))
        return self.pipeline(Model.open(self._earlier_bundle() or self._export(), backend=self.backend))

    @cached_property
    def rules(self) -> Pipeline:
        """A pipeline for what needs no weights: lengths and schedules."""

        def refuse(stage: str) -> Session:
            raise BackendError(f"stage {stage} was asked for where no weights are needed")

        return self.pipeline(Model(build_spec(self.system, self.values, "case"), refuse, Choice("none", "no weights")))

    def _earlier_bundle(self) -> Path | None:
        """One that MUSICRT_TINY_BUNDLE names, if it was made from the same tensors and hyper-parameters."""
        given = [Path(name) for name in os.environ.get("MUSICRT_TINY_BUNDLE", "").split(os.pathsep) if name]
        manifests = {path: read_manifest(path) for path in given}
        spec = build_spec(self.system, self.values, "case")
        files = read_checkpoint(spec.checkpoint, self.checkpoint) if self.system in {one.system for one in manifests.values()} else {}
        identity = identity_of(self.system, fit_spec(spec, files).config, hash_tensors(files)) if files else ""
        return next((path for path, manifest in manifests.items() if manifest.identity == identity), None)

    def _export(self) -> Path:
        """The bundle of this checkpoint; backends share it."""
        bundle = self.workspace.parent / "bundle"
        if not bundle.exists():
            config = self.workspace / "config.json"
            config.write_text(json.dumps(self.values))
            export_bundle(self.system, self.checkpoint, bundle, config=config)
        return bundle

    def run(self, case: Case) -> Outputs:
        if case.stage not in self.stages:
            raise UnknownStageError(case.stage)
        return self.stages[case.stage](case)

    def close(self) -> None:
        if "codec" in self.__dict__:
            self.codec.close()

    def run_stage(self, name: str, **feeds: Array) -> Outputs:
        """One stage of the model under test."""
        return self.codec.model.session(name).run(feeds)
