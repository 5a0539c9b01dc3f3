"""MuCodec's contenders: the official way on made-up parts, and all of them once on the tiny network."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from benchmarks import rounds
from benchmarks.contenders import open_contender
from benchmarks.mucodec import latency
from benchmarks.mucodec.official import PARTS, Official, chunk_starts, chunked_frames, example_inputs, official_windows, step_inputs
from benchmarks.mucodec.workload import KINDS, Part, Workload, list_parts
from musicrt.runtime.bundle import Bundle
from musicrt.runtime.errors import InputError
from musicrt.runtime.models.mucodec.config import Config
from musicrt.runtime.verify import relative_error
from tests.benchmarks.here import call_here
from tests.conftest import ForSystem, refused, tiny_layout

TINY = Config.from_mapping(tiny_layout("mucodec")["config"]).to_mapping()
SIZES: dict[str, list[float]] = {"muq": [128], "encode": [1.5], "prepare": [16], "step": [16, 20], "vae": [8], "vocoder": [12, 160]}


class Recorder(Official):
    """The official way on parts that keep what they get and give what is easy to follow."""

    def __init__(self) -> None:
        super().__init__(TINY)
        self.inputs: dict[str, list[NDArray[Any]]] = {}

    def run(self, part: str, *inputs: NDArray[Any]) -> dict[str, NDArray[Any]]:
        first = inputs[0]
        self.inputs.setdefault(part, []).append(first.copy())
        match part:
            case "muq":
                return {"hidden": np.zeros((len(first), 1024, 64), np.float32)}
            case "quantizer":
                return {"codes": np.full((len(first), 1, 1024), len(self.inputs["quantizer"]))}
            case _:
                levels = np.repeat(first[:, :, 0], 480, axis=1)
                return {"waveform": np.pad(levels, ((0, 0), (0, 16)), mode="edge")}


@pytest.mark.parametrize(
    ("part", "name"),
    [
        (Part("step", 128), "step, 128 frames"),
        (Part("encode", 40.9), "encode, 40.9 s"),
        (Part("vae", 32, 1), "vae, 32 frames of one channel"),
        (Part("muq", 1024), "muq, 1024 codes"),
    ],
)
def test_parts_have_names_that_are_read_back(part: Part, name: str) -> None:
    assert part.name == name
    assert Part.parse(name) == part


@pytest.mark.parametrize("name", ["step", "step, 128 s", "hop, 1 s", "vae, 32 frames of two channels"])
def test_other_names_are_refused(name: str) -> None:
    with refused(InputError, repr(name)):
        Part.parse(name)


def test_parts_are_listed_in_the_order_of_the_work() -> None:
    parts = list_parts({"vocoder": [8], "encode": [2.5], "vae": [8]}, 1)
    assert [part.name for part in parts] == ["encode, 2.5 s", "vae, 8 frames of one channel", "vocoder, 8 frames of one channel"]
    assert [part.seconds for part in parts] == [2.5, 0.64, 0.64]
    assert [part.small.kind for part in parts] == ["muq", "vae", "vocoder"]
    for sizes in ({"step": [10.0]}, {"vae": [0.0]}, {"encode": [float("nan")]}, {"muq": [1 << 14]}):
        with refused(InputError, "got the part"):
            list_parts(sizes, 2)


@pytest.mark.parametrize(("samples", "windows"), [(1, 2), (480_000, 2), (1_440_000, 2), (1_966_080, 3), (1_966_560, 2), (5_760_000, 3)])
def test_two_windows_are_encoded_officially_at_least(samples: int, windows: int) -> None:
    assert official_windows(samples) == windows


def test_the_official_encode_takes_windows_by_threes() -> None:
    """130 s are four windows, and the last codes those of the second batch."""
    official, work = Recorder(), Workload.build(TINY)
    assert official.encode(work.audio(1.0)).shape == (1, 1, 26)
    assert [mel.shape for mel in official.inputs["muq"]] == [(2, 128, 4096)]
    first, second = official.inputs["muq"][0][:, :, :100]
    assert not np.array_equal(first, second)  # one second is no divisor of a window
    codes = official.encode(work.audio(130.0))
    assert [len(mel) for mel in official.inputs["muq"][1:]] == [3, 1]
    assert codes[0, 0, [0, 3071, 3072]].tolist() == [2, 2, 3]


@pytest.mark.parametrize(
    ("frames", "starts", "run"), [(300, 1, 300), (1024, 1, 1024), (1100, 2, 1868), (1280, 2, 2048), (1500, 3, 3036), (4096, 13, 13312)]
)
def test_the_official_vocoder_runs_on_overlapping_chunks(frames: int, starts: int, run: int) -> None:
    assert len(chunk_starts(frames)) == starts
    assert chunked_frames(frames) == run
    official = Recorder()
    mel = np.linspace(-1.0, 1.0, frames, dtype=np.float32)[None, :, None]
    wave = official.vocode(mel)
    assert sum(one.shape[1] for one in official.inputs["vocoder"]) == run
    expected = np.repeat(mel[:, :, 0], 480, axis=1)
    size = min(wave.shape[1], 480 * frames)
    assert np.abs(wave[:, :size] - expected[:, :size]).max() < 1e-6  # equal chunks are faded into each other without a trace


def test_a_step_is_given_the_unconditional_row_first() -> None:
    x, condition, known = Workload.build(TINY).signal(16)
    channels, times = step_inputs(x, condition, known)
    assert channels.shape == (2, 96, 16, 32)
    assert np.array_equal(channels[0, :32], channels[1, :32])
    assert np.array_equal(channels[:, 32:64, :4], np.repeat(known, 2, axis=0))
    assert not channels[:, 32:64, 4:].any()
    assert not channels[0, 64:].any()
    assert np.array_equal(channels[1, 64:], condition[0])
    assert times.tolist() == [0.5, 0.5]


def test_positions_are_those_of_the_stages() -> None:
    pytest.importorskip("torch")
    from benchmarks.mucodec.networks import positions
    from musicrt.runtime.models.mucodec.stages import build_stages

    context: Any = build_stages(TINY)["context"]
    for rows in (2, 7, 256):
        assert positions(rows, 32).numpy() == pytest.approx(context.positions(rows).flatten(0, 1).detach().numpy(), abs=3e-5)


def allowed(part: str) -> float:
    """How far a part may be from eager, which has torch's transposed convolutions: up to 5 % off on some CPUs."""
    return 0.1 if part.startswith("vocoder") else 2e-5


