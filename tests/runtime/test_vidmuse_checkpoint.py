"""VidMuse's official files in all their forms: what is taken, what is said of it, what is refused."""

from __future__ import annotations

import argparse
import functools
import json
import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from musicrt.runtime.errors import CheckpointError, ConfigError
from musicrt.runtime.hub import download_checkpoint, find_files
from musicrt.runtime.registry import build_spec, fit_spec
from tests.conftest import ForSystem, refused, tiny_layout
from tests.reference.fill import write_files
from tests.reference.runner import DATA
from tests.reference.signals import Array
from tests.runtime.damaged_checkpoints import State, add, drop, run_stages

torch = pytest.importorskip("torch")

from safetensors.torch import load_file, save_file  # noqa: E402 - needs what was asked for above

from musicrt.runtime.checkpoint import read_checkpoint  # noqa: E402
from musicrt.runtime.models.vidmuse.spec import CHECKPOINT, HUB_CODEC, HUB_FILE  # noqa: E402

MAIN, CODEC = CHECKPOINT.files
CONFIG = tiny_layout("vidmuse")["config"]
EVERYTHING = ("visual", "local", "global", "fuse", "cross", "lm", "codec-encoder", "dequantizer", "recurrence", "synthesis")
CODECS = EVERYTHING[6:]
TABLE, CODEBOOK = "emb.1.weight", "quantizer.layers.2.codebook.embed"
run = functools.partial(run_stages, "vidmuse", config=CONFIG)


@pytest.fixture(autouse=True)
def without_a_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Whatever the machine has downloaded."""
    constants = pytest.importorskip("huggingface_hub.constants")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def checkpoint(tiny_checkpoints: ForSystem, tmp_path: Path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(tiny_checkpoints("vidmuse"), tmp_path / "checkpoint"))


@pytest.fixture(scope="module")
def full_form(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file that has the codec in itself."""
    layout = json.loads((DATA / "vidmuse" / "layout-codec-tiny.json").read_text())
    write_files(layout, {}, "", folder := tmp_path_factory.mktemp("codec") / "codec")
    return folder / CODEC


def read(file: Path) -> State:
    content: State = torch.load(file, weights_only=True)
    return content


def edit(file: Path, change: Callable[[State], Any]) -> None:
    """Changes the tensors of a file, wherever they are nested."""
    if file.suffix == ".safetensors":
        save_file(change(load_file(file)), file)
        return
    content = read(file)
    torch.save({**content, "best_state": change(content["best_state"])}, file)


def assert_same(got: list[Array], expected: list[Array]) -> None:
    for one, other in zip(got, expected, strict=True):
        np.testing.assert_array_equal(one, other)


# What is taken


