"""The page's own functions, without a server and without a browser."""

from __future__ import annotations

import gc
import socket
import warnings
from collections.abc import Iterator
from pathlib import Path

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


def test_a_job_shows_files_while_it_lasts(studio: Studio, tmp_path: Path) -> None:
    from musicrt.web.page import run_job

    song = save(tmp_path / "song.wav", noise(1, 5000))
    job = run_job(studio, str(song), ["seamless", 1, "7"], gr.Progress())
    facts, audio, picture, files = next(job)
    assert facts.startswith("0.11 s at 44100 Hz")
    assert [Path(path).name for path in (audio, picture, *files)] == [
        "song_decoded.wav",
        "spectrograms.png",
        "song_decoded.wav",
        "song.safetensors",
    ]
    assert all(Path(path).is_file() for path in (audio, picture, *files))
    assert list(job) == []
    assert not Path(audio).parent.exists()


def test_errors_are_sentences(studio: Studio, tmp_path: Path) -> None:
    from musicrt.web.page import run_job

    broken = tmp_path / "<b>.wav"
    broken.write_text("no audio")
    with pytest.raises(gr.Error) as caught:
        next(run_job(studio, str(broken), ["seamless", 1, ""], gr.Progress()))
    assert caught.value.message.startswith("can&#x27;t read &lt;b&gt;.wav: Format not recognised")
    assert caught.value.duration is None
    assert not caught.value.print_exception


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
        functions = [function for function in page.fns.values() if function.fn is not None]
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
