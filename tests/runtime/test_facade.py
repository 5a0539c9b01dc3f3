"""The drop-in for the official class: its arguments, shapes, tensor types and noise."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

import musicrt
from musicrt.runtime.backends.torch import TorchCpu, TorchCuda
from musicrt.runtime.errors import AudioError, BackendError, CheckpointError, InputError
from musicrt.runtime.model import Model
from musicrt.runtime.models.music2latent.facade import EncoderDecoder
from musicrt.runtime.models.music2latent.pipeline import Pipeline
from tests.conftest import refused
from tests.reference import signals
from tests.reference.case import load_case
from tests.reference.runner import DATA

torch = pytest.importorskip("torch")


def music(samples: int, channels: int = 1) -> Any:
    return signals.audio("facade", samples / 44100, 44100, channels)


@pytest.fixture(scope="module", params=["checkpoint", "bundle"])
def official(request: pytest.FixtureRequest, tiny_checkpoint: Path, tiny_bundle: Path) -> Iterator[EncoderDecoder]:
    """The official class on the tiny network: from the checkpoint in PyTorch, and from a bundle on what is fastest here."""
    if request.param == "bundle":
        made = EncoderDecoder(tiny_bundle, device="cpu")
    else:
        config = json.loads((tiny_checkpoint / "config.json").read_text())
        made = EncoderDecoder(device="cpu", codec=Pipeline(Model.open_checkpoint("music2latent", tiny_checkpoint, config)))
    with made.codec:
        yield made


def test_public_name_is_this_class() -> None:
    assert musicrt.EncoderDecoder is EncoderDecoder


@pytest.mark.parametrize("channels", [1, 2])
def test_shapes_and_types_are_the_official_ones(official: EncoderDecoder, channels: int) -> None:
    latents = official.encode(music(5000, channels))
    assert latents.shape == (channels, 8, 9)
    features = official.encode(music(5000, channels), extract_features=True)
    assert features.shape == (channels, official.codec.config.feature_channels, 9)
    audio = official.decode(latents)
    assert audio.shape == (channels, 9 * 512 + 192)
    assert float(audio.abs().max()) <= 1.0
    for tensor in (latents, features, audio):
        assert isinstance(tensor, torch.Tensor)
        assert tensor.dtype == torch.float32
        assert tensor.device.type == "cpu"


def test_every_kind_of_input_is_taken(official: EncoderDecoder, tmp_path: Path) -> None:
    audio = music(5000)
    expected = official.encode(audio)
    soundfile.write(tmp_path / "a.wav", audio.T, 44100, subtype="FLOAT")
    inputs = [audio[0], audio[0].tolist(), torch.from_numpy(audio), torch.from_numpy(audio).double(), tmp_path / "a.wav"]
    for same in [*inputs, str(tmp_path / "a.wav"), torch.from_numpy(audio).requires_grad_()]:
        torch.testing.assert_close(official.encode(same), expected, rtol=1e-4, atol=1e-4)
    latents = torch.randn(1, 8, 5)
    torch.manual_seed(1)
    decoded = official.decode(latents)
    for same in (latents[0], latents.numpy(), latents.double(), latents.clone().requires_grad_()):
        torch.manual_seed(1)
        torch.testing.assert_close(official.decode(same), decoded)


def test_integers_are_not_scaled(official: EncoderDecoder) -> None:
    audio = np.round(music(5000) * 100).astype(np.int16)
    torch.testing.assert_close(official.encode(audio), official.encode(audio.astype(np.float32)))


def test_rate_of_a_file_is_ignored_with_a_warning(official: EncoderDecoder, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    audio = music(5000)
    for rate in (44100, 48000):
        soundfile.write(tmp_path / f"{rate}.wav", audio.T, rate, subtype="FLOAT")
    with caplog.at_level(logging.WARNING, "musicrt"):
        expected = official.encode(tmp_path / "44100.wav")
        assert caplog.messages == []
        torch.testing.assert_close(official.encode(tmp_path / "48000.wav"), expected, rtol=0, atol=0)
        assert len(caplog.messages) == 1
        assert "48000 Hz is taken for 44100 Hz" in caplog.messages[0]


def test_manual_seed_gives_the_recorded_audio(official: EncoderDecoder) -> None:
    """Recorded from the official package after torch.manual_seed: the order and number of the draws are the same."""
    case = load_case(DATA / "music2latent" / "cases" / "tiny-decode-seeded.safetensors")
    options = dict(case.info["options"])
    seed, latents = options.pop("seed"), torch.from_numpy(case.inputs["latents"])
    torch.manual_seed(seed)
    (verdict,) = case.compare({"waveform": official.decode(latents, **options).numpy()})
    assert verdict.ok, verdict
    torch.manual_seed(seed + 1)
    (other,) = case.compare({"waveform": official.decode(latents, **options).numpy()})
    assert other.error > 0.1, "another seed gives other audio"


def test_generator_moves_on_as_officially(official: EncoderDecoder) -> None:
    """The draw after the last step is made, though nothing uses it."""
    torch.manual_seed(5)
    official.decode(torch.zeros(2, 8, 3), denoising_steps=2)
    after = torch.randn(4)
    torch.manual_seed(5)
    for _ in range(2):  # items
        for _ in range(1 + 2):  # the initial noise and one draw per step
            torch.randn(1, 2, 128, 24)
    torch.testing.assert_close(after, torch.randn(4), rtol=0, atol=0)


def test_calls_differ_unless_seeded(official: EncoderDecoder) -> None:
    latents = torch.zeros(1, 8, 3)
    assert float((official.decode(latents) - official.decode(latents)).norm()) > 0.1


def test_wrong_values_are_refused(official: EncoderDecoder) -> None:
    with refused(InputError, "denoising steps"):
        official.decode(torch.zeros(1, 8, 3), denoising_steps=0)
    with refused(InputError, "[1, 7, 3]"):
        official.decode(torch.zeros(1, 7, 3))
    with refused(InputError, "max_batch_size 0"):
        official.encode(music(5000), max_batch_size=0)
    with refused(InputError, 703):
        official.encode(music(5000)[:, :703])
    with refused(AudioError, "missing.wav"):
        official.encode("missing.wav")


@pytest.mark.parametrize("values", [[[1.0, 2.0], [3.0]], [["a"]], torch.full((1, 9000), float("nan"))], ids=["ragged", "words", "NaN"])
def test_values_that_are_no_finite_numbers_are_refused(official: EncoderDecoder, values: Any) -> None:
    with refused(InputError, "audio"):
        official.encode(values)
    with refused(InputError, "latents"):
        official.decode(values)


def test_home_is_known(tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "bundle").symlink_to(tiny_bundle)
    with EncoderDecoder("~/bundle", device="cpu").codec as codec:
        assert codec.backend.name == "onnxruntime-cpu"


def test_device_is_that_of_the_codec(codec: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TorchCuda, "obstacle", classmethod(lambda _: None))
    assert EncoderDecoder(codec=codec).device == "cpu"
    assert EncoderDecoder(codec=Pipeline(Model(codec.model.spec, codec.model.session, codec.backend, device="cuda"))).device == "cuda"


def test_network_can_be_loaded_again(tiny_bundle: Path) -> None:
    made = EncoderDecoder(tiny_bundle, device="cpu")
    assert made.load_path_inference == tiny_bundle
    first = made.codec
    made.get_models()
    assert made.codec is not first
    torch.testing.assert_close(made.encode(music(5000)), torch.from_numpy(first.encode(music(5000))))


def test_class_says_that_it_needs_torch(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TorchCpu, "obstacle", classmethod(lambda _: "torch is not installed"))
    with refused(BackendError, "torch is not installed", "musicrt.load"):
        EncoderDecoder(tiny_bundle)


@pytest.mark.parametrize("device", ["tpu", "mps", "CPU", "cuda:1", 3.5])
def test_unknown_device_is_refused(tiny_bundle: Path, device: Any) -> None:
    with refused(BackendError, repr(device), "'cpu'", "'cuda'"):
        EncoderDecoder(tiny_bundle, device=device)


def test_cuda_is_refused_where_there_is_none(tiny_bundle: Path, codec: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before anything is computed, wherever the network comes from."""
    monkeypatch.setattr(TorchCuda, "obstacle", classmethod(lambda _: "no NVIDIA GPU"))
    assert EncoderDecoder(tiny_bundle).device == "cpu"
    for device in ("cuda", "cuda:0", torch.device("cuda")):
        with refused(BackendError, "no NVIDIA GPU"):
            EncoderDecoder(tiny_bundle, device=device)
        with refused(BackendError, "no NVIDIA GPU"):
            EncoderDecoder(device=device, codec=codec)


def test_missing_or_wrong_checkpoint_is_refused(tmp_path: Path, tiny_checkpoint: Path) -> None:
    with refused(CheckpointError, tmp_path / "missing.pt"):
        EncoderDecoder(tmp_path / "missing.pt", device="cpu")
    with refused(CheckpointError, "does not fit the network"):  # the class takes the full network only, as officially
        EncoderDecoder(tiny_checkpoint / "music2latent.pt", device="cpu")
