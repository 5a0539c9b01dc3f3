"""Every name of TensorRT's Python API that the code uses is there, in each member of the family that can be asked.

`tensorrt_rtx` is installed here. Of the others the bindings are, without the libraries that these load: libraries of the same names that
hold nothing are enough to import them, in a process of its own, and to ask for names. Nothing is called.
"""

from __future__ import annotations

import ast
import importlib.metadata
import importlib.util
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from musicrt.engines.compile import STRIPPED
from musicrt.engines.layers import MOVES
from musicrt.runtime.tensorrt_family import FAMILIES, TARGETS

PACKAGE = Path(__file__).parents[2] / "musicrt"
BUILDING = ["engines/compile.py", "engines/layers.py"]
RUNNING = ["runtime/cuda/engine.py", "runtime/tensorrt_family.py", "runtime/tensorrt_messages.py", "engines/inspect.py"]

# The class behind each variable (or call) that holds an object of TensorRT in these files.
RECEIVERS = {
    "builder": "Builder",
    "network": "INetworkDefinition",
    "parser": "OnnxParser",
    "config": "IBuilderConfig",
    "optimization": "IOptimizationProfile",
    "error": "ParserError",
    "layer": "ILayer",
    "tensor": "ITensor",
    "runtime": "Runtime",
    "engine": "ICudaEngine",
    "settings": "IRuntimeConfig",
    "context": "IExecutionContext",
    "_context": "IExecutionContext",
    "refitter": "Refitter",
    "create_engine_inspector": "EngineInspector",
    "OnnxParserRefitter": "OnnxParserRefitter",
    "attention": "IAttention",
}
NOT_TENSORRT = {  # attributes of the same variables where they hold something else
    ("layer", name) for name in ("computes", "precision", "positions", "operator", "inputs", "outputs", "node", "attention", "int8")
} | {("tensor", "resolve"), ("tensor", "dims")}
SPECIALIZED = {("IRuntimeConfig", "dynamic_shapes_kernel_specialization_strategy")}
"""What is used of tensorrt-rtx where it is there."""
AHEAD = {("IBuilderConfig", "num_compute_capabilities"), ("IBuilderConfig", "set_compute_capability"), ("", "ComputeCapability")}
"""What is used of a family that builds ahead of time only."""

Names = set[tuple[str, str]]


def names_in(files: list[str]) -> Names:
    """(class, name), and ("", name) for what the module itself has."""
    return {found for file in files for found in _walk(ast.parse((PACKAGE / file).read_text()))}


def _walk(tree: ast.AST) -> Iterator[tuple[str, str]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef):
            for base in node.bases:
                if isinstance(base, ast.Attribute) and _last(base.value) == "trt":
                    methods = (part.name for part in node.body if isinstance(part, ast.FunctionDef))
                    yield from ((base.attr, name) for name in methods if not name.startswith("_"))
        if isinstance(node, ast.Attribute):
            owner = _last(node.value)
            if owner == "trt":
                yield "", node.attr
            elif isinstance(node.value, ast.Attribute) and _last(node.value.value) == "trt":
                yield node.value.attr, node.attr
            elif owner in RECEIVERS and (owner, node.attr) not in NOT_TENSORRT:
                yield RECEIVERS[owner], node.attr


def _last(node: ast.AST) -> str:
    """The name that an expression ends with: that of a variable, an attribute, or what is called."""
    if isinstance(node, ast.Call):
        return _last(node.func)
    return node.id if isinstance(node, ast.Name) else node.attr if isinstance(node, ast.Attribute) else ""


def used_dynamically(family: str) -> Names:
    """Names that the code makes of data."""
    member = FAMILIES[family]
    names = {("BuilderFlag", flag) for flag in (*member.flags, *STRIPPED)} | {("LayerType", name) for name in MOVES}
    return names | ({("ComputeCapability", target.replace("sm_", "SM")) for target in TARGETS} if member.ahead else set())