def test_files_may_lie_side_by_side_or_be_safetensors(checkpoint: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    expected = run(checkpoint, *EVERYTHING)
    flat = tmp_path / "flat"
    flat.mkdir()
    save_file(read(checkpoint / MAIN)["best_state"], flat / "state_dict.safetensors")
    shutil.copy(checkpoint / CODEC, flat)
    shutil.copy(checkpoint / HUB_FILE, flat)
    assert_same(run(flat, *EVERYTHING), expected)
    torch.save(load_file(flat / "model.safetensors"), flat / "pytorch_model.bin")
    (flat / "model.safetensors").unlink()
    assert_same(run(flat, *CODECS), expected[6:])
    assert caplog.messages == []


def test_codec_may_be_in_its_own_file(checkpoint: Path, full_form: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """With a training configuration beside its tensors, under the names of audiocraft; or the tensors alone, as safetensors."""
    shutil.copy(full_form, checkpoint)
    shutil.rmtree(checkpoint / "facebook")
    expected = run(checkpoint, *CODECS)
    tensors = read(checkpoint / CODEC)["best_state"]
    (checkpoint / CODEC).unlink()
    save_file(tensors, (checkpoint / CODEC).with_suffix(".safetensors"))
    assert_same(run(checkpoint, *CODECS), expected)
    renamed = {key.replace(".model.", ".layers."): value for key, value in tensors.items()}
    renamed = {key.replace("conv.conv.", "conv.").replace("convtr.convtr.", "conv."): value for key, value in renamed.items()}
    renamed = {key.replace(".vq.", ".").replace("_codebook", "codebook"): value for key, value in renamed.items()}
    (tmp_path / "hub").mkdir()
    shutil.copy(checkpoint / MAIN, tmp_path / "hub")
    torch.save({"pretrained": f"//pretrained/{HUB_CODEC}"}, tmp_path / "hub" / CODEC)
    save_file(renamed, tmp_path / "hub" / "model.safetensors")
    assert_same(run(tmp_path / "hub", *CODECS), expected)
    assert caplog.messages == []


def test_codec_obeys_its_own_configuration(checkpoint: Path, full_form: Path) -> None:
    """Whatever else is said."""
    content = read(full_form)
    mirrored = run(checkpoint, "synthesis")[0]
    shutil.copy(full_form, checkpoint)
    own = run(checkpoint, "synthesis")[0]
    torch.save({**content, "xp.cfg": content["xp.cfg"].replace("pad_mode: reflect", "pad_mode: constant")}, checkpoint / CODEC)
    with_zeros = run(checkpoint, "synthesis")[0]
    assert mirrored.shape == own.shape == with_zeros.shape
    assert np.abs(own - with_zeros)[:, :, 640:-640].max() < 1e-6
    assert np.abs(own - with_zeros)[:, :, :8].max() > 1e-3


def test_codec_of_the_hub_may_be_in_its_cache(checkpoint: Path, tmp_path: Path) -> None:
    """As the official code looks for it."""
    expected = run(checkpoint, "synthesis")
    snapshot = tmp_path / "cache" / "models--facebook--encodec_32khz"
    commit = "0123456789abcdef0123456789abcdef01234567"
    (snapshot / "snapshots" / commit).mkdir(parents=True)
    (snapshot / "refs").mkdir()
    (snapshot / "refs" / "main").write_text(commit)
    shutil.move(checkpoint / HUB_FILE, snapshot / "snapshots" / commit / "model.safetensors")
    assert find_files(CHECKPOINT, checkpoint)[HUB_FILE].is_relative_to(snapshot)
    assert_same(run(checkpoint, "synthesis"), expected)


def test_companions_come_along_from_their_own_repository(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked: list[tuple[str, list[str]]] = []

    def snapshot_download(repository: str, allow_patterns: list[str], cache_dir: object = None) -> str:
        del cache_dir
        asked.append((repository, allow_patterns))
        if repository == HUB_CODEC and "broken" in os.environ.get("STATE", ""):
            raise OSError("no route")
        return str(tmp_path)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    assert download_checkpoint(CHECKPOINT, "HKUSTAudio/VidMuse") == tmp_path
    assert [repository for repository, _ in asked] == ["HKUSTAudio/VidMuse", HUB_CODEC]
    assert {MAIN, CODEC} <= set(asked[0][1])
    assert asked[1][1] == ["model.safetensors"]
    monkeypatch.setenv("STATE", "broken")
    with refused(CheckpointError, f"{HUB_CODEC} can't be downloaded (no route)"):
        download_checkpoint(CHECKPOINT, "HKUSTAudio/VidMuse")


def test_weight_norms_may_have_their_newer_names(checkpoint: Path) -> None:
    expected = run(checkpoint, *CODECS)
    newer = {"weight_g": "parametrizations.weight.original0", "weight_v": "parametrizations.weight.original1"}

    def rename(state: State) -> State:
        return {f"{key[: -len(end)]}{newer[end]}" if (end := key[-8:]) in newer else key: value for key, value in state.items()}

    edit(checkpoint / HUB_FILE, rename)
    assert any("original1" in key for key in load_file(checkpoint / HUB_FILE))
    assert_same(run(checkpoint, *CODECS), expected)


def test_unused_tensors_may_be_of_any_form_or_missing(checkpoint: Path, caplog: pytest.LogCaptureFixture) -> None:
    expected = run(checkpoint, *EVERYTHING)
    tower = "visual_encoder_model."
    edit(checkpoint / MAIN, drop("condition_provider.", f"{tower}visual_projection.", f"{tower}vision_model.post_layernorm."))
    edit(checkpoint / HUB_FILE, lambda state: {key: value for key, value in state.items() if not key.endswith(("_avg", "size", "inited"))})
    assert_same(run(checkpoint, *EVERYTHING), expected)
    odd = {"condition_provider.x": 3, f"{tower}vision_model.embeddings.position_ids": torch.arange(50), f"{tower}visual_projection.x": "y"}
    edit(checkpoint / MAIN, add(odd))
    edit(checkpoint / HUB_FILE, add({"quantizer.layers.0.codebook.inited": torch.ones(1, dtype=torch.bool)}))
    assert_same(run(checkpoint, *EVERYTHING), expected)
    assert caplog.messages == []


def test_unknown_tensors_are_ignored_with_a_warning(checkpoint: Path, caplog: pytest.LogCaptureFixture) -> None:
    edit(checkpoint / MAIN, add({"transformer.layers.1.extra": torch.zeros(1)}))
    edit(checkpoint / HUB_FILE, add({"encoder.layers.2.extra": torch.zeros(1)}))
    with caplog.at_level(logging.WARNING, "musicrt"):
        run(checkpoint)
    (message,) = caplog.messages
    assert message == "the checkpoint has 2 tensors that no stage uses, such as transformer.layers.1.extra; they are ignored"


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_tensors_of_another_precision_become_float32(checkpoint: Path, dtype: Any) -> None:
    expected = run(checkpoint, *EVERYTHING)
    for file in (MAIN, HUB_FILE):
        edit(checkpoint / file, lambda state: {key: value.to(dtype) for key, value in state.items()})
    for got, want in zip(run(checkpoint, *EVERYTHING), expected, strict=True):
        assert got.dtype == np.float32
        assert np.linalg.norm(got - want) <= 0.05 * np.linalg.norm(want)


def test_sizes_follow_from_the_files(checkpoint: Path) -> None:
    """Of the image tower and the codec from their tensors, of the language model from its training configuration."""
    unsaid = {"lm": {"transformer_lm": {"dim": 64, "num_heads": 4, "num_layers": 2}}}
    files = read_checkpoint(CHECKPOINT, checkpoint)
    assert fit_spec(build_spec("vidmuse", unsaid, "x"), files).config == build_spec("vidmuse", CONFIG, "x").config
    assert_same(run(checkpoint, *EVERYTHING, config=unsaid), run(checkpoint, *EVERYTHING))


# What is refused


@pytest.mark.parametrize(
    ("file", "change", "words"),
    [
        (MAIN, drop("transformer.layers.1.self_attn.in"), [MAIN, "1 missing: transformer.layers.1.self_attn.in_proj_weight"]),
        (MAIN, drop("visual_encoder_model."), [MAIN, "missing: visual_encoder_model.vision_model.embeddings.class_embedding"]),
        (MAIN, drop("visual_encoder_model.vision_model.encoder.layers.0."), [MAIN, "visual_encoder_model.vision_model.encoder.layers."]),
        (MAIN, add({TABLE: torch.zeros(2048, 64)}), [f"{TABLE} [2048, 64]", "[2049, 64]"]),
        (MAIN, add({TABLE: 3.0}), [f"1 not tensors: {TABLE}"]),
        (MAIN, add({TABLE: torch.full((2049, 64), float("nan"))}), ["NaN", TABLE]),
        (MAIN, add({"linears.3.weight": torch.full((2048, 64), float("inf"))}), ["infinite", "linears.3.weight"]),
        (HUB_FILE, drop("decoder.layers.3.conv.bias"), [HUB_FILE, "1 missing: decoder.layers.3.conv.bias"]),
        (HUB_FILE, drop("decoder.layers.3."), [HUB_FILE, "2 missing: decoder.layers.3.conv."]),
        (HUB_FILE, add({CODEBOOK: torch.zeros(2048, 16)}), [f"{CODEBOOK} [2048, 16]", "[2048, 32]"]),
        (HUB_FILE, drop("quantizer.layers.3."), ["missing: quantizer.layers.3.codebook.embed"]),
    ],
    ids=["no layer", "no tower", "short tower", "rows", "a number", "NaN", "infinite", "no bias", "no weight", "width", "no codebook"],
)
def test_files_that_do_not_fit_are_refused(checkpoint: Path, file: str, change: Callable[[State], Any], words: list[object]) -> None:
    edit(checkpoint / file, change)
    with refused(CheckpointError, "does not fit the network", *words):
        run(checkpoint)


def test_half_a_weight_norm_is_refused(checkpoint: Path) -> None:
    edit(checkpoint / HUB_FILE, drop("encoder.layers.3.conv.weight_g"))
    with refused(CheckpointError, HUB_FILE, "nothing and [8, 4, 8]", "encoder.layers.3.conv", "use the official file"):
        run(checkpoint)
    edit(checkpoint / HUB_FILE, add({"encoder.layers.3.conv.weight_g": torch.ones(8)}))
    with refused(CheckpointError, HUB_FILE, "[8] and [8, 4, 8]", "expected [n, 1, 1]"):
        run(checkpoint)
    edit(
        checkpoint / HUB_FILE,
        add({"encoder.layers.3.conv.weight_g": torch.ones(8, 1, 1), "encoder.layers.3.conv.weight_v": torch.zeros(8, 4, 8)}),
    )
    with refused(CheckpointError, HUB_FILE, "NaN", "encoder.layers.3.conv.weight"):
        run(checkpoint)


@pytest.mark.parametrize(
    ("scale", "words"),
    [
        ({"dim": 1536, "num_heads": 24, "num_layers": 48}, ["use the variant medium, or say so in lm.transformer_lm"]),
        ({"dim": 64, "num_heads": 2, "num_layers": 2}, ["dim=64, num_heads=2, num_layers=2", "use the variant xsmall"]),
        ({"dim": 512, "num_heads": 8, "num_layers": 8}, ["dim=64, num_heads=4, num_layers=2; say so in lm.transformer_lm"]),
    ],
)
def test_scale_has_to_be_that_of_the_file(checkpoint: Path, scale: dict[str, int], words: list[object]) -> None:
    content = read(checkpoint / MAIN)
    text = content["xp.cfg"].replace("dim: 64\n", f"dim: {scale['dim']}\n")
    for name in ("num_heads", "num_layers"):
        text = text.replace(f"{name}: {CONFIG['lm']['transformer_lm'][name]}\n", f"{name}: {scale[name]}\n")
    torch.save({**content, "xp.cfg": text}, checkpoint / MAIN)
    with refused(CheckpointError, "the checkpoint's language model has", *words):
        run(checkpoint)


def test_network_that_is_not_built_is_told_with_its_file(checkpoint: Path) -> None:
    content = read(checkpoint / MAIN)
    torch.save({**content, "xp.cfg": content["xp.cfg"].replace("kv_repeat: 1", "kv_repeat: 2")}, checkpoint / MAIN)
    with refused(ConfigError, "xp.cfg of state_dict.bin", "kv_repeat", 2):
        run(checkpoint)


@pytest.mark.parametrize("text", ["transformer_lm: [", 3, "- 1", "a: 1"])
def test_damaged_training_configuration_is_refused(checkpoint: Path, full_form: Path, text: object) -> None:
    torch.save({**read(checkpoint / MAIN), "xp.cfg": text}, checkpoint / MAIN)
    with refused(CheckpointError, "xp.cfg of state_dict.bin", "use the official file"):
        run(checkpoint)
    if text != "a: 1":
        torch.save({**read(full_form), "xp.cfg": text}, checkpoint / CODEC)
        with refused(CheckpointError, "xp.cfg of", "use the official file"):
            run(checkpoint)


@pytest.mark.parametrize("file", [MAIN, CODEC])
def test_state_has_to_come_with_its_configuration(checkpoint: Path, file: str) -> None:
    torch.save({"best_state": {}}, checkpoint / file)
    with refused(CheckpointError, f"{file} has no xp.cfg"):
        run(checkpoint)
    torch.save({"best_state": [1], "xp.cfg": ""}, checkpoint / file)
    with refused(CheckpointError, f"best_state of {file} is a list"):
        run(checkpoint)


def test_pointer_without_the_codec_says_what_to_download_and_where_to(checkpoint: Path) -> None:
    (checkpoint / HUB_FILE).unlink()
    advice = f"download model.safetensors from https://huggingface.co/{HUB_CODEC} and put it beside {CODEC} as {HUB_FILE}"
    with refused(CheckpointError, f"{CODEC} points to {HUB_CODEC}, whose weights are not here", advice):
        run(checkpoint)


@pytest.mark.parametrize("name", ["facebook/encodec_24khz", "dac_44khz", 3, "a\nb"])
def test_pointer_to_another_codec_is_refused(checkpoint: Path, name: object) -> None:
    torch.save({"pretrained": name, "exported": True}, checkpoint / CODEC)
    with refused(CheckpointError, f"{CODEC} points to the codec", str(name)[:1], f"expected {HUB_CODEC}"):
        run(checkpoint)


def test_objects_are_not_unpickled(checkpoint: Path) -> None:
    torch.save({**read(checkpoint / MAIN), "args": argparse.Namespace(a=1)}, checkpoint / MAIN)
    with refused(CheckpointError, MAIN, "was not executed", "argparse.Namespace"):
        run(checkpoint)


@pytest.mark.parametrize("file", [MAIN, CODEC, HUB_FILE])
@pytest.mark.parametrize("share", [0.0, 0.5, 0.999])
def test_files_that_were_cut_short_are_refused(checkpoint: Path, file: str, share: float) -> None:
    content = (checkpoint / file).read_bytes()
    (checkpoint / file).write_bytes(content[: int(len(content) * share)])
    with refused(CheckpointError, "can't be read"):
        run(checkpoint)


@pytest.mark.parametrize("file", [MAIN, CODEC])
def test_missing_file_is_named_with_its_source(checkpoint: Path, file: str) -> None:
    (checkpoint / file).unlink()
    with refused(CheckpointError, file, "huggingface.co/HKUSTAudio/VidMuse"):
        run(checkpoint)
