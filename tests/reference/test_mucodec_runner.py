"""MuCodec's runner with cases of forms that are not recorded yet."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from musicrt.runtime.errors import InputError
from musicrt.runtime.models.mucodec.spec import CHECKPOINT
from tests.conftest import refused, tiny_layout
from tests.reference.systems.mucodec import Runner
from tests.runtime.mucodec_codecs import Watched, music, noise_arrays, open_light, random_codes

torch = pytest.importorskip("torch")


@pytest.fixture
def light() -> Watched:
    return open_light()


@pytest.fixture
def runner(light: Watched, tmp_path: Path) -> Runner:
    """Of a pipeline without a network."""
    made = Runner(tmp_path, tiny_layout("mucodec"), "torch-cpu", tmp_path)
    made.codec = light[0]
    return made


def make_case(options: dict[str, Any], **inputs: Any) -> Any:
    """What a runner asks a case for; its noise is that of a window behind a prompt of 66 frames."""
    info = {"options": options, "outputs": {"codes": {"key": "codes", "select": "whole"}}}
    first = np.zeros((1, 32, 512, 32), np.float32)
    return SimpleNamespace(info=info, inputs=inputs, noise=[first, *noise_arrays(4, 1, 66)], compare=lambda _: [])


def test_sound2sound_takes_a_prompt(runner: Runner, light: Watched) -> None:
    audio, prompt = music(60_000), music(254_321)
    outputs = runner.sound2sound(make_case({"steps": 1, "min_duration": None}, audio=audio, prompt=prompt[None]))
    expected = runner.codec.decode(outputs["codes"], steps=1, noise=noise_arrays(4, 1, 66), prompt=prompt)
    np.testing.assert_array_equal(outputs["waveform"], expected)
    assert len(light[1]["vae-encoder"].calls) == 4


def test_rows_of_one_input_may_have_two_times(runner: Runner, light: Watched) -> None:
    sample = np.repeat(np.random.default_rng(0).normal(size=(1, 96, 8, 32)).astype(np.float32), 2, axis=0)
    for times in ([0.1, 0.7], [0.4, 0.4]):
        runner.estimator(make_case({}, sample=sample, timestep=np.array(times, np.float32)))
    assert [len(call["x"]) for call in light[1]["estimator"].calls] == [2, 2, 1]


def test_other_layers_and_durations_are_refused_by_name(runner: Runner) -> None:
    for method in (runner.muq_hidden, runner.fetch_codes, runner.compose):
        with refused(InputError, "layer 4", "made for 6", "layer_num to 5"):
            method(make_case({"layer": 4}, audio=music(9000)))
    for name, method in (("duration", runner.windows), ("duration", runner.code2sound), ("min_duration", runner.sound2sound)):
        with refused(InputError, f"{name} 20.48", "40.96"):
            method(make_case({name: 20.48}, codes=random_codes(9), audio=music(9000)))


def test_scale_may_lie_flat(runner: Runner, tmp_path: Path) -> None:
    scale = {"scale_factor": torch.tensor(0.5)}
    for content in (scale, {"state_dict": scale}):
        for name in CHECKPOINT.files:
            torch.save(content, tmp_path / Path(name).name)
        assert runner._scale() == 0.5
