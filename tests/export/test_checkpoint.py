"""Reading checkpoints: strict loading, nothing executed, damage named."""

from __future__ import annotations

import io
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from musicrt.runtime.errors import CheckpointError
from musicrt.runtime.spec import CheckpointSpec
from tests.conftest import refused, tiny_layout

torch = pytest.importorskip("torch")
ir = pytest.importorskip("onnx_ir")
pytest.importorskip("onnxscript")
ort = pytest.importorskip("onnxruntime")

from musicrt.export.bundle import export_bundle  # noqa: E402
from musicrt.export.checkpoints import hash_tensors  # noqa: E402
from musicrt.runtime.checkpoint import read_array, read_checkpoint, read_tensors  # noqa: E402
from musicrt.runtime.models.music2latent.network.checkpoint import is_dead_key, load_network  # noqa: E402
from musicrt.runtime.models.music2latent.network.unet import UNet  # noqa: E402
from musicrt.runtime.models.music2latent.spec import CHECKPOINT  # noqa: E402

FILE = "music2latent.pt"
CONFIG = tiny_layout("music2latent")["config"]
State = dict[Any, Any]


def load(state: object) -> UNet:
    return load_network({FILE: {"gen_state_dict": state}}, CONFIG)


# Strict loading


def test_weights_arrive_where_they_belong(weights: State) -> None:
    loaded = load(weights).state_dict()
    assert set(loaded) == {key for key in weights if not is_dead_key(key)}
    assert all(torch.equal(loaded[key], weights[key]) for key in loaded)


def test_bare_state_dict_is_taken(weights: State) -> None:
    loaded = load_network({FILE: weights}, CONFIG).state_dict()
    assert all(torch.equal(loaded[key], weights[key]) for key in loaded)


def test_missing_keys_are_named(weights: State) -> None:
    state = {key: value for key, value in weights.items() if key not in ("conv_inp.weight", "encoder.gain.scale")}
    with refused(CheckpointError, "2 missing", "conv_inp.weight", "encoder.gain.scale"):
        load(state)


def test_unexpected_keys_are_named(weights: State) -> None:
    with refused(CheckpointError, "2 unexpected", "surplus.weight", "7"):
        load({**weights, "surplus.weight": torch.zeros(1), 7: torch.zeros(1)})


def test_misshaped_keys_are_named(weights: State) -> None:
    with refused(CheckpointError, "1 of another shape", "conv_inp.weight [16, 2, 3, 1] instead of [16, 2, 3, 3]"):
        load({**weights, "conv_inp.weight": weights["conv_inp.weight"][..., :1]})


def test_values_that_are_no_tensors_are_named(weights: State) -> None:
    with refused(CheckpointError, "1 not tensors", "conv_inp.bias"):
        load({**weights, "conv_inp.bias": [0.0] * 16})


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_broken_values_are_named(weights: State, value: float) -> None:
    with refused(CheckpointError, "1 with NaN or infinite values", "conv_inp.bias"):
        load({**weights, "conv_inp.bias": weights["conv_inp.bias"].clone().index_fill_(0, torch.tensor([3]), value)})


def test_many_wrong_keys_are_counted_and_only_some_named(weights: State) -> None:
    with refused(CheckpointError, f"{sum(not is_dead_key(key) for key in weights)} missing", "…"):
        load({})


@pytest.mark.parametrize("state", [[], None, 3, "text"])
def test_other_things_than_a_dictionary_are_refused(state: object) -> None:
    with refused(CheckpointError, type(state).__name__):
        load(state)


def test_dead_keys_may_be_there_or_not(weights: State) -> None:
    dead = [key for key in weights if is_dead_key(key)]
    assert len(dead) == 2 * CONFIG["num_bottleneck_layers"]
    without = load({key: value for key, value in weights.items() if key not in dead}).state_dict()
    assert not set(dead) & set(without)
    some = load({key: value for key, value in weights.items() if key not in dead[1:]}).state_dict()
    assert set(some) == set(without)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_weights_of_other_precisions_become_float32(weights: State, dtype: Any) -> None:
    given = {key: value.to(dtype) for key, value in weights.items()}
    loaded = load(given).state_dict()
    assert {value.dtype for value in loaded.values()} == {torch.float32}
    assert all(torch.equal(loaded[key], given[key].float()) for key in loaded)


