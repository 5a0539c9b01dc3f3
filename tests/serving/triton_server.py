"""A real tritonserver for tests: that of the nvidia-pytriton wheel, with an environment for its Python processes.

`scripts/triton-env DIR` unpacks it, and MUSICRT_TRITON=DIR names it.
"""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from unittest import mock

FOLDER = os.environ.get("MUSICRT_TRITON", "")
_SOON = 90.0
_ROOT = Path(__file__).parents[2]


@contextlib.contextmanager
def client_packages() -> Iterator[None]:
    """In here tritonclient can be imported, where there is one; after this process's own packages, some of which it brings as well."""
    with mock.patch.object(sys, "path", [*sys.path, *filter(None, [FOLDER])]), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of protobuf, about the age of what tritonclient was made with
        yield


def obstacle() -> str | None:
    """Why no server can be started here."""
    if not FOLDER:
        return "no tritonserver: scripts/triton-env DIR, then MUSICRT_TRITON=DIR"
    return None if _stub().is_file() else f"{FOLDER} has no {_stub().name} for Python {sys.version_info.major}.{sys.version_info.minor}"


@contextlib.contextmanager
def serving(repositories: Sequence[Path], work: Path) -> Iterator[str]:
    """Serve model repositories; gives the address for gRPC. work: an empty folder for what the server needs beside it."""
    port, log = _free_port(), work / "log.txt"
    command = [
        str(_home() / "bin" / "tritonserver"),
        *(f"--model-repository={one}" for one in repositories),
        f"--backend-directory={_backends(work / 'backends')}",
        *("--grpc-address=127.0.0.1", f"--grpc-port={port}", "--allow-http=false", "--allow-metrics=false", "--exit-timeout-secs=5"),
    ]
    path = os.pathsep.join([str(_environment(work / "env") / "bin"), os.environ["PATH"]])
    with log.open("w") as output, subprocess.Popen(command, stdout=output, stderr=output, env={**os.environ, "PATH": path}) as server:
        try:
            until = time.monotonic() + _SOON
            while "Started GRPCInferenceService" not in log.read_text():
                assert server.poll() is None, log.read_text()
                assert time.monotonic() < until, log.read_text()
                time.sleep(0.05)
            yield f"127.0.0.1:{port}"
        finally:
            server.terminate()
            server.wait(_SOON)


def _home() -> Path:
    return Path(FOLDER) / "pytriton" / "tritonserver"


def _stub() -> Path:
    return _home() / "python_backend_stubs" / f"{sys.version_info.major}.{sys.version_info.minor}" / "triton_python_backend_stub"


def _backends(folder: Path) -> Path:
    """The Python backend with the process that is made for this version of Python."""
    python = folder / "python"
    python.mkdir(parents=True)
    for path in (*(_home() / "backends" / "python").iterdir(), _stub()):
        (python / path.name).symlink_to(path)
    return folder


def _environment(folder: Path) -> Path:
    """A virtual environment with this process's packages, and the musicrt that is tested. The server's Python ignores PYTHONPATH, and
    takes the environment of the first `python3` in PATH.
    """
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    packages = folder / "lib" / version / "site-packages"
    packages.mkdir(parents=True)
    paths = [str(_ROOT), *(path for path in sys.path if path.endswith("-packages"))]
    (packages / "musicrt-tests.pth").write_text("\n".join(paths) + "\n")
    (folder / "bin").mkdir()
    base = Path(sys.base_prefix) / "bin"
    for name in ("python3", "python"):
        (folder / "bin" / name).symlink_to(base / version)
    (folder / "pyvenv.cfg").write_text(f"home = {base}\nversion = {sys.version.split()[0]}\ninclude-system-site-packages = false\n")
    return folder


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])
