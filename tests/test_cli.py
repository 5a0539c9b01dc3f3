"""The command line: what each command prints and writes."""

from __future__ import annotations

import contextlib
import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import musicrt
from musicrt.cli import output
from musicrt.runtime.audio import read_audio
from musicrt.runtime.encoded import Encoded, load_encoded, save_encoded
from musicrt.runtime.files import sha256_of
from musicrt.runtime.model import load
from musicrt.runtime.models.music2latent.pipeline import Pipeline
from musicrt.runtime.select import BACKENDS
from tests.command import CPU, call, fails, spawn
from tests.runtime.audio_files import noise, save

pytest.importorskip("onnxruntime")

STEP = 2.0**-23  # of 24-bit PCM


def in_one_line(text: str) -> str:
    return " ".join(text.split())


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


def test_version() -> None:
    assert call("--version").out == f"{musicrt.__version__}\n"


def test_help_lists_every_command() -> None:
    out = call("--help").out
    for command in ("systems", "export", "encode", "decode", "roundtrip", "verify", "inspect", "doctor", "bench"):
        assert f"\n  {command} " in out


def test_systems() -> None:
    (system,) = (system for system in json.loads(call("systems", "--json").out) if system["name"] == "music2latent")
    assert (system["name"], system["variants"], system["weights"]) == ("music2latent", ["full"], "CC BY-NC 4.0 (non-commercial)")
    lines = call("systems").out.splitlines()
    assert "music2latent" in lines
    assert "  licence of the weights: CC BY-NC 4.0 (non-commercial)" in lines


def test_inspect() -> None:
    assert json.loads(call("inspect", "embedded", "--json").out) == json.loads((musicrt.EMBEDDED / "manifest.json").read_text())
    out = call("inspect", musicrt.EMBEDDED).out
    assert "trained from scratch on music that this project synthesises" in out
    assert "licence of the weights: MIT\n" in out
    assert f"identity: {musicrt.Bundle.open(musicrt.EMBEDDED).identity}\n" in out


def test_inspect_of_floats(encoded: Path, codec: Pipeline) -> None:
    length = codec.latent_length(15_000, "pad")
    bits = 32 * 2 * 64 * length
    rates = {"bit_rate": bits / (15_000 / 44_100), "file_bit_rate": 8 * encoded.stat().st_size / (15_000 / 44_100)}
    report = json.loads(call("inspect", encoded, "--json").out)
    assert {name: report[name] for name in rates} == pytest.approx(rates)
    assert (report["kind"], report["shape"], report["bits"], report["nominal_bit_rates"]) == ("latents", [2, 64, length], [], {})
    assert report["identity"] == codec.model.identity
    lines = call("inspect", encoded).out.splitlines()
    assert f"file: {encoded}" in lines
    assert f"values: latents [2, 64, {length}]" in lines
    assert "audio: 0.34 s, 44100 Hz before it was encoded" in lines
    assert f"bit rate: {rates['bit_rate'] / 1000:.4g} kbps, with the header {rates['file_bit_rate'] / 1000:.4g} kbps" in lines


def test_inspect_of_audio_says_what_it_was_made_with(encoded: Path, codec: Pipeline, song: Path, tmp_path: Path) -> None:
    codec.decode_file(encoded, tmp_path / "a.flac", seed=9)
    report = json.loads(call("inspect", tmp_path / "a.flac", "--json").out)
    assert (report["format"], report["sample_rate"], report["channels"]) == ("FLAC PCM_24", 44_100, 2)
    assert report["record"]["options"] == {"seed": 9}
    assert report["record"]["source"] == json.loads(call("inspect", encoded, "--json").out)["record"]
    out = call("inspect", tmp_path / "a.flac").out
    assert f"  bundle: {codec.model.identity}\n" in out
    assert "  options: seed=9\n" in out
    assert f"  of a file with SHA-256: {sha256_of(encoded)}\nwhich was made: by encode, musicrt {musicrt.__version__}" in out
    assert f"  of a file with SHA-256: {sha256_of(song)}\n" in out
    assert "made: the file does not say how\n" in call("inspect", song).out


