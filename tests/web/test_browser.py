"""The page in Chromium, without a window: Debian's packages `chromium` and `chromium-driver`.

MUSICRT_SCREENSHOT may name a PNG to write: what the page shows of a result.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest

from musicrt.runtime.audio import read_audio
from musicrt.runtime.audio_writer import write_audio
from musicrt.runtime.encoded import load_encoded
from musicrt.runtime.model import load

pytest.importorskip("onnxruntime")
pytest.importorskip("gradio")
webdriver = pytest.importorskip("selenium.webdriver")
waiting = pytest.importorskip("selenium.webdriver.support.wait")

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
pytestmark = pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="needs chromium and chromium-driver of the system")
SWITCHES = ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu", "--no-first-run", "--window-size=1200,1080")
PATIENCE = 60.0  # seconds, where other tests keep the processors busy


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Of `musicrt web` in a process of its own, which has to end well and leave nothing behind."""
    folder = tmp_path_factory.mktemp("server")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    code = "from musicrt.cli import main; main()"
    command = [sys.executable, "-c", code, "web", "--port", str(port), "--threads", "1", "--backend", "onnxruntime-cpu"]
    with (folder / "errors.txt").open("w") as errors:
        server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True, env=os.environ | {"TMPDIR": str(folder)})
    try:
        assert server.stdout is not None
        line = server.stdout.readline()
        assert line.startswith(f"listening on http://127.0.0.1:{port}/ for "), (folder / "errors.txt").read_text()
        yield f"http://127.0.0.1:{port}/"
        server.send_signal(signal.SIGTERM)
        assert server.wait(30) == 0
        assert "Traceback" not in (folder / "errors.txt").read_text()
        left = [path for path in folder.rglob("*") if path.name.startswith("musicrt-") or path.suffix in (".wav", ".png", ".safetensors")]
        assert not (folder / ".ses").exists()  # where ONNX Runtime counts the sessions that it reports
        assert left == []  # gradio and others leave traces of their own, but nothing of users
    finally:
        server.kill()
        server.communicate()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    options.set_capability("goog:loggingPrefs", {"performance": "ALL"})
    with tempfile.TemporaryDirectory() as profile:
        for switch in (*SWITCHES, f"--user-data-dir={profile}"):
            options.add_argument(switch)
        driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
        yield driver
        driver.quit()


def wait_for(browser: Any, found: Callable[[Any], Any]) -> Any:
    return waiting.WebDriverWait(browser, PATIENCE, poll_frequency=0.2).until(found)


def find(browser: Any, selector: str) -> Any:
    """The first element that is there, once it is."""
    return wait_for(browser, lambda page: next(iter(page.find_elements("css selector", selector)), None))


def upload(browser: Any, address: str, path: Path) -> None:
    """Open the page, and drop a file on it."""
    browser.get(address)
    find(browser, "input[type=file]").send_keys(str(path))
    find(browser, "button[aria-label=Clear], button[title=Clear]")  # it is there


def fetch(url: str, target: Path) -> Path:
    with urllib.request.urlopen(url, timeout=30) as answer:
        target.write_bytes(answer.read())
    return target


def hosts(browser: Any) -> set[str]:
    """Whom the browser asked for something."""
    messages = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    sent = [one["params"]["request"]["url"] for one in messages if one["method"] == "Network.requestWillBeSent"]
    return {urlsplit(url).netloc for url in sent if url.startswith(("http", "ws"))}


def chords() -> np.ndarray[Any, np.dtype[np.float32]]:
    """Two seconds in stereo at 44.1 kHz: four chords, each note dying away."""
    time = np.arange(22_050) / 44_100
    chords = [[220.0, 277.2, 329.6], [174.6, 220.0, 261.6], [261.6, 329.6, 392.0], [196.0, 246.9, 293.7]]
    notes = [[sum(np.sin(2 * np.pi * n * f * time) / n**2 for n in range(1, 9)) for f in chord] for chord in chords]
    music = np.concatenate([0.15 * sum(chord) * np.exp(-4 * time) for chord in notes])
    return np.stack([music, 0.8 * music]).astype(np.float32)


def test_audio_goes_in_and_comes_out(browser: Any, address: str, tmp_path: Path) -> None:
    song = tmp_path / "chords.wav"
    write_audio(song, chords(), 44_100)
    upload(browser, address, song)
    find(browser, ".setting-seed input, .setting-seed textarea").send_keys("7")
    find(browser, "button.run").click()
    facts = wait_for(browser, lambda page: page.find_element("css selector", ".facts textarea").get_property("value"))
    links = wait_for(browser, lambda page: page.find_elements("css selector", ".downloads a[href]"))
    wait_for(browser, lambda page: find(page, ".picture img").get_property("naturalWidth"))
    if target := os.environ.get("MUSICRT_SCREENSHOT"):
        browser.save_screenshot(target)

    audio, encoded = (fetch(link.get_attribute("href"), tmp_path / name) for link, name in zip(links, ("a.wav", "a.enc"), strict=True))
    with load(backend="onnxruntime-cpu", threads=1) as codec:
        codec.roundtrip_file(song, tmp_path / "expected.wav", {}, {"seed": 7})
        codec.check_encoded(load_encoded(encoded))
    np.testing.assert_array_equal(read_audio(audio)[0], read_audio(tmp_path / "expected.wav")[0])
    assert facts.startswith("2.00 s at 44100 Hz in ")
    assert hosts(browser) == {urlsplit(address).netloc}


def test_what_is_no_audio_is_refused_in_a_sentence(browser: Any, address: str, tmp_path: Path) -> None:
    broken = tmp_path / "broken.wav"
    broken.write_text("no audio")
    upload(browser, address, broken)
    find(browser, "button.run").click()
    said = wait_for(browser, lambda page: find(page, ".toast-body").text)
    assert "can't read broken.wav: Format not recognised; expected an intact .wav, .flac or such" in said
    assert "Traceback" not in browser.page_source
    assert hosts(browser) == {urlsplit(address).netloc}


def test_browsers_are_told_to_stay_here(address: str) -> None:
    with urllib.request.urlopen(address, timeout=30) as answer:
        assert "default-src 'self'" in answer.headers["content-security-policy"]
