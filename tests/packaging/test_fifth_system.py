"""A fifth system is one new folder: the one in `dummy/`, put into a copy of the package, is exported, verified and run."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from musicrt.runtime.audio import read_audio
from musicrt.runtime.audio_writer import write_audio
from musicrt.runtime.errors import InputError, VerificationError

PACKAGE = Path(__file__).parents[2] / "musicrt"
DUMMY = Path(__file__).parent / "dummy"
RATE, HOP = 8000, 32

Run = Callable[..., "subprocess.CompletedProcess[str]"]


@dataclass(frozen=True)
class Extended:
    """A copy of the package with the dummy in it, and a bundle that it made."""

    folder: Path
    bundle: Path
    run: Run


@pytest.fixture(scope="module")
def extended(tmp_path_factory: pytest.TempPathFactory) -> Extended:
    """The copy, with `run(*arguments, status=0)` for Python in it."""
    torch = pytest.importorskip("torch")
    for module in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(module)
    folder = tmp_path_factory.mktemp("extended")
    uncompiled = shutil.ignore_patterns("__pycache__")
    shutil.copytree(PACKAGE, folder / "musicrt", ignore=uncompiled)
    shutil.copytree(DUMMY, folder / "musicrt" / "runtime" / "models" / "dummy", ignore=uncompiled)
    environment = {**os.environ, "PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1"}

    def run(*arguments: str, status: int = 0) -> subprocess.CompletedProcess[str]:
        done = subprocess.run([sys.executable, *arguments], cwd=folder, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == status, done.stderr
        return done

    # An orthogonal matrix and its transpose: what is encoded comes back.
    matrix = torch.from_numpy(np.linalg.qr(np.random.default_rng(0).normal(size=(HOP, HOP)))[0].astype(np.float32))
    torch.save({"encoder.weight": matrix[..., None], "decoder.weight": matrix.T[..., None].contiguous()}, folder / "dummy.pt")
    run("-m", "musicrt.cli", "export", "dummy", "--checkpoint", "dummy.pt", "--out", "bundle")
    return Extended(folder, folder / "bundle", run)


def contents(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def noise(channels: int, samples: int) -> np.ndarray:
    return np.random.default_rng(1).uniform(-0.5, 0.5, (channels, samples)).astype(np.float32)


def test_command_line_lists_it(extended: Extended) -> None:
    listed = {system["name"]: system for system in json.loads(extended.run("-m", "musicrt.cli", "systems", "--json").stdout)}
    assert set(listed) == {path.name for path in (PACKAGE / "runtime" / "models").iterdir() if (path / "spec.py").is_file()} | {"dummy"}
    assert listed["dummy"]["weights"] == "CC0 1.0 (made by the test)"


def test_weights_are_stored_once(extended: Extended) -> None:
    assert {path.relative_to(extended.bundle).as_posix() for path in extended.bundle.rglob("*") if path.is_file()} == {
        "manifest.json",
        "stages/encoder.onnx",
        "stages/decoder.onnx",
        "stages/weights.safetensors",
    }
    matrices = 2 * HOP * HOP * 4  # bytes
    assert matrices < (extended.bundle / "stages" / "weights.safetensors").stat().st_size < matrices + 1000
    assert sum(path.stat().st_size for path in extended.bundle.glob("stages/*.onnx")) < 3000


@pytest.mark.parametrize("backend", ["onnxruntime-cpu", "openvino-cpu", "torch-cpu"])
def test_verify_passes(extended: Extended, backend: str) -> None:
    pytest.importorskip(backend.removesuffix("-cpu"))
    checks = json.loads(extended.run("-m", "musicrt.cli", "verify", "bundle", "--backend", backend, "--json").stdout)
    assert [(check["stage"], check["backend"], check["ok"]) for check in checks] == [("encoder", backend, True), ("decoder", backend, True)]
    assert max(check["error"] for check in checks) < 1e-6


def test_verify_names_a_stage_that_computes_something_else(extended: Extended) -> None:
    manifest = json.loads((extended.bundle / "manifest.json").read_text())
    manifest["stages"]["decoder"]["probe"]["outputs"]["samples"]["values"][0] += 1.0
    damaged = shutil.copytree(extended.bundle, extended.folder / "damaged")
    (damaged / "manifest.json").write_text(json.dumps(manifest))
    done = extended.run("-m", "musicrt.cli", "verify", "damaged", "--backend", "onnxruntime-cpu", status=VerificationError.exit_code)
    assert done.stderr.startswith("error: damaged: decoder differ")


def test_inspect_shows_its_licence(extended: Extended) -> None:
    shown = extended.run("-m", "musicrt.cli", "inspect", "bundle").stdout.splitlines()
    assert "licence of the weights: CC0 1.0 (made by the test) https://example.org/dummy" in shown
    assert "system: dummy, variant full, 8000 Hz" in shown


@pytest.mark.parametrize("backend", ["onnxruntime-cpu", "torch-cpu"])
def test_load_round_trips_audio(extended: Extended, backend: str) -> None:
    lengths = (5, 40 * HOP, 600 * HOP + 1)  # less than a frame, one window, three windows
    for samples in lengths:
        np.save(extended.folder / f"in-{samples}.npy", noise(2, samples))
    code = f"""
