"""Official files that are not as expected: what is taken, what is said of it, what is refused."""

from __future__ import annotations

import argparse
import functools
import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from musicrt.runtime.errors import CheckpointError
from tests.conftest import ForSystem, refused, tiny_layout
from tests.runtime.damaged_checkpoints import State, add, drop, run_stages

torch = pytest.importorskip("torch")

from safetensors.torch import save_file  # noqa: E402 - needs what was asked for above

from musicrt.runtime.models.mucodec.spec import CHECKPOINT  # noqa: E402

VAE, MUQ, MAIN = CHECKPOINT.files
CONFIG = tiny_layout("mucodec")["config"]
FRONT_END, LAYER_6 = "model.conv.linear.bias", "model.conformer.layers.6.ffn1.output_dense.bias"
CODEBOOK = "rvq_muencoder_emb.quantizers.0.codebook.weight"
run = functools.partial(run_stages, "mucodec", config=CONFIG)


@pytest.fixture
def checkpoint(tiny_checkpoints: ForSystem, tmp_path: Path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(tiny_checkpoints("mucodec"), tmp_path / "checkpoint"))


def read(checkpoint: Path, file: str) -> State:
    content: State = torch.load(checkpoint / file, weights_only=True)
    return content


def edit(checkpoint: Path, file: str, change: Callable[[State], Any]) -> None:
    """Changes the tensors of a file, wherever they are nested."""
    content, nest = read(checkpoint, file), {VAE: "state_dict", MUQ: "model"}.get(file)
    torch.save({**content, nest: change(content[nest])} if nest else change(content), checkpoint / file)


# What is taken


