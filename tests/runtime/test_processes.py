"""Pipelines and processes: a forked child is told so, a spawned one works, and a stage that fails takes nothing with it."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import textwrap
import threading
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import numpy as np
import pytest

from musicrt.runtime.errors import BackendError
from musicrt.runtime.fake_session import FakeSession
from musicrt.runtime.model import Model, load
from musicrt.runtime.models.music2latent.pipeline import Pipeline
from musicrt.runtime.select import BACKENDS
from musicrt.runtime.serving.service import Service
from musicrt.runtime.session import Array, Session
from tests.reference import signals

ON_CPU = [name for name, kind in BACKENDS.items() if kind.device == "cpu" and kind.obstacle() is None]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
@pytest.mark.parametrize("backend", ON_CPU)
def test_a_forked_child_gets_an_error_loads_its_own_and_ends(backend: str) -> None:
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
            try:  # one of its own
                assert np.array_equal(musicrt.load(backend=sys.argv[1]).encode(audio), expected)
            except musicrt.BackendError as error:
                assert sys.argv[1].startswith("torch") and "before this one was forked" in str(error), error
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


def die_at_work() -> None:
    with load(threads=1) as codec:
        codec.encode(signals.audio("music", 0.5, 44100), on_progress=lambda *_: os._exit(9))


def test_a_spawned_child_works_and_one_that_dies_is_noticed() -> None:
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        np.testing.assert_array_equal(pool.submit(encode_here, ON_CPU[0]).result(60), encode_here(ON_CPU[0]))
        with pytest.raises(BrokenProcessPool):
            pool.submit(die_at_work).result(60)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such signals")
def test_an_interrupted_program_ends_with_its_service_and_leaves_no_file(tmp_path: Path) -> None:
    program = """
        import musicrt, numpy as np
        from musicrt.runtime.audio_writer import write_audio
        with musicrt.load(threads=1) as codec, musicrt.Service(codec, workers=1) as service:
            noise = np.random.default_rng(0).uniform(-0.1, 0.1, (1, 8 * codec.sample_rate)).astype(np.float32)
            write_audio("song.wav", noise, codec.sample_rate)
            codec.encode_file("song.wav", "song.st")
            request = service.submit("decode_file", "song.st", "out.wav", steps=50)
            print("begun", flush=True)
            request.result()
    """
    command = [sys.executable, "-c", textwrap.dedent(program)]
    job = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path)
    try:
        assert job.stdout is not None
        assert job.stdout.readline() == "begun\n"
        pause = threading.Event()
        while not list(tmp_path.glob(".out.wav.*")) and job.poll() is None:
            pause.wait(0.02)
        job.send_signal(signal.SIGINT)
        _, said = job.communicate(timeout=60)
    finally:
        job.kill()
    assert job.returncode == -signal.SIGINT, said
    assert said.splitlines()[-1] == "KeyboardInterrupt"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["song.st", "song.wav"]


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
