"""Jobs on a real Ray of this machine."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shutil
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import musicrt
from musicrt.bulk.corpus import find_corpus
from musicrt.bulk.job import Job, plan_job
from musicrt.bulk.outputs import FAILED, Form, open_outputs
from musicrt.runtime.errors import BackendError, BundleError, Cancelled, InputError
from musicrt.runtime.record import Way
from tests.bulk.jobs import Poisoned, Telling
from tests.conftest import ForSystem
from tests.runtime.audio_files import noise, save

ray = pytest.importorskip("ray")
pytest.importorskip("onnxruntime")
from pyarrow import parquet  # noqa: E402 - comes with ray

from musicrt.bulk.batch import Summary, run_job  # noqa: E402 - needs ray
from musicrt.bulk.cluster import Pool, connected, plan_pool  # noqa: E402

pytestmark = [pytest.mark.filterwarnings("ignore::ResourceWarning"), pytest.mark.filterwarnings("ignore::DeprecationWarning")]

NAMES = ["a.wav", "b/a.wav", "b/a.flac", "b/c/d.wav", "e.flac"]


@pytest.fixture(scope="module", autouse=True)
def _cluster() -> Iterator[None]:
    """With a GPU that is a number only."""
    ray.init(address="local", num_cpus=2, num_gpus=1, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    with connected():
        yield
    ray.shutdown()


@pytest.fixture(scope="module")
def music(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Audio of several lengths and one file that is none."""
    folder = tmp_path_factory.mktemp("music")
    for index, name in enumerate(NAMES):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        save(folder / name, noise(1, 20_000 + 9_000 * index, seed=index))
    (folder / "b" / "broken.wav").write_bytes(b"RIFF none of it")
    return folder


def plan(way: Way, **options: object) -> Job:
    return plan_job(way, musicrt.EMBEDDED, options, backend="onnxruntime-cpu")


def run(job: Job, source: Path, target: Path, form: Form = "files", lot: int = 2) -> Summary:
    return run_job(job, find_corpus(source, job.suffixes), open_outputs(target, form, job.suffix), Pool(workers=1, cpus=1, lot=lot))


def break_off(job: Job, source: Path, target: Path) -> None:
    """Begin with shards, and stop at the first one."""

    def stop(_done: int, _total: int) -> None:
        if stamps(target, "parquet"):
            raise Cancelled("enough")

    outputs = open_outputs(target, "parquet", job.suffix)
    with pytest.raises(Cancelled):
        run_job(job, find_corpus(source, job.suffixes), outputs, Pool(workers=1, cpus=1, lot=1), on_progress=stop)


def stamps(folder: Path, ending: str = "safetensors") -> dict[str, int]:
    """Of results; those that are being written are hidden."""
    found = [path for path in folder.rglob(f"*.{ending}") if not path.name.startswith(".")]
    return {path.relative_to(folder).as_posix(): path.stat().st_mtime_ns for path in found}


def workers() -> set[int]:
    """The processes of actors that are there."""
    found = set()
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            title = entry.read_bytes()
            if title.startswith(b"ray::") and b"Worker" in title:
                found.add(int(entry.parent.name))
    return found


