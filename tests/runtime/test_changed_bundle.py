"""A bundle that is removed, replaced or written into while it is open: what is open goes on, and nothing opens a mixture of two."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import musicrt
from musicrt.runtime.bundle import Bundle
from musicrt.runtime.errors import BundleError
from musicrt.runtime.manifest_file import MANIFEST
from musicrt.runtime.model import load
from musicrt.runtime.registry import build_spec
from musicrt.runtime.select import BACKENDS
from musicrt.runtime.spec import ModelSpec
from tests.conftest import refused
from tests.reference import signals

WEIGHTS = Path("stages", "weights.safetensors")


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """A copy of the small bundle, to do harm to."""
    return Path(shutil.copytree(musicrt.EMBEDDED, tmp_path / "bundle"))


def replace(bundle: Path) -> None:
    """By another one, made beside it."""
    other = shutil.copytree(bundle, bundle.with_name("other"))
    write_over(other)
    bundle.rename(bundle.with_name("old"))
    other.rename(bundle)


def copy_again(bundle: Path) -> None:
    """By a copy of itself, file by file."""
    for path in bundle.rglob("*.*"):
        path.rename(path.with_suffix(".old"))
        shutil.copyfile(path.with_suffix(".old"), path)


def write_over(bundle: Path) -> None:
    with (bundle / WEIGHTS).open("r+b") as file:
        file.seek(-4, os.SEEK_END)
        file.write(b"1234")
    os.utime(bundle / WEIGHTS, ns=(0, 1))  # clocks of file systems are coarse


def truncate(bundle: Path) -> None:
    os.truncate(bundle / WEIGHTS, 5000)


GONE, CHANGED = (
    "can't be read any more (No such file or directory); put the bundle back",
    "has changed since the bundle was opened; load it again",
)
ORT, OPENVINO, TORCH = "onnxruntime-cpu", "openvino-cpu", "torch-cpu"


def require(backend: str) -> None:
    if obstacle := BACKENDS[backend].obstacle():
        pytest.skip(obstacle)


@pytest.mark.parametrize(
    ("backend", "harm", "says"),
    [(ORT, shutil.rmtree, GONE), (ORT, replace, CHANGED), (ORT, copy_again, None), (OPENVINO, replace, CHANGED), (TORCH, replace, None)],
)
def test_open_stages_go_on_and_others_are_those_of_the_bundle_or_refused(
    bundle: Path, backend: str, harm: Callable[[Path], None], says: str | None
) -> None:
    """Torch has read all stages at once."""
    require(backend)
    audio = signals.audio("music", 0.3, 44100)
    with load(bundle, backend=backend, threads=1) as codec, load(backend=backend, threads=1) as untouched:
        latents = codec.encode(audio)
        harm(bundle)
        np.testing.assert_array_equal(codec.encode(audio), latents)
        if says is None:
            np.testing.assert_array_equal(codec.decode(latents, seed=7), untouched.decode(latents, seed=7))
        else:
            for _ in range(2):
                with refused(BundleError, bundle, says):
                    codec.decode(latents, seed=7)


@pytest.mark.parametrize(("backend", "harm"), [(ORT, write_over), (ORT, truncate), (OPENVINO, truncate), (TORCH, truncate)])
def test_nothing_is_computed_with_weights_that_were_written_to(bundle: Path, backend: str, harm: Callable[[Path], None]) -> None:
    """They may be mapped: results would be wrong, and where the file has become shorter, the process would end."""
    require(backend)
    audio = signals.audio("music", 0.3, 44100)
    with load(bundle, backend=backend, threads=1) as codec:
        latents = codec.encode(audio)
        harm(bundle)
        with refused(BundleError, bundle, CHANGED):
            codec.encode(audio)
        with refused(BundleError, bundle, CHANGED):
            codec.decode(latents, seed=7)


def test_a_link_that_is_led_elsewhere_changes_nothing_for_those_that_are_open(bundle: Path) -> None:
    """How to change a bundle under a running service."""
    link, other = bundle.with_name("current"), bundle.with_name("other")
    shutil.copytree(bundle, other)
    link.symlink_to(bundle)
    with load(link, threads=1) as codec:
        latents = codec.encode(signals.audio("music", 0.3, 44100))
        link.with_name("next").symlink_to(other)
        link.with_name("next").rename(link)
        truncate(other)
        assert codec.decode(latents, seed=7).shape[-1] > 0
        with refused(BundleError, "has 5000 bytes"):
            Bundle.open(link)


def test_a_change_while_a_stage_is_opened_is_seen(bundle: Path) -> None:
    opened = Bundle.open(bundle)
    with refused(BundleError, WEIGHTS, CHANGED), opened.watched.unchanged(opened.graph_files("encoder", "ort")):
        truncate(bundle)


def test_another_bundle_that_comes_while_one_is_opened_is_the_one_that_is_open(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    link, other = bundle.with_name("current"), Path(shutil.copytree(bundle, bundle.with_name("other")))
    manifest = json.loads((bundle / MANIFEST).read_text())
    manifest["weights"]["sha256"] = "0" * 64
    (other / MANIFEST).write_text(json.dumps(manifest))
    link.symlink_to(bundle)

    def lead_elsewhere(*arguments: Any) -> ModelSpec:
        link.unlink()
        link.symlink_to(other)
        return build_spec(*arguments)

    monkeypatch.setattr("musicrt.runtime.bundle.build_spec", lead_elsewhere)
    opened = Bundle.open(link)
    assert opened.manifest.weights.sha256 == "0" * 64
    assert opened.weights == other / WEIGHTS


def test_weights_that_were_written_to_and_cant_be_read_are_refused(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_path: Path) -> str:
        raise PermissionError(13, "Permission denied")

    opened = Bundle.open(bundle)
    write_over(bundle)
    monkeypatch.setattr("musicrt.runtime.watched_files.sha256_of", refuse)
    with refused(BundleError, WEIGHTS, "can't be read any more (Permission denied)"):
        opened.watched.check_in_use(opened.weight_files("ort"))
