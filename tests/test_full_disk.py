"""Everything that writes, on a disk that is truly full: an error that says so, and nothing but what was there before."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

import musicrt
from benchmarks.results import write_results
from musicrt.bulk.outputs import Form, open_outputs
from musicrt.runtime.bundle import Bundle
from musicrt.runtime.errors import OutputError
from musicrt.runtime.files import new_file
from musicrt.runtime.manifest_file import write_manifest
from musicrt.runtime.signature import sign_manifest
from tests.command import CPU, fails
from tests.conftest import refused
from tests.runtime.audio_files import noise, save

_SIZE = 8_500_000
"""Bytes of the disk: enough for a copy of the small bundle."""
Write = Callable[[Path, Path], Any]
"""Writes to the disk; the second folder is on another one."""


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A file system of its own in memory, with a bundle, and then not one byte left."""
    place = tmp_path_factory.mktemp("disk")
    mount = shutil.which("mount")
    if (
        mount is None
        or subprocess.run([mount, "-t", "tmpfs", "-o", f"size={_SIZE}", "tmpfs", place], capture_output=True, check=False).returncode
    ):
        pytest.skip("no right to mount a file system here")
    try:
        shutil.copytree(musicrt.EMBEDDED, place / "bundle")
        (place / "failed.jsonl").touch()
        (place / "old").write_bytes(b"what was there before")
        (place / "rest").write_bytes(bytes(shutil.disk_usage(place).free))
        yield place
    finally:
        subprocess.run(["umount", "--lazy", place], check=True)


@pytest.fixture
def full(disk: Path) -> Iterator[Path]:
    """That disk, which has to be afterwards what it was before."""
    before = {path: path.read_bytes() for path in disk.rglob("*") if path.is_file()}
    yield disk
    assert {path: path.read_bytes() for path in disk.rglob("*") if path.is_file()} == before


@pytest.fixture(scope="module")
def song(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tmp_path_factory.mktemp("song") / "song.wav", noise(2, 44_100))


@pytest.mark.parametrize(
    "arguments",
    [
        ("encode", "embedded", "SONG", "DISK/old", *CPU),
        ("roundtrip", "embedded", "SONG", "DISK/new.wav", *CPU),
        ("roundtrip", "embedded", "SONG", "DISK/new.mp3", *CPU),
        ("triton", "embedded", "--out", "DISK/repository"),
    ],
)
def test_commands_end_with_8(full: Path, song: Path, arguments: tuple[str, ...]) -> None:
    pytest.importorskip("onnxruntime")
    given = [one.replace("DISK", str(full)).replace("SONG", str(song)) for one in arguments]
    fails(8, *given, says=("can't write", full, "No space left on device"))


def write_video(disk: Path, beside: Path) -> None:
    pytest.importorskip("av")
    from musicrt.runtime.muxing import mux_audio
    from tests.runtime.video_files import make_video

    mux_audio(make_video(beside / "a.mp4"), disk / "new.mp4", [noise(1, 32_000)], 32_000, 1)


def write_picture(disk: Path, _beside: Path) -> None:
    pytest.importorskip("matplotlib")
    from musicrt.calibration.pictures import draw_bars

    draw_bars(disk / "new.png", {"a": 1.0}, [], "", "")


def write_chart(disk: Path, _beside: Path) -> None:
    pytest.importorskip("matplotlib")
    from musicrt.runtime.bench.charts import draw_bars

    draw_bars(disk / "new.png", ["a"], {"b": [1.0]})


def write_suite(disk: Path, _beside: Path) -> None:
    machine = {**dict.fromkeys(("cpu", "cores", "memory_gb", "system", "python"), ""), "versions": {}}
    model = dict.fromkeys(("system", "variant", "identity"), "")
    write_results(disk / "new", {"suite": "a", "date": "", "settings": {}, "model": model, "environment": machine}, "")


def write_signature(disk: Path, beside: Path) -> None:
    ed25519 = pytest.importorskip("cryptography.hazmat.primitives.asymmetric.ed25519")
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

    key = ed25519.Ed25519PrivateKey.generate().private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    (beside / "key.pem").write_bytes(key)
    sign_manifest(disk / "bundle" / "manifest.json", beside / "key.pem")


def write_results_of_a_job(form: Form) -> Write:
    def make(path: Path) -> None:
        with new_file(path) as temporary:
            temporary.write_bytes(b"a")

    def write(disk: Path, _beside: Path) -> None:
        pytest.importorskip("pyarrow")
        with open_outputs(disk, form, ".st").collect(["a"]) as keep:
            keep("a", make if form == "files" else lambda path: path.write_bytes(b"a"))  # type: ignore[arg-type]

    return write


def write_failures(disk: Path, _beside: Path) -> None:
    pytest.importorskip("ray")
    from musicrt.bulk.batch import Summary, _note, _open_list

    with _open_list(disk / "failed.jsonl") as file:
        _note(Summary(1, 0), file, "a.wav", "damaged")


WRITERS: Mapping[str, Write] = {
    "video": write_video,
    "picture of a calibration": write_picture,
    "picture of a benchmark": write_chart,
    "report of a suite": write_suite,
    "signature": write_signature,
    "manifest": lambda disk, _: write_manifest(disk / "bundle", Bundle.open(disk / "bundle").manifest),
    "file of a job": write_results_of_a_job("files"),
    "shard of a job": write_results_of_a_job("parquet"),
    "failures of a job": write_failures,
}


@pytest.mark.parametrize("writer", WRITERS)
def test_writers_say_so(full: Path, tmp_path: Path, writer: str) -> None:
    with refused(OutputError, "can't write", full, "No space left on device"):
        WRITERS[writer](full, tmp_path)


def test_a_bundle_whose_manifest_could_not_be_written_is_what_it_was(full: Path) -> None:
    assert Bundle.open(full / "bundle", check="hashes").identity == Bundle.open(musicrt.EMBEDDED).identity
