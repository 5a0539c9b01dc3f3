"""A process that is killed while it changes a bundle, as where memory runs out: the bundle is what it was, or what it was to become."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import musicrt
from musicrt.runtime.bundle import Bundle
from tests.test_full_disk import add_engine, lower

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

PROGRAM = """
import os, signal, sys
from pathlib import Path
import musicrt.calibration.store, musicrt.engines.build  # before the fork, as all of ONNX Runtime that is only imported
from tests.test_killed import RENAMES, change_bundle

for last in range(1, RENAMES + 2):
    child = os.fork()
    if child == 0:
        done, rename = 0, Path.replace
        def count(path, target):
            global done
            done += 1
            if done == last:
                os.kill(os.getpid(), signal.SIGKILL)
            return rename(path, target)
        Path.replace = count
        change_bundle(Path(sys.argv[1], str(last)))
        os._exit(0)
    print(last, os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
RENAMES = 10


def change_bundle(place: Path) -> None:
    """Calibrate the bundle of a folder, which renames 3 files, do it anew (4: there is a manifest between), and give it an engine (3)."""
    lower(place, place)
    lower(place, place)
    add_engine(place, place)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_bundle_is_whole_whenever_the_process_was_killed(tmp_path: Path) -> None:
    for last in range(1, RENAMES + 2):
        shutil.copytree(musicrt.EMBEDDED, tmp_path / str(last) / "bundle")
    ended = subprocess.run([sys.executable, "-W", "ignore", "-c", PROGRAM, tmp_path], capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.splitlines() == [f"{last} -9" for last in range(1, RENAMES + 1)] + [f"{RENAMES + 1} 0"], ended.stderr
    for last, flavours in zip(range(1, RENAMES + 2), [1, 1, 1, 2, 1, 1, 1, 2, 2, 2, 2], strict=True):
        bundle = Bundle.open(tmp_path / str(last) / "bundle", check="hashes")
        assert len(bundle.flavours) == flavours, last
        assert len(bundle.manifest.engines) == (last > RENAMES)
    change_bundle(tmp_path / "6")
    assert len(Bundle.open(tmp_path / "6" / "bundle", check="hashes").flavours) == 2
