"""Importing is light, and torch is needed for export and for its own backends only."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence
from fnmatch import fnmatch
from typing import Any

import pytest

HEAVY = ["torch", "onnxruntime", "openvino", "tensorrt", "scipy.signal", "pydantic", "soundfile", "numpy", "rich", "typer"]
NEED_TORCH = [
    "musicrt.runtime.checkpoint",
    "musicrt.runtime.layers",
    "musicrt.runtime.networks.*",
    "musicrt.runtime.unpickling",
    "musicrt.runtime.models.*.network",
    "musicrt.runtime.models.*.network.*",
    "musicrt.runtime.models.*.stages",
]


def run_fresh(code: str, *, blocked: Sequence[str] = ()) -> Any:
    """What `code` leaves in `result`, in a process that can't import what is `blocked`."""
    block = f"import sys; sys.modules.update(dict.fromkeys({list(blocked)!r}))\n"
    full = f"{block}{code}\nimport json; print(json.dumps(result))"
    done = subprocess.run([sys.executable, "-c", full], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_import_of_the_package_loads_nothing_heavy(record_property: Callable[[str, object], None]) -> None:
    code = f"""
import time
started = time.perf_counter()
import musicrt
seconds = time.perf_counter() - started
result = [seconds, [name for name in {HEAVY} if name in sys.modules], [name for name in sys.modules if name.startswith("musicrt")]]
"""
    runs = [run_fresh(code) for _ in range(5)]
    assert [heavy for _, heavy, _ in runs] == [[]] * 5
    assert runs[0][2] == ["musicrt"]
    median = statistics.median(seconds for seconds, _, _ in runs)
    record_property("import_milliseconds", round(1e3 * median, 2))
    print(f"import musicrt: {1e3 * median:.1f} ms")


@pytest.mark.parametrize(
    ("module", "absent"),
    [
        ("musicrt.runtime.spec", ["numpy", "pydantic", "soundfile", "torch", "onnxruntime"]),
        ("musicrt.runtime.errors", ["numpy", "pydantic", "soundfile", "torch", "onnxruntime"]),
        ("musicrt.runtime.audio", ["pydantic", "scipy", "torch", "onnxruntime"]),
        ("musicrt.runtime.audio_writer", ["pydantic", "scipy", "torch", "onnxruntime"]),
        ("musicrt.runtime.model", ["typer", "torch", "onnxruntime", "openvino", "tensorrt"]),
        ("musicrt.cli.app", ["soundfile", "scipy", "torch", "onnxruntime", "openvino", "tensorrt"]),
    ],
)
def test_modules_load_only_what_they_need(module: str, absent: list[str]) -> None:
    assert run_fresh(f"import {module}\nresult = [name for name in {absent} if name in sys.modules]") == []


def test_only_checkpoints_and_networks_need_torch() -> None:
    code = """
import importlib, pkgutil, musicrt.runtime
names = [module.name for module in pkgutil.walk_packages(musicrt.runtime.__path__, "musicrt.runtime.") if not module.ispkg]
failed = {}
for name in names:
    try:
        importlib.import_module(name)
    except ModuleNotFoundError as error:
        failed[name] = error.name.partition(".")[0]
result = [names, failed]
"""
    names, failed = run_fresh(code, blocked=["torch", "onnxruntime", "openvino", "tensorrt"])
    assert "musicrt.runtime.backends.torch" in names
    assert failed == {name: "torch" for name in names if any(fnmatch(name, pattern) for pattern in NEED_TORCH)}


def test_embedded_bundle_runs_without_torch() -> None:
    pytest.importorskip("onnxruntime")
    code = """
import musicrt, numpy
with musicrt.load() as codec:
    audio = 0.1 * numpy.sin(numpy.arange(20_000, dtype=numpy.float32))
    latents = codec.encode(audio)
    decoded = codec.decode(latents, seed=1)
    result = [codec.backend.name, list(latents.shape), list(decoded.shape), float(abs(decoded).max())]
"""
    backend, latents, decoded, peak = run_fresh(code, blocked=["torch"])
    assert backend.startswith("onnxruntime-")
    assert latents[0] == decoded[0] == 1
    assert 0 < 20_000 - decoded[1] < 20_000 // latents[2] + 1
    assert 0.0 < peak <= 1.0


def test_torch_backend_is_refused_by_name_where_there_is_no_torch() -> None:
    code = """
import musicrt
try:
    musicrt.load(backend="torch-cpu")
except musicrt.BackendError as error:
    result = str(error)
"""
    said = "torch-cpu can't run here: torch is not installed (pip install 'musicrt[torch]'); musicrt doctor lists what runs here"
    assert run_fresh(code, blocked=["torch"]) == said
