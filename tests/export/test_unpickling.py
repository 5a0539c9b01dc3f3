"""Checkpoints that hold objects beside their tensors: the tensors are read, the objects are never made, nothing is called."""

from __future__ import annotations

import argparse
import collections
import contextlib
import datetime
import enum
import functools
import logging
import pickle
import sys
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from musicrt.runtime.errors import CheckpointError
from tests.conftest import refused

torch = pytest.importorskip("torch")

from musicrt.runtime.checkpoint import read_tensors  # noqa: E402 - needs what was asked for above


class Kind(enum.Enum):
    ONE = 1


class Filled(list[int]):
    """Pickled with items and attributes."""

    def __init__(self) -> None:
        super().__init__([1, 2])
        self.extra = 3


class Slotted:
    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value = 1


class Call:
    """Calls a function when it is unpickled, and sets a state on what that gives."""

    def __init__(self, function: Callable[..., Any], *arguments: Any, state: Any = None) -> None:
        self.call = (function, arguments, *([state] if state else []))

    def __reduce__(self) -> Any:
        return self.call


def save(path: Path, content: Any) -> Path:
    torch.save(content, path)
    return path


def objects() -> dict[str, Any]:
    return {
        "namespace": argparse.Namespace(a=1, b=[Kind.ONE]),
        "filled": Filled(),
        "slotted": Slotted(),
        "mapping": collections.defaultdict(list, {1: [2]}),
        "date": datetime.datetime(2024, 1, 1),
        "function": functools.partial(print, 1),
        "set": {Kind.ONE, Kind},
        "keys": {Filled: 1, Kind.ONE: 2},
        "chain": Call(getattr, Call(getattr, Kind, "ONE"), "value"),
        "class": Slotted,
    }


@pytest.mark.parametrize("name", objects())
def test_tensors_beside_any_object_are_read(tmp_path: Path, name: str, caplog: pytest.LogCaptureFixture) -> None:
    weight = torch.arange(6.0).reshape(2, 3).t()
    path = save(tmp_path / "a.pt", {"cfg": objects()[name], "model": {"w": weight, "p": torch.nn.Parameter(weight)}, "epoch": 3})
    content = read_tensors(path, with_objects=True)
    assert torch.equal(content["model"]["w"], weight)
    assert torch.equal(content["model"]["p"], weight)
    assert content["epoch"] == 3
    (message,) = caplog.messages
    assert message.startswith("a.pt holds objects beside its tensors, which were left out and not made: ")


def test_tensors_inside_of_objects_are_left_out(tmp_path: Path) -> None:
    content = read_tensors(save(tmp_path / "a.pt", {"cfg": argparse.Namespace(w=torch.ones(2))}), with_objects=True)
    assert vars(content["cfg"]) == {}


def test_state_dictionaries_keep_their_order(tmp_path: Path) -> None:
    """And may have `_metadata`."""
    network = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.BatchNorm1d(3))
    content = read_tensors(save(tmp_path / "a.pt", {"cfg": Kind.ONE, "model": network.state_dict()}), with_objects=True)
    assert list(content["model"]) == list(network.state_dict())
    assert all(torch.equal(content["model"][name], tensor) for name, tensor in network.state_dict().items())


