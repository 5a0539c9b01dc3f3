"""Folders of results: whose they are, what is done, and what a killed run leaves."""

from __future__ import annotations

import json
from io import FileIO
from pathlib import Path

import pytest

from musicrt.bulk.outputs import FAILED, JOB, Outputs, check_name, open_outputs
from musicrt.runtime.errors import InputError, OutputError
from tests.conftest import refused
from tests.runtime.audio_files import disk_of

JOB_FACTS = {"way": "encode", "identity": "1" * 64}


def put(outputs: Outputs, *names: str) -> None:
    with outputs.collect(names) as write:
        for name in names:
            write(name, lambda path: path.write_text("new"))  # type: ignore[arg-type]


def test_files_are_done_when_they_are_there_and_stay_as_they_are(tmp_path: Path) -> None:
    outputs = open_outputs(tmp_path / "out", "files", ".st")
    with outputs.claimed(JOB_FACTS):
        put(outputs, "a.wav", "b/a.wav", "b/c.d/a.wav")
        (tmp_path / "out" / "a.wav.st").write_text("old")
        put(outputs, "a.wav")
    assert outputs.done() == {"a.wav", "b/a.wav", "b/c.d/a.wav"}
    assert (tmp_path / "out" / "a.wav.st").read_text() == "old"


def test_shards_hold_the_bytes_and_a_lot_done_again_takes_its_own_place(tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    outputs = open_outputs(tmp_path, "parquet", ".st")
    put(outputs, "b/a.wav", "a.wav")
    put(outputs, "a.wav", "b/a.wav")
    put(outputs, "c.wav")
    assert outputs.done() == {"a.wav", "b/a.wav", "c.wav"}
    assert len(list(tmp_path.iterdir())) == 2
    assert parquet.read_table(tmp_path).to_pylist()[0]["bytes"] == b"new"


def test_failed_results_are_not_in_a_shard(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    outputs = open_outputs(tmp_path, "parquet", ".st")
    with outputs.collect(["a", "b"]) as write:
        write("a", lambda path: path.write_text("new"))  # type: ignore[arg-type]
        with pytest.raises(FileNotFoundError):
            write("b", lambda path: path.unlink())
    assert outputs.done() == {"a"}


def test_what_failed_is_noted_in_whole_lines(tmp_path: Path) -> None:
    """However little of one the system takes at once; and where the disk fills up within one, that line is left out."""
    pytest.importorskip("ray")
    from musicrt.bulk.batch import Summary, _note, _open_list

    class Slow(FileIO):
        def write(self, data: bytes) -> int:  # type: ignore[override]
            return super().write(data[:7])

    with Slow(tmp_path / FAILED, "w") as slow:
        for name in ("a.wav", "é.wav"):
            _note(Summary(2, 0), slow, name, "damaged")
    lines = (tmp_path / FAILED).read_text().splitlines()
    assert [json.loads(line) for line in lines] == [{"file": name, "reason": "damaged"} for name in ("a.wav", "é.wav")]
    with disk_of(60), _open_list(tmp_path / FAILED) as file:
        _note(Summary(2, 0), file, "a.wav", "damaged")
        with refused(OutputError, "can't write", tmp_path / FAILED, "File too large"):
            _note(Summary(2, 0), file, "b.wav", "damaged")
    assert (tmp_path / FAILED).read_text() == lines[0] + "\n"


@pytest.mark.parametrize("form", ["files", "parquet"])
def test_folder_belongs_to_one_job(tmp_path: Path, form: str) -> None:
    outputs = open_outputs(tmp_path / "out", form, ".st")  # type: ignore[arg-type]
    for _ in range(2):
        with outputs.claimed(JOB_FACTS):
            (outputs.folder / FAILED).touch()
    with (
        pytest.raises(OutputError, match=r"of another bundle or of other options, see its job\.json; choose"),
        outputs.claimed({"way": "decode"}),
    ):
        pytest.fail("claimed")
    (outputs.folder / JOB).unlink()
    with pytest.raises(OutputError, match=r"is not empty and holds no job\.json; choose"), outputs.claimed(JOB_FACTS):
        pytest.fail("claimed")
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="can't write into"), open_outputs(tmp_path / "file", "files", ".st").claimed(JOB_FACTS):
        pytest.fail("claimed")


def test_what_a_killed_run_left_half_written_goes(tmp_path: Path) -> None:
    outputs = open_outputs(tmp_path, "files", ".st")
    with outputs.claimed(JOB_FACTS):
        put(outputs, "b/a.wav")
        for name in (".a.wav.st.ab_12cde.st", "b/.a.wav.st.ab_12cde.st", ".mine", ".mine.st"):
            (tmp_path / name).touch()
    with outputs.claimed(JOB_FACTS):
        assert sorted(path.name for path in tmp_path.rglob("*") if path.is_file()) == [".mine", ".mine.st", "a.wav.st", JOB]


@pytest.mark.parametrize("name", ["/a", "../a", "a/../../b", "a//b", "./a", ".", "", "a\0b", "a\udcffb"])
def test_names_stay_inside(name: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="got the name"):
        check_name(name)
    with pytest.raises(InputError, match="got the name"):
        put(open_outputs(tmp_path, "files", ".st"), name)


def test_names_of_all_languages_are_fine() -> None:
    assert check_name("Ünï/日本 \u00a0.wav") == "Ünï/日本 \u00a0.wav"
