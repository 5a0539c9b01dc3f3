"""Official files that are not as expected: what is taken with a warning, what is refused, and what is said."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from musicrt.runtime.errors import CheckpointError, ConfigError
from musicrt.runtime.model import Model
from musicrt.runtime.models.semanticodec.pipeline import Pipeline
from tests.conftest import ForSystem, refused
from tests.runtime.damaged_checkpoints import State, add, drop
from tests.runtime.semanticodec_codecs import music, open_tiny

torch = pytest.importorskip("torch")

ENCODER, DECODER = (f"semanticodec_tokenrate_50/{half}coder.ckpt" for half in ("en", "de"))
CODEBOOK = "codebook_idx/combine_256_audioset_dominate/codebook_8192_0.npy"


@pytest.fixture
def checkpoint(tiny_checkpoints: ForSystem, tmp_path: Path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(tiny_checkpoints("semanticodec"), tmp_path / "checkpoint"))


def edit(checkpoint: Path, file: str, change: Callable[[State], State]) -> None:
    torch.save(change(torch.load(checkpoint / file, weights_only=True)), checkpoint / file)


def save_codebook(checkpoint: Path, change: Callable[[Any], Any]) -> None:
    np.save(checkpoint / CODEBOOK, change(np.load(checkpoint / CODEBOOK)))


def open_as(checkpoint: Path, **values: Any) -> Pipeline:
    """The tiny network with other hyper-parameters."""
    config = json.loads((checkpoint / "config.json").read_text())
    return Pipeline(Model.open_checkpoint("semanticodec", checkpoint, {**config, **values}))


# What is taken


def test_both_layouts_hold_the_same(checkpoint: Path, tmp_path: Path) -> None:
    """A folder as the hub gives it, and one as the official class wants it under `checkpoint_path`."""
    expected = open_tiny(checkpoint).encode(music(20000))
    flat = tmp_path / "flat"
    shutil.copytree(checkpoint / "codebook_idx", flat / "codebook_idx")
    for file in (checkpoint / ENCODER, checkpoint / DECODER, checkpoint / "config.json"):
        file.rename(flat / file.name)
    np.testing.assert_array_equal(open_tiny(flat).encode(music(20000)), expected)


def test_unused_tensors_may_be_of_any_form_or_missing(checkpoint: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Versions of the quantiser store `initted` as one float or as a boolean; an encoder alone needs no schedule."""
    expected = open_tiny(checkpoint).encode(music(20000))
    edit(checkpoint, ENCODER, add({"quantizer._codebook.initted": torch.tensor(True)}))
    np.testing.assert_array_equal(open_tiny(checkpoint).encode(music(20000)), expected)
    used = ("model.diffusion_model.", "first_stage_model.post", "first_stage_model.dec", "first_stage_model.voc", "scale_factor")
    edit(checkpoint, DECODER, lambda state: {key: value for key, value in state.items() if key.startswith(used)})
    edit(checkpoint, ENCODER, drop("audiomae.model.decoder_", "audiomae.model.mask", "quantizer._codebook.initted"))
    np.testing.assert_array_equal(open_tiny(checkpoint).encode(music(20000)), expected)
    assert caplog.messages == []


def test_unknown_tensors_are_ignored_with_a_warning(checkpoint: Path, caplog: pytest.LogCaptureFixture) -> None:
    edit(checkpoint, DECODER, add({"clap.weight": torch.zeros(3), "clap.bias": torch.zeros(3), 7: torch.zeros(1)}))
    inside = ("audiomae.model.rope.freqs", "encoder.foo", "quantizer._codebook.embed_mean")  # of parts that are used
    edit(checkpoint, ENCODER, add({key: torch.zeros(1) for key in inside}))
    with caplog.at_level(logging.WARNING, "musicrt"):
        open_tiny(checkpoint)
    assert caplog.messages == ["the checkpoint has 6 tensors that no stage uses, such as audiomae.model.rope.freqs; they are ignored"]


def test_rows_of_the_codebook_are_those_of_its_file(checkpoint: Path) -> None:
    save_codebook(checkpoint, lambda array: array[:200].astype(np.float64))
    codec = open_as(checkpoint, semantic_codebook_rows=None)
    assert codec.config.codebook_sizes == (200, 256)
    assert codec.config.bits == (8, 8)
    tokens = codec.encode(music(30000))
    assert 100 < tokens[..., 0].max() < 200


