"""Signals and filler: bit for bit what the recordings were made from (the digests are those of the original filler)."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from musicrt.runtime.errors import InputError
from tests.reference import runner, signals
from tests.reference.fill import Layout, checkpoint_tensors, fill, kind_of, write_checkpoint
from tests.reference.signals import Array

LAYOUT: Layout = {
    "system": "doubler",
    "config": {"gain": 2},
    "rules": [["^table", "embedding:2.0"], ["table", "const:7"]],
    "files": {
        "net/weights.pt": {
            "format": "torch",
            "nest": ["best", "state"],
            "extra": {"version": "1.0", "cfg": {"deep": [1, None]}},
            "tensors": {
                "layer.weight": [[4, 3], "float32"],
                "norm.num_batches_tracked": [[], "int64"],
                "norm.running_var": [[4], "float32"],
                "quantizer.inited": [[1], "float32"],
            },
        },
        "table.safetensors": {"format": "safetensors", "tensors": {"table.0": [[2, 2], "float16"], "a.table": [[3], "int32"]}},
        "codebook.npy": {"format": "npy", "tensors": {"codebook": [[5, 2], "float32"]}},
    },
}


def digest(*arrays: Array) -> str:
    return hashlib.sha256(b"".join(array.tobytes() for array in arrays)).hexdigest()


def test_signals_are_bit_identical_to_the_recorded_ones() -> None:
    assert digest(signals.unit("reference/unit", (7, 5, 3))) == "6a86150e9e556d710551c80ea0630c284b0782aa2d1abbfa944942e6a9e6c703"
    assert digest(signals.normal("reference/normal", (4, 33))) == "3484bc8abcf073629b40b0012be705d9fdeda3e35890581657a16fe4ff0c3b1d"
    assert digest(signals.audio("reference/audio", 0.31, 8000, 2)) == "1b64a02dad1db9e97807609fe845aabdddda4cfa9d551a19b2d27986656110f0"
    assert digest(signals.video("reference/video", 3, 16)) == "70c0de77bd50eea1e12ac8a552e12f56f3145ec67ba458a7b66bdf68fca03c2f"


def test_unit_does_not_depend_on_the_block_size(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = signals.unit("blocks", (10, 10))
    monkeypatch.setattr(signals, "_BLOCK", 7)
    np.testing.assert_array_equal(signals.unit("blocks", (10, 10)), whole)


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("matrix", "4def50522525657bed16bf07c824d0a666bbec08b7b33a1706c7dbb2231ec252"),
        ("matrix:0.5", "0351460f3a7dc2e6c5c837dda23c9c0abbe87b28912072dee07c656c2d2ce6c7"),
        ("scale", "8682183fae284903bb2c503ec4955826e25ddf8db3b19906e74bdba5d9cb5ac2"),
        ("shift", "f4e743aeed403dc37da623a94735b278ced1990dbf0c5cd39a1ec27c3d5020ec"),
        ("positive", "d8064c0a9532189f65dd3a48bcc5673594bb026ea701c17c8b469babe02bc98b"),
        ("embedding", "9f350e7f2bf09e9f7556dc84c6c749c27d62f06f2fc2dffafc42699aca86ac73"),
        ("embedding:2.0", "6760d8c1ac239aeefe891e556bae65254ad0e57c729be298be17eb42756e8cee"),
        ("const:3", "5214d602a5ac5b1a0e48f9b654f0a345faaeee413574946917b6c644621ad959"),
    ],
)
def test_fill_is_bit_identical_to_the_recorded_one(kind: str, expected: str) -> None:
    assert digest(fill("net.weight", (4, 6, 3), kind)) == expected


@pytest.mark.parametrize(
    ("key", "rank", "kind"),
    [
        ("bn.num_batches_tracked", 0, "const:0"),
        ("bn.running_var", 1, "positive"),
        ("bn.running_mean", 1, "shift"),
        ("conv.weight_g", 3, "positive"),
        ("parametrizations.weight.original0", 3, "positive"),
        ("parametrizations.weight.original1", 3, "matrix"),
        ("conv.weight", 3, "matrix"),
        ("norm.weight", 1, "scale"),
        ("norm.gamma", 1, "scale"),
        ("snake.alpha", 1, "scale"),
        ("snake.alpha", 3, "matrix"),
        ("g", 1, "scale"),
        ("conv.bias", 1, "shift"),
    ],
)
def test_kind_of_decides_by_leaf_and_rank(key: str, rank: int, kind: str) -> None:
    assert kind_of(key, (2,) * rank) == kind


def test_unknown_fill_kind_is_refused() -> None:
    with pytest.raises(InputError, match=r"unknown fill kind 'ones' for net\.weight"):
        fill("net.weight", (2,), "ones")


@pytest.mark.parametrize(
    ("salt", "expected"),
    [
        ("", "ff2ac49492de1ab5bc09a7f88db22257ee77726075c873281f44d2f4cc4e47e6"),
        ("salted/", "72fd285774b82352092591dbdf0494fc36bb6c9764439196a59a491f35e77f99"),
    ],
)
def test_vendored_layout_fills_to_the_recorded_checkpoint(salt: str, expected: str) -> None:
    layout = json.loads((runner.DATA / "music2latent" / "layout-tiny.json").read_text())
    tensors = checkpoint_tensors(layout, "music2latent.pt", {}, salt)
    seen = hashlib.sha256()
    for key in sorted(tensors):
        seen.update(key.encode() + tensors[key].tobytes())
    assert seen.hexdigest() == expected


def test_salt_does_not_change_the_kind() -> None:
    layout: Layout = {"files": {"f": {"tensors": {"g": [[64], "float32"]}}}}
    salted = checkpoint_tensors(layout, "f", {}, "other.")["g"]
    np.testing.assert_array_equal(salted, fill("other.g", (64,), "scale"))
    assert not np.array_equal(salted, checkpoint_tensors(layout, "f", {})["g"])


def test_written_checkpoint_reads_back_in_the_official_layout(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    (tmp_path / "layout-tiny.json").write_text(json.dumps(LAYOUT))
    save_file({"quantizer.inited": np.ones(1, np.float32), "unused": np.ones(2, np.float32)}, tmp_path / "given-tiny.safetensors")
    out = tmp_path / "checkpoint"
    write_checkpoint(tmp_path, "layout-tiny.json", "given-tiny.safetensors", "", out)

    content = torch.load(out / "net/weights.pt", weights_only=True)
    assert set(content) == {"best", "version", "cfg"}
    assert (content["version"], content["cfg"]) == ("1.0", {"deep": [1, None]})
    state = content["best"]["state"]
    assert list(state) == list(LAYOUT["files"]["net/weights.pt"]["tensors"])
    np.testing.assert_array_equal(state["layer.weight"].numpy(), fill("layer.weight", (4, 3), "matrix"))
    assert (state["norm.num_batches_tracked"].shape, state["norm.num_batches_tracked"].dtype) == ((), torch.int64)
    assert state["quantizer.inited"].tolist() == [1.0]

    table = load_file(out / "table.safetensors")
    np.testing.assert_array_equal(table["table.0"], fill("table.0", (2, 2), "embedding:2.0").astype(np.float16))
    np.testing.assert_array_equal(table["a.table"], np.full(3, 7, np.int32))
    assert table["a.table"].dtype == np.int32
    np.testing.assert_array_equal(np.load(out / "codebook.npy"), fill("codebook", (5, 2), "matrix"))


def test_unknown_file_format_leaves_nothing_behind(tmp_path: Path) -> None:
    (tmp_path / "layout.json").write_text('{"files": {"a.onnx": {"format": "onnx", "tensors": {}}}}')
    with pytest.raises(InputError, match="unknown file format 'onnx'"):
        write_checkpoint(tmp_path, "layout.json", None, "", tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["layout.json"]
