"""`musicrt web` in a process of its own, and Chromium without a window: Debian's packages `chromium` and `chromium-driver`."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("onnxruntime")
pytest.importorskip("gradio")
webdriver = pytest.importorskip("selenium.webdriver")
waiting = pytest.importorskip("selenium.webdriver.support.wait")

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
SWITCHES = ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu", "--no-first-run", "--window-size=1200,1080")
PATIENCE = 60.0  # seconds, where other tests keep the processors busy


@dataclass(frozen=True)
class Server:
    """`folder`: where it puts its temporary files."""

    address: str
    folder: Path

    def jobs(self) -> list[Path]:
        """The folders of those whose work has begun and not ended."""
        return list(self.folder.glob("musicrt-job-*"))


@contextlib.contextmanager
def serve(folder: Path, *bundles: Path) -> Iterator[Server]:
    """A server that has to end well and leave nothing behind."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    code = "from musicrt.cli import main; main()"
    command = [sys.executable, "-c", code, "web", *map(str, bundles), "--port", str(port), "--threads", "1", "--backend", "onnxruntime-cpu"]
    with (folder / "errors.txt").open("w") as errors:
        server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True, env=os.environ | {"TMPDIR": str(folder)})
    try:
        assert server.stdout is not None
        line = server.stdout.readline()
        assert line.startswith(f"listening on http://127.0.0.1:{port}/ for "), (folder / "errors.txt").read_text()
        yield Server(f"http://127.0.0.1:{port}/", folder)
        server.send_signal(signal.SIGTERM)
        assert server.wait(30) == 0
        assert "Traceback" not in (folder / "errors.txt").read_text()
        left = [path for path in folder.rglob("*") if path.name.startswith("musicrt-") or path.suffix in (".wav", ".png", ".safetensors")]
        assert not (folder / ".ses").exists()  # where ONNX Runtime counts the sessions that it reports
        assert left == []  # gradio and others leave traces of their own, but nothing of users
    finally:
        server.kill()
        server.communicate()


@contextlib.contextmanager
def open_browser() -> Iterator[Any]:
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


def fill(browser: Any, setting: str, text: str) -> None:
    """Write into the field of a setting, in place of what is there."""
    find(browser, f".setting-{setting} input, .setting-{setting} textarea").send_keys("\ue009a\ue000" + text)  # Ctrl-A


def upload(browser: Any, address: str, path: Path) -> None:
    """Open the page, and drop a file on it."""
    browser.get(address)
    find(browser, "input[type=file]").send_keys(str(path))
    find(browser, "button[aria-label=Clear], button[title=Clear]")  # it is there


def read_facts(browser: Any) -> str:
    """What the page says of a result; empty before."""
    return str(browser.find_element("css selector", ".facts textarea").get_property("value"))


def fetch_downloads(browser: Any, folder: Path) -> list[Path]:
    """The files that the page offers, in their order, under the names that it gives them."""
    links = wait_for(browser, lambda page: page.find_elements("css selector", ".downloads a[href]"))
    targets = []
    for link in links:
        target = folder / str(link.get_attribute("download"))
        with urllib.request.urlopen(link.get_attribute("href"), timeout=30) as answer:
            target.write_bytes(answer.read())
        targets.append(target)
    return targets
