"""Jobs on a real Ray of this machine."""

from __future__ import annotations

import json
import os
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
from musicrt.runtime.errors import BackendError, BundleError, InputError
from musicrt.runtime.record import Way
from tests.runtime.audio_files import noise, save

ray = pytest.importorskip("ray")
pytest.importorskip("onnxruntime")
from musicrt.bulk.batch import Summary, run_job  # noqa: E402 - needs ray
from musicrt.bulk.cluster import Pool, connected, plan_pool  # noqa: E402

pytestmark = [pytest.mark.filterwarnings("ignore::ResourceWarning"), pytest.mark.filterwarnings("ignore::DeprecationWarning")]

NAMES = ["a.wav", "b/a.wav", "b/a.flac", "b/c/d.wav", "e.flac"]


@pytest.fixture(scope="module", autouse=True)
def _cluster() -> Iterator[None]:
    with connected():
        yield


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


def stamps(folder: Path) -> dict[str, int]:
    return {path.relative_to(folder).as_posix(): path.stat().st_mtime_ns for path in folder.rglob("*.safetensors")}


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
    assert run(plan("encode"), music, tmp_path / "codes", "parquet").done == 5
    names = sorted(path.name for path in (tmp_path / "codes").glob("*.parquet"))
    again = run(plan("encode"), music, tmp_path / "codes", "parquet")
    assert (again.kept, again.done) == (5, 0)
    assert sorted(path.name for path in (tmp_path / "codes").glob("*.parquet")) == names
    summary = run(plan("decode", seed=3), tmp_path / "codes", tmp_path / "audio")
    assert (summary.total, summary.done, summary.failed) == (5, 5, {})
    with musicrt.load(backend="onnxruntime-cpu", threads=1) as codec:
        codec.encode_file(music / "b/a.flac", tmp_path / "alone")
        codec.decode_file(tmp_path / "alone", tmp_path / "alone.wav", seed=3)
    assert (tmp_path / "audio" / "b/a.flac.wav").read_bytes() == (tmp_path / "alone.wav").read_bytes()


def test_worker_that_dies_takes_no_file_with_it(music: Path, tmp_path: Path) -> None:
    killed: list[int] = []

    def kill_one() -> None:
        while not killed and time.monotonic() < end:
            for entry in Path("/proc").glob("[0-9]*/cmdline"):
                try:
                    title = entry.read_bytes()
                except OSError:
                    continue
                if title.startswith(b"ray::") and b"Worker" in title and stamps(tmp_path / "out"):
                    killed.append(int(entry.parent.name))
                    os.kill(killed[0], signal.SIGKILL)
                    return
            time.sleep(0.002)

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


def test_what_concerns_all_files_ends_the_job(music: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="steps"):
        run(plan("decode", steps=0), _codes(tmp_path), tmp_path / "out")
    with pytest.raises(BackendError, match="unknown backend 'none'"):
        run(plan_job("encode", musicrt.EMBEDDED, backend="none"), music, tmp_path / "other")
    with pytest.raises(BackendError, match="a worker needs 1 cores and 1 GPUs, this cluster has "):
        plan_pool("auto", gpus=1.0)
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
