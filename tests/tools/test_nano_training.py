"""Training the nano codec: it learns, goes on where it stopped, and is kept in the official layout."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from musicrt.runtime.models.music2latent.config import Config  # noqa: E402
from musicrt.runtime.models.music2latent.network.checkpoint import load_network  # noqa: E402
from musicrt.runtime.models.music2latent.spectrum import Spectrum  # noqa: E402
from tools.nano import crops, keep, train  # noqa: E402
from tools.nano.losses import Front, spectral_loss, waveform_loss  # noqa: E402
from tools.nano.muon import orthogonal  # noqa: E402

SAMPLES = 19 * 512


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    """A network of few channels, crops of sixteen frames."""
    small = {"base_channels": 4, "multipliers_list": [1, 1, 2], "bottleneck_base_channels": 16, "heads": 2, "cond_channels": 8}
    monkeypatch.setattr(train, "CONFIG", {**train.CONFIG, **small})
    monkeypatch.setattr(train, "FRAMES", 16)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Noise and a tone, as the dataset lies on the disk."""
    rng, time = np.random.default_rng(0), np.arange(60_000) / 44100
    audio = np.concatenate([0.3 * rng.standard_normal(60_000).clip(-3, 3), 0.5 * np.sin(2 * np.pi * 440 * time)])
    for name in ("training0", "held-out"):
        (tmp_path / name).mkdir()
        np.save(tmp_path / name / "audio.npy", (32767 * audio).astype(np.int16))
        (tmp_path / name / "names.json").write_text(json.dumps({"noise.0": 60_000, "tone.0": 60_000}))
    return tmp_path


def run(data: Path, state: Path, monkeypatch: pytest.MonkeyPatch, *options: str) -> None:
    monkeypatch.setattr(sys, "argv", ["train", str(data), str(state), *options])
    train.main()


def test_front_is_that_of_the_codec() -> None:
    config = Config()
    audio = (0.3 * np.random.default_rng(0).standard_normal((2, SAMPLES))).astype(np.float32)
    front, spectrum = Front(config), Spectrum(config)
    ours, theirs = front.analyse(torch.from_numpy(audio)).numpy(), spectrum.analyse(audio)
    assert np.linalg.norm(ours - theirs) < 1e-4 * np.linalg.norm(theirs)
    back = front.synthesise(torch.from_numpy(theirs)).numpy()
    assert np.abs(back - spectrum.overlap_add(spectrum.synthesise_frames(theirs.copy()))).max() < 1e-3


def test_losses_vanish_at_the_truth_only() -> None:
    audio = torch.randn(2, SAMPLES, generator=torch.Generator().manual_seed(0)) * 0.2
    truth = Front(Config()).analyse(audio)
    assert [round(float(loss), 2) for loss in (*spectral_loss(truth, truth), waveform_loss(audio, audio))] == [0.0, 0.0, 0.0]
    silent = [float(loss) for loss in (*spectral_loss(0 * truth, truth), waveform_loss(0 * audio, audio))]
    assert min(silent) > 0.9


def test_steps_of_muon_are_orthogonal() -> None:
    for shape in ((6, 40), (40, 6)):
        values = torch.linalg.svdvals(orthogonal(torch.randn(shape, generator=torch.Generator().manual_seed(1))))
        assert float((values - 1.0).abs().max()) < 1e-3


def test_one_batch_is_learnt(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(data, tmp_path / "one.pt", monkeypatch, "--steps", "25", "--one-batch", "--batch", "1")
    (last,) = torch.load(tmp_path / "one.pt", weights_only=True)["curve"]
    first = train.Trainer(8)
    audio = crops.Crops([data / "training0"], 8, SAMPLES).draw(0, 1)
    with torch.no_grad():
        before = float(first.measure(audio, torch.Generator().manual_seed(0))["total"])
    assert last["total"] < 0.9 * before


def test_training_goes_on_where_it_stopped(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = ("--batch", "1", "--cool", "2")
    run(data, tmp_path / "whole.pt", monkeypatch, "--steps", "4", *options)
    monkeypatch.setattr(train, "SAVE", 2)
    stop = RuntimeError("stopped")

    def learn(trainer: train.Trainer, *arguments: object) -> dict[str, float]:
        if trainer.step == 2:
            raise stop
        return original(trainer, *arguments)  # type: ignore[arg-type]

    original = train.Trainer.learn
    with monkeypatch.context() as patch:
        patch.setattr(train.Trainer, "learn", learn)
        with pytest.raises(RuntimeError, match="stopped"):
            run(data, tmp_path / "parts.pt", patch, "--steps", "4", *options)
    run(data, tmp_path / "parts.pt", monkeypatch, "--steps", "4", *options)
    whole, parts = (torch.load(tmp_path / f"{name}.pt", weights_only=True) for name in ("whole", "parts"))
    assert whole["step"] == parts["step"] == 4
    for name, value in whole["average"].items():
        torch.testing.assert_close(value, parts["average"][name], rtol=1e-4, atol=1e-6, msg=name)
    assert json.loads((tmp_path / "parts.json").read_text())["step"] == 4


def test_other_hyper_parameters_are_refused(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(data, tmp_path / "a.pt", monkeypatch, "--steps", "1", "--batch", "1")
    monkeypatch.setattr(train, "CONFIG", {**train.CONFIG, "cond_channels": 16})
    with pytest.raises(SystemExit, match="other hyper-parameters"):
        run(data, tmp_path / "a.pt", monkeypatch, "--steps", "2")


def test_learning_rate_rises_stays_and_falls() -> None:
    rates = [train.learning_rate(step, 1000, 100, 1.0) for step in (0, 14, 500, 950, 999)]
    assert rates == pytest.approx([1 / 30, 0.5, 1.0, 0.5, 0.01])


def test_what_is_kept_is_the_official_layout_in_half(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from safetensors.torch import load_file

    run(data, tmp_path / "a.pt", monkeypatch, "--steps", "1", "--batch", "1")
    state = torch.load(tmp_path / "a.pt", weights_only=True)
    keep.keep(state, crops.held_out_crops(data / "held-out", SAMPLES), tmp_path / "kept")
    weights = load_file(tmp_path / "kept" / "music2latent.safetensors")
    assert {value.dtype for value in weights.values()} == {torch.float16}
    network = load_network({"music2latent.pt": weights}, json.loads((tmp_path / "kept" / "config.json").read_text()))
    for name, value in network.state_dict().items():
        assert torch.equal(value, state["average"][name].half().float()), name
    assert json.loads((tmp_path / "kept" / "training.json").read_text())["steps"] == 1


def test_the_checkpoint_in_the_repository_is_small() -> None:
    files = {file.name: file.stat().st_size for file in keep.CHECKPOINT.iterdir()}
    assert set(files) == {"music2latent.safetensors", "config.json", "training.json"}
    assert files["music2latent.safetensors"] < 8e6
