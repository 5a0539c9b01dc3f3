"""Music2Latent's suites: their arithmetic on made-up numbers, and each of them once on the tiny bundle."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from benchmarks.contenders import open_contender
from benchmarks.music2latent import latency, memory, seams
from benchmarks.music2latent.contenders import PlainOnnx
from benchmarks.music2latent.workload import STAGES, Workload
from benchmarks.rounds import ALL_STAGES
from musicrt.runtime.bundle import Bundle
from musicrt.runtime.errors import InputError
from musicrt.runtime.measure import Measurement
from musicrt.runtime.models.music2latent.config import Config
from musicrt.runtime.models.music2latent.pipeline import Pipeline

_TINY = Config(hop=64, base_channels=16, bottleneck_channels=8)


def test_near_means_within_one_latent_of_a_seam() -> None:
    assert np.flatnonzero(seams.near_positions(10, [(4.0, 4.0)])).tolist() == [3, 4]
    assert np.flatnonzero(seams.near_positions(10, [(4.0, 6.0)])).tolist() == [3, 4, 5, 6]
    assert np.flatnonzero(seams.near_positions(40, [(4.0, 4.0)], 4, 2.0)).tolist() == list(range(14, 22))


def test_a_difference_at_a_seam_is_found_there_and_nowhere_else() -> None:
    whole = np.sin(np.arange(400, dtype=np.float32) / 9.0)[None]
    value = whole.copy()
    value[:, 200:204] += np.float32(0.5)
    near = seams.near_positions(400, [(5.0, 5.0), (8.0, 8.0)], 40)
    found = seams.compare("decode", "chunks", whole, value, near, kinks=True)
    assert found.seams == 2
    assert found.near_share == pytest.approx(0.4)
    assert (found.away, found.max_away) == (0.0, 0.0)
    assert found.max_near == pytest.approx(0.5, abs=1e-6)
    assert found.near > found.total > 0.0
    assert found.kinks is not None
    assert found.kinks_whole is not None
    assert found.kinks_whole == pytest.approx(1.0, abs=0.2)
    assert found.kinks > 5.0
    with pytest.raises(InputError, match="everything is near a seam"):
        seams.compare("decode", "chunks", whole, value, np.ones(400, np.bool_))


def test_the_memory_table_gives_the_ratio_of_the_longest_stream_to_the_shortest() -> None:
    peaks = {"one latent": 100.0, "stream, 60 s": 400.0, "stream, 600 s": 420.0, "official, chunks of 5 s": 300.0}
    measured = [Measurement(name, (2.0,), 4.0, (peak,)) for name, peak in peaks.items()]
    lines = memory.render(measured, measured[1:3]).splitlines()
    assert "| stream, 600 s | 420 | 320 | 2.0 | 0.500 |" in lines
    assert lines[-1] == "Peak of stream, 600 s : stream, 60 s = 1.05."


def test_the_workload_depends_on_its_arguments_only() -> None:
    work, again = Workload.build(_TINY, 0.1), Workload.build(_TINY, 0.1)
    assert work.latents.shape == (1, 8, 8)
    assert work.spectrum.shape == (1, 2, 128, 64)
    assert np.array_equal(work.latents, again.latents)
    assert np.array_equal(work.noise(2)[2], again.noise(2)[2])
    assert not np.array_equal(work.noise(1)[0], work.noise(1)[1])
    assert work.decoded_seconds == pytest.approx((8 * 512 + 192) / 44100)
    with pytest.raises(InputError, match="expected at least"):
        Workload.build(_TINY, 0.01)


def test_the_plain_contender_runs_the_official_loop(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    seen: list[tuple[float, np.ndarray]] = []

    def step(_names: list[str], feeds: Mapping[str, Any]) -> list[Any]:
        seen.append((float(feeds["sigma"][0]), feeds["x"].copy()))
        return [np.full_like(feeds["x"], feeds["maps"].mean())]

    def fake(name: str, run: Callable[..., Any]) -> SimpleNamespace:
        return SimpleNamespace(run=run, get_outputs=lambda: [SimpleNamespace(name=name)])

    contender = PlainOnnx(tmp_path, _TINY.to_mapping(), None)
    pyramid = fake("maps", lambda _names, feeds: [feeds["latents"]])
    contender.graphs._sessions = {"pyramid": pyramid, "step": fake("clean", step)}
    work = Workload.build(_TINY, 0.05)
    noise = work.noise(2)
    audio = contender.decode(work.latents, 2, noise)
    assert audio.shape == (1, work.latents.shape[-1] * 512 + 192)
    assert [sigma for sigma, _ in seen] == pytest.approx([80.0, 2.515219], rel=1e-5)
    assert np.array_equal(seen[0][1], noise[0] * np.float32(80.0))
    clean = (work.latents * np.float32(0.06)).mean()
    assert seen[1][1] == pytest.approx(clean + np.sqrt(2.515219**2 - 0.002**2) * noise[1], abs=1e-4)


def test_eager_and_the_bundle_agree_on_every_row(tiny_bundle: Path, tiny_checkpoint: Path, tmp_path: Path) -> None:
    pytest.importorskip("torch")
    config = dict(Bundle.open(tiny_bundle).spec.config)
    opening: dict[str, Any] = {
        "system": "music2latent",
        "bundle": str(tiny_bundle),
        "checkpoint": str(tiny_checkpoint),
        "plain": "",
        "config": config,
        "threads": 1,
    }
    asked: dict[str, Any] = {"work": {"seconds": 0.05}, "tasks": [*latency.TASKS, ALL_STAGES], "reference": str(tmp_path / "eager.npz")}
    assert latency.compare_contender({"name": "eager", **opening}, **asked) == {}
    errors = latency.compare_contender({"name": "onnxruntime-cpu", **opening}, **asked)
    assert list(errors) == ["encode", "decode, 1 step", "decode, 4 steps", *(name for name in STAGES if name != "noise")]
    assert all(error < 5e-5 for error in errors.values())
    assert errors["encoder"] > 0.0
    with pytest.raises(InputError, match="unknown contender 'abacus'"):
        open_contender(name="abacus", **opening)


def test_the_latency_suite_writes_results_side_by_side(tiny_bundle: Path, tmp_path: Path) -> None:
    out = tmp_path / "new" / "latency"
    options = ["--rounds", "1", "--repeats", "2", "--seconds", "0.05", "--threads", "1", "--contenders", "onnxruntime-cpu"]
    latency.main(["--bundle", str(tiny_bundle), "--checkpoint", str(tmp_path), "--out", str(out), *options])
    content = json.loads(out.with_suffix(".json").read_text())
    rows = {values["name"]: values for values in content["measurements"]["onnxruntime-cpu"]}
    assert list(rows) == ["encode", "decode, 1 step", "decode, 4 steps", *STAGES]
    assert all(len(values["times"]) == 2 for values in rows.values())
    assert rows["encode"]["cold_start"] > rows["encode"]["p50"]
    assert content["settings"] == {"seconds": 0.05, "repeats": 2, "rounds": 1, "threads": 1}
    assert str(tmp_path) not in out.with_suffix(".json").read_text()
    assert out.with_suffix(".md").read_text().startswith("# Latency: music2latent")


def test_the_memory_suite_streams_and_decodes_in_chunks(tiny_bundle: Path, tmp_path: Path) -> None:
    out = tmp_path / "memory"
    options = ["--durations", "0.2", "--window", "0.1", "--overlap", "0.02", "--chunks", "0.1", "--chunked", "0.2", "--threads", "1"]
    memory.main(["--bundle", str(tiny_bundle), "--out", str(out), *options])
    stream, chunks = json.loads(out.with_suffix(".json").read_text())["measurements"][1:]
    assert (stream["name"], chunks["name"]) == ("stream, 0.2 s", "official, chunks of 0.1 s")
    assert stream["audio_seconds"] == chunks["audio_seconds"] == pytest.approx((17 * 512 + 192) / 44100)
    assert stream["peak_mb"] > 20.0


def test_windows_change_the_result_and_seamless_ones_do_so_less_at_the_seams(codec: Pipeline) -> None:
    found = {(d.what, d.variant): d for d in seams.compare_windows(codec, seconds=0.65, window=0.2, overlap=0.05, steps=1)}
    chunks, seamless = found["encode", "official chunks"], found["encode", "seamless"]
    assert chunks.seams == 3
    assert chunks.near > chunks.away
    assert seamless.near < chunks.near
    assert found["decode", "official chunks"].kinks is not None
    with pytest.raises(InputError, match="expected a signal of several windows"):
        seams.compare_windows(codec, seconds=0.1, window=0.2, overlap=0.05, steps=1)
