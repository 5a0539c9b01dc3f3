"""SemantiCodec's contenders: the official way on made-up parts, and all of them once on the tiny bundle."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from benchmarks.contenders import open_contender
from benchmarks.rounds import ALL_STAGES
from benchmarks.semanticodec import latency
from benchmarks.semanticodec.official import PARTS, Official, add_positions, example_inputs, position_code
from benchmarks.semanticodec.workload import STAGES, Workload
from musicrt.runtime.bundle import Bundle
from musicrt.runtime.errors import InputError
from musicrt.runtime.models.semanticodec.config import Config
from musicrt.runtime.models.semanticodec.spec import build_spec
from tests.conftest import ForSystem, refused, tiny_layout

TINY = Config.from_mapping(tiny_layout("semanticodec")["config"]).to_mapping()


class Recorder(Official):
    """The official way on parts that keep what they get and give what is easy to follow."""

    def __init__(self) -> None:
        super().__init__(TINY)
        self.calls: list[tuple[str, list[NDArray[Any]]]] = []

    def run(self, part: str, *inputs: NDArray[Any]) -> dict[str, NDArray[Any]]:
        self.calls.append((part, [one.copy() for one in inputs]))
        match part:
            case "unet":
                return {"v": np.zeros_like(inputs[0])}
            case "embedding":
                return {"feature": np.full((*inputs[0].shape, 128), 0.5, np.float32)}
            case "semantic":
                return {"semantic": np.full((1, 256), 3), "centroids": np.full((1, 256, 64), 0.25, np.float32)}
            case "acoustic":
                return {"acoustic": np.full((1, 256), len(self.inputs("acoustic")))}
            case "vocoder":
                return {"waveform": np.ones((1, 163872), np.float32)}
            case _:
                return dict.fromkeys(PARTS[part][1], inputs[0])

    def inputs(self, part: str) -> list[list[NDArray[Any]]]:
        return [inputs for name, inputs in self.calls if name == part]


def test_the_workload_depends_on_its_arguments_only() -> None:
    work, again = Workload.build(TINY, 3.0), Workload.build(TINY, 3.0)
    assert work.tokens.shape == (1, 76, 2)
    assert work.tokens.max(axis=(0, 1)).tolist() <= [511, 255]
    assert np.array_equal(work.tokens, again.tokens)
    assert np.array_equal(work.noise(2)[1], again.noise(2)[1])
    assert not np.array_equal(work.noise(2)[0], work.noise(2)[1])
    assert work.decoded_seconds == pytest.approx(76 * 640 / 16000)
    assert work.feeds("residual")["mask"].min() == 1.0
    assert work.feeds("conditioning", batch=2)["feature"].shape == (2, 256, 128)
    with refused(InputError, "got 0.0 s"):
        Workload.build(TINY, 0.0)


def test_parts_take_the_inputs_of_the_stages_of_the_same_name() -> None:
    spec, work = build_spec(TINY, "tiny"), Workload.build(TINY, 1.0)
    for part, (inputs, outputs) in PARTS.items():
        assert len(example_inputs(part, work)) == len(inputs)
        if part != "unet":
            stage = spec.stage(part)
            assert (inputs, outputs) == (tuple(t.name for t in stage.inputs), tuple(t.name for t in stage.outputs))


def test_the_official_decode_calls_the_unet_twice_in_each_step_of_each_window() -> None:
    official, tokens = Recorder(), Workload.build(TINY, 15.0).tokens
    noise = [np.full((1, 8, 256, 16), value, np.float32) for value in (1.0, 0.0, 0.0, 2.0, 0.0, 0.0)]
    audio = official.decode(tokens, 2, noise)
    calls = official.inputs("unet")
    assert audio.shape == (1, tokens.shape[1] * 640)
    assert [int(t[0]) for _, t, _ in calls] == [501, 501, 1, 1] * 2
    assert [float(x[0, 0, 0, 0]) for x, _, _ in calls[::4]] == [1.0, 2.0]
    cond, uncond = calls[0][2], calls[1][2]
    assert cond.shape == (1, 256, 320)
    assert np.unique(cond[:, :, :128]).tolist() == [0.5]
    assert np.unique(uncond[:, :, :128]).tolist() == [0.0]
    assert np.array_equal(cond[:, :, 128:], uncond[:, :, 128:])
    assert np.unique(calls[4][2][:, -1, :128]).tolist() == [-1.0]  # the second window is not full
    assert [mel.shape for (mel,) in official.inputs("vocoder")] == [(1, 8, 256, 16)] * 2
    assert audio == pytest.approx(1.0)


def test_the_official_encode_takes_one_segment_after_the_other() -> None:
    official = Recorder()
    tokens = official.encode(Workload.build(TINY, 12.0).audio())
    assert tokens.shape == (1, 300, 2)
    assert tokens[0, [0, 255, 256], 1].tolist() == [1, 1, 2]
    active = [float(mask.sum()) for _, _, mask in official.inputs("residual")]
    assert active[0] == 256.0
    assert 40.0 < active[1] < 50.0  # 1.76 s of 10.24 s are audio
    assert [mel.shape for (mel,) in official.inputs("audiomae")] == [(1, 1024, 128)] * 2


def test_the_positional_code_is_that_of_the_stages() -> None:
    stages = pytest.importorskip("musicrt.runtime.models.semanticodec.stages")
    assert position_code(128)[0] == pytest.approx(stages.position_code(128).numpy(), abs=1e-5)
    assert add_positions(np.zeros((1, 128, 4), np.float32)).shape == (1, 128, 196)


def test_eager_and_the_bundle_agree_on_every_row(tiny_bundles: ForSystem, tiny_checkpoints: ForSystem, tmp_path: Path) -> None:
    bundle = tiny_bundles("semanticodec")
    config = dict(Bundle.open(bundle).spec.config)
    checkpoint = str(tiny_checkpoints("semanticodec"))
    opening: dict[str, Any] = {
        "system": "semanticodec",
        "bundle": str(bundle),
        "checkpoint": checkpoint,
        "plain": "",
        "config": config,
        "threads": 1,
    }
    tasks = ["encode", "encode long", "decode, 2 steps", ALL_STAGES]
    asked: dict[str, Any] = {"work": {"seconds": 1.0, "long": 11.0}, "tasks": tasks, "reference": str(tmp_path / "eager.npz")}
    assert latency.compare_contender({"name": "eager", **opening}, **asked) == {}
    errors = latency.compare_contender({"name": "onnxruntime-cpu", **opening}, **asked)
    assert list(errors) == [*tasks[:3], *(name for name in STAGES if name != "noise")]
    assert all(error < 5e-5 for error in errors.values())
    assert errors["encode long"] == 0.0
    assert errors["evaluation"] > 0.0
    with refused(InputError, "unknown contender 'abacus'"):
        open_contender(name="abacus", **opening)


def test_the_latency_suite_writes_results_side_by_side(tiny_bundles: ForSystem, tmp_path: Path) -> None:
    out, bundle = tmp_path / "new" / "latency", tiny_bundles("semanticodec")
    options = [
        "--rounds",
        "1",
        "--repeats",
        "2",
        "--seconds",
        "1",
        "--steps",
        "1",
        "--threads",
        "1",
        "--tasks",
        "encode",
        "decode",
        "stages",
    ]
    paths = ["--bundle", str(bundle), "--checkpoint", str(tmp_path), "--out", str(out)]
    latency.main([*paths, *options, "--contenders", "onnxruntime-cpu"])
    content = json.loads(out.with_suffix(".json").read_text())
    rows = {values["name"]: values for values in content["measurements"]["onnxruntime-cpu"]}
    assert list(rows) == ["encode", "decode, 1 step", *STAGES]
    assert all(len(values["times"]) == 2 for values in rows.values())
    assert rows["encode"]["audio_seconds"] == 1.0
    assert rows["decode, 1 step"]["audio_seconds"] == pytest.approx(29 * 640 / 16000)
    assert content["settings"] == {"seconds": 1.0, "long": 60.0, "guidance": 2.0, "repeats": 2, "rounds": 1, "threads": 1}
    assert str(tmp_path) not in out.with_suffix(".json").read_text()
    assert out.with_suffix(".md").read_text().startswith("# Latency: semanticodec")
