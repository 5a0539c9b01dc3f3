"""CUDA C++ to machine code of a GPU, by NVRTC, kept on disk: what was compiled once is read from then on.

A file of the cache is named by the SHA-256 of all that it is made of, and ends with the SHA-256 of what is in it, so that nothing damaged
or outdated is ever loaded. It may be removed at any time.
"""

from __future__ import annotations

import hashlib
import os
import sys
from pathlib import Path

from musicrt.runtime.errors import BackendError, OutputError
from musicrt.runtime.files import new_file

FOLDER = Path(__file__).with_name("sources")
OPTIONS = {"std": "c++17", "fma": False}
"""Without fused multiply-add, and with NVRTC's exact division by default, arithmetic on floats is that of NumPy, bit for bit."""
_DIGEST = 32  # bytes


def compile_kernels(source: str, architecture: str, folder: Path = FOLDER) -> bytes:
    """The cubin of `<source>.cu` in a folder, for an architecture such as "sm_90". Raises BackendError: no compiler, or what it said."""
    try:
        from cuda.bindings import nvrtc
        from cuda.core import Program, ProgramOptions
    except ImportError as error:
        raise BackendError(f"kernels can't be compiled: no {error.name}; pip install 'musicrt[device]'") from error
    try:
        version = nvrtc.nvrtcVersion()[1:]
    except RuntimeError as error:  # what cuda-bindings raises without the library
        raise BackendError(f"kernels can't be compiled: no NVRTC ({error}); pip install 'musicrt[device]'") from error
    path = cache_folder() / f"{source}-{architecture}-{_key(folder, source, architecture, version)}.cubin"
    cubin = _read(path)
    if cubin is None:
        options = ProgramOptions(name=f"{source}.cu", arch=architecture, include_path=str(folder), **OPTIONS)
        try:
            cubin = bytes(Program((folder / f"{source}.cu").read_text(), "c++", options).compile("cubin").code)
        except Exception as error:  # cuda-core has no public name for it
            if type(error).__name__ != "NVRTCError":
                raise
            log = "; ".join(line.strip() for line in str(error).splitlines() if "error" in line)
            raise BackendError(f"{source}.cu can't be compiled for {architecture}: {log}; update nvidia-cuda-nvrtc") from error
        _write(path, cubin)
    return cubin


def cache_folder() -> Path:
    """Where compiled kernels lie: $MUSICRT_CACHE, else a folder of the user's, by the custom of the platform."""
    if given := os.environ.get("MUSICRT_CACHE"):
        return Path(given)
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local") / "musicrt" / "cache"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "musicrt"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "musicrt"


def _key(folder: Path, source: str, architecture: str, version: tuple[int, ...]) -> str:
    """Of the source, of all headers, and of what they are compiled with."""
    digest = hashlib.sha256(repr((source, architecture, sorted(OPTIONS.items()), version)).encode())
    for path in sorted([folder / f"{source}.cu", *folder.glob("*.cuh")]):
        content = path.read_bytes()
        digest.update(f"{path.name} {len(content)}\n".encode() + content)
    return digest.hexdigest()


def _read(path: Path) -> bytes | None:
    """What a file of the cache holds; None if there is none, or a damaged one."""
    try:
        content = path.read_bytes()
    except OSError:
        return None
    cubin, digest = content[:-_DIGEST], content[-_DIGEST:]
    return cubin if cubin and hashlib.sha256(cubin).digest() == digest else None


def _write(path: Path, cubin: bytes) -> None:
    """Keep a cubin; a folder that can't be written means that it is compiled again next time."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with new_file(path) as temporary:
            temporary.write_bytes(cubin + hashlib.sha256(cubin).digest())
    except (OSError, OutputError):
        return