def test_tensors_may_lie_flat_or_in_safetensors_files_side_by_side(
    checkpoint: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    expected = run(checkpoint, "muq", "dequantizer", "vae-encoder")
    flat = tmp_path / "flat"
    flat.mkdir()
    for file, nest in ((VAE, "state_dict"), (MUQ, "model")):
        torch.save(read(checkpoint, file)[nest], flat / Path(file).name)
    save_file(read(checkpoint, MAIN), flat / "mucodec.safetensors")
    for got, want in zip(run(flat, "muq", "dequantizer", "vae-encoder"), expected, strict=True):
        np.testing.assert_array_equal(got, want)
    assert caplog.messages == []


def test_main_file_overrides_what_muq_gives(checkpoint: Path) -> None:
    """Each tensor by itself."""
    (whole,) = run(checkpoint, "muq")
    edit(checkpoint, MAIN, drop("muencoder."))
    (own,) = run(checkpoint, "muq")
    assert np.abs(own - whole).max() > 0.1
    changed = read(checkpoint, MUQ)["model"][FRONT_END].flip(0) * 20.0
    edit(checkpoint, MAIN, add({f"muencoder.{FRONT_END}": changed}))
    (one,) = run(checkpoint, "muq")
    edit(checkpoint, MAIN, drop("muencoder."))
    edit(checkpoint, MUQ, add({FRONT_END: changed}))
    np.testing.assert_array_equal(run(checkpoint, "muq")[0], one)
    assert np.abs(own - one).max() > 0.01


def test_main_file_may_be_all_there_is_of_muq(checkpoint: Path) -> None:
    expected = run(checkpoint, "muq")
    edit(checkpoint, MUQ, lambda _: {})
    np.testing.assert_array_equal(run(checkpoint, "muq"), expected)


def test_unused_tensors_may_be_of_any_form_or_missing(checkpoint: Path, caplog: pytest.LogCaptureFixture) -> None:
    expected = run(checkpoint, "muq", "normfeat")
    unused = ["model.rvq.", "model.linear.", "model.cls_token", "model.conformer.pos_conv_embed.", "model.conformer.layer_norm."]
    unused += ["model.conformer.layers.6.", "model.preprocessor_melspec_2048.", "model.conformer.embed_positions."]
    edit(checkpoint, MUQ, drop(*unused))
    edit(checkpoint, MAIN, drop("normfeat.sum_target_x2", "rs", *(f"muencoder.{name}" for name in unused)))
    edit(checkpoint, MAIN, lambda state: {key: value for key, value in state.items() if not key.endswith(("stale_counter", "tracked"))})
    for got, want in zip(run(checkpoint, "muq", "normfeat"), expected, strict=True):
        np.testing.assert_array_equal(got, want)
    odd = torch.zeros(3, 5, dtype=torch.float64)
    edit(checkpoint, MUQ, add({"model.rvq.x": odd, LAYER_6: odd, "model.mask_emb": 3, "model.conformer.pos_conv_embed.conv.weight_g": odd}))
    edit(checkpoint, MAIN, add({"normfeat.sum_target_x2": odd, "rsp48toclap.kernel": odd}))
    edit(checkpoint, VAE, add({"model.diffusion_model.out.weight": odd, "model_ema.x": odd, "cond_stage_models.0.x": odd, "betas": odd}))
    for got, want in zip(run(checkpoint, "muq", "normfeat"), expected, strict=True):
        np.testing.assert_array_equal(got, want)
    assert caplog.messages == []


def test_unknown_tensors_are_ignored_with_a_warning(checkpoint: Path, caplog: pytest.LogCaptureFixture) -> None:
    edit(checkpoint, MAIN, add({"rvq_muencoder_emb.quantizers.0.extra": torch.zeros(1), "surprise": torch.zeros(1)}))
    edit(checkpoint, MUQ, add({"model.conformer.layers.5.extra": torch.zeros(1)}))
    with caplog.at_level(logging.WARNING, "musicrt"):
        run(checkpoint)
    (message,) = caplog.messages
    assert message == "the checkpoint has 3 tensors that no stage uses, such as model.conformer.layers.5.extra; they are ignored"


def test_other_precisions_become_float32(checkpoint: Path) -> None:
    edit(checkpoint, MAIN, lambda state: {key: value.to(torch.bfloat16) if key == CODEBOOK else value for key, value in state.items()})
    (got,) = run(checkpoint, "dequantizer")
    assert got.dtype == np.float32


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_whole_files_may_be_of_another_precision(checkpoint: Path, dtype: Any) -> None:
    """Also what they hold of windows, filters, rotations and kernels; but for the sums of statistics, which are too large for float16."""

    def cast(key: str, value: Any) -> Any:
        return value.to(dtype) if value.is_floating_point() and not key.startswith("normfeat.") else value

    for file in (MUQ, MAIN):
        edit(checkpoint, file, lambda state: {key: cast(key, value) for key, value in state.items()})
    (got,) = run(checkpoint, "dequantizer")
    assert got.dtype == np.float32


def test_statistics_that_would_still_change_are_kept_with_a_warning(checkpoint: Path, caplog: pytest.LogCaptureFixture) -> None:
    sums = ("normfeat.counts", "normfeat.sum_x", "normfeat.sum_x2")
    expected = run(checkpoint, "normfeat")
    edit(checkpoint, MAIN, lambda state: {**state, **{name: 0.5 * state[name] for name in sums}})
    np.testing.assert_allclose(run(checkpoint, "normfeat"), expected, rtol=1e-5)
    (message,) = caplog.messages
    assert "statistics count 50000" in message
    assert "100000" in message


def test_objects_beside_the_tensors_are_left_out_and_named(checkpoint: Path, caplog: pytest.LogCaptureFixture) -> None:
    """As fairseq writes them; in the file that has no reason to hold any, they are refused."""
    expected = run(checkpoint, "muq")
    content = read(checkpoint, MUQ)
    torch.save({**content, "args": argparse.Namespace(arch="muq"), "cfg": {"model": argparse.Namespace(encoder_dim=64)}}, checkpoint / MUQ)
    np.testing.assert_array_equal(run(checkpoint, "muq"), expected)
    assert caplog.messages == ["muq.pt holds objects beside its tensors, which were left out and not made: argparse.Namespace"]
    edit(checkpoint, MAIN, add({"args": argparse.Namespace(a=1)}))
    with refused(CheckpointError, MAIN, "was not executed", "it names argparse.Namespace", "use the official file"):
        run(checkpoint)


# What is refused


@pytest.mark.parametrize(
    ("file", "change", "words"),
    [
        (MAIN, drop("cfm_wrapper."), [MAIN, "missing: cfm_wrapper.estimator.scale_shift_table"]),
        (MAIN, drop("zero_cond"), ["1 missing: zero_cond_embedding1"]),
        (MAIN, drop("normfeat.counts"), [MAIN, "1 missing: normfeat.counts"]),
        (
            MAIN,
            lambda state: {**drop("muencoder.")(state), "cond_muencoder_emb.bias": torch.zeros(3)},
            ["cond_muencoder_emb.bias [3]", "[512]"],
        ),
        (MAIN, add({CODEBOOK: torch.zeros(256, 8)}), ["quantizers.0.codebook.weight [256, 8]", "[512, 8]"]),
        (MAIN, add({f"muencoder.{FRONT_END}": torch.zeros(5)}), ["conv.linear.bias [5]", "[64]"]),
        (MAIN, add({"cond_muencoder_emb.bias": 3.0}), ["1 not tensors: cond_muencoder_emb.bias"]),
        (MAIN, add({"normfeat.sum_x": torch.full((32, 32), float("nan"))}), ["NaN", "sum_x"]),
        (VAE, add({"scale_factor": torch.tensor(float("inf"))}), ["NaN or infinite", "scale_factor"]),
        (VAE, drop("first_stage_model.vocoder.ups.0."), ["2 missing", "vocoder.ups.0."]),
        (VAE, drop("first_stage_model."), [VAE, "missing: first_stage_model.encoder.conv_in.weight"]),
    ],
    ids=["no estimator", "no zero", "no counts", "bias", "rows", "override", "a number", "NaN", "infinite", "no vocoder", "no VAE"],
)
def test_files_that_do_not_fit_are_refused(checkpoint: Path, file: str, change: Callable[[State], Any], words: list[object]) -> None:
    edit(checkpoint, file, change)
    with refused(CheckpointError, "does not fit the network", *words):
        run(checkpoint)


def test_layers_are_missed_where_both_files_lack_them(checkpoint: Path) -> None:
    edit(checkpoint, MUQ, drop("model.conformer.layers.5."))
    run(checkpoint)  # the main file has them
    edit(checkpoint, MAIN, drop("muencoder."))
    with refused(CheckpointError, f"{MUQ} (or muencoder.* of {MAIN}) does not fit", "missing: model.conformer.layers.5."):
        run(checkpoint)


def test_number_of_codebooks_has_to_be_that_of_the_file(checkpoint: Path) -> None:
    four = {**CONFIG, "rvq": {**CONFIG["rvq"], "n_codebooks": 4}}
    with refused(CheckpointError, "has 1 codebooks", "says 4", "the variant codebooks1"):
        run(checkpoint, config=four)
    first = {key: value for key, value in read(checkpoint, MAIN).items() if key.startswith("rvq_muencoder_emb.quantizers.0.")}
    edit(checkpoint, MAIN, add({key.replace(".0.", f".{index}.", 1): value for key, value in first.items() for index in (1, 2, 3)}))
    run(checkpoint, config=four)
    with refused(CheckpointError, "has 4 codebooks, the configuration says 1; use the variant codebooks4, or say so in rvq.n_codebooks"):
        run(checkpoint)
    edit(checkpoint, MAIN, drop("rvq_muencoder_emb.quantizers.3."))
    with refused(CheckpointError, "has 3 codebooks, the configuration says 1; say so in rvq.n_codebooks"):
        run(checkpoint)


def test_another_file_in_the_place_of_the_main_one_is_told(checkpoint: Path) -> None:
    shutil.copy(checkpoint / MUQ, checkpoint / MAIN)
    with refused(CheckpointError, f"{MAIN} holds no rvq_muencoder_emb.*", "use the official main file"):
        run(checkpoint)


@pytest.mark.parametrize("key", ["mel_stft.spectrogram.window", "mel_stft.mel_scale.fb"])
def test_another_spectrogram_is_refused(checkpoint: Path, key: str) -> None:
    full = f"model.preprocessor_melspec_2048.{key}"
    edit(checkpoint, MAIN, drop("muencoder."))
    right = read(checkpoint, MUQ)["model"][full]
    for wrong in (right * 0.99, (right * 0.98).to(torch.bfloat16), torch.zeros_like(right, dtype=torch.int64)):
        edit(checkpoint, MUQ, add({full: wrong}))
        with refused(CheckpointError, key, "not what is computed here"):
            run(checkpoint)


def test_another_resampling_is_refused(checkpoint: Path) -> None:
    edit(checkpoint, MAIN, add({"rsq48tomuencoder.kernel": torch.zeros(1, 1, 41)}))
    with refused(CheckpointError, "rsq48tomuencoder.kernel", "use the official file"):
        run(checkpoint)


@pytest.mark.parametrize(("file", "nest"), [(VAE, "state_dict"), (MUQ, "model")])
def test_tensors_that_are_no_dictionary_are_refused(checkpoint: Path, file: str, nest: str) -> None:
    torch.save({nest: [torch.zeros(1)]}, checkpoint / file)
    with refused(CheckpointError, file, "list", "use the official file"):
        run(checkpoint)


@pytest.mark.parametrize("file", [VAE, MUQ, MAIN])
@pytest.mark.parametrize("share", [0.0, 0.5, 0.999])
def test_files_that_were_cut_short_are_refused(checkpoint: Path, file: str, share: float) -> None:
    content = (checkpoint / file).read_bytes()
    (checkpoint / file).write_bytes(content[: int(len(content) * share)])
    with refused(CheckpointError, file, "can't be read"):
        run(checkpoint)


@pytest.mark.parametrize("file", [VAE, MUQ, MAIN])
def test_missing_file_is_named_with_its_source(checkpoint: Path, file: str) -> None:
    (checkpoint / file).unlink()
    with refused(CheckpointError, file, "huggingface.co/yaoxunxu/mucodec"):
        run(checkpoint)


def test_checkpoint_of_another_size_is_refused(checkpoint: Path) -> None:
    with refused(CheckpointError, "does not fit the network", "instead of"):
        run(checkpoint, config={})
    shallow = json.loads(json.dumps(CONFIG))
    shallow["transformer2D"]["num_layers"] = 3
    with refused(CheckpointError, "missing: cfm_wrapper.estimator.transformer_blocks.2."):
        run(checkpoint, config=shallow)
