"""Bundles: opened when whole, refused in one line that names the path when not."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from musicrt.runtime.bundle import Bundle, identity_of
from musicrt.runtime.errors import BackendError, BundleError
from musicrt.runtime.files import sha256_of
from musicrt.runtime.manifest_file import MANIFEST
from musicrt.runtime.model import Model
from musicrt.runtime.verify import verify_bundle
from tests.conftest import refused

Manifest = dict[str, Any]
WEIGHTS = "stages/weights.safetensors"


def change_manifest(bundle: Path, change: Callable[[Manifest], object]) -> None:
    file = bundle / MANIFEST
    manifest = json.loads(file.read_text())
    change(manifest)
    file.write_text(json.dumps(manifest))


# Whole bundles


@pytest.mark.parametrize("check", ["sizes", "hashes"])
def test_whole_bundle_opens(tiny_bundle: Path, check: Any) -> None:
    bundle = Bundle.open(tiny_bundle, check=check)
    assert bundle.spec.system == "music2latent"
    assert len(bundle.files) == 1 + len(bundle.spec.stages)
    assert bundle.weights.is_file()
    for stage in bundle.spec.stages:
        path, entry = bundle.graph(stage.name, "ort")
        assert path.stat().st_size == entry.file.bytes


def test_bundle_can_be_moved_and_named_by_a_string(copy_bundle: Path, tmp_path: Path) -> None:
    moved = copy_bundle.rename(tmp_path / "another name")
    assert Bundle.open(str(moved), check="hashes").path == moved


def test_bundle_behind_a_symlink_opens(tiny_bundle: Path, tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(tiny_bundle, target_is_directory=True)
    assert Bundle.open(link, check="hashes").identity == Bundle.open(tiny_bundle).identity


def test_identity_follows_system_weights_and_configuration(tiny_bundle: Path) -> None:
    manifest = Bundle.open(tiny_bundle).manifest
    tensors = manifest.source.tensors_sha256
    assert manifest.identity == identity_of(manifest.system, manifest.config, tensors)
    others = {
        identity_of("another", manifest.config, tensors),
        identity_of(manifest.system, {**manifest.config, "rho": 8.0}, tensors),
        identity_of(manifest.system, manifest.config, "0" * 64),
        manifest.identity,
    }
    assert len(others) == 4


# Wrong manifests


@pytest.mark.parametrize(
    "content",
    [b"", b"not json", b"{", b'{"format": "musicrt-bundle"', b"\xff\xfe\x00", b"[" * 200_000, b'{"a":' * 200_000, b"1" * 10_000],
    ids=["empty", "text", "cut", "cut later", "binary", "nested lists", "nested objects", "number"],
)
def test_manifest_that_is_not_json_is_refused(copy_bundle: Path, content: bytes) -> None:
    (copy_bundle / MANIFEST).write_bytes(content)
    with refused(BundleError, copy_bundle / MANIFEST, "JSON"):
        Bundle.open(copy_bundle)


@pytest.mark.parametrize("content", ["[]", "null", '"musicrt-bundle"', "{}", '{"format": "another", "version": 1}'])
def test_foreign_format_is_refused(copy_bundle: Path, content: str) -> None:
    (copy_bundle / MANIFEST).write_text(content)
    with refused(BundleError, copy_bundle / MANIFEST, "not the manifest of a musicrt bundle"):
        Bundle.open(copy_bundle)


@pytest.mark.parametrize("version", [0, 2, "1", None])
def test_foreign_version_is_refused(copy_bundle: Path, version: object) -> None:
    change_manifest(copy_bundle, lambda manifest: manifest.update(version=version))
    with refused(BundleError, copy_bundle, repr(version), "reads format 1"):
        Bundle.open(copy_bundle)


@pytest.mark.parametrize(
    ("old", "new", "word"),
    [
        ('"system":', '"system": "another", "system":', "'system' comes twice"),
        ('"stride":', '"stride": 1, "stride":', "'stride' comes twice"),
        ('"error":', '"error": NaN, "surplus":', "NaN"),
        ('"description": "', '"description": "\\u001b]0;title\\u0007', r"\x1b]0;title\x07"),
        ('"inputs": [', '"inputs": ["\\u009b2J", ', r"\x9b2J"),
        ('"error":', '"error": -Infinity, "surplus":', "-Infinity"),
        ('"error":', '"error": 1e999, "surplus":', "1e999"),
    ],
)
def test_manifest_that_can_be_read_in_two_ways_is_refused(copy_bundle: Path, old: str, new: str, word: str) -> None:
    text = (copy_bundle / MANIFEST).read_text()
    (copy_bundle / MANIFEST).write_text(text.replace(old, new, 1))
    with refused(BundleError, copy_bundle / MANIFEST, "JSON", word):
        Bundle.open(copy_bundle)


@pytest.mark.parametrize("field", ["bytes", "sample_rate", "opset", "seed", "stride", "shape"])
@pytest.mark.parametrize("number", [2**63, 2**64, -(2**63) - 1, 10**400])
def test_numbers_of_any_size_are_no_surprise(copy_bundle: Path, field: str, number: int) -> None:
    def change(manifest: Manifest) -> None:
        encoder = manifest["stages"]["encoder"]
        match field:
            case "bytes":
                manifest["weights"].update(bytes=number)
            case "sample_rate":
                manifest.update(sample_rate=number)
            case "opset":
                encoder["graphs"]["ort"].update(opset=number)
            case "shape":
                encoder["probe"]["outputs"]["latents"].update(shape=[number])
            case "stride":
                encoder["probe"]["outputs"]["latents"].update(stride=number)
            case _:
                encoder["probe"].update(seed=number)

    change_manifest(copy_bundle, change)
    if field == "opset" or (field == "seed" and number == 2**63):
        Bundle.open(copy_bundle)  # that is said only, and this is a seed like others
        return
    with refused(BundleError, copy_bundle):
        verify_bundle(copy_bundle, backend="onnxruntime-cpu")


def test_huge_manifest_is_refused_unread(copy_bundle: Path) -> None:
    with (copy_bundle / MANIFEST).open("r+b") as stream:
        stream.truncate(1 << 30)  # sparse
    with refused(BundleError, copy_bundle / MANIFEST, 1 << 30):
        Bundle.open(copy_bundle)


CHANGES: dict[str, tuple[Callable[[Manifest], object], str]] = {
    "unknown field": (lambda m: m.update(surplus=1), "surplus"),
    "unknown field of a stage": (lambda m: m["stages"]["encoder"].update(surplus=1), "stages.encoder.surplus"),
    "missing field": (lambda m: m.pop("weights"), "weights"),
    "missing hash": (lambda m: m["weights"].pop("sha256"), "weights.sha256"),
    "bad hash": (lambda m: m["weights"].update(sha256="00"), "weights.sha256"),
    "negative size": (lambda m: m["weights"].update(bytes=-1), "weights.bytes"),
    "stages as a list": (lambda m: m.update(stages=[]), "stages"),
    "stage of another type": (lambda m: m["stages"].update({"two\nlines": 1}), "stages.two"),
    "missing stage": (lambda m: m["stages"].pop("pyramid"), "pyramid"),
    "no stages": (lambda m: m.update(stages={}), "encoder"),
    "unknown system": (lambda m: m.update(system="another"), "'another'"),
    "path as system": (lambda m: m.update(system="../models/music2latent"), "../models/music2latent"),
    "unknown hyper-parameter": (lambda m: m["config"].update(surplus=1), "surplus"),
    "hyper-parameter of another type": (lambda m: m["config"].update(hop="64"), "hop"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_wrong_manifest_is_refused(copy_bundle: Path, name: str) -> None:
    change, word = CHANGES[name]
    change_manifest(copy_bundle, change)
    with refused(BundleError, copy_bundle, word):
        Bundle.open(copy_bundle)


# Paths that leave the bundle


@pytest.mark.parametrize("target", ["weights", "graph"])
@pytest.mark.parametrize("place", ["../outside", "stages/../../outside", "absolute", "link", "link to folder"])
def test_path_that_leaves_the_bundle_is_refused(copy_bundle: Path, place: str, target: str) -> None:
    outside = Path(shutil.copy(copy_bundle / WEIGHTS, copy_bundle.parent / "outside"))
    if place == "absolute":
        place = str(outside)
    elif place == "link":
        (copy_bundle / place).symlink_to(outside)
    elif place == "link to folder":
        (copy_bundle / place).symlink_to(copy_bundle.parent, target_is_directory=True)
        place += "/outside"

    def point_there(manifest: Manifest) -> None:
        entry = manifest["weights"] if target == "weights" else manifest["stages"]["encoder"]["graphs"]["ort"]["file"]
        entry.update(path=place, bytes=outside.stat().st_size, sha256=sha256_of(outside))

    change_manifest(copy_bundle, point_there)
    with refused(BundleError, copy_bundle, place, "outside of the bundle"):
        Bundle.open(copy_bundle)


@pytest.mark.parametrize("place", ["", ".", "stages", "nul\0byte", "x" * 300, "\ud800", "two\nlines", "loop"])
def test_path_that_is_no_file_is_refused(copy_bundle: Path, place: str) -> None:
    (copy_bundle / "loop").symlink_to(copy_bundle / "loop")
    change_manifest(copy_bundle, lambda manifest: manifest["weights"].update(path=place))
    with refused(BundleError, copy_bundle):
        Bundle.open(copy_bundle)


@pytest.mark.parametrize("file", [MANIFEST, WEIGHTS, "stages/encoder.onnx"])
@pytest.mark.parametrize("kind", ["pipe", "device", "link"])
def test_what_is_no_file_of_the_bundle_is_refused_unread(copy_bundle: Path, file: str, kind: str) -> None:
    """Reading a pipe would wait for ever, and /dev/zero has no end."""
    path = copy_bundle / file
    outside = Path(shutil.copy(path, copy_bundle.parent / "outside"))
    path.unlink()
    if kind == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to("/dev/zero" if kind == "device" else outside)
    with refused(BundleError, copy_bundle):
        Bundle.open(copy_bundle)


def test_model_opens_sessions_once_and_closes_them(tiny_bundle: Path) -> None:
    pytest.importorskip("onnxruntime")
    with Model.open(tiny_bundle, backend="onnxruntime-cpu", threads=1) as model:
        session = model.session("synthesis")
        assert model.session("synthesis") is session
    with refused(BackendError, "synthesis", "closed"):
        session.run({})
    with refused(BackendError, "closed"):
        model.session("synthesis").run({})
