"""Where the drop-in for the official class finds its network, and what it refuses to be made of."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import soundfile

from musicrt.runtime.backends.torch import TorchCpu, TorchCuda
from musicrt.runtime.errors import BackendError, CheckpointError, ConfigError
from musicrt.runtime.hub import Source, file_places
from musicrt.runtime.model import Model
from musicrt.runtime.models.semanticodec.facade import SemantiCodec
from musicrt.runtime.models.semanticodec.pipeline import Pipeline
from tests.conftest import ForSystem, refused
from tests.runtime.semanticodec_codecs import music, open_tiny

torch = pytest.importorskip("torch")

FILES = [
    "semanticodec_tokenrate_50/encoder.ckpt",
    "semanticodec_tokenrate_50/decoder.ckpt",
    "codebook_idx/combine_256_audioset_dominate/codebook_8192_0.npy",
]
SETTING = {"token_rate": 50, "semantic_vocab_size": 16384}


@pytest.fixture(scope="module")
def tiny(tiny_checkpoints: ForSystem) -> Iterator[Pipeline]:
    with open_tiny(tiny_checkpoints("semanticodec")) as pipeline:
        yield pipeline


@pytest.fixture
def opened(tiny: Pipeline, monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, Any]]:
    """The files that are opened as a checkpoint, or their folder, with which hyper-parameters; the tiny network takes its place."""
    calls: list[tuple[Any, Any]] = []

    def open_checkpoint(system: str, source: Source, config: Any, *, device: str) -> Model:
        assert (system, device) == ("semanticodec", "cpu")
        calls.append((source.resolve() if isinstance(source, Path) else [path.resolve() for path in source.values()], config))
        return tiny.model

    monkeypatch.setattr(Model, "open_checkpoint", staticmethod(open_checkpoint))
    return calls


def test_given_folder_is_opened(opened: list[tuple[Any, Any]], tmp_path: Path) -> None:
    SemantiCodec(checkpoint_path=str(tmp_path), device="cpu")
    SemantiCodec(50, 16384, 50, 2.0, tmp_path, device="cpu")
    assert opened == [(tmp_path.resolve(), SETTING)] * 2


def test_home_is_known(tiny_bundles: ForSystem, opened: list[tuple[Any, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`~` stands for it in the path of a bundle as in that of a checkpoint."""
    monkeypatch.setenv("HOME", str(tmp_path))
    SemantiCodec(checkpoint_path="~/official", device="cpu")
    assert opened == [((tmp_path / "official").resolve(), SETTING)]
    (tmp_path / "bundle").symlink_to(tiny_bundles("semanticodec"))
    with SemantiCodec(checkpoint_path="~/bundle", device="cpu").codec as codec:
        assert codec.backend.name == "onnxruntime-cpu"
    assert len(opened) == 1