def ask(module: str, folder: Path, package: str) -> dict[str, list[str]]:
    """What a module of bindings has, by class. Skips where it is not installed, or there is no compiler for the empty libraries."""
    if not importlib.util.find_spec(module):
        pytest.skip(f"{module} is not installed")
    compiler = shutil.which("cc") or pytest.skip("no C compiler for empty libraries")
    major = importlib.metadata.version(package).partition(".")[0]
    calls = ["Builder", "Refitter", "Runtime"]
    symbols = [f"createInfer{name}_INTERNAL" for name in calls]
    symbols += ["createNvOnnxParser_INTERNAL", "createNvOnnxParserRefitter_INTERNAL", "getBuilderPluginRegistry", "getPluginRegistry"]
    symbols += ["getNvOnnxParserVersion", "initLibNvInferPlugins"]
    source = folder / "empty.c"
    source.write_text("\n".join(f"void {symbol}(void) {{}}" for symbol in symbols))
    for name in ("nvinfer", "nvinfer_plugin", "nvonnxparser", "nvinfer_lean"):
        library = f"lib{name}.so.{major}"
        subprocess.run([compiler, "-shared", "-fPIC", f"-Wl,-soname,{library}", "-o", folder / library, source], check=True)
    code = f"import json, {module} as m; print(json.dumps({{'': dir(m)}} | {{n: dir(getattr(m, n)) for n in dir(m)}}))"
    environment = {**os.environ, "LD_LIBRARY_PATH": str(folder)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found: dict[str, list[str]] = json.loads(done.stdout)
    return found


def missing(names: Names, found: dict[str, list[str]]) -> Names:
    return {(kind, name) for kind, name in names if name not in found.get(kind, ())}


def test_names_are_collected() -> None:
    """The test would be worth nothing if it found none."""
    building, running = names_in(BUILDING), names_in(RUNNING)
    for expected in (
        {("", "Builder"), ("Builder", "create_network"), ("NetworkDefinitionCreationFlag", "STRONGLY_TYPED"), ("OnnxParser", "get_error")},
        {("ParserError", "node_operator"), ("IProgressMonitor", "step_complete"), ("IAttention", "decomposable"), ("ITensor", "dtype")},
    ):
        assert expected <= building
    for expected in (
        {
            ("IExecutionContext", "execute_async_v3"),
            ("IExecutionContext", "set_device_memory"),
            ("ICudaEngine", "create_execution_context"),
        },
        {("ILogger", "log"), ("IErrorRecorder", "report_error"), ("EngineInspector", "get_engine_information")},
        {("OnnxParserRefitter", "refit_from_file"), ("Refitter", "refit_cuda_engine"), ("Runtime", "deserialize_cuda_engine")},
    ):
        assert expected <= running
    assert building >= AHEAD


def test_every_file_that_uses_tensorrt_is_looked_at() -> None:
    trees = {path.relative_to(PACKAGE).as_posix(): ast.parse(path.read_text()) for path in PACKAGE.rglob("*.py")}
    using = {file for file, tree in trees.items() if any(isinstance(node, ast.Name) and node.id == "trt" for node in ast.walk(tree))}
    assert using == {*BUILDING, *RUNNING}


def test_names_are_in_tensorrt_rtx() -> None:
    module = pytest.importorskip("tensorrt_rtx")
    found = {"": dir(module)} | {name: dir(getattr(module, name)) for name in dir(module)}
    assert missing(names_in([*BUILDING, *RUNNING]) | used_dynamically("tensorrt-rtx"), found) == set()


def test_names_are_in_tensorrt(tmp_path: Path) -> None:
    found = ask("tensorrt_bindings", tmp_path, "tensorrt_cu13_bindings")
    assert missing(names_in([*BUILDING, *RUNNING]) | used_dynamically("tensorrt"), found) == AHEAD | SPECIALIZED


def test_names_are_in_the_lean_runtime(tmp_path: Path) -> None:
    """It runs version-compatible engines, which are not made here; its API is that of the full one without parser and inspector."""
    found = ask("tensorrt_lean_bindings", tmp_path, "tensorrt_lean_cu13_bindings")
    networks = {"ILayer", "ITensor"}  # variables of these names hold specs where engines run
    lacking = missing({(kind, name) for kind, name in names_in(RUNNING) if kind not in networks}, found) - SPECIALIZED
    assert {kind or name for kind, name in lacking} <= {"OnnxParserRefitter", "EngineInspector"}