import musicrt, numpy
with musicrt.load("bundle", backend={backend!r}) as codec:
    for samples in {lengths}:
        values = codec.encode(numpy.load(f"in-{{samples}}.npy"))
        numpy.save(f"values-{{samples}}.npy", values)
        numpy.save(f"out-{{samples}}.npy", codec.decode(values))
    print(codec.backend.name, type(codec).__module__)
"""
    assert extended.run("-c", code).stdout == f"{backend} musicrt.runtime.models.dummy.pipeline\n"
    for samples in lengths:
        frames = -(-samples // HOP)
        assert np.load(extended.folder / f"values-{samples}.npy").shape == (2, HOP, frames)
        decoded = np.load(extended.folder / f"out-{samples}.npy")
        assert decoded.shape == (2, frames * HOP)
        np.testing.assert_allclose(decoded[:, :samples], noise(2, samples), rtol=0, atol=1e-5)
        assert np.abs(decoded[:, samples:]).max(initial=0.0) < 1e-5


def test_command_line_round_trips_a_file(extended: Extended) -> None:
    write_audio(extended.folder / "in.wav", noise(1, 9999), RATE)
    extended.run("-m", "musicrt.cli", "encode", "bundle", "in.wav", "in.enc")
    extended.run("-m", "musicrt.cli", "decode", "bundle", "in.enc", "out.wav")
    decoded, rate = read_audio(extended.folder / "out.wav")
    assert rate == RATE
    np.testing.assert_allclose(decoded, noise(1, 9999), rtol=0, atol=1e-5)


def test_options_of_other_systems_are_refused(extended: Extended) -> None:
    write_audio(extended.folder / "in.wav", noise(1, 999), RATE)
    for command, option in (("encode", ("--chunking", "official")), ("roundtrip", ("--steps", "2"))):
        done = extended.run("-m", "musicrt.cli", command, "bundle", "in.wav", f"{command}.wav", *option, status=InputError.exit_code)
        assert done.stderr.splitlines()[-1] == f"error: dummy has no option {option[0]}; of this command's it has none"
        assert not (extended.folder / f"{command}.wav").exists()


def test_bench_takes_the_defaults_of_the_system(extended: Extended) -> None:
    bench = ("-m", "musicrt.cli", "bench", "bundle", "--backend", "torch-cpu", "--seconds", "0.1", "--repeats", "1")
    rows = json.loads(extended.run(*bench, "--json").stdout)["rows"]
    assert [row["name"] for row in rows] == ["encode", "decode", "encoder", "decoder"]
    done = extended.run(*bench, "--steps", "2", status=InputError.exit_code)
    assert done.stderr == "error: dummy has no option 'steps'; it has none\n"


def test_contracts_of_imports_hold_for_it_too(extended: Extended) -> None:
    pytest.importorskip("importlinter")
    shutil.copy(PACKAGE.parent / "pyproject.toml", extended.folder)
    (extended.folder / "musicrt" / "runtime" / "models" / "dummy" / "peek.py").write_text("import musicrt.export.bundle\n")
    run_linter = ("-c", "from importlinter.cli import lint_imports_command; lint_imports_command()", "--no-cache")
    assert "musicrt.runtime.models.dummy.peek -> musicrt.export.bundle" in extended.run(*run_linter, status=1).stdout
    (extended.folder / "musicrt" / "runtime" / "models" / "dummy" / "peek.py").unlink()
    extended.run(*run_linter)


def test_nothing_outside_its_folder_is_changed(extended: Extended) -> None:
    original, copy = contents(PACKAGE), contents(extended.folder / "musicrt")
    added = {name for name in copy if name not in original}
    assert added == {f"runtime/models/dummy/{name}" for name in contents(DUMMY)}
    assert {name: copy[name] for name in original} == original