# What is refused


@pytest.mark.parametrize(
    ("file", "change", "words"),
    [
        (ENCODER, drop("encoder.weight_hh_l0"), ["2 missing", "encoder.weight_hh_l0"]),
        (ENCODER, drop("quantizer._codebook.embed"), [ENCODER, "1 missing: quantizer._codebook.embed"]),
        (DECODER, drop("model.diffusion_model."), [DECODER, "missing: model.diffusion_model.time_embed.0.weight"]),
        (DECODER, lambda state: {"state_dict": state}, [DECODER, "missing: model.diffusion_model.time_embed.0.weight"]),
        (DECODER, drop("scale_factor"), ["1 missing: scale_factor"]),
        (ENCODER, add({"audiomae.model.pos_embed": torch.zeros(1, 257, 32)}), ["pos_embed [1, 257, 32]", "[1, 513, 32]"]),
        (ENCODER, add({"encoder_output_linear.weight": 3.0}), ["1 not tensors: encoder_output_linear.weight"]),
        (DECODER, add({"scale_factor": torch.tensor(float("nan"))}), ["NaN", "scale_factor"]),
    ],
    ids=["no LSTM layer", "no codebook", "averaged weights only", "nested", "no scale", "other patches", "a number", "NaN"],
)
def test_files_that_do_not_fit_are_refused(checkpoint: Path, file: str, change: Callable[[State], Any], words: list[object]) -> None:
    edit(checkpoint, file, change)
    with refused(CheckpointError, "does not fit the network", *words):
        open_tiny(checkpoint)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda array: array[:511], ["511 rows", "says 512"]),
        (lambda array: np.tile(array, (2, 1)), ["1024 rows", "says 512"]),
        (lambda array: np.tile(array, 2), [[512, 128], "[rows, 64]"]),
        (lambda array: array.T, [[64, 512], "[rows, 64]"]),
        (lambda array: array.ravel()[:512], [[512], "[rows, 64]"]),
        (lambda array: array[0, 0], [[], "[rows, 64]"]),
        (lambda array: array[:0], [[0, 64], "[rows, 64]"]),
        (lambda array: array * np.float32("nan"), ["NaN", "array"]),
        (lambda array: array.astype(object), ["codebook_8192_0.npy", "can't be read"]),
        (lambda array: array.astype(str), ["codebook_8192_0.npy", "can't be read"]),
    ],
    ids=["fewer rows", "more rows", "of another rate", "transposed", "one axis", "a number", "empty", "NaN", "objects", "strings"],
)
def test_codebooks_that_do_not_fit_are_refused(checkpoint: Path, change: Callable[[Any], Any], words: list[object]) -> None:
    save_codebook(checkpoint, change)
    with refused(CheckpointError, *words):
        open_tiny(checkpoint)


@pytest.mark.parametrize("file", [ENCODER, DECODER, CODEBOOK])
@pytest.mark.parametrize("share", [0.0, 0.5, 0.999])
def test_files_that_were_cut_short_are_refused(checkpoint: Path, file: str, share: float) -> None:
    content = (checkpoint / file).read_bytes()
    (checkpoint / file).write_bytes(content[: int(len(content) * share)])
    with refused(CheckpointError, file, "can't be read"):
        open_tiny(checkpoint)


def test_missing_file_is_named_with_its_source(checkpoint: Path) -> None:
    (checkpoint / CODEBOOK).unlink()
    with refused(CheckpointError, CODEBOOK, "huggingface.co/haoheliu/SemantiCodec"):
        open_tiny(checkpoint)


def test_checkpoint_of_another_setting_is_refused(checkpoint: Path) -> None:
    with refused(CheckpointError, "semanticodec_tokenrate_25/encoder.ckpt", "codebook_2048_0.npy"):
        Model.open_checkpoint("semanticodec", checkpoint, {"token_rate": 25, "semantic_vocab_size": 4096})
    with refused(CheckpointError, [512, 64], "[rows, 1536]"):
        Model.open_checkpoint("semanticodec", checkpoint, {})
    with refused(ConfigError, "stack_factor_K"):
        open_as(checkpoint, token_rate=100)
