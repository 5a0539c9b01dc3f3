"""Pipelines and processes: a forked child is told so, a spawned one works, and a stage that fails takes nothing with it."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
import textwrap
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor

import numpy as np
import pytest

from musicrt.runtime.errors import BackendError
from musicrt.runtime.model import Model, load
from musicrt.runtime.models.music2latent.pipeline import Pipeline
from musicrt.runtime.select import BACKENDS
from musicrt.runtime.serving.service import Service
from musicrt.runtime.session import Array, FakeSession, Session
from tests.reference import signals

ON_CPU = [name for name, kind in BACKENDS.items() if kind.device == "cpu" and kind.obstacle() is None]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
@pytest.mark.parametrize("backend", ON_CPU)
def test_a_forked_child_gets_an_error_and_ends(backend: str) -> None:
    """In a process of its own: this one has threads, of which a fork warns."""
    program = """
        import os, sys, numpy as np, musicrt
        codec = musicrt.load(backend=sys.argv[1])
        service = musicrt.Service(codec)
        audio = np.zeros((1, 20000), np.float32)
        expected = codec.encode(audio)
        child = os.fork()
        if child == 0:
            for call in (codec.encode, lambda one: service.submit("encode", one)):
                try:
                    call(audio)
                except musicrt.BackendError as error:
                    assert "before this process was forked" in str(error), error
                else:
                    sys.exit(9)
            service.close()
            codec.close()
            sys.exit(5)  # with all that ends a process
        _, status = os.waitpid(child, 0)
        assert os.waitstatus_to_exitcode(status) == 5, status
        assert np.array_equal(codec.encode(audio), expected)  # the parent's is untouched
        service.close()
        print("fine")
    """
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", textwrap.dedent(program), backend], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout) == (0, "fine\n"), done.stderr


def encode_here(backend: str) -> Array:
    with load(backend=backend, threads=1) as codec:
        encoded: Array = codec.encode(signals.audio("music", 0.5, 44100))
        return encoded


def test_a_spawned_child_works() -> None:
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        np.testing.assert_array_equal(pool.submit(encode_here, ON_CPU[0]).result(60), encode_here(ON_CPU[0]))


@pytest.mark.parametrize("error", [MemoryError("no memory for 3 GB"), BackendError("encoder: the kernel failed")])
def test_a_stage_that_fails_once_ends_one_request(error: Exception) -> None:
    pytest.importorskip("onnxruntime")
    audio = signals.audio("music", 0.5, 44100)
    with load(threads=1) as known:
        left = [error]

        def failing(stage: str) -> Session:
            inner = known.model.session(stage)

            def run(feeds: Mapping[str, Array]) -> Mapping[str, Array]:
                if left:
                    raise left.pop()
                computed: Mapping[str, Array] = inner.run(feeds)
                return computed

            return FakeSession(inner.stage, run)

        with Service(Pipeline(Model(known.model.spec, failing, known.backend))) as service:
            first, second = (service.submit("encode", audio) for _ in range(2))
            assert first.exception(30) is error
            np.testing.assert_array_equal(second.result(30), known.encode(audio))
