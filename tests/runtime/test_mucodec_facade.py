"""The drop-in for the official class: its arguments, shapes, tensor types and noise."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

import musicrt
from musicrt.runtime.errors import AudioError, CheckpointError, ConfigError, InputError
from musicrt.runtime.models.mucodec.facade import MuCodec
from musicrt.runtime.models.mucodec.lengths import SPAN
from tests.conftest import ForSystem, refused
from tests.runtime.mucodec_codecs import Float, Watched, music, open_light, random_codes

torch = pytest.importorskip("torch")


@pytest.fixture
def light() -> Watched:
    return open_light()


@pytest.fixture
def official(light: Watched) -> MuCodec:
    return MuCodec(codec=light[0], device="cpu")


def official_draws(windows: int, prompt_frames: int = 0) -> Iterator[Float]:
    """What the official code draws, in its order; and of that what has an effect (SPEC section 4.3)."""
    torch.randn(1, 32, 512, 32)
    for _ in range(2 if prompt_frames else 0):
        yield torch.randn(1, 16, prompt_frames, 32).numpy()
    for window in range(windows):
        if window:
            torch.randn(1, 32, 384, 32)
        yield torch.randn(1, 32, 512, 32).numpy()


# The class


def test_arguments_are_the_official_ones() -> None:
    assert musicrt.MuCodec is MuCodec

    def arguments(method: Any) -> dict[str, Any]:
        parameters = inspect.signature(method).parameters.values()
        return {one.name: one.default for one in parameters if one.kind is one.POSITIONAL_OR_KEYWORD and one.name != "self"}

    assert list(arguments(MuCodec)) == ["model_path", "layer_num", "load_main_model", "device"]
    assert list(arguments(MuCodec.file2code)) == ["fname"]
    assert list(arguments(MuCodec.sound2code).items())[1:] == [("batch_size", 3)]
    assert list(arguments(MuCodec.code2sound).items())[1:] == [
        ("prompt", None),
        ("duration", 40.96),
        ("guidance_scale", 1.5),
        ("num_steps", 20),
        ("disable_progress", False),
    ]
    assert list(arguments(MuCodec.sound2sound).items())[1:] == [
        ("prompt", None),
        ("min_duration", 40.96),
        ("steps", 50),
        ("disable_progress", False),
    ]


def test_attributes_are_the_official_ones(official: MuCodec) -> None:
    assert (official.sample_rate, official.layer_num, official.device) == (48_000, 7, torch.device("cpu"))


def test_other_settings_are_refused(light: Watched) -> None:
    with refused(ConfigError, "layer_num=6", "codec of 7"):
        MuCodec(layer_num=6, codec=light[0], device="cpu")
    with refused(ConfigError, "load_main_model=False"):
        MuCodec(load_main_model=False, codec=light[0], device="cpu")


# Encode


def test_codes_are_a_tensor(official: MuCodec, light: Watched, tmp_path: Path) -> None:
    audio = music(60_000)
    codes = official.sound2code(torch.from_numpy(audio))
    assert (codes.shape, codes.dtype, codes.device.type) == ((1, 1, 32), torch.int64, "cpu")
    for same in (audio, torch.from_numpy(audio)[None], audio.tolist()):
        np.testing.assert_array_equal(official.sound2code(same).numpy(), codes.numpy())
    soundfile.write(tmp_path / "a.wav", audio.T, 48_000, subtype="FLOAT")
    for path in (tmp_path / "a.wav", str(tmp_path / "a.wav")):
        np.testing.assert_array_equal(official.file2code(path).numpy(), codes.numpy())
    np.testing.assert_array_equal(light[0].encode(audio), codes.numpy())


def test_windows_run_in_batches(official: MuCodec, light: Watched) -> None:
    official.sound2code(music(2 * SPAN), batch_size=2)
    assert [len(call["mel"]) for call in light[1]["muq"].calls] == [2, 1]


def test_wrong_samples_are_refused(official: MuCodec, tmp_path: Path) -> None:
    for shape in ((2, 2, 100), (1, 1, 2, 100)):
        with refused(InputError, list(shape), "[2, N]"):
            official.sound2code(torch.zeros(shape))
    with refused(InputError, "NaN"):
        official.sound2code(torch.full((2, 100), float("nan")))
    with refused(InputError, "3 channels"):
        official.sound2code(torch.zeros(3, 100))
    with refused(InputError, "ndarray", "sound2code"):
        official.file2code(music(100))  # type: ignore[arg-type]
    with refused(AudioError, "no such file"):
        official.file2code(str(tmp_path / "missing.wav"))


def test_preprocessing_limits_each_item(official: MuCodec) -> None:
    audio = torch.tensor([[[0.5, -1.6]], [[0.3, 0.7]]])
    torch.testing.assert_close(official.preprocess_audio(audio), torch.tensor([[[0.25, -0.8]], [[0.3, 0.7]]]))
    torch.testing.assert_close(official.preprocess_audio(audio, threshold=0.35)[1], torch.tensor([[0.15, 0.35]]))
    with refused(InputError, "[2]"):
        official.preprocess_audio(torch.zeros(2))


# Decode


def test_sound_is_a_tensor(official: MuCodec) -> None:
    sound = official.code2sound(torch.from_numpy(random_codes(30)), num_steps=2)
    assert (sound.shape, sound.dtype, sound.device.type) == ((2, 30 * 1920), torch.float32, "cpu")
    assert (official.code2sound(random_codes(30), num_steps=2) - sound).abs().max() > 1e-3, "not seeded"


def test_manual_seed_gives_the_official_noise(official: MuCodec) -> None:
    codes, prompt = random_codes(1000), music(254_321)
    torch.manual_seed(5)
    noise = list(official_draws(windows=2, prompt_frames=66))
    after = torch.randn(3)
    torch.manual_seed(5)
    sound = official.code2sound(torch.from_numpy(codes), prompt=torch.from_numpy(prompt), num_steps=2)
    torch.testing.assert_close(torch.randn(3), after, rtol=0, atol=0)  # the generator has moved on as far
    expected = official.codec.decode(codes, steps=2, guidance=1.5, noise=noise, prompt=prompt)
    np.testing.assert_array_equal(sound.numpy(), expected)


def test_guidance_is_honoured(official: MuCodec, light: Watched) -> None:
    """Officially it is 1.5, whatever is passed."""
    codes = random_codes(30)
    official.code2sound(codes, guidance_scale=1.0, num_steps=1)
    official.code2sound(codes, guidance_scale=3.0, num_steps=1)
    assert [len(call["context"]) for call in light[1]["estimator"].calls] == [1, 2]


def test_sound2sound_is_both_with_fifty_steps(official: MuCodec, light: Watched) -> None:
    audio = torch.from_numpy(music(60_000))
    torch.manual_seed(1)
    sound = official.sound2sound(audio)
    assert sound.shape == (2, 32 * 1920)
    assert len(light[1]["estimator"].calls) == 50
    torch.manual_seed(1)
    torch.testing.assert_close(official.code2sound(official.sound2code(audio), num_steps=50), sound, rtol=0, atol=0)


def test_wrong_codes_and_options_are_refused(official: MuCodec) -> None:
    for codes, word in ((torch.zeros(1, 1, 4), "float32"), (torch.full((1, 1, 4), 600), "0 to 511"), (torch.zeros(4).long(), "[4]")):
        with refused(InputError, word):
            official.code2sound(codes)
    codes = torch.zeros(1, 1, 4).long()
    with refused(InputError, "20.48", "40.96"):
        official.code2sound(codes, duration=20.48)
    with refused(InputError, "0 sampling steps"):
        official.code2sound(codes, num_steps=0)
    with refused(InputError, "prompt", [2, 1, 9000]):
        official.code2sound(codes, prompt=torch.zeros(2, 1, 9000))


# Checkpoints


def test_main_file_finds_safetensors_files(tmp_path: Path) -> None:
    """Where a folder with the three has them; the nearest counts."""
    from musicrt.runtime.hub import find_files
    from musicrt.runtime.models.mucodec.facade import _locate
    from musicrt.runtime.models.mucodec.spec import CHECKPOINT

    for name in CHECKPOINT.files:
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).with_suffix(".safetensors").touch()
    (tmp_path / "muq.safetensors").touch()
    assert _locate(tmp_path / "ckpt" / "mucodec.safetensors") == find_files(CHECKPOINT, tmp_path)
    (tmp_path / "ckpt" / "muq.pt").touch()
    found = _locate(tmp_path / "ckpt" / "mucodec.safetensors")
    assert isinstance(found, dict)
    assert found["muq_dev/muq.pt"] == tmp_path / "ckpt" / "muq.pt"


def test_main_file_finds_the_other_two(tiny_checkpoints: ForSystem, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Beside it as in the official layout, or in the working directory."""
    from musicrt.runtime.models.mucodec.facade import _locate

    folder = tiny_checkpoints("mucodec")
    found = _locate(folder / "ckpt" / "mucodec.pt")
    assert isinstance(found, dict)
    assert {name: place.relative_to(folder).as_posix() for name, place in found.items()} == {name: name for name in found}
    assert len(found) == 3
    (tmp_path / "mucodec.pt").symlink_to(folder / "ckpt" / "mucodec.pt")
    with refused(CheckpointError, "tools/audioldm_48k.pth", "working directory"):
        _locate(tmp_path / "mucodec.pt")
    monkeypatch.chdir(folder)
    assert _locate(tmp_path / "mucodec.pt") == {**{name: Path(name) for name in found}, "ckpt/mucodec.pt": tmp_path / "mucodec.pt"}
