"""Where results go: a file for each, or Parquet shards. What is there is whole and of this job, so that it need not be done again.

A folder of outputs belongs to one job, which its `job.json` describes. Nothing else notes what is done: a result is there under its name
only when it is whole.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from typing import Any, ClassVar, Literal

from musicrt.runtime.errors import InputError, OutputError
from musicrt.runtime.files import changing, new_file

Form = Literal["files", "parquet"]
Make = Callable[[Path], None]
"""Makes a file at a path, whole or not at all."""
Write = Callable[[str, Make], None]
"""Has the result of an input, by its name, made and kept."""

JOB = "job.json"
FAILED = "failed.jsonl"


class Outputs(ABC):
    """A folder of results. It travels to every worker, where it has to be the same folder."""

    form: ClassVar[Form]

    def __init__(self, folder: Path, suffix: str) -> None:
        """suffix: of every result."""
        self.folder, self.suffix = folder.absolute(), suffix

    @contextlib.contextmanager
    def claimed(self, description: Mapping[str, Any]) -> Iterator[None]:
        """The folder for a job, new or begun, while no other program works on it; what killed workers left half-written goes.

        Raises OutputError for one that is not empty and of another job, or of none.
        """
        described = json.dumps({**description, "form": self.form}, indent=1, sort_keys=True) + "\n"
        file = self.folder / JOB
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(f"can't write into {self.folder}: {error.strerror}; check the place and its permissions") from error
        with changing(self.folder):
            if file.is_file():
                if file.read_text(encoding="utf-8") != described:
                    raise OutputError(
                        f"{self.folder} holds results of another bundle or of other options, see its {JOB}; choose another folder"
                    )
            elif any(not path.name.startswith(".") for path in self.folder.iterdir()):
                raise OutputError(f"{self.folder} is not empty and holds no {JOB}; choose another folder")
            self._sweep()
            with new_file(file) as temporary:
                temporary.write_text(described, encoding="utf-8")
            yield
            self._sweep()  # of workers that died; where the work was broken off, some may still write

    @property
    def ending(self) -> str:
        """Suffix of the files that hold results."""
        return self.suffix

    def _sweep(self) -> None:
        """Remove what is half-written."""
        for path in self.folder.rglob(".*"):
            if self._is_temporary(path):
                path.unlink(missing_ok=True)  # who writes it may still live

    def _is_temporary(self, path: Path) -> bool:
        """Whether it is one of `new_file`, beside a result or the job."""
        return re.fullmatch(rf"\..+({re.escape(self.ending)}|{re.escape(JOB)})\.[a-z0-9_]{{8}}\.\w+", path.name) is not None

    @abstractmethod
    def done(self) -> set[str]:
        """Names of the inputs whose results are there."""

    @abstractmethod
    def collect(self, names: Sequence[str]) -> contextlib.AbstractContextManager[Write]:
        """Around the work on some inputs. What is there already is not made again. Raises OutputError."""


class Folder(Outputs):
    """A file for each result: the input's name with one more suffix, in the same folders as the inputs."""

    form = "files"

    def done(self) -> set[str]:
        found = (path for path in self.folder.rglob(f"*{self.suffix}") if not self._is_temporary(path))
        return {path.relative_to(self.folder).as_posix().removesuffix(self.suffix) for path in found}

    @contextlib.contextmanager
    def collect(self, names: Sequence[str]) -> Iterator[Write]:  # noqa: ARG002 - each stands for itself
        yield self._write

    def _write(self, name: str, make: Make) -> None:
        target = self.folder / (check_name(name) + self.suffix)
        if not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            make(target)


class Shards(Outputs):
    """Parquet files with a row for each result: `name` of the input, and `bytes` of what would be its file. One for each lot of inputs."""

    form = "parquet"

    @property
    def ending(self) -> str:
        return ".parquet"

    def done(self) -> set[str]:
        import pyarrow.parquet

        return {
            name
            for path in self.folder.glob("*.parquet")
            if not self._is_temporary(path)
            for name in pyarrow.parquet.read_table(path, columns=["name"]).column("name").to_pylist()
        }

    @contextlib.contextmanager
    def collect(self, names: Sequence[str]) -> Iterator[Write]:
        import pyarrow.parquet

        # Named after what it holds: a lot that is done again, because its worker died, takes the place of itself.
        digest = hashlib.sha256("\0".join(sorted(names)).encode()).hexdigest()
        target = self.folder / f"{digest[:24]}.parquet"
        made: dict[str, bytes] = {}
        with TemporaryDirectory() as folder:

            def write(name: str, make: Make) -> None:
                if not target.exists():
                    path = Path(folder, f"{len(made)}{self.suffix}")
                    make(path)
                    made[name] = path.read_bytes()

            yield write
        if made:
            schema = pyarrow.schema([("name", pyarrow.string()), ("bytes", pyarrow.large_binary())])
            table = pyarrow.table({"name": list(made), "bytes": list(made.values())}, schema=schema)
            with new_file(target) as temporary:
                pyarrow.parquet.write_table(table, temporary)


def open_outputs(folder: Path, form: Form, suffix: str) -> Outputs:
    """Those of a form."""
    return {"files": Folder, "parquet": Shards}[form](folder, suffix)


def check_name(name: str) -> str:
    """The same, where it stays inside of a folder. Raises InputError."""
    path = PurePosixPath(name)
    if not name.isascii() and name != name.encode("utf-8", "replace").decode("utf-8"):
        raise InputError(f"got the name {name!r}, which is no Unicode; rename the file")
    if "\0" in name or path.is_absolute() or ".." in path.parts or str(path) != name or name == ".":
        raise InputError(f"got the name {name!r}, expected a relative path without '..'")
    return name