def test_verbose_logs_the_opening_of_stages(encoded: Path, tmp_path: Path) -> None:
    done = spawn("-v", "decode", "embedded", encoded, tmp_path / "a.wav", *CPU)
    assert "stage decoder opened in" in in_one_line(done.stderr)
    assert "opened on onnxruntime-cpu" in in_one_line(done.stderr)
    assert "opened" not in spawn("decode", "embedded", encoded, tmp_path / "a.wav", *CPU).stderr


RATES = {"large": 1400.0, "small": 312.5}


@pytest.fixture
def tokens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two seconds in tokens of a made-up system with two variants."""
    monkeypatch.setattr(output, "system_names", lambda: ["chatter"])
    monkeypatch.setattr(output, "bit_rates", lambda system: {"chatter": RATES}[system])
    values = np.zeros((1, 27, 2), np.int64)
    save_encoded(tmp_path / "a.tok", Encoded(values, "chatter", "small", "tokens", "0" * 64, 16_000, 44_100, 32_000, bits=(13, 12)))
    return tmp_path / "a.tok"


def test_inspect_of_tokens(tokens: Path) -> None:
    measured, whole = 27 * 25 / 2, 8 * tokens.stat().st_size / 2
    report = json.loads(call("inspect", tokens, "--json").out)
    assert (report["bits"], report["seconds"], report["shape"]) == ([13, 12], 2.0, [1, 27, 2])
    assert (report["bit_rate"], report["file_bit_rate"], report["nominal_bit_rates"]) == (measured, whole, RATES)
    out = call("inspect", tokens).out
    assert "bits per code: 13, 12\n" in out
    assert f"bit rate: 0.3375 kbps, with the header {whole / 1000:.4g} kbps\n" in out
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in out.splitlines() if line.startswith("│")]
    assert rows == [["large", "1.4 kbps", ""], ["small", "0.3125 kbps", "this one"]]


def test_inspect_of_a_system_that_is_not_known(tokens: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(output, "system_names", lambda: ["another"])
    assert json.loads(call("inspect", tokens, "--json").out)["nominal_bit_rates"] == {}
    assert "this one" not in call("inspect", tokens).out


def test_inspect_of_no_sound(tokens: Path) -> None:
    save_encoded(tokens, replace(load_encoded(tokens), samples=0))
    report = json.loads(call("inspect", tokens, "--json").out)
    assert (report["seconds"], report["bit_rate"], report["file_bit_rate"]) == (0.0, 0.0, 0.0)


@pytest.mark.usefixtures("tokens")
def test_inspect_of_a_bundle_with_a_bit_rate() -> None:
    bundle = musicrt.Bundle.open(musicrt.EMBEDDED)
    bundle.manifest = bundle.manifest.model_copy(update={"system": "chatter", "variant": "large"})
    bundle.spec = replace(bundle.spec, bit_rate=1400.0)
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        output.print_bundle(bundle)
        output.print_bundle(bundle, as_json=True)
    text, _, content = printed.getvalue().partition("\n{")
    assert "nominal bit rate: 1.4 kbps\n" in text
    assert [line for line in text.splitlines() if "this one" in line] == ["│ large   │ 1.4 kbps             │ this one │"]
    manifest = bundle.manifest.model_dump(mode="json", exclude_unset=True)
    assert json.loads("{" + content) == {**manifest, "bit_rate": 1400.0, "nominal_bit_rates": RATES}


def test_doctor() -> None:
    report = json.loads(call("doctor", "--json").out)
    assert report["version"] == musicrt.__version__
    backends = report["backends"]
    assert {name: state["obstacle"] for name, state in backends.items()} == {name: kind.obstacle() for name, kind in BACKENDS.items()}
    assert backends["onnxruntime-cpu"]["precisions"] == ["float32", "int8"]
    assert all(bool(state["precisions"]) == (state["obstacle"] is None) for state in backends.values())
    assert report["auto"] == next(name for name, state in backends.items() if state["obstacle"] is None)
    assert call("doctor").out.endswith(f"auto takes {report['auto']}\n")


def test_verify() -> None:
    checks = json.loads(call("verify", "embedded", "--json", *CPU).out)
    assert [check["stage"] for check in checks] == [stage.name for stage in musicrt.Bundle.open(musicrt.EMBEDDED).spec.stages]
    for check in checks:
        assert check["ok"] is True
        assert check["backend"] == "onnxruntime-cpu"
        assert check["error"] <= check["tolerance"] <= 1e-4
    out = call("verify", "embedded", *CPU).out
    assert out.count(" ok ") == len(checks)
    assert "FAILED" not in out
    assert out.count("float32") == len(checks)


@pytest.mark.parametrize("command", ["encode", "decode", "roundtrip"])
def test_precision_is_met_or_refused(command: str, song: Path, encoded: Path, tmp_path: Path) -> None:
    source = encoded if command == "decode" else song
    ended = call(command, "embedded", source, tmp_path / "a.wav", *CPU, "--precision", "float32")
    assert ended.notes[0].startswith("running on onnxruntime-cpu (float32, ")
    refusals = {"bfloat16": "it computes in float32 or int8, not in bfloat16", "int8": "musicrt calibrate"}
    for precision, words in refusals.items():
        fails(6, command, "embedded", source, tmp_path / "b.wav", *CPU, "--precision", precision, says=(words,))
    assert not (tmp_path / "b.wav").exists()


# Encoding and decoding


def test_encode_writes_what_the_library_gives(codec: Pipeline, song: Path, tmp_path: Path) -> None:
    ended = call("encode", "embedded", song, tmp_path / "a.enc", *CPU)
    written = load_encoded(tmp_path / "a.enc")
    assert (written.values == codec.encode(song, tail="pad")).all()
    assert (written.kind, written.source_rate, written.samples) == ("latents", 44_100, 15_000)
    assert (
        in_one_line(ended.out) == f"{tmp_path / 'a.enc'}: latents {list(written.values.shape)}, {(tmp_path / 'a.enc').stat().st_size} bytes"
    )
    assert [note.split(" (")[0] for note in ended.notes] == ["running on onnxruntime-cpu"]


def test_decode_writes_what_the_library_gives(codec: Pipeline, encoded: Path, tmp_path: Path) -> None:
    ended = call("decode", "embedded", encoded, tmp_path / "a.wav", "--steps", "2", "--seed", "7", "--threads", "1", *CPU)
    expected = codec.decode(load_encoded(encoded).values, steps=2, seed=7)[:, :15_000]
    written, rate = read_audio(tmp_path / "a.wav")
    assert (rate, written.shape) == (44_100, (2, 15_000))
    np.testing.assert_allclose(written, expected, rtol=0, atol=1e-5)
    assert np.abs(expected).max() > 0.01
    assert in_one_line(ended.out) == f"{tmp_path / 'a.wav'}: 0.34 s at 44100 Hz"


def test_seed_decides(encoded: Path, tmp_path: Path) -> None:
    for name, seed in (("a", "1"), ("b", "1"), ("c", "2")):
        call("decode", "embedded", encoded, tmp_path / f"{name}.wav", "--seed", seed, *CPU)
    a, b, c = (read_audio(tmp_path / f"{name}.wav")[0] for name in "abc")
    np.testing.assert_allclose(a, b, rtol=0, atol=STEP)
    assert np.abs(a - c).max() > 1e-3


def test_roundtrip_is_encode_and_decode(song: Path, encoded: Path, tmp_path: Path) -> None:
    call("roundtrip", "embedded", song, tmp_path / "a.flac", "--seed", "1", *CPU)
    call("decode", "embedded", encoded, tmp_path / "b.flac", "--seed", "1", *CPU)
    a, b = (read_audio(tmp_path / f"{name}.flac")[0] for name in "ab")
    assert a.shape == (2, 15_000)
    np.testing.assert_allclose(a, b, rtol=0, atol=STEP)


def test_chunking_decides_how_long_audio_is_cut(codec: Pipeline, long_song: Path, tmp_path: Path) -> None:
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


class Spy:
    """Stands in for a codec and keeps what it is asked."""

    sample_rate, backend = 44_100, "nothing"

    def __init__(self) -> None:
        self.asked: list[dict[str, Any]] = []

    def encode_source(self, _: Path, *, chunking: str, channels: str, max_batch_size: int, extract_features: bool) -> Encoded:
        raise NotImplementedError

    def decode_stream(
        self, _: Any, *, steps: int, sampler: str, guidance: float, eta: float, seed: int, chunking: str, max_batch_size: int
    ) -> Any:
        raise NotImplementedError

    def __enter__(self) -> Spy:
        return self

    def __exit__(self, *_: object) -> None:
        return

    def decode_file(self, *_: object, **options: Any) -> int:
        self.asked = [options]
        return 0

    def encode_file(self, _: Path, out: Path, **options: Any) -> Encoded:
        self.asked = [options]
        out.touch()
        return Encoded(np.zeros((1, 2, 3)), "chatter", "small", "latents", "", 1, 1, 1)

    def roundtrip_file(self, _audio: Path, _out: Path, *options: dict[str, Any]) -> int:
        self.asked = list(options)
        return 0


DECODE = ["--steps", "20", "--seed", "7", "--guidance", "1.5", "--sampler", "ddim", "--eta", "0.5", "--chunking", "official"]
DECODED = {"steps": 20, "seed": 7, "guidance": 1.5, "sampler": "ddim", "eta": 0.5, "chunking": "official"}
ENCODE = ["--channels", "each", "--chunking", "seamless"]
ENCODED = {"channels": "each", "chunking": "seamless"}


@pytest.mark.parametrize(
    ("command", "options", "expected"),
    [
        ("encode", [], [{}]),
        ("encode", [*ENCODE, "--features"], [{**ENCODED, "extract_features": True}]),
        ("decode", [], [{}]),
        ("decode", ["--seed", "0"], [{"seed": 0}]),
        ("decode", DECODE, [DECODED]),
        ("roundtrip", [], [{}, {}]),
        ("roundtrip", ["--chunking", "official"], [{"chunking": "official"}] * 2),
        ("roundtrip", ["--max-batch-size", "3"], [{"max_batch_size": 3}] * 2),
        ("roundtrip", [*ENCODE, *DECODE], [{**ENCODED, "chunking": "official"}, DECODED]),
    ],
)
def test_options_that_were_given_are_passed_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str, options: list[str], expected: list[dict[str, Any]]
) -> None:
    spy = Spy()
    monkeypatch.setattr(musicrt, "load", lambda *_, **__: spy, raising=False)
    call(command, "embedded", tmp_path / "in", tmp_path / "out", *options)
    assert all(callable(asked.pop("on_progress")) for asked in spy.asked)
    assert spy.asked == expected


def test_features_are_written_and_can_not_be_decoded(song: Path, tmp_path: Path) -> None:
    call("encode", "embedded", song, tmp_path / "a.enc", "--features", *CPU)
    assert load_encoded(tmp_path / "a.enc").kind == "features"
    fails(3, "decode", "embedded", tmp_path / "a.enc", tmp_path / "a.wav", *CPU, says=("features can't be decoded",))
    assert [path.name for path in tmp_path.iterdir()] == ["a.enc"]


def test_process_of_its_own_says_that_it_resampled(tmp_path: Path) -> None:
    path = save(tmp_path / "song.flac", noise(1, 24_000), 48_000)
    done = spawn("encode", "embedded", path, tmp_path / "a.enc", *CPU)
    assert done.returncode == 0, done.stderr
    assert "song.flac: resampled from 48000 Hz to 44100 Hz" in done.stderr
    written = load_encoded(tmp_path / "a.enc")
    assert (written.source_rate, written.sample_rate, written.samples) == (48_000, 44_100, 22_050)


# Export


def test_export_hands_every_option_on(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
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
    plain = {"system": "music2latent", "checkpoint": None, "out": out, "variant": None}
    assert given == {**plain, "config": None, "description": "", "weights_licence": None, "flavours": ()}
    options = ["--checkpoint", "a/b", "--variant", "tiny", "--config", "c.json", "--description", "own", "--weights-licence", "CC0"]
    call("export", "music2latent", "--out", out, *options, "--flavour", "trt")
    own = {"checkpoint": "a/b", "variant": "tiny", "config": Path("c.json"), "description": "own", "weights_licence": "CC0"}
    assert given == {**plain, **own, "flavours": ["trt"]}
