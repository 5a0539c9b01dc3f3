"""The files that are worked on: of a folder, of a list, or in Parquet files."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from musicrt.runtime.errors import InputError


@dataclass(frozen=True)
class Corpus:
    """Inputs by name. paths: where each file is, or nothing where their bytes lie in the Parquet files `shards`.

    A name is the path from the folder, or the path as it stands in a list; results have it too.
    """

    names: tuple[str, ...]
    paths: tuple[str, ...] = ()
    shards: tuple[str, ...] = ()


def find_corpus(source: Path, suffixes: Collection[str]) -> Corpus:
    """What `source` names. Raises InputError: nothing there, nothing in it, or one name twice.

    A folder: all files in it and below with these suffixes, but hidden ones. A text file: a path on each line, from the folder of the
    list unless it is absolute. A Parquet file, or a folder that holds some: rows with `name` and `bytes`, or with `path`.
    """
    source = source.absolute()
    if source.is_dir() and not any(source.glob("*.parquet")):
        names = sorted(
            path.relative_to(source).as_posix() for path in source.rglob("*") if path.suffix.lower() in suffixes and path.is_file()
        )
        names = [name for name in names if not any(part.startswith(".") for part in name.split("/"))]
        corpus = Corpus(tuple(names), tuple(str(source / name) for name in names))
        expected = f"files such as {', '.join(sorted(suffixes)[:3])}"
    elif source.is_dir() or source.suffix == ".parquet":
        corpus, expected = _read_shards(sorted(source.glob("*.parquet")) if source.is_dir() else [source]), "rows"
    else:
        corpus, expected = _read_list(source), "a path on each line"
    if not corpus.names:
        raise InputError(f"{source} holds nothing to work on, expected {expected}")
    ((name, count),) = Counter(corpus.names).most_common(1)
    if count > 1:
        raise InputError(f"{source} has {name} {count} times; give every file a name of its own")
    return corpus


def _read_list(source: Path) -> Corpus:
    try:
        lines = [line.strip() for line in source.read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not a text file"
        raise InputError(f"can't read {source}: {reason}; expected a folder, a list of files, or Parquet files") from None
    return _at([line for line in lines if line], source.parent)


def _at(paths: list[str], folder: Path) -> Corpus:
    paths = [str(PurePosixPath(path)) for path in paths]  # without ./ and doubled slashes
    return Corpus(tuple(path.lstrip("/") for path in paths), tuple(str(folder / path) for path in paths))


def _read_shards(files: list[Path]) -> Corpus:
    import pyarrow
    import pyarrow.parquet

    try:
        columns = set(pyarrow.parquet.read_schema(files[0]).names)
        wanted = "name" if {"name", "bytes"} <= columns else "path"
        if wanted not in columns:
            raise InputError(f"{files[0]} has the columns {', '.join(sorted(columns))}, expected name and bytes, or path")
        rows = [str(row) for file in files for row in pyarrow.parquet.read_table(file, columns=[wanted]).column(wanted).to_pylist()]
    except (OSError, pyarrow.ArrowException) as error:
        raise InputError(f"can't read the Parquet files of {files[0].parent} ({error}); get them whole") from None
    if wanted == "path":
        return _at(rows, files[0].parent)
    return Corpus(tuple(rows), shards=tuple(map(str, files)))
