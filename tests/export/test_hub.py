"""Checkpoints from the hub, held against a stand-in for its server on this machine."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from musicrt.runtime.errors import CheckpointError
from musicrt.runtime.hub import find_files
from musicrt.runtime.models.music2latent.spec import CHECKPOINT
from musicrt.runtime.spec import CheckpointSpec
from tests.conftest import refused

pytest.importorskip("huggingface_hub")

CONTENT = b"what the repository holds" * 1000
COMMIT = "0123456789abcdef0123456789abcdef01234567"
ASK = """
import sys
from musicrt.runtime.errors import CheckpointError
from musicrt.runtime.hub import locate_checkpoint
from musicrt.runtime.models.music2latent.spec import CHECKPOINT
try:
    print(locate_checkpoint(CHECKPOINT, sys.argv[1] or None))
except CheckpointError as error:
    print("refused:", error)
"""


class StandIn(BaseHTTPRequestHandler):
    """The few answers that a download takes. The owner of a repository says how it fails."""

    asked: list[str]

    def do_GET(self) -> None:
        owner = self.path.removeprefix("/api/models/").strip("/").split("/")[0]
        size = len(CONTENT)
        if owner == "proxy":
            self.answer(b"<html>Please log in</html>")
        elif owner == "nobody" or (self.path.startswith("/api/") and not self.path.startswith("/api/models/")):
            self.answer(b"{}", 404, {"X-Error-Code": "RepoNotFound"})
        elif "/tree/" in self.path:
            self.answer(json.dumps([{"type": "file", "path": name, "size": size, "oid": COMMIT} for name in self.files(owner)]).encode())
        elif self.path.startswith("/api/models/"):
            self.answer(json.dumps({"id": owner, "sha": COMMIT, "siblings": [{"rfilename": name} for name in self.files(owner)]}).encode())
        else:
            self.asked.append(self.path)
            etag = {"ETag": f'"{hashlib.sha1(CONTENT).hexdigest()}"', "X-Repo-Commit": COMMIT}
            self.answer(CONTENT, 200, etag, keep_back=1000 if owner == "lost" else 0)

    def do_HEAD(self) -> None:
        self.do_GET()

    def files(self, owner: str) -> list[str]:
        return ["README.md", "training-state.pt"] + ([] if owner == "other" else ["music2latent.pt"])

    def answer(self, content: bytes, status: int = 200, headers: dict[str, str] | None = None, keep_back: int = 0) -> None:
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", "Content-Length": str(len(content)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content[: len(content) - keep_back])
        self.close_connection = True

    def log_message(self, format: str, *args: object) -> None:
        """Nothing is printed."""


@pytest.fixture
def asked() -> list[str]:
    """The paths of the files that were asked for."""
    return []


@pytest.fixture
def hub(asked: list[str], tmp_path: Path) -> Iterator[dict[str, str]]:
    """The environment in which huggingface_hub talks to the stand-in; it reads it when it is imported."""
    with ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (StandIn,), {"asked": asked})) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        kept = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy") and not name.startswith("HF_")}
        endpoint = {"HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}", "HF_HOME": str(tmp_path / "home"), "HF_HUB_DISABLE_XET": "1"}
        yield {**kept, **endpoint}
        server.shutdown()
        thread.join()


def ask(environment: dict[str, str], name: str) -> str:
    root = importlib.util.find_spec("musicrt").submodule_search_locations[0]  # type: ignore[union-attr, index]
    path = os.pathsep.join([str(Path(root).parent), environment.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-c", ASK, name], env={**environment, "PYTHONPATH": path}, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    (line,) = done.stdout.splitlines()
    return line


@pytest.mark.parametrize("name", ["someone/tiny", ""], ids=["a hub id", "the official repository"])
def test_checkpoint_is_downloaded_once(hub: dict[str, str], asked: list[str], name: str) -> None:
    folder = Path(ask(hub, name))
    assert [file.name for file in folder.iterdir()] == ["music2latent.pt"], "and nothing else of the repository"
    assert (folder / "music2latent.pt").read_bytes() == CONTENT
    downloads = len(asked)
    assert {path.split("/resolve/")[0] for path in asked} == {f"/{name or 'SonyCSLParis/music2latent'}"}
    assert Path(ask(hub, name)) == folder
    assert len(asked) == downloads


def test_downloaded_checkpoint_is_found_offline(hub: dict[str, str]) -> None:
    folder = ask(hub, "someone/tiny")
    assert ask({**hub, "HF_HUB_OFFLINE": "1"}, "someone/tiny") == folder
    assert ask({**hub, "HF_ENDPOINT": "http://127.0.0.1:9"}, "someone/tiny") == folder


@pytest.mark.parametrize("name", ["nobody/nothing", "proxy/page", "lost/connection", "bad..name/x-"])
def test_failed_download_is_refused_in_one_line(hub: dict[str, str], name: str) -> None:
    answer = ask(hub, name)
    assert answer.startswith(f"refused: {name} can't be downloaded")
    assert answer.endswith("download it by hand and give its folder")


def test_unreachable_hub_is_refused(hub: dict[str, str]) -> None:
    for change in ({"HF_ENDPOINT": "http://127.0.0.1:9"}, {"HF_HUB_OFFLINE": "1"}):
        assert ask({**hub, **change}, "someone/tiny").startswith("refused: someone/tiny can't be downloaded")


def test_repository_without_the_files_gives_a_folder_that_lacks_them(hub: dict[str, str]) -> None:
    folder = Path(ask(hub, "other/model"))
    assert not (folder / "music2latent.pt").exists()
    pytest.importorskip("torch")
    from musicrt.runtime.checkpoint import read_checkpoint

    with pytest.raises(CheckpointError, match=r"music2latent\.pt"):
        read_checkpoint(CHECKPOINT, folder)


FILES = CheckpointSpec(("rate50/encoder.ckpt", "codebooks/big/a.npy"), "someone/codec")


def test_files_are_found_by_their_official_path_or_its_last_part(tmp_path: Path) -> None:
    (tmp_path / "codebooks" / "big").mkdir(parents=True)
    for name in ("encoder.ckpt", "codebooks/big/a.npy", "a.npy", "other.ckpt"):
        (tmp_path / name).touch()
    found = {"rate50/encoder.ckpt": tmp_path / "encoder.ckpt", "codebooks/big/a.npy": tmp_path / "codebooks" / "big" / "a.npy"}
    assert find_files(FILES, tmp_path) == found
    assert list(find_files(FILES, tmp_path)) == list(FILES.files)


def test_safetensors_files_stand_for_torch_files(tmp_path: Path) -> None:
    (tmp_path / "rate50").mkdir()
    (tmp_path / "a.npy").touch()
    for name in ("encoder.safetensors", "rate50/encoder.safetensors", "encoder.ckpt"):  # the official one counts where both are there
        (tmp_path / name).touch()
        assert find_files(FILES, tmp_path)["rate50/encoder.ckpt"] == tmp_path / name
    (tmp_path / "a.npy").rename(tmp_path / "a.safetensors")
    with refused(CheckpointError, "lacks codebooks/big/a.npy"):
        find_files(FILES, tmp_path)


def test_file_itself_is_found_where_there_is_only_one(tmp_path: Path) -> None:
    (tmp_path / "renamed.pt").touch()
    assert find_files(CHECKPOINT, tmp_path / "renamed.pt") == {"music2latent.pt": tmp_path / "renamed.pt"}
    with refused(CheckpointError, "renamed.pt is a file", "expected a folder with", *FILES.files, "https://huggingface.co/someone/codec"):
        find_files(FILES, tmp_path / "renamed.pt")


def test_every_file_needs_a_place(tmp_path: Path) -> None:
    places = {name: tmp_path / str(index) for index, name in enumerate(FILES.files)}
    assert find_files(FILES, places) == places
    with refused(CheckpointError, "no place for rate50/encoder.ckpt;", *FILES.files):
        find_files(FILES, {"codebooks/big/a.npy": tmp_path})


def test_missing_files_are_named(tmp_path: Path) -> None:
    (tmp_path / "encoder.ckpt").mkdir()
    (tmp_path / "a.npy").touch()
    with refused(CheckpointError, f"{tmp_path} lacks rate50/encoder.ckpt;", "https://huggingface.co/someone/codec"):
        find_files(FILES, tmp_path)
    with refused(CheckpointError, "missing does not exist", *FILES.files):
        find_files(FILES, tmp_path / "missing")


def test_local_paths_are_not_looked_up(hub: dict[str, str], asked: list[str], tmp_path: Path) -> None:
    for local in (str(tmp_path), str(tmp_path / "missing"), "./missing", "../missing", "a/b/c"):
        assert ask(hub, local) == str(Path(local))
    assert asked == []
