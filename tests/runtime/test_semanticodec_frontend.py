"""SemantiCodec before and between its networks: filter bank, token counts, windows, trim, padding cut, against the recorded cases."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import soundfile
from numpy.typing import NDArray

from musicrt.runtime.models.semanticodec.fbank import FLOOR, MEAN, PADDING, SCALE, FilterBank, fbank_matrices, mel_filters
from musicrt.runtime.models.semanticodec.lengths import (
    SEGMENT,
    decoded_samples,
    encoded_tokens,
    padding_cut,
    segment_count,
    target_token_len,
    token_count,
    token_windows,
)
from musicrt.runtime.source import Audio, SampleReader, open_source
from tests.reference import signals
from tests.reference.case import Case, load_case
from tests.reference.runner import DATA
from tests.runtime.audio_files import noise

Float = NDArray[np.float32]

CASES = DATA / "semanticodec" / "cases"
STACKS = (4, 2, 1)  # of the token rates 25, 50 and 100
LOAD_AUDIO = ["exact-segment", "mono16k", "mono22k-two-segments", "mono32k", "mono8k", "short", "silence", "stereo44k", "stereo48k-pcm16"]
ENCODE = [f"tiny-encode-{kind}" for kind in ("exact-segment", "long", "mono", "silence", "stereo44k")]
ENCODE += ["tiny-25-encode-odd-patches"]


def load(name: str) -> Case:
    return load_case(CASES / f"{name}.safetensors")


def read_file(case: Case, folder: Path) -> Audio:
    """Write the file of a case, and open it resampled."""
    path, options = folder / "a.wav", case.info["options"]
    soundfile.write(path, case.inputs["audio"].T, options["sample_rate"], subtype=options["subtype"])
    return open_source(path, 16000, kernel="sinc")


def mel_segments(audio: Audio) -> list[Float]:
    """What the encoder sees: [1, 1024, 128] for each segment of the first channel."""
    source = open_source(audio, 16000)
    reader, bank, last = SampleReader(source), FilterBank(), segment_count(source.samples) - 1
    bounds = [(i * SEGMENT, (i + 1) * SEGMENT + (240 if i < last else 0)) for i in range(last + 1)]
    return [bank.analyse_segment(reader.read(*bound)[:1]) for bound in bounds]


def assert_as_recorded(case: Case, **outputs: NDArray[np.generic]) -> None:
    verdicts = case.compare({name.replace("trace_", "trace/"): value for name, value in outputs.items()})
    assert verdicts
    assert [f"{verdict.output}: {verdict.detail}" for verdict in verdicts if not verdict.ok] == []


# Recorded cases


@pytest.mark.parametrize("name", LOAD_AUDIO)
def test_files_are_loaded_as_officially(name: str, tmp_path: Path) -> None:
    case = load(f"frontend-{name}")
    source = open_source(read_file(case, tmp_path), 16000)
    outputs: dict[str, NDArray[np.generic]] = {
        "mel": np.concatenate(mel_segments(source), axis=1),
        "target_token_len": np.array([target_token_len(source.samples, stack) for stack in STACKS]),
        "token_count": np.array([token_count(source.samples, stack) for stack in STACKS]),
    }
    if "trace/resampled" in case.info["outputs"]:
        outputs["trace_resampled"] = SampleReader(source).read(0, source.samples)[:1]
    assert_as_recorded(case, **outputs)


def test_token_counts_are_the_official_ones() -> None:
    case = load("frontend-token-count")
    samples = case.inputs["samples"].tolist()
    counts = np.array([[token_count(n, stack) for stack in STACKS] for n in samples])
    assert_as_recorded(case, token_count=counts, segments=np.array([segment_count(n) for n in samples]))


def test_windows_are_the_official_ones() -> None:
    case = load("frontend-token-windows")
    queries = zip(case.inputs["token_rate"].tolist(), case.inputs["token_count"].tolist(), strict=True)
    rows = [(row, a, b - a) for row, (rate, tokens) in enumerate(queries) for a, b in token_windows(tokens, 100 // rate)]
    assert_as_recorded(case, windows=np.array(rows))


def test_ends_are_cut_as_officially() -> None:
    case = load("frontend-trim")
    assert_as_recorded(case, samples=np.array([[decoded_samples(n, s) for s in STACKS] for n in case.inputs["token_count"].tolist()]))


@pytest.mark.parametrize("name", ENCODE)
def test_padding_is_cut_as_officially(name: str, tmp_path: Path) -> None:
    case = load(name)
    cuts = np.array([padding_cut(mel[0]) for mel in mel_segments(read_file(case, tmp_path))], np.float32)
    np.testing.assert_array_equal(cuts, case.stored["trace/padding_cut"])


@pytest.mark.parametrize("rate", ["", "-25", "-100"])
def test_padding_of_a_mel_is_cut_as_officially(rate: str) -> None:
    case = load(f"tiny{rate}-encode-stages")
    cuts = np.array([padding_cut(mel) for mel in case.inputs["mel"]], np.float32)
    np.testing.assert_array_equal(cuts, case.stored["trace/padding_cut"])


# Lengths


def test_quirks_of_the_token_count() -> None:
    assert [token_count(n, 1) for n in (0, 1, 2559, 2560, 7680, 16000)] == [8, 8, 8, 16, 24, 57]
    assert [segment_count(n) for n in (0, 1, SEGMENT - 1, SEGMENT, SEGMENT + 1)] == [1, 1, 1, 2, 2]


@pytest.mark.parametrize("stack", STACKS)
def test_no_more_tokens_than_there_are(stack: int) -> None:
    """Rounding asks for one token more than seven segments have."""
    assert token_count(1_144_321, stack) == 7 * 512 // stack + 1
    assert encoded_tokens(1_144_321, stack) == 7 * 512 // stack
    for samples in (0, 16000, SEGMENT - 1, SEGMENT):
        assert encoded_tokens(samples, stack) == token_count(samples, stack)


def test_windows_of_few_tokens() -> None:
    assert token_windows(0, 2) == []
    assert token_windows(1, 2) == [(0, 1)]
    assert token_windows(256, 2) == [(0, 256)]
    assert token_windows(257, 2) == [(0, 256), (240, 257)]


@pytest.mark.parametrize(
    ("active", "cut"), [([], 0.0), ([5], 0.0), ([5, 6], 7 / 1024), ([0, 1023], 1.0), ([3, 700], 701 / 1024), (range(1024), 1.0)]
)
def test_last_active_row_ends_what_is_kept(active: list[int], cut: float) -> None:
    mel = np.full((1024, 128), PADDING, np.float32)
    mel[list(active), :64] = -1.0
    assert padding_cut(mel) == cut


def test_loud_silence_is_inactive() -> None:
    """The mean of equal float32 values may be off by more than the limit, if computed in float32."""
    for value in np.random.default_rng(0).standard_normal(20, np.float32):
        assert padding_cut(np.full((1024, 128), value, np.float32)) == 0.0


# Filter bank


def analyse_as_graph(samples: Float) -> Float:
    analysis, filters = fbank_matrices()
    squares = (np.lib.stride_tricks.sliding_window_view(samples, 400, axis=-1)[:, ::160] @ analysis) ** 2
    energies = (squares[..., :257] + squares[..., 257:]) @ filters
    mel: Float = (np.log(np.maximum(energies, np.float32(FLOOR))) - np.float32(MEAN)) / np.float32(SCALE)
    return mel


@pytest.mark.parametrize("offset", [0.0, 0.5])
def test_matrices_give_the_same(offset: float) -> None:
    samples = signals.audio("fbank", 3.0, 16000, 2) * np.float32(0.5) + np.float32(offset)
    mel, graph = FilterBank().analyse(samples), analyse_as_graph(samples)
    assert mel.shape == graph.shape == (2, 298, 128)
    assert mel.dtype == graph.dtype == np.float32
    np.testing.assert_allclose(graph, mel, rtol=0, atol=1e-3)
    assert np.linalg.norm(graph - mel) < 2e-5 * np.linalg.norm(mel)


def test_level_of_a_constant_is_not_heard() -> None:
    """Officially the mean of the whole file is taken off first."""
    samples = signals.audio("fbank", 3.0, 16000, 1) * np.float32(0.5)
    bank = FilterBank()
    np.testing.assert_allclose(bank.analyse(samples + np.float32(0.3)), bank.analyse(samples), rtol=0, atol=1e-3)
    np.testing.assert_array_equal(bank.analyse(np.full((1, 4000), 0.3, np.float32)), bank.analyse(np.zeros((1, 4000), np.float32)))


def test_loudest_band_is_where_the_tone_is() -> None:
    tone = np.sin(2 * np.pi * 1000 * np.arange(16000) / 16000).astype(np.float32)[None]
    mel = FilterBank().analyse(tone)[0]
    centres = 700 * np.expm1(np.linspace(np.log1p(20 / 700), np.log1p(8000 / 700), 130)[1:-1])
    assert set(mel.argmax(axis=1)) == {int(np.abs(centres - 1000).argmin())}


def test_filters_without_bins() -> None:
    filters = mel_filters()
    assert filters.shape == (257, 128)
    assert np.flatnonzero(~filters.any(axis=0)).tolist() == [3]
    assert not filters[256].any()
    assert filters.max() <= 1.0
    np.testing.assert_allclose(FilterBank().analyse(np.ones((1, 400), np.float32))[0, 0], (np.log(FLOOR) - MEAN) / SCALE, rtol=1e-6)


def test_items_and_pieces_are_independent() -> None:
    bank, samples = FilterBank(), noise(2, 22 * 16000)
    whole = bank.analyse(samples)
    np.testing.assert_allclose(bank.analyse(samples[1:]), whole[1:], rtol=0, atol=1e-6)
    second = bank.analyse_segment(samples[:, SEGMENT : 2 * SEGMENT + 240])
    np.testing.assert_allclose(second, whole[:, 1024:2048], rtol=0, atol=1e-6)
    assert (bank.analyse_segment(samples[:, :SEGMENT])[:, 1022:] == np.float32(PADDING)).all()


def test_memory_is_bounded() -> None:
    """For ten minutes: 31 MB of result, and a few of one piece."""
    samples = np.zeros((1, 9_600_000), np.float32)
    tracemalloc.start()
    try:
        size = FilterBank().analyse(samples).nbytes
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < size + 16e6
