"""The command line when something is wrong: an exit code, one line that says what, and nothing half-written."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

import musicrt
from musicrt.cli import bundles
from musicrt.cli.app import app
from musicrt.runtime.audio_writer import AudioWriter
from musicrt.runtime.encoded import load_encoded, save_encoded
from musicrt.runtime.models.music2latent.pipeline import Pipeline
from musicrt.runtime.select import BACKENDS
from musicrt.runtime.spec import System
from tests.command import CPU, call, fails, spawn
from tests.runtime.audio_files import disk_of, noise, save

pytest.importorskip("onnxruntime")


@pytest.fixture(scope="module")
def song(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tmp_path_factory.mktemp("song") / "song.wav", noise(2, 15_000))


@pytest.fixture(scope="module")
def encoded(song: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("encoded") / "song.enc"
    with musicrt.load(backend="onnxruntime-cpu") as codec:
        codec.encode_file(song, path)
    return path


def test_export_without_a_checkpoint_leaves_nothing(tmp_path: Path) -> None:
    for module in ("torch", "onnx", "onnxscript"):
        pytest.importorskip(module)
    missing = tmp_path / "missing.pt"
    arguments = ("export", "music2latent", "--checkpoint", missing, "--out", tmp_path / "bundle")
    fails(5, *arguments, says=(missing, "does not exist", "music2latent.pt", "https://"))
    assert not list(tmp_path.iterdir())


def test_export_names_the_extra_that_is_missing(tmp_path: Path) -> None:
    done = spawn("export", "music2latent", "--out", tmp_path / "bundle", without=("onnx_ir", "torch"))
    assert done.returncode == 3
    assert done.stderr == "error: export needs torch, which is not installed: pip install 'musicrt[export]'\n"


def test_missing_bundle(song: Path, tmp_path: Path) -> None:
    missing = tmp_path / "a folder [red]with a name[/red] that is longer than the eighty columns of a terminal" / "bundle"
    for arguments in (("inspect", missing), ("verify", missing), ("encode", missing, song, tmp_path / "a.enc")):
        fails(4, *arguments, says=(f"{missing} does not exist", "musicrt export"))
    assert not list(tmp_path.iterdir())


def test_damaged_bundle(tmp_path: Path) -> None:
    bundle = shutil.copytree(musicrt.EMBEDDED, tmp_path / "bundle")
    weights = bundle / "stages" / "weights.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    fails(4, "verify", bundle, *CPU, says=(weights, "SHA-256"))
    weights.write_bytes(data[:-1])
    fails(4, "inspect", bundle, says=(weights, len(data) - 1, len(data)))


@pytest.mark.parametrize(("name", "content", "reason"), [("no.wav", None, "no such file"), ("text.wav", b"hello", "not recognised")])
def test_bad_audio(tmp_path: Path, name: str, content: bytes | None, reason: str) -> None:
    audio, out = tmp_path / name, tmp_path / "out"
    out.mkdir()
    if content:
        audio.write_bytes(content)
    fails(3, "encode", "embedded", audio, out / "a.enc", *CPU, says=(audio, reason))
    fails(3, "roundtrip", "embedded", audio, out / "a.wav", *CPU, says=(audio, reason))
    assert not list(out.iterdir())


def test_format_that_can_not_be_written(encoded: Path, tmp_path: Path) -> None:
    fails(3, "decode", "embedded", encoded, tmp_path / "a.xyz", *CPU, says=("'.xyz'", ".wav, .flac"))
    assert not list(tmp_path.iterdir())


def test_unknown_or_unusable_backend(song: Path, tmp_path: Path) -> None:
    arguments = ("encode", "embedded", song, tmp_path / "a.enc")
    fails(6, *arguments, "--backend", "tpu", says=("'tpu'", "onnxruntime-cpu", "torch-cpu"))
    fails(6, *arguments, "--threads", "0", says=("got 0 threads",))
    for name, kind in BACKENDS.items():
        if kind.obstacle():
            fails(6, *arguments, "--backend", name, says=(f"{name} can't run here", kind.obstacle()))
    assert not list(tmp_path.iterdir())


def test_unknown_system(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    fails(5, "export", "music3latent", "--out", tmp_path / "bundle", says=("'music3latent'", "known: mucodec, music2latent"))


def test_encoded_file_of_another_bundle(encoded: Path, tmp_path: Path) -> None:
    own, out = load_encoded(encoded), tmp_path / "a.wav"
    save_encoded(tmp_path / "weights.enc", replace(own, identity="0123456789ab" + "0" * 52))
    save_encoded(tmp_path / "system.enc", replace(own, system="other"))
    fails(3, "decode", "embedded", tmp_path / "weights.enc", out, *CPU, says=("weights.enc", "0123456789ab", own.identity[:12]))
    fails(3, "decode", "embedded", tmp_path / "system.enc", out, *CPU, says=("system.enc holds other", "music2latent"))
    fails(3, "decode", "embedded", tmp_path / "none.enc", out, *CPU, says=("none.enc is missing", "musicrt encode"))
    assert not out.exists()


def test_option_that_the_system_has_not(song: Path, encoded: Path, tmp_path: Path) -> None:
    out = tmp_path / "a.wav"
    for option in (("--guidance", "0.5"), ("--eta", "0.5"), ("--max-batch-size", "2")):
        says = f"music2latent has no option {option[0]}; of this command's it has "
        fails(3, "decode", "embedded", encoded, out, *option, *CPU, says=(f"{says}--steps, --seed, --chunking",))
        fails(3, "roundtrip", "embedded", song, out, *option, *CPU, says=(f"{says}--chunking, --steps, --seed",))
    says = "music2latent has no option --channels; of this command's it has --chunking, --features"
    fails(3, "encode", "embedded", song, out, "--channels", "first", *CPU, says=(says,))
    assert not list(tmp_path.iterdir())


def test_inspect_of_nothing_names_both_kinds(tmp_path: Path) -> None:
    fails(4, "inspect", tmp_path / "nothere.st", says=("nothere.st does not exist", "musicrt export", "musicrt encode"))


def test_wrong_value_is_refused_before_the_work(song: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Pipeline, "encode_source", lambda *_, **__: pytest.fail("must not get this far"))
    fails(3, "roundtrip", "embedded", song, tmp_path / "a.wav", "--steps", "0", *CPU, says=("0", "steps"))
    assert not list(tmp_path.iterdir())


def test_lack_of_memory_is_said_in_words_that_fit_every_system(monkeypatch: pytest.MonkeyPatch) -> None:
    def take_too_much() -> list[str]:
        raise MemoryError

    monkeypatch.setattr(bundles, "system_names", take_too_much)
    fails(1, "systems", says=("shorter audio", "where the system has them", "--chunking seamless", "--max-batch-size"))


def test_file_that_is_neither_bundle_nor_anything_else(tmp_path: Path) -> None:
    for name, words in (("notes.txt", "not encoded audio"), ("notes.wav", "intact .wav"), ("notes.mp4", "can't read")):
        (tmp_path / name).write_text("a note")
        fails(3, "inspect", tmp_path / name, says=(tmp_path / name, words))


def test_failed_verification(tmp_path: Path) -> None:
    bundle = shutil.copytree(musicrt.EMBEDDED, tmp_path / "bundle")
    manifest = json.loads((bundle / "manifest.json").read_text())
    manifest["stages"]["encoder"]["probe"]["outputs"]["latents"]["values"][0] += 1.0
    (bundle / "manifest.json").write_text(json.dumps(manifest))
    ended = call("verify", bundle, "--json", *CPU, status=7)
    assert ended.error.startswith(f"error: {bundle}: encoder differ")
    assert [check["stage"] for check in json.loads(ended.out) if not check["ok"]] == ["encoder"]


def test_full_disk(song: Path, encoded: Path, tmp_path: Path) -> None:
    with disk_of(1000):
        fails(8, "encode", "embedded", song, tmp_path / "a.enc", *CPU, says=(tmp_path / "a.enc", "File too large"))
        fails(8, "decode", "embedded", encoded, tmp_path / "a.wav", *CPU, says=(tmp_path / "a.wav", "File too large"))
    fails(8, "encode", "embedded", song, tmp_path / "no" / "a.enc", *CPU, says=(tmp_path / "no" / "a.enc", "No such file"))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "Usage: "),
        (["compose"], "compose"),
        (["encode", "embedded", "a.wav"], "out"),
        (["systems", "--jsn"], "--jsn"),
        (["encode", "embedded", "a.wav", "a.enc", "--chunking", "fast"], "'seamless', 'official'"),
        (["decode", "embedded", "a.enc", "a.wav", "--steps", "few"], "'--steps'"),
        (["decode", "embedded", "a.enc", "a.wav", "--channels", "each"], "--channels"),
        (["decode", "embedded", "a.enc", "a.wav", "--sampler", "foo"], "'ddim', 'dpm-solver++'"),
        (["decode", "embedded", "a.enc", "a.wav", "--max-batch-size", "few"], "'--max-batch-size'"),
        (["encode", "embedded", "a.wav", "a.enc", "--channels", "second"], "'first', 'each'"),
        (["encode", "embedded", "a.wav", "a.enc", "--seed", "1"], "--seed"),
        (["roundtrip", "embedded", "a.wav", "b.wav", "--features"], "--features"),
    ],
)
def test_wrong_usage(arguments: list[str], says: str) -> None:
    ended = call(*arguments, status=2)
    assert says in ended.out + "\n".join(ended.notes)


def test_interrupted(monkeypatch: pytest.MonkeyPatch, encoded: Path, tmp_path: Path) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(AudioWriter, "write", interrupt)
    ended = call("decode", "embedded", encoded, tmp_path / "a.wav", *CPU, status=130)
    assert ended.out == ""
    assert not any("Traceback" in note for note in ended.notes)
    assert not list(tmp_path.iterdir())


def test_fault_of_ours_is_not_dressed_up(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: str) -> System:
        raise RuntimeError("a bug")

    monkeypatch.setattr(bundles, "find_system", fail)
    with pytest.raises(RuntimeError, match="a bug"):
        app(["systems"])


def test_error_in_a_process_of_its_own(tmp_path: Path) -> None:
    done = spawn("inspect", tmp_path / "none")
    assert (done.returncode, done.stdout) == (4, "")
    expected = "expected a bundle folder (make one with: musicrt export) or a file of encoded audio (make one with: musicrt encode)"
    assert done.stderr == f"error: {tmp_path / 'none'} does not exist; {expected}\n"
