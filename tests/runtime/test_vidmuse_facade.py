"""The drop-in for the official class: its arguments, shapes, tensor types and random numbers."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import musicrt
from musicrt.runtime.errors import BackendError, CheckpointError, ConfigError, InputError
from musicrt.runtime.models.vidmuse.facade import VidMuse
from tests.conftest import ForSystem, refused
from tests.reference.case import load_case
from tests.reference.runner import DATA
from tests.runtime.vidmuse_codecs import CARD, Watched, frames, open_light

torch = pytest.importorskip("torch")

VIDEO = [torch.from_numpy(frames(0, 1, 2, 3)), torch.from_numpy(frames(7, 8))]


@pytest.fixture
def light() -> Watched:
    return open_light()


@pytest.fixture
def official(light: Watched) -> VidMuse:
    return VidMuse(light[0], "cpu")


def arguments(method: Any) -> dict[str, Any]:
    parameters = inspect.signature(method).parameters.values()
    return {one.name: one.default for one in parameters if one.kind is one.POSITIONAL_OR_KEYWORD and one.name != "self"}


# The class


def test_arguments_are_the_official_ones(official: VidMuse) -> None:
    assert musicrt.VidMuse is VidMuse
    assert list(arguments(VidMuse.get_pretrained)) == ["name", "device"]
    assert arguments(VidMuse.set_generation_params) == {
        "use_sampling": True,
        "top_k": 250,
        "top_p": 0.0,
        "temperature": 1.0,
        "duration": 30.0,
        "cfg_coef": 3.0,
        "two_step_cfg": False,
        "extend_stride": 29.5,
    }
    assert list(arguments(VidMuse.generate).items())[1:] == [("progress", False), ("return_tokens", False)]
    assert (official.sample_rate, official.frame_rate, official.audio_channels) == (32000, 50.0, 1)
    assert isinstance(official.frame_rate, float)
    assert (official.duration, official.max_duration, official.extend_stride) == (15.0, 30.0, 29.5)
    assert official.generation_params["top_k"] == 250
    codec = official.compression_model
    assert (codec.sample_rate, codec.frame_rate, codec.channels, codec.num_codebooks, codec.cardinality) == (32000, 50.0, 1, 4, CARD)


def test_recorded_music_with_torch_own_numbers(tiny_checkpoints: ForSystem) -> None:
    """The case has the draws of torch; here torch draws them."""
    case = load_case(DATA / "vidmuse" / "cases" / "tiny-generate-official-rng.safetensors")
    model = VidMuse.get_pretrained(tiny_checkpoints("vidmuse"), device="cpu")
    model.set_generation_params(duration=1)
    video = [torch.from_numpy(case.inputs[name][0]) for name in ("local", "global")]
    torch.manual_seed(7)
    before = torch.get_rng_state()
    audio, tokens = model.generate(video, return_tokens=True)
    assert torch.equal(torch.get_rng_state(), before)
    assert all(verdict.ok for verdict in case.compare({"tokens": tokens.numpy(), "audio": audio.numpy()}))


def test_tensors_go_in_and_come_out(official: VidMuse) -> None:
    official.set_generation_params(duration=2)
    audio, tokens = official.generate(VIDEO, return_tokens=True)
    assert (tuple(audio.shape), audio.dtype, tuple(tokens.shape), tokens.dtype) == ((1, 1, 64000), torch.float32, (1, 4, 100), torch.int64)
    alone = official.generate([VIDEO[0].float(), VIDEO[1].numpy()])
    assert isinstance(alone, torch.Tensor)
    assert torch.equal(alone, audio)
    assert torch.equal(official.generate_audio(tokens), audio)
    assert torch.equal(official.compression_model.decode(tokens.repeat(2, 1, 1))[1:], audio)


def test_every_window_begins_with_the_official_seed(official: VidMuse, light: Watched) -> None:
    """As is recorded in words: seed, random numbers of the shape of the global frames, exponential numbers."""
    official.set_generation_params(duration=31, top_k=0)
    local = torch.from_numpy(frames(*range(62)))
    _, tokens = official.generate([local, VIDEO[1]], return_tokens=True)

    class Numbers:
        def begin(self) -> None:
            torch.manual_seed(1234)
            torch.rand(1, 3, 2, 224, 224)

        def draw(self, call: int, weights: Any) -> Any:
            del call
            return (torch.from_numpy(weights) / torch.empty(weights.shape).exponential_(1)).argmax(dim=1).numpy()

    clip = musicrt.Clip.from_tensors(local.numpy(), VIDEO[1].numpy())
    np.testing.assert_array_equal(tokens, light[0].generate_tokens(clip, duration=31, top_k=0, noise=Numbers()))


def test_settings_are_those_of_the_pipeline(official: VidMuse, light: Watched) -> None:
    clip = musicrt.Clip.from_tensors(*(part.numpy() for part in VIDEO))
    official.set_generation_params(use_sampling=False, duration=0.5, cfg_coef=1.5)
    greedy = official.generate(VIDEO, return_tokens=True)[1]
    np.testing.assert_array_equal(greedy, light[0].generate_tokens(clip, duration=0.5, temperature=0, guidance=1.5))
    official.set_generation_params(temperature=0, duration=0.5, cfg_coef=1.5)
    assert torch.equal(official.generate(VIDEO, return_tokens=True)[1], greedy)
    official.set_generation_params(top_p=0.3, duration=0.5)
    assert not torch.equal(official.generate(VIDEO, return_tokens=True)[1], greedy)


def test_progress(official: VidMuse, capsys: pytest.CaptureFixture[str]) -> None:
    official.set_generation_params(duration=0.1)
    calls: list[tuple[int, int]] = []
    official.generate(VIDEO, progress=True)
    assert "8 /      8" in capsys.readouterr().out
    official.set_custom_progress_callback(lambda *call: calls.append(call))
    official.generate(VIDEO)
    assert calls == []
    official.generate(VIDEO, progress=True)
    assert calls == [(done, 8) for done in range(1, 9)]
    assert capsys.readouterr().out == ""


# Its parts


def test_language_model_takes_batches_and_prompts(official: VidMuse) -> None:
    video = [torch.stack([VIDEO[0], VIDEO[0].flip(1)]), torch.stack([VIDEO[1], VIDEO[1]])]
    prompt = torch.arange(2 * 4 * 5).reshape(2, 4, 5) % CARD
    calls: list[tuple[int, int]] = []
    for length in (29, 57):  # 29 / 50 * 50 is below 29
        tokens = official.lm.generate(prompt, video, max_gen_len=length, callback=lambda *call: calls.append(call))
        assert tuple(tokens.shape) == (2, 4, length)
        assert torch.equal(tokens[:, :, :5], prompt)
    assert calls[-1] == (57 + 3 - 5, 57 + 3 - 5)
    rest = official.lm.generate(prompt, video, max_gen_len=57, remove_prompts=True)
    assert torch.equal(rest, tokens[:, :, 5:])
    assert tuple(official.lm.generate(None, video, max_gen_len=3, use_sampling=False).shape) == (2, 4, 3)


def test_compression_model(official: VidMuse) -> None:
    audio = torch.randn(2, 1, 1300, generator=torch.Generator().manual_seed(0)) * 0.1
    codes, scale = official.compression_model.encode(audio)
    assert (tuple(codes.shape), codes.dtype, scale) == ((2, 4, 3), torch.int64, None)
    assert tuple(official.compression_model.decode_latent(codes).shape) == (2, 32, 3)
    assert tuple(official.compression_model.decode(codes, None).shape) == (2, 1, 1920)


# What is refused


def test_models_that_are_none(tmp_path: Path) -> None:
    with refused(ConfigError, "got 'melody', which is a text model"):
        VidMuse.get_pretrained("melody", device="cpu")
    with refused(CheckpointError, "lacks state_dict.bin, compression_state_dict.bin"):
        VidMuse.get_pretrained(tmp_path, device="cpu")
    with refused(BackendError, "got device 'tpu'"):
        VidMuse.get_pretrained(tmp_path, device="tpu")


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"two_step_cfg": True}, "got two_step_cfg=True"),
        ({"extend_stride": 30}, "got extend_stride 30"),
        ({"duration": 0}, "got a duration of 0 s"),
        ({"top_k": CARD + 1}, f"got top_k {CARD + 1}"),
        ({"temperature": -1}, "got temperature -1"),
        ({"cfg_coef": float("inf")}, "got guidance inf"),
    ],
)
def test_wrong_settings(official: VidMuse, options: dict[str, Any], says: str) -> None:
    official.set_generation_params(duration=2, top_k=5, extend_stride=7)
    before = dict(official.generation_params)
    with refused(InputError, says):
        official.set_generation_params(**{"duration": 3, **options})
    assert (official.duration, official.extend_stride, official.generation_params) == (2, 7, before)


@pytest.mark.parametrize(
    ("video", "says"),
    [
        (VIDEO[:1], "got 1 items, expected [local, global]"),
        (VIDEO[0], "got Tensor, expected [local, global]"),
        ([VIDEO[0][None], VIDEO[1][None]], "got local frames of shape [1, 3, 4, 224, 224], expected [3, F, 224, 224]"),
        ([VIDEO[0] / 255, VIDEO[1]], "not whole numbers from 0 to 255"),
        ([VIDEO[0][:, :0], VIDEO[1]], "at least one frame"),
    ],
)
def test_wrong_videos(official: VidMuse, video: Any, says: str) -> None:
    with refused(InputError, says):
        official.generate(video)


def test_wrong_arguments_of_the_parts(official: VidMuse) -> None:
    batch = [part[None] for part in VIDEO]
    with refused(InputError, "expected [batch, 3, F, 224, 224]"):
        official.lm.generate(None, VIDEO)
    with refused(InputError, "local frames of 2 videos and global frames of 1"):
        official.lm.generate(None, [batch[0].repeat(2, 1, 1, 1, 1), batch[1]])
    for length in (5, 0, 2.5):
        with refused(InputError, f"got {length} timesteps in all, expected 6"):
            official.lm.generate(torch.zeros(1, 4, 5, dtype=torch.int64), batch, max_gen_len=length)  # type: ignore[arg-type]
    with refused(InputError, "got audio of shape [1, 9]"):
        official.compression_model.encode(torch.zeros(1, 9))
    with refused(InputError, "got a scale"):
        official.compression_model.decode(torch.zeros(1, 4, 2, dtype=torch.int64), 1.0)  # type: ignore[arg-type]
