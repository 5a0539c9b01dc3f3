"""The nano codec in 8-bit integers: what it keeps, what is refused, what lies in the bundle."""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import musicrt
from musicrt.runtime.bundle import EMBEDDED, Bundle
from musicrt.runtime.errors import InputError, VerificationError
from musicrt.runtime.measure import synthesise_music
from musicrt.runtime.models.music2latent import spec as system
from musicrt.runtime.precision import Gate
from musicrt.runtime.verify import verify_bundle
from tests.command import call, fails
from tests.conftest import refused

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from musicrt.calibration.calibrate import Calibration, calibrate_int8  # noqa: E402 - needs what was asked for above
from musicrt.calibration.metrics import mel_distance, signal_to_noise  # noqa: E402
from musicrt.calibration.report import write_report  # noqa: E402

SECONDS = 0.5
LAYERS = {"encoder": 17, "pyramid": 27, "denoiser": 30, "decoder": 57}
"""Convolutions, and linears of attention."""


@dataclass(frozen=True)
class Made:
    """A calibrated copy of the embedded bundle."""

    path: Path
    found: Calibration
    report: Path


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    folder = tmp_path_factory.mktemp("int8")
    path = Path(shutil.copytree(EMBEDDED, folder / "bundle"))
    found = calibrate_int8(path, seconds=SECONDS, threads=1, on_result=lambda one: write_report(folder / "report", one))
    return Made(path, found, folder / "report")


def hashes(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.rglob("*") if path.is_file()
    }


# What it is worth


def test_latents_and_audio_are_near_those_of_float32(made: Made) -> None:
    """Judged anew, on music that calibration has not heard, from the file to the file."""
    audio = synthesise_music(1.3, 44100)[0][22050:]
    with (
        musicrt.load(made.path, backend="onnxruntime-cpu", precision="int8", threads=1) as small,
        musicrt.load(made.path, backend="onnxruntime-cpu", threads=1) as whole,
    ):
        latents, ours = whole.encode(audio), small.encode(audio)
        truth, guess = (codec.decode(latents, seed=3)[0] for codec in (whole, small))
        steps = [signal_to_noise(*(codec.decode(latents, seed=3, steps=3)[0] for codec in (whole, small)))]
    assert 20.0 < signal_to_noise(latents, ours) < 60.0
    assert 17.0 < signal_to_noise(truth, guess) < 60.0
    assert 0.01 < mel_distance(truth, guess, 44100) < 1.0
    assert 8.0 < steps[0] < 60.0


def test_gates_held_in_the_end_and_not_at_first(made: Made) -> None:
    found = made.found
    assert found.passed
    assert not found.entry.forced
    first, last = found.rounds[0], found.rounds[-1]
    assert first.lowered == sum(LAYERS.values())
    assert first.quality["encode SNR dB"] < 16.0 < 20.0 <= last.quality["encode SNR dB"]
    assert last.quality["decode SNR dB"] >= 20.0
    assert [one.lowered for one in found.rounds] == sorted({one.lowered for one in found.rounds}, reverse=True)
    assert last.lowered >= 0.8 * first.lowered
    assert "encoder" in found.noise


def test_the_most_sensitive_layers_went_back(made: Made) -> None:
    noise, kept = made.found.noise["encoder"], made.found.entry.stages["encoder"].kept
    assert len(noise) == 17
    assert 1 <= len(kept) < 10
    assert sorted(noise, key=lambda name: -noise[name])[: len(kept)] == sorted(kept, key=lambda name: -noise[name])
    assert max(noise, key=lambda name: noise[name]) == "encoder.conv_inp"
    assert 10 * min(noise[name] for name in kept) > noise["encoder.conv_out"]


# What lies in the bundle


def test_graphs_compute_in_integers(made: Made) -> None:
    bundle = Bundle.open(made.path, check="hashes")
    assert bundle.flavours == ["ort", "int8"]
    for stage in bundle.spec.stages:
        graphs = bundle.manifest.stages[stage.name].graphs
        if stage.int8 is None:
            assert graphs["int8"] == graphs["ort"]
            continue
        entry = graphs["int8"]
        assert (entry.precision, entry.tolerance, entry.file.path) == ("int8", stage.int8.tolerance, f"stages/{stage.name}.int8.onnx")
        assert 0.01 < entry.error < entry.tolerance
        model = onnx.load(bundle.path / entry.file.path, load_external_data=False)
        onnx.checker.check_model(str(bundle.path / entry.file.path))
        nodes = {name: node for node in model.graph.node for name in node.output}
        layers = [node for node in model.graph.node if node.op_type in ("Conv", "MatMul")]
        lowered = [node for node in layers if node.input[1] in nodes and nodes[node.input[1]].op_type == "DequantizeLinear"]
        assert len(lowered) == made.found.entry.stages[stage.name].layers
        assert len(lowered) + len(made.found.entry.stages[stage.name].kept) == LAYERS[stage.name]


def test_weights_are_stored_once_and_in_a_byte_each(made: Made) -> None:
    bundle = Bundle.open(made.path)
    more, whole = bundle.manifest.more_weights["int8"], bundle.manifest.weights
    assert more.path == "stages/weights.int8.safetensors"
    assert 0.2 * whole.bytes < more.bytes < 0.32 * whole.bytes  # which holds two bytes each, and those that stayed
    assert whole == Bundle.open(EMBEDDED).manifest.weights
    model = onnx.load(bundle.path / "stages/decoder.int8.onnx", load_external_data=False)
    places = {entry.value for tensor in model.graph.initializer for entry in tensor.external_data if entry.key == "location"}
    assert places == {"weights.safetensors", "weights.int8.safetensors"}


