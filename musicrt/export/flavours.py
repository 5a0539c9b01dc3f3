"""Adding the graphs of another flavour to a bundle that exists; its own weights are all that this takes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from musicrt.export.stages import OnStage, write_flavour
from musicrt.runtime.backends.torch import load_bundle_stages
from musicrt.runtime.bundle import STAGES, Bundle
from musicrt.runtime.errors import BundleError, ConfigError
from musicrt.runtime.files import added_files, changing
from musicrt.runtime.manifest import FileEntry, GraphEntry, Manifest
from musicrt.runtime.manifest_file import write_manifest
from musicrt.runtime.precision import TRT

MORE = (TRT,)
"""Flavours that a bundle may have beside `ORT`."""


def add_flavour(path: str | Path, flavour: str, *, on_stage: OnStage | None = None) -> Bundle:
    """Trace all stages of the bundle at `path` once more and store their graphs of `flavour` there, then note them in its manifest.

    The bundle stays usable all the while, and an error leaves it as it was; what else would change it waits.

    on_stage: called with stage, done and total before each stage.
    Raises BundleError: it has the flavour already; ConfigError: an unknown one; OutputError, VerificationError.
    """
    check_flavours([flavour])
    with changing(Bundle.open(path).path):
        bundle = Bundle.open(path, check="hashes")
        if flavour in bundle.flavours:
            raise BundleError(f"{bundle.path} has {flavour} graphs already; export it anew into another folder to make them again")
        with added_files(bundle.path / STAGES):
            weights, graphs, _ = write_flavour(bundle.path, bundle.spec, load_bundle_stages(bundle), flavour, on_stage)
            write_manifest(bundle.path, with_flavour(bundle.manifest, flavour, weights, graphs))
    return Bundle.open(path)


def with_flavour(manifest: Manifest, flavour: str, weights: FileEntry, graphs: Mapping[str, GraphEntry]) -> Manifest:
    """The manifest of a bundle that has the graphs of one more flavour."""
    stages = {name: stage.model_copy(update={"graphs": {**stage.graphs, flavour: graphs[name]}}) for name, stage in manifest.stages.items()}
    return manifest.model_copy(update={"stages": stages, "more_weights": {**manifest.more_weights, flavour: weights}})


def check_flavours(flavours: Sequence[str]) -> None:
    """Raises ConfigError for one that is not known."""
    for flavour in flavours:
        if flavour not in MORE:
            raise ConfigError(
                f"got flavour {flavour!r}, expected {' or '.join(MORE)}; graphs for ONNX Runtime are always made, "
                "those of 8-bit integers by musicrt calibrate"
            )
