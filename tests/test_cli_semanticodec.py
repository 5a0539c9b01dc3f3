"""The commands on SemantiCodec's tiny bundle."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import musicrt
from musicrt.runtime.audio import read_audio
from musicrt.runtime.encoded import load_encoded
from tests.command import CPU, call, fails
from tests.conftest import ForSystem
from tests.runtime.audio_files import noise, save

pytest.importorskip("onnxruntime")

DECODING = ("--steps", "2", "--sampler", "dpm-solver++", "--guidance", "1.5", "--seed", "3", "--max-batch-size", "1", "--threads", "1")


@pytest.fixture(scope="module")
def bundle(tiny_bundles: ForSystem) -> Path:
    return tiny_bundles("semanticodec")


@pytest.fixture
def song(tmp_path: Path) -> Path:
    """Stereo, one second: 25 tokens a channel are wanted, and those of 0.16 s more, rounded up."""
    return save(tmp_path / "song.wav", noise(2, 16_000), 16_000)


def test_file_goes_through_every_command(bundle: Path, song: Path, tmp_path: Path) -> None:
    tokens, out, again = tmp_path / "song.tok", tmp_path / "a.wav", tmp_path / "b.wav"
    ended = call("encode", bundle, song, tokens, "--channels", "each", "--max-batch-size", "1", "--threads", "1", *CPU)
    encoded = load_encoded(tokens)
    assert encoded.values.shape == (2, 29, 2)
    assert len(np.unique(encoded.values[..., 0])) > 1
    assert ended.out == f"{tokens}: tokens [2, 29, 2], {tokens.stat().st_size} bytes\n"

    report = json.loads(call("inspect", tokens, "--json").out)
    assert (report["system"], report["kind"], report["shape"], report["bits"]) == ("semanticodec", "tokens", [2, 29, 2], [9, 8])
    assert (report["seconds"], report["bit_rate"]) == (1.0, 2 * 29 * 17)
    assert report["nominal_bit_rates"]["rate50-vocab16384"] == 25 * (14 + 13)
    assert "bits per code: 9, 8\n" in call("inspect", tokens).out

    ended = call("decode", bundle, tokens, out, *DECODING, *CPU)
    assert ended.out == f"{out}: 1.00 s at 16000 Hz\n"
    audio, rate = read_audio(out)
    assert (audio.shape, rate) == ((2, 16_000), 16_000)
    with musicrt.load(bundle, backend="onnxruntime-cpu", threads=1) as codec:
        expected = codec.decode(encoded.values, steps=2, sampler="dpm-solver++", guidance=1.5, seed=3)[:, 0, :16_000]
    assert np.abs(expected).max() > 0.01
    np.testing.assert_allclose(audio, expected, rtol=0, atol=1e-5)

    call("roundtrip", bundle, song, again, "--channels", "each", *DECODING, *CPU)
    np.testing.assert_allclose(read_audio(again)[0], audio, rtol=0, atol=1e-5)


def test_roundtrip_into_a_format_for_the_channels_that_are_left(bundle: Path, tmp_path: Path) -> None:
    song, out = save(tmp_path / "song.wav", noise(3, 8_000), 16_000), tmp_path / "a.mp3"
    fails(3, "roundtrip", bundle, song, out, "--channels", "each", *DECODING, *CPU, says=("a.mp3", "3 channels", "1 to 2"))
    call("roundtrip", bundle, song, out, *DECODING, *CPU)
    assert read_audio(out)[0].shape[0] == 1


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--steps", "0"], "got 0 sampling steps"),
        (["--guidance", "nan"], "guidance nan"),
        (["--sampler", "dpm-solver++", "--eta", "0.5"], "got eta 0.5 for dpm-solver++"),
        (["--max-batch-size", "0"], "got max_batch_size 0"),
        (["--chunking", "official"], "semanticodec has no option --chunking; of this command's it has --channels"),
    ],
)
def test_wrong_option_of_a_roundtrip_leaves_nothing(
    bundle: Path, song: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: list[str], says: str
) -> None:
    monkeypatch.setattr(
        "musicrt.runtime.models.semanticodec.pipeline.Pipeline.encode", lambda *_, **__: pytest.fail("must not get this far")
    )
    fails(3, "roundtrip", bundle, song, tmp_path / "a.wav", *options, *CPU, says=(says,))
    assert list(tmp_path.iterdir()) == [song]


def test_verify(bundle: Path) -> None:
    checks = json.loads(call("verify", bundle, "--json", "--threads", "1", *CPU).out)
    assert [check["stage"] for check in checks] == [stage.name for stage in musicrt.Bundle.open(bundle).spec.stages]
    assert all(check["ok"] and check["error"] <= check["tolerance"] for check in checks)
    report = json.loads(call("inspect", bundle, "--json").out)
    assert (report["system"], report["bit_rate"]) == ("semanticodec", 25 * 17)
