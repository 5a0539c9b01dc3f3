"""The commands on MuCodec's tiny bundle, with fit="length": a whole window takes the VAE half a minute, whatever its width."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import musicrt
from musicrt.runtime.audio import read_audio
from musicrt.runtime.encoded import load_encoded
from tests.command import CPU, call, fails
from tests.conftest import ForSystem
from tests.runtime.audio_files import save
from tests.runtime.mucodec_codecs import music

pytest.importorskip("onnxruntime")

FIT = ("--fit", "length", "--threads", "1")
DECODING = (*FIT, "--steps", "1", "--guidance", "2", "--seed", "3")


@pytest.fixture(scope="module")
def bundle(tiny_bundles: ForSystem) -> Path:
    return tiny_bundles("mucodec")


@pytest.fixture
def song(tmp_path: Path) -> Path:
    """Stereo, one second at 44.1 kHz."""
    return save(tmp_path / "song.wav", music(44_100), 44_100)


def test_file_goes_through_every_command(bundle: Path, song: Path, tmp_path: Path) -> None:
    codes, out = tmp_path / "song.codes", tmp_path / "a.wav"
    ended = call("encode", bundle, song, codes, *FIT, "--max-batch-size", "1", *CPU)
    encoded = load_encoded(codes)
    assert (encoded.values.shape, encoded.bits) == ((1, 26, 1), (9,))
    assert ended.out == f"{codes}: tokens [1, 26, 1], {codes.stat().st_size} bytes\n"

    ended = call("decode", bundle, codes, out, *DECODING, "--prompt", song, *CPU)
    assert ended.out == f"{out}: 1.00 s at 48000 Hz\n"
    audio, rate = read_audio(out)
    assert (audio.shape, rate) == ((2, 48_000), 48_000)
    with musicrt.load(bundle, backend="onnxruntime-cpu", threads=1) as codec:
        expected = codec.decode(encoded.values.transpose(0, 2, 1), steps=1, guidance=2.0, seed=3, fit="length", prompt=song)
    assert np.abs(expected).max() > 0.01
    np.testing.assert_allclose(audio, expected[:, :48_000], rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--steps", "0"], "got 0 sampling steps"),
        (["--guidance", "nan"], "guidance nan"),
        (["--prompt", "none.wav"], "none.wav: no such file"),
        (["--channels", "each"], "mucodec has no option --channels; of this command's it has --fit"),
        (["--eta", "1"], "mucodec has no option --eta"),
    ],
)
def test_wrong_option_of_a_roundtrip_leaves_nothing(
    bundle: Path, song: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: list[str], says: str
) -> None:
    monkeypatch.setattr("musicrt.runtime.models.mucodec.pipeline.Pipeline.encode", lambda *_, **__: pytest.fail("must not get this far"))
    fails(3, "roundtrip", bundle, song, tmp_path / "a.wav", *options, *CPU, says=(says,))
    assert list(tmp_path.iterdir()) == [song]
