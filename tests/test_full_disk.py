"""Everything that writes, on a disk that is truly full: an error that says so, and nothing but what was there before."""

from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest

import musicrt
from benchmarks.results import write_results
from musicrt.bulk.outputs import Form, open_outputs
from musicrt.runtime.bench.contenders import REFERENCE
from musicrt.runtime.bench.files import write_report
from musicrt.runtime.bench.report import Report, Row
from musicrt.runtime.bench.settings import Settings
from musicrt.runtime.bundle import Bundle
from musicrt.runtime.errors import OutputError
from musicrt.runtime.files import new_file
from musicrt.runtime.manifest import CalibrationEntry, LoweredEntry, PlanEntry
from musicrt.runtime.manifest_file import MANIFEST, write_manifest
from musicrt.runtime.measure import Measurement
from musicrt.runtime.signature import sign_manifest
from tests.command import CPU, fails
from tests.conftest import refused
from tests.runtime.audio_files import noise, save

_SIZE = 8_500_000
"""Bytes of the disk: enough for a copy of the small bundle."""
_PAGE, _PAGES = 4096, 10
"""What the disk gives at once, and how many of these are files of their own, to be removed."""
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
        if importlib.util.find_spec("onnx") and importlib.util.find_spec("onnxruntime"):
            lower(place, place)  # so that there is something whose place is taken
        (place / "failed.jsonl").touch()
        (place / "old").write_bytes(b"what was there before")
        (place / "rest").write_bytes(bytes(shutil.disk_usage(place).free - _PAGES * _PAGE))
        for page in range(_PAGES):
            (place / f"page-{page}").write_bytes(bytes(_PAGE))
        yield place
    finally:
        subprocess.run(["umount", "--lazy", place], check=True)


@pytest.fixture
def full(disk: Path) -> Iterator[Path]:
    """That disk, which has to be afterwards what it was before."""
    before = left(disk)
    yield disk
    assert left(disk) == before


@pytest.fixture
def room(full: Path, request: pytest.FixtureRequest) -> Iterator[Path]:
    """That disk with so many pages left."""
    pages = [full / f"page-{page}" for page in range(request.param)]
    for page in pages:
        page.unlink()
    yield full
    for page in pages:
        page.write_bytes(bytes(_PAGE))


def left(folder: Path) -> dict[Path, bytes]:
    """What lies in a folder, hidden files too."""
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


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


def lower(disk: Path, _beside: Path) -> None:
    """What ends a calibration: one stage gets another graph, with a constant that the bundle has not."""
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    from musicrt.calibration.graphs import StageGraph
    from musicrt.calibration.store import store_lowered

    bundle = Bundle.open(disk / "bundle")
    model = StageGraph.open(bundle, "conditioning").model
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.ones(1000, np.float32), "more"))
    store_lowered(bundle, "int8", {"conditioning": model}, make_calibration(), 1)


def make_calibration() -> CalibrationEntry:
    lowered = LoweredEntry(method="static", error=0.0, layers=0, kept=[], outputs={})
    return CalibrationEntry(inputs="", inputs_sha256="0" * 64, tools={}, stages={"conditioning": lowered}, quality={"a": 1.0})


def add_graphs(disk: Path, _beside: Path) -> None:
    pytest.importorskip("torch")
    pytest.importorskip("onnxscript")
    from musicrt.export import flavours

    def write(folder: Path, *_: object) -> None:
        for name in ("weights.half.safetensors", "encoder.trt.onnx"):
            (folder / "stages" / name).write_bytes(b"some")
        write_manifest(folder, Bundle.open(folder).manifest)

    with mock.patch.object(flavours, "write_flavour", write):
        flavours.add_flavour(disk / "bundle", "trt")