def test_bundle_is_verified(made: Made) -> None:
    checks = verify_bundle(made.path, backend="onnxruntime-cpu", precision="int8", threads=1)
    assert all(check.ok for check in checks)
    lowered = [check for check in checks if check.reference == "recorded at calibration"]
    assert [check.stage for check in lowered] == list(LAYERS)
    assert all(check.error < 1e-3 for check in lowered)
    assert all(check.ok for check in verify_bundle(made.path, backend="onnxruntime-cpu", threads=1))


def test_report_holds_the_numbers(made: Made) -> None:
    content = json.loads((made.report / "report.json").read_text())
    assert content["passed"] is True
    assert content["quality"] == made.found.entry.quality
    assert [one["lowered"] for one in content["rounds"]] == [one.lowered for one in made.found.rounds]
    assert content["noise"]["encoder"] == made.found.noise["encoder"]
    text = (made.report / "report.md").read_text()
    assert "Gates: passed." in text
    assert f"| decode SNR dB | at least 20 | {content['quality']['decode SNR dB']:.3g} |" in text
    assert "| encoder.conv_inp | float32 |" in text
    if "No pictures" not in text:
        pictures = ["decoded-0.png", "layers-encoder.png"]
        assert all(f"]({name})" in text and (made.report / name).read_bytes().startswith(b"\x89PNG") for name in pictures)


def test_inspect_shows_the_calibration(made: Made) -> None:
    shown = call("inspect", made.path).out
    entry = made.found.entry
    assert f"calibrated for cpu-int8 with synthetic music, 3 pieces of {SECONDS:g} s\n" in shown
    assert f"encoder: {entry.stages['encoder'].layers} layers in 8 bits (static), {len(entry.stages['encoder'].kept)} kept" in shown
    assert f"encode SNR dB: {entry.quality['encode SNR dB']:.3g} (wanted at least 20)" in shown
    listed = json.loads(call("inspect", made.path, "--json").out)["calibrations"]["cpu-int8"]
    assert listed["quality"] == entry.quality
    assert listed["inputs_sha256"] == entry.inputs_sha256


# Gates that are missed, and what replaces what; these change the bundle, and come last


def test_missed_gate_is_refused_and_leaves_the_bundle_alone(made: Made, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(system, "GATES", (Gate("encode SNR dB", least=50.0), Gate("logits top-1", least=0.9)))
    before = hashes(made.path)
    reports: list[Any] = []
    with refused(
        VerificationError,
        made.path,
        "encode SNR dB at least 50, got ",
        "logits top-1 at least 0.9, got nothing",
        "or more rounds",
        "--force",
    ):
        calibrate_int8(
            made.path, seconds=0.2, rounds=0, threads=1, on_result=lambda one: reports.append((one, write_report(tmp_path, one)))
        )
    assert [one.lowered for one in reports[0][0].rounds] == [sum(LAYERS.values())]
    assert hashes(made.path) == before
    assert "Gates: missed: encode SNR dB at least 50" in (tmp_path / "report.md").read_text()


def test_force_keeps_it_in_the_place_of_the_first_and_says_so(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(system, "GATES", (Gate("decode SNR dB", least=50.0),))
    before = hashes(made.path)
    out = call(
        *("calibrate", made.path, "--target", "cpu-int8", "--seconds", "0.2", "--ranges", "percentile"),
        *("--rounds", "0", "--force", "--threads", "1"),
    ).out
    assert "KEPT BY FORCE although a gate was missed" in out
    assert "(wanted at least 50: MISSED)" in out
    bundle = Bundle.open(made.path, check="hashes")
    after = hashes(made.path)
    assert after.keys() == before.keys()
    assert {name for name in after if after[name] != before[name]} == {
        "manifest.json",
        "stages/weights.int8.safetensors",
        *(f"stages/{stage}.int8.onnx" for stage in LAYERS),
    }
    entry = bundle.manifest.calibrations["cpu-int8"]
    assert entry.forced
    assert [gate.holds for gate in entry.gates if gate.measure == "decode SNR dB"] == [False]
    assert entry.stages["encoder"].kept == []
    assert "KEPT BY FORCE" in call("inspect", made.path).out


def test_wrong_arguments_are_refused_by_name(tmp_path: Path) -> None:
    path = shutil.copytree(EMBEDDED, tmp_path / "bundle")
    (tmp_path / "empty").mkdir()
    fails(3, "calibrate", path, "--target", "npu", says=("'npu'", "cpu-int8, gpu-int8 or gpu-fp16"))
    fails(3, "calibrate", path, "--target", "cpu-int8", "--inputs", tmp_path / "empty", says=("holds no audio", "'synthetic'"))
    fails(3, "calibrate", path, "--target", "gpu-fp16", "--force", says=("no gates",))
    fails(3, "calibrate", path, "--target", "gpu-fp16", "--rounds", "0", says=("rounds", "no gates"))
    fails(3, "calibrate", path, "--target", "cpu-int8", "--rounds", "-1", says=("-1 rounds", "0 or more"))
    with refused(InputError, "'median'", "minmax, percentile, entropy"):
        calibrate_int8(path, ranges="median")  # type: ignore[arg-type]
    assert hashes(path) == hashes(EMBEDDED)


def test_what_needs_torch_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "musicrt.calibration.half_range", None)
    fails(3, "calibrate", tmp_path, "--target", "gpu-fp16", says=("is not installed", "pip install 'musicrt[export]'"))


def test_float32_bundle_says_how_to_get_int8() -> None:
    with refused(musicrt.BackendError, "musicrt calibrate", "--target cpu-int8"):
        musicrt.load(EMBEDDED, precision="int8", backend="onnxruntime-cpu")
