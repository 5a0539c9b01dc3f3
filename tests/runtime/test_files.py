"""Files and folders appear when they are complete, or not at all."""

from __future__ import annotations

import errno
import hashlib
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
from safetensors import SafetensorError

import musicrt
from musicrt.runtime.errors import InputError, OutputError
from musicrt.runtime.files import changing, new_file, new_folder, sha256_of
from tests.conftest import refused

Open = Callable[[Path], AbstractContextManager[Path]]
BOTH = pytest.mark.parametrize("create", [new_file, new_folder])


def fill(place: Path, text: str) -> None:
    (place / "content" if place.is_dir() else place).write_text(text)


def fail_halfway(create: Open, target: Path, error: BaseException) -> None:
    with create(target) as temporary:
        fill(temporary, "half of it")
        raise error


def read(place: Path) -> str:
    return (place / "content" if place.is_dir() else place).read_text()


@BOTH
def test_target_appears_when_all_is_written(create: Open, tmp_path: Path) -> None:
    target = tmp_path / "result.wav"
    with create(target) as temporary:
        assert temporary.parent == tmp_path, "a rename must not cross file systems"
        fill(temporary, "all of it")
        assert not target.exists()
    assert read(target) == "all of it"
    assert list(tmp_path.iterdir()) == [target]


@BOTH
@pytest.mark.parametrize("error", [ValueError("a fault"), KeyboardInterrupt(), InputError("wrong"), GeneratorExit()])
def test_nothing_is_left_after_an_error(create: Open, tmp_path: Path, error: BaseException) -> None:
    with pytest.raises(type(error)) as caught:
        fail_halfway(create, tmp_path / "result", error)
    assert caught.value is error
    assert list(tmp_path.iterdir()) == []


@BOTH
@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), SafetensorError("I/O error: No space left on device")])
def test_failed_write_is_an_output_error(create: Open, tmp_path: Path, error: Exception) -> None:
    with refused(OutputError, tmp_path / "result", "No space left on device", "free space"), create(tmp_path / "result"):
        raise error
    assert list(tmp_path.iterdir()) == []


@BOTH
def test_output_error_from_inside_is_passed_on(create: Open, tmp_path: Path) -> None:
    with refused(OutputError, "my own words"), create(tmp_path / "result"):
        raise OutputError("my own words")


@pytest.mark.parametrize("umask", ["022", "077", "002"])
def test_permissions_are_the_usual_ones(tmp_path: Path, umask: str) -> None:
    """Those that the shell which started the process asks for."""
    code = (
        "from pathlib import Path; import os; from musicrt.runtime.files import new_file, new_folder\n"
        "for create in (new_file, new_folder):\n"
        "    with create(Path(create.__name__)): pass\n"
        "Path('usual file').touch(), Path('usual folder').mkdir()"
    )
    path = os.pathsep.join([str(Path(musicrt.__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    command = ["sh", "-c", f'umask {umask} && exec "$0" -c "$1"', sys.executable, code]
    subprocess.run(command, cwd=tmp_path, env={**os.environ, "PYTHONPATH": path}, check=True)
    modes = {path.name: path.stat().st_mode for path in tmp_path.iterdir()}
    assert modes["new_file"] == modes["usual file"]
    assert modes["new_folder"] == modes["usual folder"]


def test_existing_file_is_replaced_only_in_the_end(tmp_path: Path) -> None:
    target = tmp_path / "result"
    target.write_text("old")
    with pytest.raises(ValueError, match="a fault"):
        fail_halfway(new_file, target, ValueError("a fault"))
    assert read(target) == "old"
    with new_file(target) as temporary:
        fill(temporary, "new")
        assert read(target) == "old"
    assert read(target) == "new"


def test_temporary_file_keeps_the_suffix(tmp_path: Path) -> None:
    """Libraries choose a format by it."""
    with new_file(tmp_path / "song.flac") as temporary:
        assert temporary.suffix == ".flac"
        assert temporary.name.startswith(".song.flac.")


def test_file_in_a_missing_folder_is_refused(tmp_path: Path) -> None:
    with refused(OutputError, tmp_path / "missing" / "result", "No such file or directory"), new_file(tmp_path / "missing" / "result"):
        pytest.fail("must not get this far")


def test_file_in_place_of_a_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    with refused(OutputError, tmp_path / "folder"), new_file(tmp_path / "folder") as temporary:
        fill(temporary, "x")
    assert list(tmp_path.iterdir()) == [tmp_path / "folder"]


def test_folder_is_made_with_its_parents(tmp_path: Path) -> None:
    with new_folder(tmp_path / "a" / "b" / "c") as temporary:
        fill(temporary, "x")
    assert read(tmp_path / "a" / "b" / "c") == "x"


def test_empty_folder_may_be_filled(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    with new_folder(tmp_path / "folder") as temporary:
        fill(temporary, "x")
    assert read(tmp_path / "folder") == "x"


@pytest.mark.parametrize("kind", ["full folder", "file"])
def test_existing_things_are_never_overwritten_by_a_folder(tmp_path: Path, kind: str) -> None:
    target = tmp_path / "result"
    if kind == "file":
        target.write_text("precious")
    else:
        target.mkdir()
        (target / "content").write_text("precious")
    with refused(OutputError, target, "exists already"), new_folder(target):
        pytest.fail("must not get this far")
    assert read(target) == "precious"
    assert list(tmp_path.iterdir()) == [target]


def test_folder_that_appears_meanwhile_is_not_overwritten(tmp_path: Path) -> None:
    target = tmp_path / "result"
    with refused(OutputError, target), new_folder(target) as temporary:
        fill(temporary, "mine")
        target.mkdir()
        (target / "content").write_text("precious")
    assert read(target) == "precious"
    assert list(tmp_path.iterdir()) == [target]


def test_folder_below_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with refused(OutputError, tmp_path / "file" / "result"), new_folder(tmp_path / "file" / "result"):
        pytest.fail("must not get this far")


@pytest.mark.parametrize("size", [0, 1, 1 << 20])
def test_hash_is_that_of_all_bytes(tmp_path: Path, size: int) -> None:
    content = bytes(i % 251 for i in range(size))
    (tmp_path / "file").write_bytes(content)
    assert sha256_of(tmp_path / "file") == hashlib.sha256(content).hexdigest()


def test_folder_is_changed_by_one_at_a_time(tmp_path: Path) -> None:
    pytest.importorskip("fcntl")
    order: list[str] = []

    def change() -> None:
        with changing(tmp_path):
            order.append("second")

    thread = threading.Thread(target=change)
    with changing(tmp_path):
        thread.start()
        thread.join(0.2)
        order.append("first")
    thread.join(10)
    assert order == ["first", "second"]
    with refused(OutputError, "missing"), changing(tmp_path / "missing"):
        pass