# Files that are no checkpoints


class Trap:
    """Creates a file when it is unpickled."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return Path.touch, (self.file,)


def save_pickle(path: Path, content: object) -> None:
    path.write_bytes(pickle.dumps(content))


def save_legacy(path: Path, content: object) -> None:
    torch.save(content, path, _use_new_zipfile_serialization=False)


def save_zip(path: Path, content: object) -> None:
    """What torch.save writes, with nothing but the pickle in it."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps(content, protocol=2))
        archive.writestr("archive/version", "3\n")


@pytest.mark.parametrize("save", [save_pickle, save_legacy, save_zip, lambda path, content: torch.save(content, path)])
@pytest.mark.parametrize("nested", [False, True])
def test_code_in_a_checkpoint_is_never_executed(tmp_path: Path, save: Callable[[Path, object], None], nested: bool) -> None:
    sprung, trap = tmp_path / "sprung", Trap(tmp_path / "sprung")
    save(tmp_path / FILE, {"gen_state_dict": {"conv_inp.weight": trap}} if nested else trap)
    with refused(CheckpointError, tmp_path / FILE):
        read_tensors(tmp_path / FILE)
    with refused(CheckpointError, tmp_path / FILE):
        export_bundle("music2latent", tmp_path, tmp_path / "out")
    assert not sprung.exists()
    pickle.loads(pickle.dumps(trap))  # the trap works
    assert sprung.exists()


