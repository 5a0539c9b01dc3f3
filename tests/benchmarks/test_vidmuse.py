"""VidMuse's contenders: eager and the bundle on every part of the tiny network, and what is counted of a step."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import rounds
from benchmarks.contenders import open_contender, split_name
from benchmarks.memory import weights_mb
from benchmarks.vidmuse import latency, step
from benchmarks.vidmuse.step_tables import COPY, READ, render_shares, window_seconds
from benchmarks.vidmuse.traffic import Traffic
from benchmarks.vidmuse.workload import KINDS, Part, Workload, list_parts
from musicrt.runtime.bench.peaks import Memory
from musicrt.runtime.bundle import Bundle
from musicrt.runtime.errors import InputError
from musicrt.runtime.measure import Measurement
from musicrt.runtime.models.vidmuse.config import Config
from musicrt.runtime.precision import Int8
from musicrt.runtime.verify import relative_error
from tests.benchmarks.here import call_here
from tests.conftest import ForSystem, refused, tiny_layout

TINY = Config.from_mapping(tiny_layout("vidmuse")["config"]).to_mapping()
SIZES: dict[str, list[float]] = {
    "condition": [1],
    "prefill": [5],
    "step": [0, 7],
    "encode": [0.33],
    "decode": [0.5],
    "generate": [0.1],
}
Opened = dict[str, Any]


@pytest.fixture(scope="module")
def opened(tiny_bundles: ForSystem, tiny_checkpoints: ForSystem) -> Iterator[Opened]:
    """The contenders by name."""
    opening = opening_of(tiny_bundles("vidmuse"), tiny_checkpoints("vidmuse"))
    contenders = {name: open_contender(name=name, **opening) for name in ("eager", "onnxruntime-cpu")}
    yield contenders
    contenders["onnxruntime-cpu"].codec.close()


def opening_of(bundle: Path, checkpoint: Path) -> dict[str, Any]:
    config = dict(Bundle.open(bundle).spec.config)
    return {"system": "vidmuse", "bundle": str(bundle), "checkpoint": str(checkpoint), "plain": "", "config": config, "threads": 1}


def test_parts_have_names_that_are_read_back() -> None:
    for part, name in (
        (Part("step", 750), "step, 750 columns"),
        (Part("generate", 0.5), "generate, 0.5 s"),
        (Part("first", 30), "first, 30 s"),
    ):
        assert part.name == name
        assert Part.parse(name) == part
    for name in ("step", "step, 128 s", "hop, 1 s", "decode, x s"):
        with refused(InputError, repr(name)):
            Part.parse(name)


def test_parts_are_listed_in_the_order_of_the_work() -> None:
    parts = list_parts({"decode": [2.5], "condition": [2], "step": [0]})
    assert [part.name for part in parts] == ["condition, 2 s", "step, 0 columns", "decode, 2.5 s"]
    assert [part.seconds for part in parts] == [2, 0.02, 2.5]
    for sizes in ({"step": [0.5]}, {"decode": [0.0]}, {"condition": [1.5]}, {"prefill": [0]}, {"generate": [5000]}):
        with refused(InputError, "got the part"):
            list_parts(sizes)


def test_no_two_frames_are_alike_and_all_processes_have_the_same() -> None:
    work = Workload.build(TINY)
    local, whole = work.pictures(2)
    assert (local.shape, whole.shape) == ((3, 4, 224, 224), (3, 32, 224, 224))
    clip = work.clip(2)
    assert len({*clip.local_ids().tolist(), *clip.global_ids.tolist()}) == 36
    assert np.array_equal(local, Workload.build(TINY).pictures(2)[0])
    caches = work.caches(3)
    assert all(cache.shape == (2, 4, 1504, 16) and cache[:, :, :3].all() and not cache[:, :, 3:].any() for cache in caches.values())


def test_eager_and_the_bundle_agree_on_every_part(opened: Opened) -> None:
    work, parts = Workload.build(TINY, 150, 40), list_parts(SIZES)
    assert {part.kind for part in parts} == set(KINDS) - {"first"}
    for part in parts:
        expected = {name: value.copy() for name, value in opened["eager"].prepare(part, work)().items()}
        produced = opened["onnxruntime-cpu"].prepare(part, work)()
        assert produced.keys() == expected.keys()
        assert [value.shape for value in produced.values()] == [value.shape for value in expected.values()]
        assert relative_error(produced, expected) < 2e-5, part


def test_the_first_block_comes_from_a_stream_which_eager_has_not(opened: Opened, tiny_bundles: ForSystem) -> None:
    work, part = Workload.build(TINY), Part("first", 1)
    block = opened["onnxruntime-cpu"].prepare(part, work)()["audio"]
    assert block.shape[0] == 1
    assert 0 < block.shape[1] <= 32000
    with refused(InputError, "first, 1 s", "eager"):
        opened["eager"].prepare(part, work)
    with refused(InputError, "plain-onnx", "vidmuse has not"):
        open_contender(name="plain-onnx", **opening_of(tiny_bundles("vidmuse"), Path()))


def test_the_bytes_of_a_step_are_those_of_its_graph(tiny_bundles: ForSystem) -> None:
    """Besides what is counted the graph holds embeddings, periods and small constants."""
    pytest.importorskip("onnx")
    work = Workload.build(TINY, 150)
    traffic, lm = Traffic.of_step(work.config, 150, 7), work.spec.stage("lm")
    embeddings = 4 * 4 * 2049 * 64
    assert traffic.weights + embeddings <= 1e6 * weights_mb(tiny_bundles("vidmuse"), ["lm"]) < traffic.weights + embeddings + 20_000
    sizes = {"batch": 1, "columns": 1, "tokens": 150, "null_tokens": 50, "capacity": 8}
    keys = [tensor.resolve(sizes) for tensor in lm.inputs if tensor.dtype == "float32"]
    assert traffic.condition == 4 * sum(int(np.prod(shape)) for shape in keys)
    assert traffic.caches == 4 * sum(int(np.prod(tensor.resolve(sizes))) for tensor in lm.states)
    assert traffic.total == traffic.weights + traffic.condition + traffic.caches


def test_full_size_traffic_is_that_of_the_description() -> None:
    """Section 12: 197 kB for each cached step and row, 590 MB for 3000 tokens, 10 MB for those of a black frame; 14 d^2 in each layer."""
    traffic = Traffic.of_step(Config.from_mapping({}), 3000, 1502)
    assert traffic.caches == pytest.approx(590e6, rel=0.01)
    assert traffic.condition == pytest.approx(600e6, rel=0.001)
    assert traffic.weights == pytest.approx(4 * (24 * 14 * 1024**2 + 4 * 2048 * 1024), rel=0.001)


def test_a_lowered_step_reads_about_a_quarter() -> None:
    config = Config.from_mapping({})
    plain, lowered = (Traffic.of_step(config, 3000, 750, int8=int8) for int8 in (None, Int8("weights", block=64)))
    assert 4 * lowered.condition == plain.condition
    assert 4 * lowered.caches == plain.caches
    assert lowered.weights == pytest.approx(plain.weights * (1 + 4 / 64) / 4, rel=0.002)
    assert Traffic.of_step(config, 3000, 750, int8=Int8("weights", bits=4, block=32)).weights == pytest.approx(
        plain.weights * 0.625 / 4, rel=0.003
    )


def test_a_contender_may_name_a_precision() -> None:
    assert split_name("onnxruntime-cpu") == ("onnxruntime-cpu", None)
    assert split_name("onnxruntime-cpu:int8") == ("onnxruntime-cpu", "int8")
    with refused(InputError, "'torch-cpu:int9'", "bfloat16"):
        split_name("torch-cpu:int9")


def test_the_step_suite_measures_the_lowered_model(
    tiny_bundles: ForSystem, tiny_checkpoints: ForSystem, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calibrate = pytest.importorskip("musicrt.calibration.calibrate")
    bundle = shutil.copytree(tiny_bundles("vidmuse"), tmp_path / "bundle")
    calibrate.calibrate_int8(bundle, seconds=0.3, threads=1)
    call_here(monkeypatch, rounds)
    paths = ["--bundle", str(bundle), "--checkpoint", str(tiny_checkpoints("vidmuse")), "--threads", "1", "--rest", "0"]
    sizes = ["--columns", "20", "--tokens", "100", "--array", "1", "--rounds", "1", "--repeats", "2"]
    step.main([*paths, *sizes, "--contenders", "eager", "onnxruntime-cpu", "onnxruntime-cpu:int8", "--out", str(tmp_path / "step")])
    content = json.loads((tmp_path / "step.json").read_text())
    (row, *_) = content["measurements"]["onnxruntime-cpu:int8"]
    assert 1e-3 < row["error"] < 0.2  # what is in the caches is random, and wider than what calibration saw
    text = (tmp_path / "step.md").read_text()
    assert "## Times as fast as onnxruntime-cpu in float32" in text
    assert "## onnxruntime-cpu:int8: share of the memory's bandwidth" in text


def test_memory_is_copied_and_read_in_shares() -> None:
    memory = Memory(3, 1)
    assert (memory.copied, memory.read_bytes) == (2_000_000, 1_000_000)
    memory._source[:] = np.arange(len(memory._source))
    memory.copy()
    memory.read()
    assert np.array_equal(memory._target, memory._source)


def test_shares_are_of_the_memory_in_the_same_process() -> None:
    work = Workload.build({}, 3000)
    gigabytes = Traffic.of_step(work.config, 3000, 0).total / 1e9
    found = {
        "step, 0 columns": Measurement("step, 0 columns", (0.1, 0.1, 0.05)),
        COPY: Measurement(COPY, (0.05, 0.05, 0.025)),
        READ: Measurement(READ, (0.05, 0.025, 0.05)),
    }
    row = render_shares(found, ["step, 0 columns"], work, 1e9).splitlines()[2]
    assert row.endswith(f"| {10 * gigabytes:.1f} | {gigabytes / 2:.2f} | {gigabytes / 2:.2f} | {gigabytes:.2f} | {gigabytes:.2f} |")


def test_a_window_is_put_together_between_lengths() -> None:
    assert window_seconds({0: 1.0, 10: 2.0}, 11) == pytest.approx(16.5)
    assert window_seconds({0: 1.0, 10: 2.0}, 13) == pytest.approx(20.5)


def test_the_step_suite_tells_times_distances_and_shares(
    tiny_bundles: ForSystem, tiny_checkpoints: ForSystem, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    call_here(monkeypatch, rounds)
    paths = ["--bundle", str(tiny_bundles("vidmuse")), "--checkpoint", str(tiny_checkpoints("vidmuse")), "--threads", "1"]
    sizes = ["--columns", "0", "20", "--tokens", "100", "--array", "1", "--rest", "0", "--rounds", "1", "--repeats", "3"]
    step.main([*paths, *sizes, "--contenders", "eager", "onnxruntime-cpu", "--out", str(tmp_path / "step")])
    content = json.loads((tmp_path / "step.json").read_text())
    rows = {values["name"]: values for values in content["measurements"]["onnxruntime-cpu"]}
    assert list(rows) == ["step, 0 columns", "step, 20 columns", COPY, READ]
    assert [len(values["times"]) for values in rows.values()] == [3] * 4
    assert [len(values["times"]) for values in content["measurements"]["eager"]] == [1, 1]
    assert all(rows[name]["error"] < 1e-5 for name in ("step, 0 columns", "step, 20 columns"))
    text = (tmp_path / "step.md").read_text()
    assert "## onnxruntime-cpu: share of the memory's bandwidth" in text
    assert "## Times as fast as eager" in text
    assert "for 1503 steps" in text
    assert str(tmp_path) not in text + json.dumps(content)


def test_the_latency_suite_measures_some_parts_alone(
    tiny_bundles: ForSystem, tiny_checkpoints: ForSystem, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    call_here(monkeypatch, rounds)
    paths = ["--bundle", str(tiny_bundles("vidmuse")), "--checkpoint", str(tiny_checkpoints("vidmuse")), "--threads", "1"]
    sizes = ["--prefill", "4", "--decode", "0.3", "--generate", "0.06", "--first", "--tokens", "50", "--rounds", "1", "--repeats", "1"]
    parts = ["--parts", "prefill", "decode", "generate", "--alone", "generate"]
    latency.main([*paths, *sizes, *parts, "--contenders", "eager", "onnxruntime-cpu", "--out", str(tmp_path / "latency")])
    found = json.loads((tmp_path / "latency.json").read_text())["measurements"]
    assert [row["name"] for row in found["eager"]] == ["prefill, 4 columns", "decode, 0.3 s"]
    assert [row["name"] for row in found["onnxruntime-cpu"]] == ["prefill, 4 columns", "decode, 0.3 s", "generate, 0.06 s"]
    assert all(row["error"] < 1e-5 for row in found["onnxruntime-cpu"][:2])
    assert found["onnxruntime-cpu"][2]["cold_start"] > 0
    text = (tmp_path / "latency.md").read_text()
    assert "## Timesteps for each second, from frames to audio" in text
    assert "with a condition of 50 tokens" in text
