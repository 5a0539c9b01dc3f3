"""Compiling the kernels: for every architecture, without a GPU; and the cache of what was compiled."""

from __future__ import annotations

import hashlib
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from musicrt.runtime.cuda import compiler
from musicrt.runtime.cuda.compiler import FOLDER, cache_folder, compile_kernels
from musicrt.runtime.cuda.kernels import SOURCES
from musicrt.runtime.errors import BackendError
from tests.conftest import refused

ARCHITECTURES = ["sm_75", "sm_80", "sm_86", "sm_89", "sm_90", "sm_100", "sm_120"]
SMALL = "go_on"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "new" / "cache"
    monkeypatch.setenv("MUSICRT_CACHE", str(folder))
    return folder


@pytest.fixture(autouse=True)
def _needs_compiler() -> None:
    for module in ("cuda.core", "cuda.bindings.nvrtc"):
        pytest.importorskip(module)
    from cuda.bindings import nvrtc

    try:
        nvrtc.nvrtcVersion()
    except RuntimeError:
        pytest.skip("NVRTC is not installed")


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of what the compiler itself was asked for."""
    import cuda.core

    names, real = [], cuda.core.Program

    def program(code: Any, kind: str, options: Any) -> Any:
        names.append(options.name)
        return real(code, kind, options)

    monkeypatch.setattr(cuda.core, "Program", program)
    return names


@pytest.mark.parametrize("source", SOURCES)
def test_kernels_compile_for_every_architecture(source: str) -> None:
    with ThreadPoolExecutor(2) as pool:
        cubins = list(pool.map(lambda architecture: compile_kernels(source, architecture), ARCHITECTURES))
    for architecture, cubin in zip(ARCHITECTURES, cubins, strict=True):
        assert cubin.startswith(b"\x7fELF"), architecture
        assert [name for name in SOURCES[source] if f".text.{name}\0".encode() not in cubin] == [], architecture
    assert len(set(cubins)) == len(cubins)


def test_every_source_has_its_kernels() -> None:
    assert {path.stem for path in FOLDER.glob("*.cu")} == set(SOURCES)
    assert {path.suffix for path in FOLDER.iterdir()} == {".cu", ".cuh"}


def test_what_was_compiled_is_read_from_then_on(cache: Path, compiled: list[str]) -> None:
    first = compile_kernels(SMALL, "sm_80")
    (path,) = cache.iterdir()
    assert (path.name.startswith(f"{SMALL}-sm_80-"), path.suffix) == (True, ".cubin")
    assert path.read_bytes() == first + hashlib.sha256(first).digest()
    assert compile_kernels(SMALL, "sm_80") == first
    assert compiled == [f"{SMALL}.cu"]
    compile_kernels(SMALL, "sm_90")
    assert len(compiled) == len(list(cache.iterdir())) == 2


@pytest.mark.parametrize("damage", [b"", b"\0" * 32, b"short", None])
def test_damaged_entries_are_made_again(cache: Path, compiled: list[str], damage: bytes | None) -> None:
    cubin = compile_kernels(SMALL, "sm_80")
    (path,) = cache.iterdir()
    whole = path.read_bytes()
    path.write_bytes(whole[:100] + b"x" + whole[101:] if damage is None else damage)
    assert compile_kernels(SMALL, "sm_80") == cubin
    assert path.read_bytes() == whole
    assert len(compiled) == 2


def test_a_change_of_any_source_is_compiled(tmp_path: Path, cache: Path, compiled: list[str]) -> None:
    folder = tmp_path / "sources"
    folder.mkdir()
    (folder / "a.cuh").write_text("#pragma once\nconstexpr int A = 1;\n")
    (folder / "a.cu").write_text('#include "a.cuh"\nextern "C" __global__ void a(int* out) { *out = A; }\n')
    cubins = [compile_kernels("a", "sm_80", folder)]
    (folder / "a.cuh").write_text("#pragma once\nconstexpr int A = 2;\n")
    cubins.append(compile_kernels("a", "sm_80", folder))
    assert cubins[0] != cubins[1]
    assert (len(compiled), len(list(cache.iterdir()))) == (2, 2)


def test_other_options_or_another_compiler_are_another_entry(cache: Path, compiled: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    from cuda.bindings import nvrtc

    compile_kernels(SMALL, "sm_80")
    monkeypatch.setitem(compiler.OPTIONS, "fma", True)
    compile_kernels(SMALL, "sm_80")
    monkeypatch.setattr(nvrtc, "nvrtcVersion", lambda: (0, 99, 9))
    compile_kernels(SMALL, "sm_80")
    assert len(compiled) == len(list(cache.iterdir())) == 3


def test_a_cache_that_can_not_be_written_breaks_nothing(tmp_path: Path, compiled: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("in the way")
    for folder in (tmp_path / "file", tmp_path / "file" / "below", Path("/proc/none")):
        monkeypatch.setenv("MUSICRT_CACHE", str(folder))
        assert compile_kernels(SMALL, "sm_80").startswith(b"\x7fELF")
    assert len(compiled) == 3


def test_what_is_interrupted_leaves_nothing(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_path: Path, _content: bytes) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", fail)
    assert compile_kernels(SMALL, "sm_80").startswith(b"\x7fELF")
    assert list(cache.iterdir()) == []


def test_faults_are_told_with_what_the_compiler_said(tmp_path: Path, cache: Path) -> None:
    (tmp_path / "bad.cu").write_text('extern "C" __global__ void bad(int* out) { *out = nothing; }')
    with refused(BackendError, "bad.cu", "sm_80", 'identifier "nothing" is undefined'):
        compile_kernels("bad", "sm_80", tmp_path)
    with refused(BackendError, "sm_999", "gpu-architecture"):
        compile_kernels(SMALL, "sm_999")
    assert not cache.exists()


def test_a_compiler_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    from cuda.bindings import nvrtc

    def fail() -> tuple[int, ...]:
        raise RuntimeError("libnvrtc.so not found")

    monkeypatch.setattr(nvrtc, "nvrtcVersion", fail)
    with refused(BackendError, "no NVRTC (libnvrtc.so not found)", "pip install 'musicrt[device]'"):
        compile_kernels(SMALL, "sm_80")


def test_cache_is_where_the_platform_has_caches(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("MUSICRT_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("LOCALAPPDATA", str(tmp_path))
    monkeypatch.setenv("HOME", str(tmp_path))
    folders = {"linux": tmp_path / "musicrt", "darwin": tmp_path / "Library/Caches/musicrt", "win32": tmp_path / "musicrt" / "cache"}
    for platform, folder in folders.items():
        monkeypatch.setattr(sys, "platform", platform)
        assert cache_folder() == folder
