"""The service, on a real Ray Serve of this machine."""

from __future__ import annotations

import json
import socket
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import musicrt
from musicrt.runtime.audio import read_audio
from musicrt.runtime.errors import InputError
from tests.runtime.audio_files import noise, save

pytest.importorskip("ray.serve")
pytest.importorskip("onnxruntime")
from ray import serve

from musicrt.bulk.cluster import connected
from musicrt.bulk.serve import deployment, read_options

pytestmark = [pytest.mark.filterwarnings("ignore::ResourceWarning"), pytest.mark.filterwarnings("ignore::DeprecationWarning")]


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with connected():
        serve.start(http_options={"host": "127.0.0.1", "port": port})
        serve.run(deployment(musicrt.EMBEDDED, backend="onnxruntime-cpu"))
        yield f"http://127.0.0.1:{port}"
        serve.shutdown()


def ask(url: str, body: bytes | None = None) -> tuple[int, str, bytes]:
    """Status, type and body of the answer."""
    try:
        with urllib.request.urlopen(urllib.request.Request(url, body), timeout=60) as answer:
            return answer.status, answer.headers["content-type"], answer.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.headers["content-type"], error.read()


def test_bytes_in_bytes_out(url: str, tmp_path: Path) -> None:
    song = save(tmp_path / "a.wav", noise(1, 30_000))
    status, kind, facts = ask(url)
    assert (status, kind) == (200, "application/json")
    assert {**json.loads(facts), "backend": ""} == {
        "system": "music2latent",
        "variant": "custom",
        "identity": musicrt.Bundle.open(musicrt.EMBEDDED).identity,
        "backend": "",
        "ways": ["encode", "decode"],
    }
    status, kind, codes = ask(f"{url}/encode?chunking=seamless", song.read_bytes())
    assert (status, kind) == (200, "application/octet-stream")
    status, kind, audio = ask(f"{url}/decode?seed=7&steps=2", codes)
    assert (status, kind) == (200, "audio/x-wav")
    with musicrt.load(backend="onnxruntime-cpu", threads=1) as codec:
        codec.encode_file(song, tmp_path / "a.enc", chunking="seamless")
        codec.decode_file(tmp_path / "a.enc", tmp_path / "b.wav", seed=7, steps=2)
    (tmp_path / "b.enc").write_bytes(codes)
    assert np.array_equal(musicrt.load_encoded(tmp_path / "b.enc").values, musicrt.load_encoded(tmp_path / "a.enc").values)
    assert audio == (tmp_path / "b.wav").read_bytes()
    assert np.abs(read_audio(tmp_path / "b.wav")[0]).max() > 0


@pytest.mark.parametrize(
    ("path", "body", "status", "says"),
    [
        ("encode", b"no audio", 400, "can't read"),
        ("encode?seed=1", b"", 400, "music2latent has no option 'seed'; for encode it has chunking"),
        ("decode?steps=few", b"", 400, "got steps='few'; "),
        ("decode?prompt=/etc/passwd", b"", 400, "got the option 'prompt', expected one of "),
        ("generate", b"video", 404, "got POST /generate, expected POST to /encode or /decode"),
        ("encode", None, 404, "got GET /encode"),
    ],
)
def test_refusals(url: str, path: str, body: bytes | None, status: int, says: str) -> None:
    found, kind, answer = ask(f"{url}/{path}", body)
    assert (found, kind) == (status, "application/json")
    assert says in json.loads(answer)["error"]


def test_options_have_their_types() -> None:
    query = {"steps": "10", "guidance": "1.5", "sampler": "ddim", "loudness": "false"}
    assert read_options(query) == {"steps": 10, "guidance": 1.5, "sampler": "ddim", "loudness": False}
    for wrong in ({"sampler": "euler"}, {"prompt": "a.wav"}, {"stepps": "1"}, {"steps": "1.5"}):
        with pytest.raises(InputError):
            read_options(wrong)
