"""MuCodec's whole window, savings and memory: their arithmetic on made-up numbers, and the suites once on the tiny network."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from benchmarks import memory as shared
from benchmarks.mucodec import memory, savings
from benchmarks.mucodec.savings_tables import (
    FOLDED,
    KEPT,
    LAYERS,
    ONE_BATCH,
    ONE_CONTEXT,
    ONE_SCHEDULE,
    OVERLAP,
    Sizes,
    render,
    save_decode,
    save_encode,
)
from benchmarks.mucodec.window import FRAMES, Share, assemble, extrapolate, render_window, run_frames
from benchmarks.mucodec.workload import Workload
from musicrt.runtime.measure import Measurement
from musicrt.runtime.models.mucodec.config import Config
from musicrt.runtime.verify import relative_error
from tests.benchmarks.here import call_here
from tests.conftest import ForSystem, tiny_layout

TINY = Config.from_mapping(tiny_layout("mucodec")["config"]).to_mapping()
TIMES = {
    "spectrogram": [0.25],
    "MuQ": [2.0, 2.0, 9.0],
    "MuQ, all layers": [3.0],
    "step": [4.0],
    "step, one row after the other": [5.0],
    "context of both rows": [0.5],
    "all times": [0.25],
    "one time": [0.125],
    "VAE": [1.0],
    "VAE, upsampling not folded": [1.5],
    "vocoder": [2.0],
    "vocoder, ends": [1.5],
}


def measured(**parts: float) -> dict[str, Measurement]:
    """Measurements of parts by names with underscores."""
    names = {name.replace("__", ", ").replace("_", " "): seconds for name, seconds in parts.items()}
    return {name: Measurement(name, (seconds,)) for name, seconds in names.items()}


def test_a_line_and_a_square_are_found() -> None:
    at = {size: 0.01 * size + 0.0001 * size**2 for size in (64.0, 128.0)}
    assert extrapolate(at).seconds == pytest.approx(5.12 + 26.2144)
    assert extrapolate({**at, 512.0: 3.0}) == Share(3.0, "measured at 512 frames")
    assert extrapolate({64.0: 1.0, 128.0: 1.5}).seconds == pytest.approx(6.0)  # nothing grows more slowly than the length
    single = extrapolate({128.0: 2.0})
    assert single.seconds == pytest.approx(8.0)
    assert single.how.startswith("at least: from 128 frames")


def test_the_vocoder_runs_once_and_on_the_ends_of_chunks() -> None:
    full = Workload.build({})  # as released
    assert run_frames(full, [160, 512], official=False) == {160: 1280 + 2 * 44, 512: 4096 + 24 * 44 + 44}
    assert run_frames(full, [160, 512], official=True) == {160: 2048, 512: 13312}


def test_a_window_is_put_together_of_what_was_measured() -> None:
    rows = measured(
        muq__1024_codes=9.0,
        encode__10_s=10.0,
        encode__60_s=99.0,  # which is no single window
        prepare__512_frames=1.0,
        step__128_frames=1.0,
        step__512_frames=7.0,
        vae__32_frames_of_one_channel=2.0,
        vocoder__160_frames_of_one_channel=3.0,
    )
    shares = assemble(rows, 20, {160: 1000, FRAMES: 4000})
    assert {kind: share.seconds for kind, share in shares.items()} == pytest.approx(
        {"encode": 10.0, "prepare": 1.0, "step": 140.0, "vae": 64.0, "vocoder": 24.0}
    )
    assert shares["vocoder"].how == "vocoder, 160 frames of one channel, by mel frames that run"
    half = {name: one for name, one in rows.items() if not name.startswith("vae")}
    lines = render_window({"eager": rows, "torch-cpu": rows, "onnxruntime-cpu": half}, Workload.build({}), [20]).splitlines()
    assert "| 20 steps | measured at 512 frames | 140.00 | 140.00 | 140.00 |" in lines
    vocoder = [3.0 * 13312 / 2048 * 2, 3.0 * 5196 / 1368 * 2]
    assert f"| total |  | {215 + vocoder[0]:.1f} | {215 + vocoder[1]:.1f} | – |" in lines
    assert f"| times as fast as eager |  | 1.00 | {(215 + vocoder[0]) / (215 + vocoder[1]):.2f} | – |" in lines
    assert render_window({"eager": measured(muq__1024_codes=9.0)}, Workload.build({}), [20]) == ""


def test_savings_are_what_their_absence_would_add() -> None:
    sizes, work = Sizes(clip=10.0, codes=1024, frames=512, vae=512, vocoder=256, ends=6, steps=10), Workload.build({})
    encode = save_encode(TIMES, sizes)
    assert encode.now == pytest.approx(2.25)
    assert encode.savings == pytest.approx({LAYERS: 1.0, KEPT: 3.25})
    decode = save_decode(TIMES, sizes, work)
    vocoder = 2 * (2.0 / 256 * (4096 + 44) + 1.5 / (6 * 44) * 24 * 44)
    assert decode.now == pytest.approx(0.5 + 0.25 + 40.0 + 2.0 + vocoder)
    expected = {ONE_BATCH: 10.0, ONE_CONTEXT: 4.5, ONE_SCHEDULE: 1.0, FOLDED: 1.0, OVERLAP: 2 * 2.0 / 256 * 13312 - vocoder}
    assert decode.savings == pytest.approx(expected)
    lines = render(TIMES, sizes, work).splitlines()
    assert "## Encode of a clip of 10 s: 6.50 s without, 2.25 s with the savings" in lines
    assert f"| {KEPT} | 3.25 | 50.0% |" in lines
    assert "| MuQ | 2000.00 |" in lines


def test_what_was_measured_smaller_is_brought_to_a_window() -> None:
    work = Workload.build({})
    full = save_decode(TIMES, Sizes(10.0, 1024, 512, 512, 256, 6, 10), work)
    quarter = save_decode(TIMES, Sizes(10.0, 1024, 128, 512, 256, 6, 10), work)
    assert quarter.savings[ONE_BATCH] == pytest.approx(4 * full.savings[ONE_BATCH])
    assert quarter.now - full.now == pytest.approx(3 * (0.5 + 40.0))
    assert save_encode(TIMES, Sizes(60.0, 512, 512, 512, 256, 6, 10)).now == pytest.approx(2 * 2 * 2.25)


def test_the_savings_suite_undoes_one_saving_after_the_other(
    tiny_bundles: ForSystem, tiny_checkpoints: ForSystem, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    call_here(monkeypatch, savings)
    produced: dict[str, Any] = {}

    def run_once(calls: Mapping[str, Callable[[], Any]], repeats: int) -> dict[str, list[float]]:
        produced.update({name: call() for name, call in calls.items()})
        return {name: [1.0] * repeats for name in calls}

    monkeypatch.setattr(savings, "time_in_turn", run_once)
    out, checkpoint = tmp_path / "savings", tiny_checkpoints("mucodec")
    sizes = ["--codes", "64", "--frames", "8", "--vae", "4", "--vocoder", "24", "--ends", "2", "--steps", "2", "--repeats", "1"]
    paths = ["--bundle", str(tiny_bundles("mucodec")), "--checkpoint", str(checkpoint), "--threads", "1", "--out", str(out)]
    savings.main([*paths, *sizes])
    content = json.loads(out.with_suffix(".json").read_text())
    assert content["times"].keys() == TIMES.keys() == produced.keys()
    assert content["settings"]["clip"] == 10.0
    assert produced["spectrogram"].shape == (1, 128, 256)
    assert produced["vocoder, ends"]["waveform"].shape == (2, 24 * 480 + 16)
    assert 0.0 < relative_error(produced["VAE, upsampling not folded"], produced["VAE"]) < 1e-5
    assert relative_error(produced["MuQ, all layers"], {"hidden": produced["MuQ"]}) > 0.01  # one layer more


def test_the_memory_suite_holds_parts_against_weights_and_activations(
    tiny_bundles: ForSystem, tiny_checkpoints: ForSystem, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("onnx")
    call_here(monkeypatch, memory, shared)
    out = tmp_path / "memory"
    paths = ["--bundle", str(tiny_bundles("mucodec")), "--checkpoint", str(tiny_checkpoints("mucodec")), "--out", str(out)]
    sizes = ["--parts", "step", "vae", "vocoder", "--step", "8", "16", "--vae", "16", "--vocoder", "4"]
    memory.main([*paths, "--backends", "onnxruntime-cpu", "--threads", "1", *sizes])
    content = json.loads(out.with_suffix(".json").read_text())
    names = ["step, 8 frames", "step, 16 frames", "vae, 16 frames of one channel", "vocoder, 4 frames of one channel"]
    assert [use["task"] for use in content["uses"]] == names == list(content["activations_mb"])
    assert list(content["weights_mb"]) == ["step", "vae", "vocoder"]
    assert content["activations_mb"][names[2]] > 4 * (16 * 32) ** 2 / 1e6  # at least the matrix of scores
    assert content["activations_mb"][names[1]] > content["activations_mb"][names[0]]
    text = out.with_suffix(".md").read_text()
    assert "| vae, 16 frames of one channel | onnxruntime-cpu |" in text
    memory.main([*paths, "--backends", "onnxruntime-cpu", "--threads", "1", *sizes, "--no-activations"])
    assert "| – | – |" in out.with_suffix(".md").read_text()