def add_engine(disk: Path, _beside: Path) -> None:
    from musicrt.engines.build import _store
    from musicrt.engines.compile import Plan
    from musicrt.engines.layers import Report as Layers
    from musicrt.engines.profiles import find_buckets, stage_profiles

    key = "0" * 64
    report = Layers(stage="encoder", seconds=1.0, activation_bytes=None, weight_bytes=None, profiles=[], layers=[])
    facts = {"engine": "tensorrt", "version": "10", "targets": [], "precision": "float16", "flavour": "trt", "stripped": False}
    profiles = stage_profiles(Bundle.open(disk / "bundle").spec.stage("encoder"), find_buckets(["latency"]))
    describe = partial(PlanEntry, key=key, profiles=profiles, **facts)  # type: ignore[arg-type]
    _store(disk / "bundle", "tensorrt", "encoder", key, Plan(memoryview(b"a plan"), [], None, None, 1.0), report, describe)


def report_calibration(disk: Path, _beside: Path) -> None:
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnx")
    from musicrt.calibration.calibrate import Calibration
    from musicrt.calibration.report import write_report
    from musicrt.calibration.search import Round

    rounds = [Round(1, (), {"a": 1.0})]
    write_report(
        disk, Calibration(Bundle.open(musicrt.EMBEDDED), "cpu-int8", make_calibration(), rounds, {"conditioning": {"layer": 0.1}}, [], [])
    )


def report_benchmark(disk: Path, _beside: Path) -> None:
    bundle = {"system": "some", "variant": "full", "identity": "0" * 64}
    environment = {"cpu": "a processor", "cores": 2, "versions": {}}
    write_report(disk / "new", Report(bundle, Settings(), environment, (Row(REFERENCE, Measurement("encode", (0.1,), 0.5)),), {}))


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
    "report of a calibration": report_calibration,
    "report of a benchmark": report_benchmark,
    "graphs of a calibration": lower,
    "graphs of a flavour": add_graphs,
    "engine": add_engine,
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


@pytest.mark.parametrize("room", [10], indirect=True)  # a manifest takes 15
@pytest.mark.parametrize("writer", ["graphs of a calibration", "graphs of a flavour", "engine"])
def test_files_go_again_where_there_is_no_room_for_the_manifest(room: Path, tmp_path: Path, writer: str) -> None:
    with refused(OutputError, "can't write", room / "bundle" / MANIFEST, "No space left on device"):
        WRITERS[writer](room, tmp_path)
    Bundle.open(room / "bundle", check="hashes")


@pytest.mark.parametrize("room", [1], indirect=True)
@pytest.mark.parametrize(("writer", "name"), [("report of a calibration", "report"), ("report of a benchmark", "new")])
def test_numbers_of_a_report_are_kept_where_there_is_no_room_for_pictures(room: Path, tmp_path: Path, writer: str, name: str) -> None:
    pytest.importorskip("matplotlib")
    before = left(room)
    with refused(OutputError, "can't write", room, ".png: No space left on device"):
        WRITERS[writer](room, tmp_path)
    (numbers,) = left(room).keys() - before.keys()
    assert numbers.name == f"{name}.json"
    assert json.loads(numbers.read_bytes())["bundle"]["identity"]
    numbers.unlink()


@pytest.mark.parametrize("command", [("systems",), ("inspect", "embedded", "--json")])
def test_what_can_not_be_printed_is_told(command: tuple[str, ...]) -> None:
    """Some of it fails as it is written, and some at the end."""
    with Path("/dev/full").open("w") as output:
        code = "from musicrt.cli import main; main()"
        ended = subprocess.run([sys.executable, "-c", code, *command], stdout=output, stderr=subprocess.PIPE, text=True, check=False)
    assert ended.returncode == 8
    assert ended.stderr.startswith("error: can't write what is printed, or a temporary file: No space left on device; make room")
    assert ended.stderr.count("\n") == 1


def test_a_bundle_whose_manifest_could_not_be_written_is_what_it_was(full: Path) -> None:
    assert Bundle.open(full / "bundle", check="hashes").identity == Bundle.open(musicrt.EMBEDDED).identity
