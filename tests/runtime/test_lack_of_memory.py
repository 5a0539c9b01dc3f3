"""A process that may not have more memory: the request that needs it gets an error that says so, and the next one its result."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from musicrt.runtime.select import BACKENDS

RUNTIMES = [name for name in ("onnxruntime-cpu", "openvino-cpu", "torch-cpu") if BACKENDS[name].obstacle() is None]
PROGRAM = """
    import resource, sys
    from pathlib import Path
    import numpy as np
    import musicrt

    codec = musicrt.load(backend=sys.argv[1], threads=1)
    service = musicrt.Service(codec, workers=1)
    noise = np.random.default_rng(0).uniform(-0.3, 0.3, (1, 59 * codec.sample_rate)).astype(np.float32)
    short = noise[:, :30_000]
    latents = codec.encode(short)
    audio = codec.decode(latents, seed=7)
    assert np.array_equal(service.submit("encode", short).result(), latents)  # its thread has what it needs
    now = next(int(line.split()[1]) for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmSize:"))
    resource.setrlimit(resource.RLIMIT_AS, (1024 * now + 300_000_000,) * 2)
    for ask in (lambda: codec.encode(noise), lambda: service.submit("encode", noise).result()):
        try:
            ask()
        except (musicrt.BackendError, MemoryError) as error:
            print(type(error).__name__, error)
        else:
            sys.exit("there was enough memory")
        assert np.array_equal(codec.encode(short), latents)
        assert np.array_equal(service.submit("encode", short).result(), latents)
        assert np.array_equal(codec.decode(latents, seed=7), audio)
    service.close()
    codec.close()
"""


@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="only Linux holds a process to a size")
@pytest.mark.parametrize("backend", RUNTIMES)
def test_one_request_fails_and_the_next_is_answered(backend: str) -> None:
    command = [sys.executable, "-W", "ignore", "-c", textwrap.dedent(PROGRAM), backend]
    environment = {**os.environ, "MALLOC_ARENA_MAX": "1"}  # each reserves as much as the test leaves free
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    said = done.stdout.splitlines()
    assert len(said) == 2
    for line in said:
        assert line.startswith("BackendError encoder: ")
        assert "got not enough memory" in line
        assert "ask for less at once" in line
