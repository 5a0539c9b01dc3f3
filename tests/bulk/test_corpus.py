"""What is worked on: folders, lists, Parquet files."""

from __future__ import annotations

from pathlib import Path

import pytest

from musicrt.bulk.corpus import find_corpus
from musicrt.runtime.errors import InputError

AUDIO = {".wav", ".flac"}


def touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


def test_folder_gives_relative_paths_of_all_below(tmp_path: Path) -> None:
    touch(tmp_path, "a.wav", "b/a.wav", "b/a.flac", "b/c/A.WAV", "b/notes.txt", ".hidden.wav", ".trash/a.wav")
    corpus = find_corpus(tmp_path, AUDIO)
    assert corpus.names == ("a.wav", "b/a.flac", "b/a.wav", "b/c/A.WAV")
    assert corpus.paths == tuple(str(tmp_path / name) for name in corpus.names)


def test_list_gives_paths_as_they_stand_there(tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("b/a.wav\n\n./c.raw\n/data//d.wav\n")
    corpus = find_corpus(tmp_path / "list.txt", AUDIO)
    assert corpus.names == ("b/a.wav", "c.raw", "data/d.wav")
    assert corpus.paths == (str(tmp_path / "b/a.wav"), str(tmp_path / "c.raw"), "/data/d.wav")


def test_parquet_gives_bytes_or_paths(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    for index in range(2):
        parquet.write_table(pyarrow.table({"name": [f"{index}.wav"], "bytes": [b"1"]}), tmp_path / f"{index}.parquet")
    parquet.write_table(pyarrow.table({"path": ["a.wav", "/b.wav"]}), tmp_path / "paths.pq")
    (tmp_path / "paths.pq").rename(tmp_path.parent / f"{tmp_path.name}.parquet")
    corpus = find_corpus(tmp_path, AUDIO)
    assert (corpus.names, corpus.paths) == (("0.wav", "1.wav"), ())
    assert corpus.shards == (str(tmp_path / "0.parquet"), str(tmp_path / "1.parquet"))
    corpus = find_corpus(tmp_path.parent / f"{tmp_path.name}.parquet", AUDIO)
    assert (corpus.names, corpus.paths) == (("a.wav", "b.wav"), (str(tmp_path.parent / "a.wav"), "/b.wav"))


def test_what_can_not_be_worked_on(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    with pytest.raises(InputError, match=r"holds nothing to work on, expected files such as \.flac, \.wav"):
        find_corpus(tmp_path, AUDIO)
    with pytest.raises(InputError, match=r"can't read .*none: No such file or directory; expected a folder, a list"):
        find_corpus(tmp_path / "none", AUDIO)
    (tmp_path / "list").write_bytes(b"a.wav\n./a.wav\nb.wav")
    with pytest.raises(InputError, match=r"has a\.wav 2 times; give every file a name of its own"):
        find_corpus(tmp_path / "list", AUDIO)
    (tmp_path / "list").write_bytes(b"\xff\xfe")
    with pytest.raises(InputError, match="not a text file"):
        find_corpus(tmp_path / "list", AUDIO)
    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    with pytest.raises(InputError, match="can't read the Parquet files"):
        find_corpus(tmp_path / "a.parquet", AUDIO)
    parquet.write_table(pyarrow.table({"audio": ["a"]}), tmp_path / "a.parquet")
    with pytest.raises(InputError, match="has the columns audio, expected name and bytes, or path"):
        find_corpus(tmp_path, AUDIO)
