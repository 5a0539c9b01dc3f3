"""The page in Chromium.

MUSICRT_SCREENSHOT may name a PNG to write: what the page shows of a result.
"""

from __future__ import annotations

import json
import os
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest

from musicrt.runtime.audio import read_audio
from musicrt.runtime.audio_writer import write_audio
from musicrt.runtime.encoded import load_encoded
from musicrt.runtime.model import load
from tests.conftest import ForSystem
from tests.web.driving import CHROMIUM, DRIVER, Server, fetch_downloads, fill, find, open_browser, read_facts, serve, upload, wait_for

pytestmark = pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="needs chromium and chromium-driver of the system")
STOPPED = "Stopped before it was done; nothing was kept."


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serve(tmp_path_factory.mktemp("server")) as server:
        yield server


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with open_browser() as browser:
        yield browser


@pytest.fixture(scope="module")
def song(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two seconds in stereo at 44.1 kHz: four chords, each note dying away."""
    time = np.arange(22_050) / 44_100
    chords = [[220.0, 277.2, 329.6], [174.6, 220.0, 261.6], [261.6, 329.6, 392.0], [196.0, 246.9, 293.7]]
    notes = [[sum(np.sin(2 * np.pi * n * f * time) / n**2 for n in range(1, 9)) for f in chord] for chord in chords]
    music = np.concatenate([0.15 * sum(chord) * np.exp(-4 * time) for chord in notes])
    path = tmp_path_factory.mktemp("song") / "chords.wav"
    write_audio(path, np.stack([music, 0.8 * music]).astype(np.float32), 44_100)
    return path


def hosts(browser: Any) -> set[str]:
    """Whom the browser asked for something."""
    messages = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    sent = [one["params"]["request"]["url"] for one in messages if one["method"] == "Network.requestWillBeSent"]
    return {urlsplit(url).netloc for url in sent if url.startswith(("http", "ws"))}


def test_audio_goes_in_and_comes_out(browser: Any, server: Server, song: Path, tmp_path: Path) -> None:
    upload(browser, server.address, song)
    fill(browser, "seed", "7")
    find(browser, "button.run").click()
    facts = wait_for(browser, read_facts)
    audio, encoded = fetch_downloads(browser, tmp_path)
    wait_for(browser, lambda page: find(page, ".picture img").get_property("naturalWidth"))
    if target := os.environ.get("MUSICRT_SCREENSHOT"):
        browser.save_screenshot(target)

    with load(backend="onnxruntime-cpu", threads=1) as codec:
        codec.roundtrip_file(song, tmp_path / "expected.wav", {}, {"seed": 7})
        codec.check_encoded(load_encoded(encoded))
    np.testing.assert_array_equal(read_audio(audio)[0], read_audio(tmp_path / "expected.wav")[0])
    assert facts.startswith("2.00 s at 44100 Hz in ")
    assert not find(browser, "button.stop").is_enabled()
    assert hosts(browser) == {urlsplit(server.address).netloc}


def test_what_is_no_audio_is_refused_in_a_sentence(browser: Any, server: Server, tmp_path: Path) -> None:
    broken = tmp_path / "broken.wav"
    broken.write_text("no audio")
    upload(browser, server.address, broken)
    find(browser, "button.run").click()
    said = wait_for(browser, lambda page: find(page, ".toast-body").text)
    assert "can't read broken.wav: Format not recognised; expected an intact .wav, .flac or such" in said
    assert "Traceback" not in browser.page_source
    wait_for(browser, lambda page: not find(page, "button.stop").is_enabled())
    assert hosts(browser) == {urlsplit(server.address).netloc}


def test_browsers_are_told_to_stay_here(server: Server) -> None:
    with urllib.request.urlopen(server.address, timeout=30) as answer:
        assert "default-src 'self'" in answer.headers["content-security-policy"]


def test_everyone_stops_his_own_work(browser: Any, server: Server, song: Path) -> None:
    def begin(steps: int) -> None:
        fill(browser, "steps", str(steps))
        find(browser, "button.run").click()
        wait_for(browser, lambda page: find(page, "button.stop").is_enabled())

    def stop() -> None:
        find(browser, "button.stop").click()
        wait_for(browser, lambda page: read_facts(page) == STOPPED and not find(page, "button.stop").is_enabled())

    first = browser.current_window_handle
    upload(browser, server.address, song)
    begin(1000)  # which takes many minutes
    wait_for(browser, lambda _: server.jobs())
    (working,) = server.jobs()

    browser.switch_to.new_window("tab")
    second = browser.current_window_handle
    upload(browser, server.address, song)
    begin(1)
    stop()  # while it waits for its turn
    assert server.jobs() == [working]
    begin(1)

    browser.switch_to.window(first)
    assert find(browser, "button.stop").is_enabled()
    stop()
    begin(1)  # at once, behind the other one
    for window in (second, first):
        browser.switch_to.window(window)
        wait_for(browser, lambda page: read_facts(page).startswith("2.00 s at 44100 Hz in "))
    wait_for(browser, lambda _: not server.jobs())

    browser.switch_to.window(second)
    browser.close()
    browser.switch_to.window(first)


def test_server_ends_while_it_works(browser: Any, song: Path, tmp_path: Path) -> None:
    with serve(tmp_path) as server:
        upload(browser, server.address, song)
        fill(browser, "steps", "1000")
        find(browser, "button.run").click()
        wait_for(browser, lambda _: server.jobs())


def test_video_goes_in_and_music_and_tokens_come_out(browser: Any, tiny_bundles: ForSystem, tmp_path: Path) -> None:
    from tests.runtime.video_files import make_video

    bundle, clip = tiny_bundles("vidmuse"), make_video(tmp_path / "clip.mp4", 30)
    temporary, downloads = tmp_path / "server", tmp_path / "downloads"
    temporary.mkdir()
    downloads.mkdir()
    with serve(temporary, bundle) as server:
        upload(browser, server.address, clip)
        fill(browser, "duration", "0.5")
        find(browser, ".setting-loudness input").click()
        find(browser, "button.run").click()
        facts = wait_for(browser, read_facts)
        audio, video, tokens = fetch_downloads(browser, downloads)
    assert [path.name for path in (audio, video, tokens)] == ["clip_music.wav", "clip_with_music.mp4", "clip.safetensors"]
    assert facts.startswith("0.50 s at 32000 Hz in ")
    assert "tokens [1, 25, 4], " in facts
    with load(bundle, backend="onnxruntime-cpu", threads=1) as codec:
        assert codec.decode_file(tokens, tmp_path / "expected.wav") == 16_000
    np.testing.assert_array_equal(read_audio(audio)[0], read_audio(tmp_path / "expected.wav")[0])
