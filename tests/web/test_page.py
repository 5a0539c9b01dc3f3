"""The page's own functions, without a server and without a browser."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import socket
import tempfile
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from musicrt.runtime.bundle import EMBEDDED
from musicrt.web.studio import Studio, open_studios
from tests.command import fails, spawn
from tests.conftest import ForSystem
from tests.runtime.audio_files import noise, save

pytest.importorskip("onnxruntime")
gr = pytest.importorskip("gradio")

# Gradio leaves event loops behind, which are collected at any time.
pytestmark = [
    pytest.mark.filterwarnings(r"ignore:unclosed (event loop|<socket\.socket):ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


@pytest.fixture(scope="module", autouse=True)
def _collect() -> Iterator[None]:
    yield
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        gc.collect()


@pytest.fixture(scope="module")
def studio() -> Iterator[Studio]:
    with open_studios([EMBEDDED], "onnxruntime-cpu", 1) as (studio,):
        yield studio


@pytest.fixture
def jobs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that has the folders of jobs."""
    path = tmp_path / "jobs"
    path.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(path))
    return path


async def show(studio: Studio, source: Path, steps: int = 1, progress: Any = None) -> tuple[list[Any], list[str]]:
    """What a job shows, and the names of the files that there are while it does."""
    from musicrt.web.page import run_job

    async with contextlib.aclosing(run_job(studio, str(source), ["seamless", steps, "7"], progress or gr.Progress())) as job:
        (shown,) = [(shown, [path.name for path in Path(shown[1]).parent.iterdir()]) async for shown in job]
    return shown


def test_a_job_shows_files_while_it_lasts(studio: Studio, tmp_path: Path, jobs: Path) -> None:
    (facts, audio, picture, files), there = asyncio.run(show(studio, save(tmp_path / "song.wav", noise(1, 5000))))
    assert facts.startswith("0.11 s at 44100 Hz")
    assert [Path(path).name for path in (audio, picture, *files)] == [
        "song_decoded.wav",
        "spectrograms.png",
        "song_decoded.wav",
        "song.safetensors",
    ]
    assert sorted(there) == sorted({Path(path).name for path in (audio, picture, *files)})
    assert list(jobs.iterdir()) == []


def test_errors_are_sentences(studio: Studio, tmp_path: Path, jobs: Path) -> None:
    broken = tmp_path / "<b>.wav"
    broken.write_text("no audio")
    with pytest.raises(gr.Error) as caught:
        asyncio.run(show(studio, broken))
    assert caught.value.message.startswith("can&#x27;t read &lt;b&gt;.wav: Format not recognised")
    assert caught.value.duration is None
    assert not caught.value.print_exception
    assert list(jobs.iterdir()) == []


def test_cancelling_a_job_ends_its_work(studio: Studio, tmp_path: Path, jobs: Path) -> None:
    song, said, begun, goes_on = save(tmp_path / "song.wav", noise(1, 5000)), list[str](), threading.Event(), threading.Event()

    def progress(_: object, desc: str) -> None:
        said.append(desc)
        if desc == "decoding":
            begun.set()
            assert goes_on.wait(30)

    async def cancel() -> None:
        complaints: list[object] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context))
        working = asyncio.create_task(show(studio, song, 1000, progress))
        await asyncio.to_thread(begun.wait, 30)
        waiting = asyncio.create_task(show(studio, song, progress=lambda *_, desc: said.append(f"{desc} out of turn")))
        await asyncio.sleep(0.1)
        for job in (waiting, working):
            job.cancel()
            with pytest.raises(asyncio.CancelledError):
                await job  # at once, though the work goes on
        assert len(list(jobs.iterdir())) == 2
        goes_on.set()
        await show(studio, song)
        gc.collect()
        assert complaints == []

    asyncio.run(cancel())
    assert said == ["beginning", "encoding", "decoding"]
    assert list(jobs.iterdir()) == []


def test_page_has_a_tab_and_a_queue_for_each_bundle(studio: Studio, tiny_bundles: ForSystem) -> None:
    from musicrt.web.page import build_page

    with open_studios([tiny_bundles("vidmuse")], "onnxruntime-cpu", 1) as (generator,):
        page = build_page([studio, generator])
        components = page.get_config_file()["components"]
        names = [one["type"] for one in components]
        assert [one["props"]["label"] for one in components if one["type"] == "tabitem"] == [studio.title, generator.title]
        assert (names.count("audio"), names.count("video"), names.count("checkbox"), names.count("dropdown")) == (3, 2, 2, 1)
        assert {one["props"]["label"] for one in components if "info" in one["props"]} >= {
            setting.label for each in (studio, generator) for setting in each.settings if setting.flag.kind is not Path
        }
        functions = [function for function in page.fns.values() if function.api_visibility == "public"]
        assert [(one.concurrency_limit, one.concurrency_id) for one in functions] == [(1, "bundle-0"), (1, "bundle-1")]
        assert not page.analytics_enabled
        page.close(verbose=False)


def test_without_the_extra_a_line_says_what_to_install() -> None:
    done = spawn("web", without=("gradio", "gradio.blocks"))
    assert (done.returncode, done.stdout) == (3, "")
    assert "error: web needs gradio, which is not installed: pip install 'musicrt[web]'" in done.stderr.replace("\n", " ")


def test_wrong_bundle(tmp_path: Path) -> None:
    fails(4, "web", tmp_path / "none", says=("none",))


def test_port_that_is_taken() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = spawn("web", "--port", str(port), "--threads", "1", "--backend", "onnxruntime-cpu")
    assert (done.returncode, done.stdout) == (3, "")
    assert f"error: can't listen on 127.0.0.1, port {port} " in done.stderr
    assert "Traceback" not in done.stderr
