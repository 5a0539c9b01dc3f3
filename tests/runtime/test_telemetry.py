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


@pytest.mark.parametrize("known", [False, True])
def test_openvino_reports_nothing_when_it_is_imported(known: bool, tmp_path: Path) -> None:
    """The package that reports is not imported; others can import it afterwards."""
    pytest.importorskip("openvino")
    (tmp_path / "openvino_telemetry").mkdir()
    (tmp_path / "openvino_telemetry" / "__init__.py").write_text("import pathlib\npathlib.Path(__file__).with_name('seen').touch()\n")
    script = """
import sys
from musicrt.runtime.backends.openvino import OpenvinoCpu
assert OpenvinoCpu.obstacle() is None
assert "openvino" in sys.modules
assert "openvino_telemetry" not in sys.modules
"""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])}
    subprocess.run([sys.executable, "-c", f"{script}\nimport openvino_telemetry" if known else script], env=environment, check=True)
    assert (tmp_path / "openvino_telemetry" / "seen").exists() == known


def test_onnx_runtime_keeps_no_session_of_its_telemetry(tmp_path: Path) -> None:
    """Where it reports, it keeps the number of its session in a file, `.ses`, in the folder for temporary files."""
    pytest.importorskip("onnxruntime")
    plain = {name: value for name, value in os.environ.items() if name != "ORT_DISABLE_TELEMETRY"}
    subprocess.run([sys.executable, "-c", SCRIPT], env={**plain, "TMPDIR": str(tmp_path)}, check=True)
    assert list(tmp_path.iterdir()) == []