def opening_of(bundle: Path, checkpoint: Path) -> dict[str, Any]:
    config = dict(Bundle.open(bundle).spec.config)
    return {"system": "mucodec", "bundle": str(bundle), "checkpoint": str(checkpoint), "plain": "", "config": config, "threads": 1}


def test_eager_and_the_bundle_agree_on_every_part(tiny_bundles: ForSystem, tiny_checkpoints: ForSystem) -> None:
    opening = opening_of(tiny_bundles("mucodec"), tiny_checkpoints("mucodec"))
    work, parts = Workload.build(opening["config"]), list_parts(SIZES, 1)
    assert {part.kind for part in parts} == set(KINDS)
    eager, bundle = (open_contender(name=name, **opening) for name in ("eager", "onnxruntime-cpu"))
    for part in parts:
        expected = {name: value.copy() for name, value in eager.prepare(part, work)().items()}
        produced = bundle.prepare(part, work)()
        assert produced.keys() == expected.keys()
        assert relative_error(produced, expected) < allowed(part.name), part
        assert [value.shape for value in produced.values()] == [value.shape for value in expected.values()]
    with refused(InputError, "unknown contender 'abacus'"):
        open_contender(name="abacus", **opening)


@pytest.mark.filterwarnings("ignore")  # the exporter warns of its own parts
def test_a_plain_export_runs_at_any_length(tiny_checkpoints: ForSystem, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    pytest.importorskip("torch")
    from benchmarks.mucodec import baselines

    checkpoint, work = tiny_checkpoints("mucodec"), Workload.build(TINY)
    monkeypatch.setattr(baselines, "PARTS", {"estimator": PARTS["estimator"]})
    plain = baselines.export_plain(str(checkpoint), TINY, str(tmp_path))["folder"]
    common: dict[str, Any] = {"system": "mucodec", "bundle": "", "checkpoint": str(checkpoint), "config": TINY, "threads": 1}
    eager, exported = (open_contender(name=name, plain=plain, **common) for name in ("eager", "plain-onnx"))
    for part in list_parts({"step": [8, 36]}, 2):
        assert relative_error(exported.prepare(part, work)(), eager.prepare(part, work)()) < 1e-5


def test_examples_are_what_the_parts_take() -> None:
    work = Workload.build(TINY)
    for part, (inputs, _) in PARTS.items():
        assert len(example_inputs(part, work)) == len(inputs)


def test_the_latency_suite_puts_a_window_together(
    tiny_bundles: ForSystem, tiny_checkpoints: ForSystem, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    call_here(monkeypatch, rounds)
    paths = ["--bundle", str(tiny_bundles("mucodec")), "--checkpoint", str(tiny_checkpoints("mucodec")), "--threads", "1"]
    contest = ["--contenders", "eager", "onnxruntime-cpu", "--rounds", "1", "--repeats", "2"]
    first, second, both = (tmp_path / "new" / name for name in ("first", "second", "both"))
    sizes = ["--prepare", "16", "--step", "8", "16", "--vocoder", "8"]
    latency.main([*paths, *contest, "--parts", "prepare", "step", "vocoder", *sizes, "--out", str(first)])
    latency.main([*paths, *contest, "--parts", "encode", "vae", "--encode", "1", "--vae", "4", "--channels", "1", "--out", str(second)])
    earlier = [str(path.with_suffix(".json")) for path in (first, second)]
    latency.main([*paths, *contest, "--parts", "--with", *earlier, "--steps", "20", "--out", str(both)])
    content = json.loads(both.with_suffix(".json").read_text())
    rows = {values["name"]: values for values in content["measurements"]["onnxruntime-cpu"]}
    names = ["prepare, 16 frames", "step, 8 frames", "step, 16 frames", "vocoder, 8 frames", "encode, 1 s", "vae, 4 frames of one channel"]
    assert list(rows) == names
    assert all(len(values["times"]) == 2 and values["peak_mb"] > 50.0 for values in rows.values())
    assert all(values["error"] < allowed(name) for name, values in rows.items())
    text = both.with_suffix(".md").read_text()
    assert "## A whole window of 40.96 s in 20 steps by measured parts, s" in text
    assert "| 20 steps | from 8 and 16 frames by length and its square |" in text
    assert "8 frames: 64 officially, 64 here; 512 frames: 13312 officially, 4696 here." in text
    assert "| total |" in text
    assert "| total |" not in first.with_suffix(".md").read_text()
    assert str(tmp_path) not in text + json.dumps(content)

    content["model"]["identity"] = "0" * 64
    both.with_suffix(".json").write_text(json.dumps(content))
    with refused(InputError, "other weights"):
        latency.main([*paths, "--contenders", "eager", "--parts", "--with", str(both.with_suffix(".json")), "--out", str(first)])
    for broken in ("[]", "{", '{"environment": {}}'):
        both.with_suffix(".json").write_text(broken)
        with refused(InputError, "no result of this suite"):
            latency.main([*paths, "--contenders", "eager", "--parts", "--with", str(both.with_suffix(".json")), "--out", str(first)])