def test_plain_files_are_read_as_ever(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = save(tmp_path / "a.pt", {"model": {"w": torch.ones(2)}})
    assert torch.equal(read_tensors(path, with_objects=True)["model"]["w"], torch.ones(2))
    assert caplog.messages == []


def test_what_was_left_out_is_named_but_not_without_end(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "musicrt"):
        read_tensors(save(tmp_path / "a.pt", objects()), with_objects=True)
    (message,) = caplog.messages
    assert message.endswith(" …")
    assert message.count(",") == 1 + 4


def test_names_are_logged_in_ascii_and_not_without_end(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_zip(tmp_path / "a.pt", b"\x80\x02}(X\x03\x00\x00\x00cfgcn\xc3\xa4\x1b[2J\n" + b"x" * 1000 + b"\nu.")
    read_tensors(tmp_path / "a.pt", with_objects=True)
    assert caplog.messages[0].endswith(": " + r"n\xe4\x1b[2J.".ljust(80, "x"))


def test_setting_of_torch_that_is_in_the_way_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save(tmp_path / "a.pt", {"cfg": Kind.ONE, "w": torch.ones(2)})
    monkeypatch.setenv("TORCH_FORCE_WEIGHTS_ONLY_LOAD", "1")
    with refused(CheckpointError, path, "TORCH_FORCE_WEIGHTS_ONLY_LOAD is set", "unset it"):
        read_tensors(path, with_objects=True)
    assert list(read_tensors(save(path, {"w": torch.ones(2)}), with_objects=True)) == ["w"]


def test_objects_are_refused_where_none_belong(tmp_path: Path) -> None:
    path = save(tmp_path / "a.pt", {"cfg": argparse.Namespace(a=1), "model": {"w": torch.ones(2)}})
    with refused(CheckpointError, path, "was not executed (it names argparse.Namespace); use the official file"):
        read_tensors(path)


# Nothing runs


@pytest.fixture
def trap(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What was done with the module `trap`, which a pickle may name."""
    done: list[str] = []
    module = ModuleType("trap")

    def spring(*_: Any) -> dict[str, Any]:
        done.append("called")
        return {}

    class Loud:
        def __init__(self) -> None:
            self.value = 1

        def __reduce__(self) -> Any:
            return Loud, (), {"value": 2}

        def __setstate__(self, _: Any) -> None:
            done.append("given a state")

    for thing in (spring, Loud):
        thing.__module__, thing.__qualname__ = "trap", thing.__name__
        setattr(module, thing.__name__, thing)
    monkeypatch.setitem(sys.modules, "trap", module)
    return done


@pytest.mark.parametrize("kind", ["function", "class", "nested"])
def test_nothing_that_a_file_names_is_called(tmp_path: Path, trap: list[str], kind: str) -> None:
    module: Any = sys.modules["trap"]
    content = {"function": Call(module.spring, 1), "class": module.Loud(), "nested": Call(getattr, Call(module.spring), "items")}[kind]
    path = save(tmp_path / "a.pt", {"cfg": content, "model": {"w": torch.ones(2)}})
    assert torch.equal(read_tensors(path, with_objects=True)["model"]["w"], torch.ones(2))
    with refused(CheckpointError, path):
        read_tensors(path)
    assert trap == []
    torch.load(path, weights_only=False)  # the trap works
    assert trap != []


def test_modules_that_a_file_names_are_not_imported(tmp_path: Path) -> None:
    """Importing is running, too."""
    (tmp_path / "harmful.py").write_text("raise SystemExit('run')\n")
    sys.path.insert(0, str(tmp_path))
    try:
        path = tmp_path / "a.pt"
        write_zip(path, b"\x80\x02}(X\x01\x00\x00\x00wK\x01X\x03\x00\x00\x00cfgcharmful\nThing\n)\x81u.")
        assert read_tensors(path, with_objects=True)["w"] == 1
        assert "harmful" not in sys.modules
    finally:
        sys.path.remove(str(tmp_path))


def test_what_may_be_called_can_not_be_bent(tmp_path: Path) -> None:
    """A pickle may set a state on anything it gets hold of; the next file has to find tensors and dictionaries as they were."""
    for target in ("torch._utils\n_rebuild_tensor_v2", "torch._utils\n_rebuild_parameter", "collections\nOrderedDict", "builtins\ndict"):
        path = tmp_path / "bent.pt"
        state = b"}(X\x08\x00\x00\x00__call__K\x01X\x0c\x00\x00\x00__defaults__K\x01X\x07\x00\x00\x00__new__K\x01u"
        write_zip(path, b"\x80\x02}X\x01\x00\x00\x00cc" + target.encode() + b"\nN" + state + b"\x86bs.")
        with contextlib.suppress(CheckpointError):
            read_tensors(path, with_objects=True)
    weight = torch.ones(3)
    content = {"m": collections.OrderedDict(w=weight), "cfg": Kind.ONE}
    assert torch.equal(read_tensors(save(tmp_path / "a.pt", content), with_objects=True)["m"]["w"], weight)
    assert torch._utils._rebuild_tensor_v2.__defaults__ == (None,)
    assert collections.OrderedDict() == {}


def write_zip(path: Path, pickled: bytes) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickled)
        archive.writestr("archive/version", "3\n")


@pytest.mark.parametrize("legacy", [False, True])
def test_other_pickles_than_those_in_archives_are_refused(tmp_path: Path, legacy: bool) -> None:
    path = tmp_path / "a.pt"
    content = {"cfg": Slotted(), "w": 1}
    if legacy:
        torch.save(content, path, _use_new_zipfile_serialization=False)
    else:
        path.write_bytes(pickle.dumps(content))
    with refused(CheckpointError, path, *(["torch's old format", "save it again"] if legacy else ["use the official file"])):
        read_tensors(path, with_objects=True)


@pytest.mark.parametrize(
    "start", [b"r" + (20_000_000).to_bytes(4, "little"), b"\x96" + (1 << 26).to_bytes(8, "little")], ids=["memo", "bytes"]
)
def test_memory_does_not_follow_what_a_file_says(tmp_path: Path, start: bytes) -> None:
    """The place of an entry in the memo, the size of an array of bytes."""
    write_zip(tmp_path / "a.pt", b"\x80\x02}" + start + b"(X\x01\x00\x00\x00wK\x01X\x03\x00\x00\x00cfgctrap\nThing\nu.")
    tracemalloc.start()
    with contextlib.suppress(CheckpointError):
        assert read_tensors(tmp_path / "a.pt", with_objects=True)["w"] == 1
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 5_000_000


@pytest.mark.parametrize(
    "pickled",
    [
        b"",
        b"\x80\x02",
        b"\x80\x02}(",
        b"\x80\x02ctrap\nx\n)R",
        b"garbage",
        b"\x80\x02ca\nb\n\x85R.",
        b"\x80\x02J\x01",
        b"\x80\x02ca\nb\nJ\x01",
    ],
)
def test_damaged_pickles_are_refused(tmp_path: Path, pickled: bytes) -> None:
    write_zip(tmp_path / "a.pt", pickled)
    with refused(CheckpointError, tmp_path / "a.pt"):
        read_tensors(tmp_path / "a.pt", with_objects=True)
