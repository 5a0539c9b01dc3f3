"""Nothing that is run here is reported to anybody."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
import musicrt
with musicrt.load(backend="onnxruntime-cpu", threads=1) as codec:
    codec.model.session("encoder")
"""


def test_onnx_runtime_keeps_no_session_of_its_telemetry(tmp_path: Path) -> None:
    """Where it reports, it keeps the number of its session in a file, `.ses`, in the folder for temporary files."""
    pytest.importorskip("onnxruntime")
    plain = {name: value for name, value in os.environ.items() if name != "ORT_DISABLE_TELEMETRY"}
    subprocess.run([sys.executable, "-c", SCRIPT], env={**plain, "TMPDIR": str(tmp_path)}, check=True)
    assert list(tmp_path.iterdir()) == []