@pytest.mark.parametrize("here", [(0, 1, 2), (2,), ()], ids=["all", "codebook", "none"])
def test_files_that_are_not_in_the_working_directory_are_fetched(
    opened: list[tuple[Any, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, here: tuple[int, ...]
) -> None:
    """Under their official paths: a decoder.ckpt right inside may be that of another rate."""
    hub = pytest.importorskip("huggingface_hub")
    asked: list[Any] = []

    def snapshot_download(repository: str, **options: Any) -> str:
        asked.append((repository, options))
        return str(tmp_path / "hub")

    monkeypatch.setattr(hub, "snapshot_download", snapshot_download)
    for file in [tmp_path / "hub" / name for name in FILES] + [tmp_path / FILES[index] for index in here] + [tmp_path / "decoder.ckpt"]:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    monkeypatch.chdir(tmp_path)
    SemantiCodec(cache_path="elsewhere", device="cpu")
    missing = [name for index, name in enumerate(FILES) if index not in here]
    wanted = [str(place) for name in missing for place in file_places(Path(), name)]
    assert asked == ([("haoheliu/SemantiCodec", {"allow_patterns": wanted, "cache_dir": "elsewhere"})] if missing else [])
    ((files, _),) = opened
    assert sorted(files) == sorted((tmp_path / "hub" / name if name in missing else tmp_path / name).resolve() for name in FILES)


def test_files_from_two_places_are_one_checkpoint(tiny_checkpoints: ForSystem, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Read as such, until the size shows that they are not the official ones."""
    hub = pytest.importorskip("huggingface_hub")
    monkeypatch.setattr(hub, "snapshot_download", lambda *_, **__: str(tiny_checkpoints("semanticodec")))
    (tmp_path / FILES[2]).parent.mkdir(parents=True)
    shutil.copy(tiny_checkpoints("semanticodec") / FILES[2], tmp_path / FILES[2])
    monkeypatch.chdir(tmp_path)
    with refused(CheckpointError, "[512, 64]", "[rows, 1536]"):
        SemantiCodec(device="cpu")


def test_bundle_is_opened_as_such(tiny_bundles: ForSystem, tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", music(19200).T, 16000)
    made = SemantiCodec(checkpoint_path=tiny_bundles("semanticodec"), device="cpu")
    with made.codec as codec:
        assert codec.backend.name == "onnxruntime-cpu"
        assert made.encode(str(tmp_path / "a.wav")).shape == (1, 32, 2)
    with refused(ConfigError, "'token_rate': 25", "'token_rate': 50"):
        SemantiCodec(25, checkpoint_path=tiny_bundles("semanticodec"), device="cpu")


def test_missing_or_other_files_are_refused(tiny_checkpoints: ForSystem, tmp_path: Path) -> None:
    with refused(CheckpointError, tmp_path / "missing", "does not exist"):
        SemantiCodec(checkpoint_path=tmp_path / "missing", device="cpu")
    with refused(CheckpointError, "lacks semanticodec_tokenrate_25/encoder.ckpt"):
        SemantiCodec(25, checkpoint_path=tmp_path, device="cpu")
    tiny = shutil.copytree(tiny_checkpoints("semanticodec"), tmp_path / "tiny")
    with refused(CheckpointError, "[512, 64]", "[rows, 1536]"):  # the class takes the official sizes only
        SemantiCodec(checkpoint_path=tiny, device="cpu")


@pytest.mark.parametrize(("setting", "words"), [((51, 16384), ["token_rate", 51]), ((50, 5000), ["semantic_vocab_size", 5000])])
def test_unknown_setting_is_refused(setting: tuple[int, int], words: list[object]) -> None:
    with refused(ConfigError, *words):
        SemantiCodec(*setting, device="cpu")


def test_codec_of_another_setting_is_refused(tiny: Pipeline) -> None:
    with refused(ConfigError, "100", "50", "pass the values of the codec"):
        SemantiCodec(100, codec=tiny, device="cpu")


@pytest.mark.parametrize("device", ["tpu", "mps", "CPU", "cuda:1", 3.5])
def test_unknown_device_is_refused(tiny: Pipeline, device: Any) -> None:
    with refused(BackendError, repr(device), "'cpu'", "'cuda'"):
        SemantiCodec(codec=tiny, device=device)


def test_device_is_what_works_here(tiny: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TorchCuda, "obstacle", classmethod(lambda _: "no NVIDIA GPU"))
    for device in (None, "cpu", torch.device("cpu")):
        assert SemantiCodec(codec=tiny, device=device).device.type == "cpu"
    for device in ("cuda", "cuda:0", torch.device("cuda")):
        with refused(BackendError, "no NVIDIA GPU", "device='cpu'"):
            SemantiCodec(codec=tiny, device=device)


def test_device_is_that_of_the_codec(tiny: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    """The tensors of a codec on the CPU stay there, on a machine with a GPU too."""
    monkeypatch.setattr(TorchCuda, "obstacle", classmethod(lambda _: None))
    assert SemantiCodec(codec=tiny).device == torch.device("cpu")
    assert SemantiCodec(codec=Pipeline(Model(tiny.model.spec, tiny.model.session, tiny.backend, device="cuda"))).device.type == "cuda"


def test_class_says_that_it_needs_torch(tiny: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TorchCpu, "obstacle", classmethod(lambda _: "torch is not installed"))
    with refused(BackendError, "torch is not installed", "musicrt.load"):
        SemantiCodec(codec=tiny)
