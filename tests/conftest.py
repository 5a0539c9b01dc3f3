"""A tiny checkpoint and its bundle, made once for all tests.

MUSICRT_TINY_BUNDLE may name bundles made earlier from the same checkpoints, separated as in PATH: exporting one takes a minute.
Those with graphs in half precision are for tests of these, and stand in for the others where there are none. Workers that run tests
side by side (pytest -n) share what one of them made.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from filelock import FileLock
from safetensors.numpy import load_file

from musicrt.runtime.errors import MusicRTError
from musicrt.runtime.manifest_file import read_manifest
from musicrt.runtime.model import Model
from musicrt.runtime.models.music2latent.pipeline import Pipeline
from tests.reference.fill import Layout, write_files
from tests.reference.runner import DATA

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # read by torch: with busy waiting, tests on shared cores take ten times as long

ForSystem = Callable[[str], Path]
Make = Callable[[Path], object]


def find_given(system: str, *, half: bool) -> Path | None:
    """The bundle of a system that MUSICRT_TINY_BUNDLE names, with graphs in half precision or, if there is one, without."""
    given = [Path(name) for name in os.environ.get("MUSICRT_TINY_BUNDLE", "").split(os.pathsep) if name]
    manifests = {path: read_manifest(path) for path in given}
    known = {bool(one.more_weights): path for path, one in reversed(manifests.items()) if one.system == system}
    return known.get(True) if half else known.get(False, known.get(True))


def tiny_layout(system: str) -> Layout:
    """The layout of a system's tiny checkpoint; its hyper-parameters are under `config`."""
    layout: Layout = json.loads((DATA / system / "layout-tiny.json").read_text())
    return layout


@contextlib.contextmanager
def refused(kind: type[MusicRTError], *words: object) -> Iterator[None]:
    """Expects an error of one line that holds all `words`."""
    with pytest.raises(kind) as caught:
        yield
    message = str(caught.value)
    assert "\n" not in message
    assert [str(word) for word in words if str(word) not in message] == [], message


@pytest.fixture(scope="session")
def make_once(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Callable[[str, Make], Path]:
    """Gives the folder that a call makes, by name; of all workers the first makes it, and the others wait."""
    root = tmp_path_factory.getbasetemp() if worker_id == "master" else tmp_path_factory.getbasetemp().parent

    def make(name: str, call: Make) -> Path:
        path, done = root / "once" / name, root / "once" / f"{name}.done"
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(root / "once" / f"{name}.lock"):
            if not done.is_file():
                call(path)
                done.touch()
        return path

    return make


@pytest.fixture(scope="session")
def tiny_checkpoints(make_once: Callable[[str, Make], Path]) -> ForSystem:
    """Gives the tiny checkpoint of a system: the official files, and config.json beside them. Tests may read it only."""

    @functools.cache
    def write(system: str) -> Path:
        pytest.importorskip("torch")
        layout, given = tiny_layout(system), DATA / system / "given-tiny.safetensors"

        def fill(folder: Path) -> None:
            write_files(layout, load_file(given) if given.is_file() else {}, "", folder)
            (folder / "config.json").write_text(json.dumps(layout["config"]))

        return make_once(f"{system}-checkpoint", fill)

    return write


@pytest.fixture(scope="session")
def tiny_bundles(tiny_checkpoints: ForSystem, make_once: Callable[[str, Make], Path]) -> ForSystem:
    """Gives the bundle of that checkpoint. Tests may read it only."""

    @functools.cache
    def export(system: str) -> Path:
        if bundle := find_given(system, half=False):
            return bundle
        for module in ("torch", "onnx", "onnxscript", "onnxruntime"):
            pytest.importorskip(module)
        from musicrt.export.bundle import export_bundle

        return make_once(f"{system}-bundle", lambda path: export_bundle(system, tiny_checkpoints(system), path))

    return export


@pytest.fixture(scope="session")
def half_bundles(tiny_bundles: ForSystem, make_once: Callable[[str, Make], Path]) -> ForSystem:
    """Gives the same bundle with graphs in half precision beside the others. Tests may read it only."""

    @functools.cache
    def add(system: str) -> Path:
        if given := find_given(system, half=True):
            return given
        for module in ("torch", "onnx", "onnxscript", "onnxruntime"):
            pytest.importorskip(module)
        from musicrt.export.flavours import add_flavour

        return make_once(f"{system}-half", lambda path: add_flavour(shutil.copytree(tiny_bundles(system), path), "trt"))

    return add


@pytest.fixture(scope="session")
def tiny_checkpoint(tiny_checkpoints: ForSystem) -> Path:
    """Music2Latent's tiny checkpoint: a folder with music2latent.pt and config.json."""
    return tiny_checkpoints("music2latent")


@pytest.fixture(scope="session")
def tiny_bundle(tiny_bundles: ForSystem) -> Path:
    """The bundle of `tiny_checkpoint`. Tests may read it only."""
    return tiny_bundles("music2latent")


@pytest.fixture
def copy_bundle(tiny_bundle: Path, tmp_path: Path) -> Path:
    """A copy of `tiny_bundle` to damage."""
    return Path(shutil.copytree(tiny_bundle, tmp_path / "bundle"))


@pytest.fixture(scope="session")
def codec(tiny_bundle: Path) -> Iterator[Pipeline]:
    """The tiny bundle on ONNX Runtime."""
    pytest.importorskip("onnxruntime")
    with Pipeline(Model.open(tiny_bundle, backend="onnxruntime-cpu", threads=1)) as pipeline:
        yield pipeline


@pytest.fixture(scope="session")
def torch_codec(tiny_bundle: Path) -> Iterator[Pipeline]:
    """The tiny bundle on PyTorch."""
    pytest.importorskip("torch")
    with Pipeline(Model.open(tiny_bundle, backend="torch-cpu", threads=1)) as pipeline:
        yield pipeline
