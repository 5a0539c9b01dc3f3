"""SemantiCodec's savings, samplers and memory: their arithmetic on made-up numbers, and each of them once on the tiny bundle."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks import memory as shared
from benchmarks.semanticodec import memory, samplers, savings
from benchmarks.semanticodec.savings_tables import FOLDED, ONE_BATCH, ONE_CONTEXT, ONE_SCHEDULE, SHARED_PREFIX, Batch, list_savings, render
from musicrt.runtime.backends.onnxruntime import OnnxCpu
from musicrt.runtime.bundle import Bundle
from musicrt.runtime.measure import Measurement
from musicrt.runtime.model import load
from musicrt.runtime.verify import probe_inputs, probe_sizes, relative_error
from tests.benchmarks.here import call_here
from tests.conftest import ForSystem

TIMES = {
    "evaluation": [0.5],
    "evaluation, nothing shared": [0.6],
    "evaluation, one row after the other": [0.75],
    "conditioning of a window": [0.1],
    "conditioning of both rows": [0.2],
    "all timesteps": [0.02],
    "one timestep": [0.01],
    "VAE": [2.0, 2.0, 9.0],
    "VAE, upsampling not folded": [3.0],
    "vocoder": [4.0],
    "vocoder of the clip": [1.0],
}


def test_savings_are_what_their_absence_would_add() -> None:
    found = list_savings(TIMES, 10)
    expected = {ONE_CONTEXT: 1.9, ONE_BATCH: 1.5, SHARED_PREFIX: 1.0, ONE_SCHEDULE: 0.08, FOLDED: 1.0}
    assert found == pytest.approx(expected)


def test_the_table_of_savings_adds_up() -> None:
    lines = render(TIMES, {"eager": [2.0]}, [Batch(1, [4.0], [3.0], 100.0), Batch(4, [8.0], [4.0], 150.0)], 10, 2.0).splitlines()
    assert "## Decode of one window in 10 steps: 16.60 s without, 11.12 s with the savings" in lines
    assert f"| {ONE_CONTEXT} | 1.90 | 11.4% |" in lines
    assert "| all of them | 5.48 | 33.0% |" in lines
    assert lines[lines.index("| all of them | 5.48 | 33.0% |") + 2].startswith("A clip of 2 s saves 3.00 s more")
    assert "| 4 | 2.000 | 1.000 | 2.00 | 150 |" in lines


def test_the_savings_suite_undoes_one_saving_after_the_other(
    tiny_bundles: ForSystem, tiny_checkpoints: ForSystem, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    call_here(monkeypatch, savings)
    out, options = tmp_path / "savings", ["--steps", "2", "--repeats", "1", "--encode-repeats", "1", "--batches", "2", "--threads", "1"]
    paths = ["--bundle", str(tiny_bundles("semanticodec")), "--checkpoint", str(tiny_checkpoints("semanticodec"))]
    savings.main([*paths, *options, "--out", str(out)])
    content = json.loads(out.with_suffix(".json").read_text())
    assert content["decode"].keys() == TIMES.keys()
    assert list(content["lstm"]) == ["eager", "torch-cpu", "onnxruntime-cpu"]
    assert content["batches"][0]["size"] == 2
    assert content["batches"][0]["encode"] > content["batches"][0]["lstm"]


def test_the_vae_without_folding_is_the_same_vae(tiny_bundles: ForSystem, tiny_checkpoints: ForSystem, tmp_path: Path) -> None:
    bundle = tiny_bundles("semanticodec")
    stage = Bundle.open(bundle).spec.stage("vae")
    feeds = probe_inputs(stage, probe_sizes(stage, 1), 1)
    path = savings.export_vae(str(bundle), str(tiny_checkpoints("semanticodec")), tmp_path)
    with OnnxCpu().open_graph(stage, path) as plain, OnnxCpu().open_session(Bundle.open(bundle), "vae") as folded:
        error = relative_error(plain.run(feeds), folded.run(feeds))
    assert 0.0 < error < 1e-5


def test_samplers_are_compared_on_the_same_noise(tiny_bundles: ForSystem) -> None:
    with load(tiny_bundles("semanticodec"), backend="onnxruntime-cpu", threads=1) as codec:
        found = samplers.compare_samplers(codec, seconds=1.0, steps=[2], official_steps=2, reference_steps=2)
    runs = {run.sampler: run for run in found}
    assert runs["ddim, eta 1"].from_official == 0.0
    assert runs["ddim, eta 0"].from_reference == 0.0
    assert runs["ddim, eta 1, another seed"].from_official > 0.1
    assert runs["dpm-solver++"].from_reference > 0.01
    assert all(run.steps == 2 for run in found)
    table = samplers.render(found, 2, 2)
    assert "| ddim, eta 1 | 2 | 2 | 0.000 |" in table
    assert "judged by ear, with trained weights" in table


def test_activations_are_what_the_allocator_held_at_once() -> None:
    torch = pytest.importorskip("torch")

    def call() -> None:
        first = torch.empty(1_000_000)
        second = torch.empty(500_000)
        del first
        third = torch.empty(250_000)
        del second, third

    assert shared.allocated_mb(call) == pytest.approx(6.0, abs=0.01)


def test_the_memory_table_holds_peaks_against_weights_and_activations() -> None:
    uses = [shared.Use("torch-cpu", "decode, 10 s", Measurement("decode", (3.0,), 10.0, (600.0,)), 400.0, 150.0)]
    activations = {**dict.fromkeys(memory.STAGES["encode"], 5.0), "embedding": 1.0, "unet": 20.0, "vae": 100.0, "vocoder": 60.0}
    table = memory.render(uses, {"torch-cpu": 200.0}, {"decode": 300.0}, activations).splitlines()
    assert "| decode, 10 s | torch-cpu | 600 | 300 | 100 | 1.50 | 400 | 150 | 3.0 |" in table
    assert "Peak of a process that has opened the bundle and run nothing: torch-cpu 200 MB." in table


def test_the_memory_suite_counts_the_weights_in_use(
    tiny_bundles: ForSystem, tiny_checkpoints: ForSystem, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("onnx")
    call_here(monkeypatch, memory, shared)
    bundle, out = tiny_bundles("semanticodec"), tmp_path / "memory"
    paths = ["--bundle", str(bundle), "--checkpoint", str(tiny_checkpoints("semanticodec")), "--out", str(out)]
    memory.main([*paths, "--backends", "onnxruntime-cpu", "--seconds", "1", "--steps", "1", "--threads", "1"])
    content = json.loads(out.with_suffix(".json").read_text())
    file = Bundle.open(bundle).weights.stat().st_size / 1e6
    both = shared.weights_mb(bundle, (*memory.STAGES["encode"], *memory.STAGES["decode"]))
    assert 0.95 * file < both < 1.05 * file
    assert content["weights_mb"]["encode"] < content["weights_mb"]["decode"] < both
    assert content["activations_mb"]["vae"] > 4 * 32 * 1024 * 64 / 1e6  # at least the input of its last layer
    assert 50.0 < content["idle_mb"]["onnxruntime-cpu"] < 5000.0
    assert [use["task"] for use in content["uses"]] == ["encode, 1 s", "decode, 1 s"]
    assert np.all([use["measurement"]["peaks_mb"][0] > 50.0 for use in content["uses"]])