def test_files_are_those_of_the_codec_and_are_not_made_twice(music: Path, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    job = plan("encode")
    outputs = open_outputs(tmp_path / "out", "files", job.suffix)
    summary = run_job(
        job, find_corpus(music, job.suffixes), outputs, Pool(1, 1, lot=2), on_progress=lambda done, total: seen.append((done, total))
    )
    assert (summary.total, summary.kept, summary.done, list(summary.failed)) == (6, 0, 5, ["b/broken.wav"])
    assert summary.seconds == pytest.approx(sum(20_000 + 9_000 * index for index in range(5)) / 44_100)
    assert seen == [(index + 1, 6) for index in range(6)]
    (failed,) = [json.loads(line) for line in (tmp_path / "out" / FAILED).read_text().splitlines()]
    assert failed["file"] == "b/broken.wav"
    assert failed["reason"].startswith(f"can't read {music / 'b' / 'broken.wav'}: ")
    with musicrt.load(backend="onnxruntime-cpu", threads=1) as codec:
        for name in NAMES:
            codec.encode_file(music / name, tmp_path / "alone")
            assert_same(tmp_path / "out" / f"{name}.safetensors", tmp_path / "alone")
    before = stamps(tmp_path / "out")
    (tmp_path / "out" / "e.flac.safetensors").unlink()
    again = run(job, music, tmp_path / "out")
    assert (again.total, again.kept, again.done, list(again.failed)) == (6, 4, 1, ["b/broken.wav"])
    after = stamps(tmp_path / "out")
    assert [name for name in before if before[name] != after[name]] == ["e.flac.safetensors"]


def test_shards_lead_from_audio_to_audio(music: Path, tmp_path: Path) -> None:
    break_off(plan("encode"), music, tmp_path / "codes")
    before = stamps(tmp_path / "codes", "parquet")
    summary = run(plan("encode"), music, tmp_path / "codes", "parquet")
    assert 0 < summary.kept == 5 - summary.done
    after = stamps(tmp_path / "codes", "parquet")
    assert {name: after[name] for name in before} == before
    summary = run(plan("decode", seed=3), tmp_path / "codes", tmp_path / "audio")
    assert (summary.total, summary.done, summary.failed) == (5, 5, {})
    with musicrt.load(backend="onnxruntime-cpu", threads=1) as codec:
        codec.encode_file(music / "b/a.flac", tmp_path / "alone")
        codec.decode_file(tmp_path / "alone", tmp_path / "alone.wav", seed=3)
    assert (tmp_path / "audio" / "b/a.flac.wav").read_bytes() == (tmp_path / "alone.wav").read_bytes()


def test_files_lead_to_shards_of_audio(music: Path, tmp_path: Path) -> None:
    with musicrt.load(backend="onnxruntime-cpu", threads=1) as codec:
        for name in NAMES[:4]:
            (tmp_path / "codes" / name).parent.mkdir(parents=True, exist_ok=True)
            codec.encode_file(music / name, tmp_path / "codes" / f"{name}.safetensors")
            codec.decode_file(tmp_path / "codes" / f"{name}.safetensors", tmp_path / f"{NAMES.index(name)}.wav", seed=3)
    break_off(plan("decode", seed=3), tmp_path / "codes", tmp_path / "audio")
    summary = run(plan("decode", seed=3), tmp_path / "codes", tmp_path / "audio", "parquet")
    assert 0 < summary.kept == 4 - summary.done
    rows = [row for name in stamps(tmp_path / "audio", "parquet") for row in parquet.read_table(tmp_path / "audio" / name).to_pylist()]
    made = [(f"{name}.safetensors", (tmp_path / f"{index}.wav").read_bytes()) for index, name in enumerate(NAMES[:4])]
    assert sorted((row["name"], row["bytes"]) for row in rows) == sorted(made)


def test_worker_that_dies_takes_no_file_with_it(music: Path, tmp_path: Path) -> None:
    killed: list[int] = []

    def kill_one() -> None:
        while not killed and time.monotonic() < end:
            if stamps(tmp_path / "out") and (new := workers() - old):
                killed.append(new.pop())
                os.kill(killed[0], signal.SIGKILL)
            time.sleep(0.002)

    old = workers()  # of other tests
    end = time.monotonic() + 60
    killer = threading.Thread(target=kill_one)
    killer.start()
    summary = run(plan("encode"), music, tmp_path / "out", lot=1)
    end = 0.0
    killer.join()
    assert killed
    assert not list((tmp_path / "out").rglob(".*"))
    assert (summary.done, list(summary.failed)) == (5, ["b/broken.wav"])
    assert len(stamps(tmp_path / "out")) == 5


def test_file_that_ends_every_process_is_listed_and_the_others_are_done(music: Path, tmp_path: Path) -> None:
    for name in ("crash.wav", "b/memory.wav", "good.wav"):
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(music / "a.wav", tmp_path / "in" / name)
    summary = run(Poisoned.of(plan("encode")), tmp_path / "in", tmp_path / "out", lot=3)
    failed = {line["file"]: line["reason"] for line in map(json.loads, (tmp_path / "out" / FAILED).read_text().splitlines())}
    assert (summary.done, summary.failed) == (1, failed)
    assert list(stamps(tmp_path / "out")) == ["good.wav.safetensors"]
    assert sorted(failed) == ["b/memory.wav", "crash.wav"]
    assert "two times, the last time by SIGKILL, mostly a lack of memory; " in failed["b/memory.wav"]
    assert "two times, the last time by SIGSEGV, mostly a crash in a library; " in failed["crash.wav"]


def test_gpus_are_shared_out(music: Path, tmp_path: Path) -> None:
    assert plan_pool("auto") == Pool(workers=1, cpus=1, gpus=1.0)
    assert plan_pool("onnxruntime-cuda", gpus=0.5) == Pool(workers=2, cpus=1, gpus=0.5)
    assert plan_pool("onnxruntime-cpu") == Pool(workers=2, cpus=1, gpus=0.0)
    with pytest.raises(BackendError, match="a worker needs 1 cores and 2 GPUs, this cluster has 2 and 1; ask for less"):
        plan_pool("auto", gpus=2.0)
    job = Telling.of(plan("encode"))
    outputs = open_outputs(tmp_path / "out", "files", job.suffix)
    run_job(job, find_corpus(music, job.suffixes), outputs, plan_pool("auto", workers=1, gpus=0.5))
    assert {path.read_text() for path in outputs.folder.rglob("*.safetensors")} == {"0"}


def test_music_for_videos(tiny_bundles: ForSystem, tmp_path: Path) -> None:
    pytest.importorskip("av")
    from tests.runtime.video_files import make_video

    (tmp_path / "in" / "b").mkdir(parents=True)
    videos = [make_video(tmp_path / "in" / name, 25) for name in ("a.mp4", "b/a.mkv")]
    (tmp_path / "in" / "broken.mp4").write_bytes(b"none")
    options = {"duration": 0.5, "seed": 3}
    job = plan_job("generate", tiny_bundles("vidmuse"), options, suffix=".flac", backend="onnxruntime-cpu")
    summary = run(job, tmp_path / "in", tmp_path / "out")
    assert (summary.done, summary.seconds, list(summary.failed)) == (2, 2.0, ["broken.mp4"])
    assert "no video, or not a whole one" in summary.failed["broken.mp4"]
    with musicrt.load(job.bundle, backend="onnxruntime-cpu", threads=1) as model:
        for video in videos:
            model.generate_file(video, tmp_path / "alone.flac", **options)
            made = tmp_path / "out" / f"{video.relative_to(tmp_path / 'in')}.flac"
            assert made.read_bytes() == (tmp_path / "alone.flac").read_bytes()


def test_what_concerns_all_files_ends_the_job(music: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="steps"):
        run(plan("decode", steps=0), _codes(tmp_path), tmp_path / "out")
    with pytest.raises(BackendError, match="unknown backend 'none'"):
        run(plan_job("encode", musicrt.EMBEDDED, backend="none"), music, tmp_path / "other")
    with pytest.raises(InputError, match="got 10000 workers"):
        plan_pool("auto", workers=10_000)


def test_job_is_checked_before_ray_is_asked(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="music2latent has no option 'guidance'; for decode it has steps, seed"):
        plan("decode", guidance=2.0)
    with pytest.raises(InputError, match="music2latent can't generate; it can encode, decode"):
        plan("generate")
    with pytest.raises(InputError, match="txt"):
        plan_job("decode", musicrt.EMBEDDED, suffix=".txt")
    with pytest.raises(InputError, match=r"got the suffix \.wav for encoded audio"):
        plan_job("encode", musicrt.EMBEDDED, suffix=".wav")
    with pytest.raises(BundleError):
        plan_job("encode", tmp_path)


def test_files_among_options_are_the_same_in_every_folder(tiny_bundles: ForSystem, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    job = plan_job("generate", tiny_bundles("vidmuse"), {"prompt": Path("a.wav"), "seed": 1})
    assert job.options == {"prompt": tmp_path / "a.wav", "seed": 1}


def assert_same(path: Path, other: Path) -> None:
    """Two files of encoded audio with the same content, whatever the order of their headers."""
    got, expected = musicrt.load_encoded(path), musicrt.load_encoded(other)
    assert np.array_equal(got.values, expected.values)
    for name in ("system", "kind", "identity", "sample_rate", "source_rate", "samples", "bits"):
        assert getattr(got, name) == getattr(expected, name)


def _codes(folder: Path) -> Path:
    with musicrt.load(backend="onnxruntime-cpu", threads=1) as codec:
        codec.encode_file(save(folder / "a.wav", noise(1, 9_000)), folder / "a.safetensors")
    return folder
