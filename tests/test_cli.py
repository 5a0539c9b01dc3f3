"""The command line: what it prints and writes, how it ends, and that an error is one line and leaves nothing behind."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import musicrt
from musicrt import cli
from musicrt.runtime.audio import read_audio
from musicrt.runtime.audio_writer import AudioWriter
from musicrt.runtime.encoded import load_encoded, save_encoded
from musicrt.runtime.model import load
from musicrt.runtime.models.music2latent.pipeline import Pipeline
from musicrt.runtime.select import BACKENDS
from musicrt.runtime.spec import System
from tests.runtime.audio_files import disk_of, noise, save

pytest.importorskip("onnxruntime")

CPU = ("--backend", "onnxruntime-cpu")
STEP = 2.0**-23  # of 24-bit PCM


@dataclass(frozen=True)
class Outcome:
    """What a call of the command printed. `notes`: what it said on stderr beside the error."""

    out: str
    error: str
    notes: list[str]


Call = Callable[..., Outcome]


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Call:
    """Run the command in this process: `call(*arguments, status=0)`."""

    def run(*arguments: str | Path, status: int = 0) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["musicrt", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            cli.main()
        printed = capsys.readouterr()
        lines = printed.err.splitlines()
        error = [line for line in lines if line.startswith("error: ")]
        assert (ended.value.code or 0) == status, printed.err
        assert len(error) == (status in range(3, 10)), printed.err
        return Outcome(printed.out, "".join(error), [line for line in lines if line not in error])

    return run


def fails(call: Call, status: int, *arguments: str | Path, says: tuple[object, ...]) -> None:
    """Expects an error that holds all of `says`, and nothing on stderr beside it but what was running."""
    ended = call(*arguments, status=status)
    assert [str(word) for word in says if str(word) not in ended.error] == [], ended.error
    assert all(note.startswith("running on ") for note in ended.notes), ended.notes
    assert ended.out == ""


def spawn(*arguments: str | Path, without: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    """Run the command in a process of its own, which can't import the modules `without`."""
    code = f"import sys; sys.modules.update(dict.fromkeys({without!r})); from musicrt.cli import main; main()"
    return subprocess.run([sys.executable, "-c", code, *map(str, arguments)], capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def song(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Stereo, a third of a second: less than a window."""
    return save(tmp_path_factory.mktemp("song") / "song.wav", noise(2, 15_000))


@pytest.fixture(scope="module")
def long_song(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Mono, 6 seconds: two windows, one official chunk."""
    return save(tmp_path_factory.mktemp("song") / "long.wav", noise(1, 6 * 44_100))


@pytest.fixture(scope="module")
def codec() -> Pipeline:
    opened = load(backend="onnxruntime-cpu")
    assert isinstance(opened, Pipeline)
    return opened


@pytest.fixture(scope="module")
def encoded(song: Path, codec: Pipeline, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("encoded") / "song.enc"
    codec.encode_file(song, path)
    return path


# What is known


def test_version(call: Call) -> None:
    assert call("--version").out == f"{musicrt.__version__}\n"


def test_help_lists_every_command(call: Call) -> None:
    out = call("--help").out
    for command in ("systems", "export", "encode", "decode", "roundtrip", "verify", "inspect", "doctor", "bench"):
        assert f"\n  {command} " in out


def test_systems(call: Call) -> None:
    (system,) = json.loads(call("systems", "--json").out)
    assert (system["name"], system["variants"], system["weights"]) == ("music2latent", ["full"], "CC BY-NC 4.0 (non-commercial)")
    lines = call("systems").out.splitlines()
    assert lines[0] == "music2latent"
    assert "  licence of the weights: CC BY-NC 4.0 (non-commercial)" in lines


def test_inspect(call: Call) -> None:
    assert json.loads(call("inspect", "embedded", "--json").out) == json.loads((musicrt.EMBEDDED / "manifest.json").read_text())
    out = call("inspect", musicrt.EMBEDDED).out
    assert "not trained" in out
    assert "licence of the weights: MIT\n" in out
    assert f"identity: {musicrt.Bundle.open(musicrt.EMBEDDED).identity}\n" in out


def test_doctor(call: Call) -> None:
    report = json.loads(call("doctor", "--json").out)
    assert report["version"] == musicrt.__version__
    assert report["backends"] == {name: kind.obstacle() for name, kind in BACKENDS.items()}
    assert report["backends"]["onnxruntime-cpu"] is None
    first = next(name for name, obstacle in report["backends"].items() if obstacle is None)
    assert call("doctor").out.endswith(f"auto takes {first}\n")


def test_verify(call: Call) -> None:
    checks = json.loads(call("verify", "embedded", "--json", *CPU).out)
    assert [check["stage"] for check in checks] == [stage.name for stage in musicrt.Bundle.open(musicrt.EMBEDDED).spec.stages]
    for check in checks:
        assert check["ok"] is True
        assert check["backend"] == "onnxruntime-cpu"
        assert check["error"] <= check["tolerance"] <= 1e-4
    out = call("verify", "embedded", *CPU).out
    assert out.count(" ok ") == len(checks)
    assert "FAILED" not in out


# Encoding and decoding


def test_encode_writes_what_the_library_gives(call: Call, codec: Pipeline, song: Path, tmp_path: Path) -> None:
    ended = call("encode", "embedded", song, tmp_path / "a.enc", *CPU)
    written = load_encoded(tmp_path / "a.enc")
    assert (written.values == codec.encode(song, tail="pad")).all()
    assert (written.kind, written.source_rate, written.samples) == ("latents", 44_100, 15_000)
    assert ended.out == f"{tmp_path / 'a.enc'}: latents {list(written.values.shape)}, {written.values.nbytes} bytes\n"
    assert [note.split(" (")[0] for note in ended.notes] == ["running on onnxruntime-cpu"]


def test_decode_writes_what_the_library_gives(call: Call, codec: Pipeline, encoded: Path, tmp_path: Path) -> None:
    ended = call("decode", "embedded", encoded, tmp_path / "a.wav", "--steps", "2", "--seed", "7", "--threads", "1", *CPU)
    expected = codec.decode(load_encoded(encoded).values, steps=2, seed=7)[:, :15_000]
    written, rate = read_audio(tmp_path / "a.wav")
    assert (rate, written.shape) == (44_100, (2, 15_000))
    np.testing.assert_allclose(written, expected, rtol=0, atol=1e-5)
    assert np.abs(expected).max() > 0.01
    assert ended.out == f"{tmp_path / 'a.wav'}: 0.34 s at 44100 Hz\n"


def test_seed_decides(call: Call, encoded: Path, tmp_path: Path) -> None:
    for name, seed in (("a", "1"), ("b", "1"), ("c", "2")):
        call("decode", "embedded", encoded, tmp_path / f"{name}.wav", "--seed", seed, *CPU)
    a, b, c = (read_audio(tmp_path / f"{name}.wav")[0] for name in "abc")
    np.testing.assert_allclose(a, b, rtol=0, atol=STEP)
    assert np.abs(a - c).max() > 0.01


def test_roundtrip_is_encode_and_decode(call: Call, song: Path, encoded: Path, tmp_path: Path) -> None:
    call("roundtrip", "embedded", song, tmp_path / "a.flac", "--seed", "1", *CPU)
    call("decode", "embedded", encoded, tmp_path / "b.flac", "--seed", "1", *CPU)
    a, b = (read_audio(tmp_path / f"{name}.flac")[0] for name in "ab")
    assert a.shape == (2, 15_000)
    np.testing.assert_allclose(a, b, rtol=0, atol=STEP)


def test_chunking_decides_how_long_audio_is_cut(call: Call, codec: Pipeline, long_song: Path, tmp_path: Path) -> None:
    for chunking in ("official", "seamless"):
        call("encode", "embedded", long_song, tmp_path / f"{chunking}.enc", "--chunking", chunking, *CPU)
    official, seamless = (load_encoded(tmp_path / f"{chunking}.enc").values for chunking in ("official", "seamless"))
    assert (official == codec.encode(long_song, tail="pad")).all()
    assert (seamless == np.concatenate(list(codec.encode_stream(long_song, tail="pad")), axis=-1)).all()
    assert official.shape == seamless.shape
    assert np.abs(official - seamless).max() > 1e-3

    for chunking in ("official", "seamless"):
        arguments = ("decode", "embedded", tmp_path / "official.enc", tmp_path / f"{chunking}.wav")
        call(*arguments, "--seed", "1", "--chunking", chunking, *CPU)
    expected = {
        "official": codec.decode(official, seed=1),
        "seamless": np.concatenate(list(codec.decode_stream(official, seed=1)), axis=-1),
    }
    for chunking, audio in expected.items():
        np.testing.assert_allclose(read_audio(tmp_path / f"{chunking}.wav")[0], audio[:, : 6 * 44_100], rtol=0, atol=1e-5)
    assert np.abs(expected["official"] - expected["seamless"]).max() > 1e-3


def test_features_are_written_and_can_not_be_decoded(call: Call, song: Path, tmp_path: Path) -> None:
    call("encode", "embedded", song, tmp_path / "a.enc", "--features", *CPU)
    assert load_encoded(tmp_path / "a.enc").kind == "features"
    fails(call, 3, "decode", "embedded", tmp_path / "a.enc", tmp_path / "a.wav", *CPU, says=("features can't be decoded",))
    assert [path.name for path in tmp_path.iterdir()] == ["a.enc"]


def test_process_of_its_own_says_that_it_resampled(tmp_path: Path) -> None:
    path = save(tmp_path / "song.flac", noise(1, 24_000), 48_000)
    done = spawn("encode", "embedded", path, tmp_path / "a.enc", *CPU)
    assert done.returncode == 0, done.stderr
    assert "song.flac: resampled from 48000 Hz to 44100 Hz" in done.stderr
    written = load_encoded(tmp_path / "a.enc")
    assert (written.source_rate, written.sample_rate, written.samples) == (48_000, 44_100, 22_050)


# Export


def test_export_hands_every_option_on(call: Call, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for module in ("torch", "onnx", "onnxscript"):
        pytest.importorskip(module)
    given: dict[str, Any] = {}

    def export_bundle(system: str, checkpoint: str | None, out: Path, **options: Any) -> musicrt.Bundle:
        options.pop("on_stage")("encoder", 1, 7)
        given.update(options, system=system, checkpoint=checkpoint, out=out)
        return musicrt.Bundle.open(musicrt.EMBEDDED)

    monkeypatch.setattr("musicrt.export.bundle.export_bundle", export_bundle)
    out = tmp_path / "bundle"
    assert "identity: " in call("export", "music2latent", "--out", out).out
    plain = {"system": "music2latent", "checkpoint": None, "out": out, "variant": "full"}
    assert given == {**plain, "config": None, "description": "", "weights_licence": None}
    options = ["--checkpoint", "a/b", "--variant", "tiny", "--config", "c.json", "--description", "own", "--weights-licence", "CC0"]
    call("export", "music2latent", "--out", out, *options)
    own = {"checkpoint": "a/b", "variant": "tiny", "config": Path("c.json"), "description": "own", "weights_licence": "CC0"}
    assert given == {**plain, **own}


def test_export_without_a_checkpoint_leaves_nothing(call: Call, tmp_path: Path) -> None:
    for module in ("torch", "onnx", "onnxscript"):
        pytest.importorskip(module)
    missing = tmp_path / "missing.pt"
    fails(
        call,
        *(5, "export", "music2latent", "--checkpoint", missing, "--out", tmp_path / "bundle"),
        says=(missing, "does not exist", "music2latent.pt", "https://"),
    )
    assert not list(tmp_path.iterdir())


def test_export_names_the_extra_that_is_missing(tmp_path: Path) -> None:
    done = spawn("export", "music2latent", "--out", tmp_path / "bundle", without=("onnx_ir", "torch"))
    assert done.returncode == 3
    assert done.stderr == "error: export needs onnx_ir, which is not installed: pip install 'musicrt[export]'\n"


# Errors


def test_missing_bundle(call: Call, song: Path, tmp_path: Path) -> None:
    missing = tmp_path / "a folder [red]with a name[/red] that is longer than the eighty columns of a terminal" / "bundle"
    for arguments in (["inspect", missing], ["verify", missing], ["encode", missing, song, tmp_path / "a.enc"]):
        fails(call, 4, *arguments, says=(f"{missing} does not exist", "musicrt export"))
    assert not list(tmp_path.iterdir())


def test_damaged_bundle(call: Call, tmp_path: Path) -> None:
    bundle = shutil.copytree(musicrt.EMBEDDED, tmp_path / "bundle")
    weights = bundle / "stages" / "weights.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    fails(call, 4, "verify", bundle, *CPU, says=(weights, "SHA-256"))
    weights.write_bytes(data[:-1])
    fails(call, 4, "inspect", bundle, says=(weights, len(data) - 1, len(data)))


@pytest.mark.parametrize(("name", "content", "reason"), [("no.wav", None, "no such file"), ("text.wav", b"hello", "not recognised")])
def test_bad_audio(call: Call, tmp_path: Path, name: str, content: bytes | None, reason: str) -> None:
    audio, out = tmp_path / name, tmp_path / "out"
    out.mkdir()
    if content:
        audio.write_bytes(content)
    fails(call, 3, "encode", "embedded", audio, out / "a.enc", *CPU, says=(audio, reason))
    fails(call, 3, "roundtrip", "embedded", audio, out / "a.wav", *CPU, says=(audio, reason))
    assert not list(out.iterdir())


def test_format_that_can_not_be_written(call: Call, encoded: Path, tmp_path: Path) -> None:
    fails(call, 3, "decode", "embedded", encoded, tmp_path / "a.xyz", *CPU, says=("'.xyz'", ".wav, .flac"))
    assert not list(tmp_path.iterdir())


def test_unknown_or_unusable_backend(call: Call, song: Path, tmp_path: Path) -> None:
    arguments = ("encode", "embedded", song, tmp_path / "a.enc")
    fails(call, 6, *arguments, "--backend", "tpu", says=("'tpu'", "onnxruntime-cpu", "torch-cpu"))
    fails(call, 6, *arguments, "--threads", "0", says=("got 0 threads",))
    for name, kind in BACKENDS.items():
        if kind.obstacle():
            fails(call, 6, *arguments, "--backend", name, says=(f"{name} can't run here", kind.obstacle()))
    assert not list(tmp_path.iterdir())


def test_unknown_system(call: Call, tmp_path: Path) -> None:
    pytest.importorskip("torch")
    fails(call, 5, "export", "music3latent", "--out", tmp_path / "bundle", says=("'music3latent'", "known: music2latent"))


def test_encoded_file_of_another_bundle(call: Call, encoded: Path, tmp_path: Path) -> None:
    own, out = load_encoded(encoded), tmp_path / "a.wav"
    save_encoded(tmp_path / "weights.enc", replace(own, identity="0123456789ab" + "0" * 52))
    save_encoded(tmp_path / "system.enc", replace(own, system="other"))
    fails(call, 3, "decode", "embedded", tmp_path / "weights.enc", out, *CPU, says=("weights.enc", "0123456789ab", own.identity[:12]))
    fails(call, 3, "decode", "embedded", tmp_path / "system.enc", out, *CPU, says=("system.enc holds other", "music2latent"))
    fails(call, 3, "decode", "embedded", tmp_path / "none.enc", out, *CPU, says=("none.enc is missing", "musicrt encode"))
    assert not out.exists()


def test_failed_verification(call: Call, tmp_path: Path) -> None:
    bundle = shutil.copytree(musicrt.EMBEDDED, tmp_path / "bundle")
    manifest = json.loads((bundle / "manifest.json").read_text())
    manifest["stages"]["encoder"]["probe"]["outputs"]["latents"]["values"][0] += 1.0
    (bundle / "manifest.json").write_text(json.dumps(manifest))
    ended = call("verify", bundle, "--json", *CPU, status=7)
    assert ended.error.startswith(f"error: {bundle}: encoder differ")
    assert [check["stage"] for check in json.loads(ended.out) if not check["ok"]] == ["encoder"]


def test_full_disk(call: Call, song: Path, encoded: Path, tmp_path: Path) -> None:
    with disk_of(1000):
        fails(call, 8, "encode", "embedded", song, tmp_path / "a.enc", *CPU, says=(tmp_path / "a.enc", "File too large"))
        fails(call, 8, "decode", "embedded", encoded, tmp_path / "a.wav", *CPU, says=(tmp_path / "a.wav", "File too large"))
    fails(call, 8, "encode", "embedded", song, tmp_path / "no" / "a.enc", *CPU, says=(tmp_path / "no" / "a.enc", "No such file"))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "Usage: musicrt"),
        (["compose"], "compose"),
        (["encode", "embedded", "a.wav"], "out"),
        (["systems", "--jsn"], "--jsn"),
        (["encode", "embedded", "a.wav", "a.enc", "--chunking", "fast"], "'seamless', 'official'"),
        (["decode", "embedded", "a.enc", "a.wav", "--steps", "few"], "few"),
    ],
)
def test_wrong_usage(call: Call, arguments: list[str], says: str) -> None:
    ended = call(*arguments, status=2)
    assert says in ended.out + "\n".join(ended.notes)


def test_interrupted(call: Call, monkeypatch: pytest.MonkeyPatch, encoded: Path, tmp_path: Path) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(AudioWriter, "write", interrupt)
    ended = call("decode", "embedded", encoded, tmp_path / "a.wav", *CPU, status=130)
    assert ended.out == ""
    assert not any("Traceback" in note for note in ended.notes)
    assert not list(tmp_path.iterdir())


def test_fault_of_ours_is_not_dressed_up(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: str) -> System:
        raise RuntimeError("a bug")

    monkeypatch.setattr(cli, "find_system", fail)
    with pytest.raises(RuntimeError, match="a bug"):
        cli.app(["systems"])


def test_error_in_a_process_of_its_own(tmp_path: Path) -> None:
    done = spawn("inspect", tmp_path / "none")
    assert (done.returncode, done.stdout) == (4, "")
    assert done.stderr == f"error: {tmp_path / 'none'} does not exist; expected a bundle folder (make one with: musicrt export)\n"