def damaged_files(checkpoint: bytes) -> dict[str, bytes]:
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("song.txt", "la la la")
    return {
        "empty": b"",
        "text": b"This is not a checkpoint.\n",
        "zip": archive.getvalue(),
        "safetensors": b"\x02\x00\x00\x00\x00\x00\x00\x00{}",
        "cut by a byte": checkpoint[:-1],
        "cut in half": checkpoint[: len(checkpoint) // 2],
        "cut to the start": checkpoint[:100],
        "zeros": bytes(1000),
    }


@pytest.mark.parametrize("kind", damaged_files(b""))
def test_damaged_checkpoint_is_refused(tiny_checkpoint: Path, tmp_path: Path, kind: str) -> None:
    (tmp_path / FILE).write_bytes(damaged_files((tiny_checkpoint / FILE).read_bytes())[kind])
    with refused(CheckpointError, tmp_path / FILE):
        read_tensors(tmp_path / FILE)


@pytest.mark.parametrize("content", [[torch.zeros(2)], torch.zeros(2), None, 3])
def test_file_without_a_dictionary_is_refused(tmp_path: Path, content: Any) -> None:
    torch.save(content, tmp_path / FILE)
    with refused(CheckpointError, tmp_path / FILE, type(content).__name__):
        read_tensors(tmp_path / FILE)


def test_legacy_format_is_read(tmp_path: Path, weights: State) -> None:
    """What torch wrote before 1.6."""
    save_legacy(tmp_path / FILE, {"gen_state_dict": weights})
    loaded = read_tensors(tmp_path / FILE)["gen_state_dict"]
    assert hash_tensors({FILE: loaded}) == hash_tensors({FILE: weights})


def test_dictionary_inside_of_itself_is_refused() -> None:
    own: State = {"w": torch.ones(1)}
    own["own"] = own
    with refused(CheckpointError, "more than 16 others", "own/own/", "use the official file"):
        hash_tensors({FILE: own})


def test_hash_takes_two_tensors_of_one_name() -> None:
    both: State = {7: torch.zeros(2), "7": torch.ones(2)}
    assert hash_tensors({FILE: both}) != hash_tensors({FILE: {**both, "7": torch.zeros(2)}})


def test_missing_checkpoint_is_refused(tmp_path: Path, tiny_checkpoint: Path) -> None:
    with refused(CheckpointError, tmp_path / "missing", FILE, CHECKPOINT.url):
        read_checkpoint(CHECKPOINT, tmp_path / "missing")
    with refused(CheckpointError, tmp_path, FILE, CHECKPOINT.url):
        read_checkpoint(CHECKPOINT, tmp_path)
    (tmp_path / FILE).mkdir()
    with refused(CheckpointError, tmp_path, FILE):
        read_checkpoint(CHECKPOINT, tmp_path)
    assert list(read_checkpoint(CHECKPOINT, tiny_checkpoint / FILE)) == list(read_checkpoint(CHECKPOINT, tiny_checkpoint)) == [FILE]


# Arrays


@pytest.mark.parametrize("dtype", ["float32", "float16", "int64"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_array_files_are_read_beside_torch_files(tmp_path: Path, dtype: str, order: Any) -> None:
    array = np.arange(12).reshape(3, 4).astype(dtype, order=order)
    np.save(tmp_path / "codes.npy", array)
    torch.save({"w": torch.ones(2)}, tmp_path / "net.ckpt")
    contents = read_checkpoint(CheckpointSpec(("net/net.ckpt", "codebooks/codes.npy"), "a/b"), tmp_path)
    assert list(contents) == ["net/net.ckpt", "codebooks/codes.npy"]
    assert torch.equal(contents["net/net.ckpt"]["w"], torch.ones(2))
    assert list(contents["codebooks/codes.npy"]) == ["array"]
    read = contents["codebooks/codes.npy"]["array"]
    assert str(read.dtype) == f"torch.{dtype}"
    np.testing.assert_array_equal(read.numpy(), array)
    read.zero_()
    np.testing.assert_array_equal(np.load(tmp_path / "codes.npy"), array)  # the file is as it was


def array_file(array: Any) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array, allow_pickle=True)
    return stream.getvalue()


def with_header(header: str) -> bytes:
    """An .npy file of 140 bytes of data."""
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header.encode() + bytes(140)


HEADER = "{'descr': '<f4', 'fortran_order': False, 'shape': (5, 7), }\n"
WHOLE = with_header(HEADER)
DAMAGED_ARRAYS: dict[str, bytes] = {
    "empty": b"",
    "text": b"This is no array.\n",
    "pickle": pickle.dumps({"a": 1}),
    "archive": damaged_files(b"")["zip"],
    "strings": array_file(np.array(["a", "b"])),
    "records": array_file(np.zeros(2, [("a", "f4")])),
    "times": array_file(np.zeros(2, "M8[s]")),
    "other byte order": array_file(np.zeros(2, ">f4")),
    "cut by a byte": WHOLE[:-1],
    "cut in the header": WHOLE[:50],
    "header of a list": with_header("[1, 2]\n"),
    "open bracket": with_header(HEADER.replace(")", "(")),
    "nested header": with_header("(" * 5000),
    "huge shape": with_header(HEADER.replace("5, 7", f"{1 << 40}, {1 << 40}")),
    "negative shape": with_header(HEADER.replace("5, 7", "5, -7")),
    "call in the header": with_header(HEADER.replace("5, 7", "int(5), 7")),
    "unknown version": WHOLE.replace(b"\x01\x00", b"\x09\x00", 1),
}


@pytest.mark.parametrize("kind", DAMAGED_ARRAYS)
def test_damaged_array_is_refused(tmp_path: Path, kind: str) -> None:
    (tmp_path / "a.npy").write_bytes(DAMAGED_ARRAYS[kind])
    with refused(CheckpointError, tmp_path / "a.npy", "an array of numbers", "download it again"):
        read_array(tmp_path / "a.npy")


def test_undamaged_array_of_the_same_kind_is_read(tmp_path: Path) -> None:
    (tmp_path / "a.npy").write_bytes(WHOLE)
    assert torch.equal(read_array(tmp_path / "a.npy"), torch.zeros(5, 7))


def test_objects_in_an_array_are_never_made(tmp_path: Path) -> None:
    (tmp_path / "a.npy").write_bytes(array_file(np.array([Trap(tmp_path / "sprung")])))
    with refused(CheckpointError, tmp_path / "a.npy", "objects"):
        read_array(tmp_path / "a.npy")
    assert not (tmp_path / "sprung").exists()
    np.load(tmp_path / "a.npy", allow_pickle=True)  # the trap works
    assert (tmp_path / "sprung").exists()
