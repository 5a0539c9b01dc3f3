"""Writes a model repository for NVIDIA Triton: a folder of models, each with all that it needs.

REPO/<name>_<verb>/config.pbtxt   tensors, options, queue, batches, processes, a short run before the first request
REPO/<name>_<verb>/1/model.py     leads to `musicrt.triton.model`, so that a server with musicrt is all it takes
REPO/<name>_<verb>/bundle/        a copy of the bundle; hard links to that of the first model where the file system has them
REPO/<name>_<verb>/warmup/        the tensors of the short run
REPO/<name>_stage_<stage>/        where that is wanted, a stage's graph and weights for Triton's ONNX Runtime backend
"""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path
from typing import NoReturn

from musicrt.runtime.bundle import Bundle
from musicrt.runtime.errors import BackendError, InputError
from musicrt.runtime.files import new_folder
from musicrt.runtime.manifest_file import MANIFEST
from musicrt.runtime.model import Model
from musicrt.runtime.precision import ORT
from musicrt.runtime.registry import system_module
from musicrt.runtime.select import Choice
from musicrt.runtime.spec import StageSpec
from musicrt.triton.config import Settings, to_pbtxt, verb_config
from musicrt.triton.model import BUNDLE
from musicrt.triton.stages import is_served, stage_config, stage_model
from musicrt.triton.verbs import Verb, verbs_of

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}")
_CODE = '''"""Written by `musicrt triton`: {verb} of {system}. The server needs musicrt, and nothing else of this repository."""

from musicrt.triton.model import TritonPythonModel

__all__ = ["TritonPythonModel"]
'''


def write_repository(bundle: Path | str, out: Path | str, settings: Settings | None = None, *, name: str | None = None) -> list[str]:
    """Write the models of a bundle into a new folder; their names. Nothing is run, and no backend needed.

    name: what the models' names begin with; the system's by default. Raises BundleError, InputError, OutputError.
    """
    settings = (settings or Settings()).check()
    opened = Bundle.open(bundle)
    name = opened.spec.system if name is None else name
    if not _NAME.fullmatch(name):
        raise InputError(f"got the name {name!r}, expected up to 100 letters, digits, '_', '-' and '.', such as nano")
    with new_folder(Path(out)) as folder:
        first: Path | None = None
        for verb in _verbs(opened).values():
            model = folder / f"{name}_{verb.name}"
            _write_model(model, verb, opened, settings)
            _copy_bundle(opened, model / BUNDLE, first)
            first = model / BUNDLE if first is None else first
        if settings.stage_models:
            opened.require_flavour(ORT)
            for stage in filter(is_served, opened.spec.stages):
                _write_stage(folder / stage_model(name, stage.name), stage, opened, settings, first)
        return sorted(path.name for path in folder.iterdir())


def _verbs(bundle: Bundle) -> dict[str, Verb]:
    """Those of a bundle, without anything that runs it."""

    def refuse(stage: str) -> NoReturn:
        raise BackendError(f"stage {stage!r} was asked for where nothing runs")

    with Model(bundle.spec, refuse, Choice("none", "nothing runs"), identity=bundle.identity) as model:
        return verbs_of(system_module(bundle.spec.system, "pipeline").Pipeline(model))


def _write_model(folder: Path, verb: Verb, bundle: Bundle, settings: Settings) -> None:
    for part in ("1", "warmup"):
        (folder / part).mkdir(parents=True)
    (folder / "1" / "model.py").write_text(_CODE.format(verb=verb.name, system=bundle.spec.system))
    (folder / "config.pbtxt").write_text(to_pbtxt(verb_config(folder.name, verb, settings)))
    for name, value in verb.warm.items():
        (folder / "warmup" / name).write_bytes(value.tobytes())


def _write_stage(folder: Path, stage: StageSpec, bundle: Bundle, settings: Settings, first: Path | None) -> None:
    """A graph, with the weights beside it, where it looks for them."""
    (folder / "1").mkdir(parents=True)
    (folder / "config.pbtxt").write_text(to_pbtxt(stage_config(folder.name, stage, settings)))
    graph, entry = bundle.graph(stage.name, ORT)
    weights = bundle.manifest.weights.path
    for path, name, within in ((graph, "model.onnx", entry.file.path), (bundle.weights, bundle.weights.name, weights)):
        _copy(path, folder / "1" / name, None if first is None else first / within)


def _copy_bundle(bundle: Bundle, target: Path, first: Path | None) -> None:
    """The files that the manifest names; those of `first`, a copy made before, are linked where that can be."""
    for path in (MANIFEST, *dict.fromkeys(entry.path for entry in bundle.files)):
        copy = target / path
        copy.parent.mkdir(parents=True, exist_ok=True)
        _copy(bundle.path / path, copy, None if first is None else first / path)


def _copy(path: Path, target: Path, link: Path | None) -> None:
    """link: a copy made before, which is linked where that can be."""
    if link is not None:
        try:
            os.link(link, target)
            return
        except OSError:  # a file system without links
            pass
    shutil.copyfile(path, target)
