"""The drop-in for the official class: its arguments, shapes, tensor types and noise."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import soundfile

import musicrt
from musicrt.runtime.errors import AudioError, InputError
from musicrt.runtime.fake_session import FakeSession
from musicrt.runtime.models.semanticodec.facade import SemantiCodec
from musicrt.runtime.models.semanticodec.lengths import SEGMENT
from musicrt.runtime.models.semanticodec.pipeline import Pipeline
from tests.conftest import ForSystem, refused
from tests.runtime.semanticodec_codecs import Float, assert_close, lighten, music, open_tiny, random_tokens

torch = pytest.importorskip("torch")


@pytest.fixture(scope="module")
def tiny(tiny_checkpoints: ForSystem) -> Iterator[Pipeline]:
    with open_tiny(tiny_checkpoints("semanticodec")) as pipeline:
        yield pipeline


@pytest.fixture
def watched(tiny: Pipeline) -> tuple[SemantiCodec, dict[str, FakeSession]]:
    """The class on the tiny network, with cheap functions in place of what decodes."""
    codec, sessions = lighten(tiny)
    return SemantiCodec(ddim_sample_step=2, codec=codec, device="cpu"), sessions


@pytest.fixture
def official(watched: tuple[SemantiCodec, dict[str, FakeSession]]) -> SemantiCodec:
    return watched[0]


@pytest.fixture
def song(tmp_path: Path) -> str:
    """A stereo file of 1.2 s."""
    soundfile.write(tmp_path / "song.wav", music(26460, 2).T, 22050, subtype="FLOAT")
    return str(tmp_path / "song.wav")


def official_noise(windows: int, steps: int, batch: int = 1) -> list[Float]:
    """What the official package draws: for each window the initial noise, then one for each step."""
    return [torch.randn((batch, 8, 256, 16)).numpy() for _ in range(windows * (steps + 1))]


# The class


def test_arguments_are_the_official_ones() -> None:
    assert musicrt.SemantiCodec is SemantiCodec
    parameters = inspect.signature(SemantiCodec).parameters.values()
    official = {parameter.name: parameter.default for parameter in parameters if parameter.kind is parameter.POSITIONAL_OR_KEYWORD}
    assert list(official.items())[2:] == [
        ("ddim_sample_step", 50),
        ("cfg_scale", 2.0),
        ("checkpoint_path", None),
        ("cache_path", "pretrained"),
    ]
    assert list(official)[:2] == ["token_rate", "semantic_vocab_size"]


def test_attributes_are_the_official_ones(official: SemantiCodec) -> None:
    assert (official.token_rate, official.stack_factor_K) == (50, 2.0)
    assert isinstance(official.stack_factor_K, float)
    assert (official.ddim_sample_step, official.cfg_scale) == (2, 2.0)
    assert official.device == torch.device("cpu")


# Encode


def test_tokens_are_a_tensor(official: SemantiCodec, tiny: Pipeline, song: str) -> None:
    tokens = official.encode(song)
    assert isinstance(tokens, torch.Tensor)
    assert (tokens.shape, tokens.dtype, tokens.device.type) == ((1, 32, 2), torch.int64, "cpu")
    np.testing.assert_array_equal(tokens.numpy(), tiny.encode(song))
    np.testing.assert_array_equal(official.encode(Path(song)).numpy(), tokens.numpy())


@pytest.mark.parametrize(("samples", "segments", "tokens"), [(19200, 1, 32.0), (16000, 1, None), (SEGMENT, 2, 260.0)])
def test_encode_is_the_two_official_calls(
    official: SemantiCodec, tmp_path: Path, samples: int, segments: int, tokens: float | None
) -> None:
    soundfile.write(tmp_path / "a.wav", music(samples, 2).T, 16000, subtype="FLOAT")
    mel, length = official.load_audio(str(tmp_path / "a.wav"))
    assert (mel.shape, mel.dtype) == ((1, 1024 * segments, 128), torch.float32)
    assert isinstance(length, float)
    if tokens is not None:
        assert abs(length - tokens) < 1e-9
    codes = official.encoder(mel)
    assert (codes.shape, codes.dtype) == ((1, 256 * segments, 2), torch.int64)
    torch.testing.assert_close(codes[:, : int(np.ceil(length))], official.encode(str(tmp_path / "a.wav")))


def test_encoder_takes_a_batch(official: SemantiCodec) -> None:
    mel = torch.randn(3, 2048, 128) * 0.6 - 0.5
    mel[1, 1500:] = -1.25
    together = official.encoder(mel)
    assert together.shape == (3, 512, 2)
    for item in range(3):
        torch.testing.assert_close(together[item : item + 1], official.encoder(mel[item : item + 1]), rtol=0, atol=0)
    for shape in ([3, 1000, 128], [1024, 128], [1, 1024, 64], [0, 1024, 128], [1, 0, 128]):
        with refused(InputError, shape, "[batch, 1024 n, 128]"):
            official.encoder(torch.zeros(shape))


def test_missing_file_is_what_both_sorts_of_callers_catch(official: SemantiCodec, tmp_path: Path) -> None:
    for call in (official.encode, official.load_audio, official):
        for kind in (FileNotFoundError, AudioError):
            with pytest.raises(kind, match=r"missing\.wav: no such file"):
                call(str(tmp_path / "missing.wav"))
    (tmp_path / "empty.wav").touch()
    with refused(AudioError, "empty.wav"):
        official.encode(str(tmp_path / "empty.wav"))
    with refused(InputError, "ndarray", "codec.encode"):
        official.encode(music(100))  # type: ignore[arg-type]


# Decode


def test_audio_is_an_array(official: SemantiCodec) -> None:
    audio = official.decode(torch.from_numpy(random_tokens(50)))
    assert isinstance(audio, np.ndarray)
    assert audio.shape == (1, 1, 32000)
    assert audio.dtype == np.float32
    assert np.abs(official.decode(random_tokens(50)) - audio).max() > 0.1, "not seeded"


def test_manual_seed_gives_the_official_noise(official: SemantiCodec) -> None:
    tokens = random_tokens(300)
    torch.manual_seed(5)
    noise = official_noise(windows=2, steps=2)
    after = torch.randn(3)
    torch.manual_seed(5)
    audio = official.decode(torch.from_numpy(tokens))
    torch.testing.assert_close(torch.randn(3), after, rtol=0, atol=0)  # the generator has moved on as far
    np.testing.assert_array_equal(audio, official.codec.decode(tokens, steps=2, guidance=2.0, noise=noise))


def test_batch_is_decoded_with_the_noise_of_a_batch(official: SemantiCodec) -> None:
    tokens = random_tokens(300, batch=3)
    torch.manual_seed(6)
    noise = official_noise(windows=2, steps=2, batch=3)
    torch.manual_seed(6)
    audio = official.decode(torch.from_numpy(tokens))
    assert audio.shape == (3, 1, 192_000)
    assert_close(audio, official.codec.decode(tokens, steps=2, guidance=2.0, noise=noise))


def test_steps_and_scale_may_be_changed(watched: tuple[SemantiCodec, dict[str, FakeSession]]) -> None:
    official, sessions = watched
    tokens = torch.from_numpy(random_tokens(20))
    for steps, scale, rows in ((4, 3.0, 2), (5, 1.0, 1)):
        official.ddim_sample_step, official.cfg_scale = steps, scale
        sessions["denoiser"].calls.clear()
        torch.manual_seed(1)
        audio = official.decode(tokens)
        assert [len(call["key0"]) for call in sessions["denoiser"].calls] == [rows] * steps
        torch.manual_seed(1)
        expected = official.codec.decode(tokens.numpy(), steps=steps, guidance=scale, noise=official_noise(1, steps))
        np.testing.assert_array_equal(audio, expected)


def test_calling_it_encodes_and_decodes(official: SemantiCodec, song: str) -> None:
    torch.manual_seed(2)
    expected = official.decode(official.encode(song))
    for call in (official, official.forward):
        torch.manual_seed(2)
        np.testing.assert_array_equal(call(song), expected)


def test_windows_can_be_generated_one_by_one(official: SemantiCodec) -> None:
    tokens = torch.from_numpy(random_tokens(40, 2))
    feature = official.encoder.token_to_quantized_feature(tokens)
    assert (feature.shape, feature.dtype) == ((2, 40, 128), torch.float32)
    padded = torch.nn.functional.pad(feature, (0, 0, 0, 216), value=-1.0)
    torch.manual_seed(3)
    window = official.decoder.generate_sample(padded, ddim_steps=2, unconditional_guidance_scale=2.0)
    assert window.shape == (2, 1, 163_872)
    assert window.dtype == np.float32
    torch.manual_seed(3)
    assert_close(window[..., :25600], official.decode(tokens))
    torch.manual_seed(3)
    start = torch.randn((2, 8, 256, 16))
    again = official.decoder.generate_sample(padded, ddim_steps=2, x_T=start, unconditional_guidance_scale=2.0)
    np.testing.assert_array_equal(again, window)
    still = [official.decoder.generate_sample(padded, 2, ddim_eta=0.0, x_T=start) for _ in range(2)]
    np.testing.assert_array_equal(still[0], still[1])
    with refused(InputError, "feature", [2, 40, 128]):
        official.decoder.generate_sample(feature, ddim_steps=2)
    with refused(InputError, "denoiser", "[1, 8, 256, 16]"):
        official.decoder.generate_sample(padded, ddim_steps=2, x_T=start[:1])


def test_rows_beyond_a_batch_are_refused(official: SemantiCodec) -> None:
    with refused(InputError, "65 rows", "at most 64", "several calls"):
        official.decode(random_tokens(3, batch=65))


def test_values_that_are_no_finite_numbers_are_refused(official: SemantiCodec) -> None:
    mel, feature, start = torch.zeros(1, 1024, 128), torch.zeros(1, 256, 128), torch.zeros(1, 8, 256, 16)
    for bad in (float("nan"), float("inf")):
        with refused(InputError, "mel", "1 NaN or infinite"):
            official.encoder(torch.cat([mel[:, :, 1:].flatten(), torch.zeros(1023), torch.tensor([bad])]).reshape(mel.shape))
        with refused(InputError, "feature", "NaN or infinite"):
            official.decoder.generate_sample(feature + bad, ddim_steps=1)
        with refused(InputError, "x_T", "NaN or infinite"):
            official.decoder.generate_sample(feature, ddim_steps=1, x_T=start + bad)
    for wrong in ("mel", ["a", "b"], None):
        with refused(InputError, "mel", "dtype"):
            official.encoder(wrong)
        with refused(InputError, "feature", "dtype"):
            official.decoder.generate_sample(wrong, ddim_steps=1)
    ragged = [[[1, 2], [3, 4]], [[5, 6]]]
    for call in (official.decode, official.encoder, official.encoder.token_to_quantized_feature):
        with refused(InputError, "make no array"):
            call(ragged)


def test_wrong_tokens_are_refused(official: SemantiCodec) -> None:
    for tokens, word in ((torch.zeros(1, 4, 2), "float32"), (torch.full((1, 4, 2), 600), "0 to 511"), (torch.zeros(4).long(), "[4]")):
        for call in (official.decode, official.encoder.token_to_quantized_feature):
            with refused(InputError, word):
                call(tokens)
