"""MuCodec's lengths and windows, held against the official rules written out as they are."""

from __future__ import annotations

import itertools
import math

import pytest

from musicrt.runtime.errors import InputError
from musicrt.runtime.models.mucodec.lengths import (
    BUCKET,
    SPAN,
    check_fit,
    decoded_samples,
    decoder_windows,
    encoded_codes,
    encoder_windows,
    wave_samples,
)
from musicrt.runtime.windows import Window
from tests.conftest import refused


def official_code_windows(codes: int) -> list[list[int]]:
    """SPEC section 4.1 to the letter, on the indices of the codes, but for the test whose constant is wrong."""
    indices = list(range(codes))
    if codes < 1024:
        while len(indices) < 1024:
            indices += indices
        indices = indices[:1024]
    wanted = math.ceil((len(indices) - 256) / 768) * 768 + 256
    while len(indices) < wanted:
        indices += indices
    indices = indices[:wanted]
    return [indices[start : start + 1024] for start in range(0, wanted - 768, 768)]


# Encode


def test_codes_are_those_that_are_full_and_one_more() -> None:
    assert [encoded_codes(samples) for samples in (1, 1919, 1920, 48000, 292_801, 3_360_000)] == [1, 1, 2, 26, 153, 1751]


def test_rounding_takes_a_code_from_a_few_lengths() -> None:
    short = [n for n in range(1, 9000) if encoded_codes(1920 * n) != n + 1]
    assert short[:3] == [29, 57, 58]
    assert {encoded_codes(1920 * n) - n for n in short} == {0}
    assert all(encoded_codes(1920 * n + 1) == n + 1 for n in range(9000))


@pytest.mark.parametrize(
    ("codes", "whole", "short"),
    [
        (1, [1024], [64]),
        (64, [1024], [64]),
        (65, [1024], [128]),
        (960, [1024], [960]),
        (1024, [1024], [1024]),
        (1025, [1024, 1024], [1024, 64]),
        (2383, [1024] * 3, [1024, 1024, 384]),
    ],
)
def test_encoder_windows_hold_the_codes(codes: int, whole: list[int], short: list[int]) -> None:
    assert encoder_windows(codes, "window") == whole
    assert encoder_windows(codes, "length") == short


def test_an_encoder_window_is_a_quarter_code_longer_than_its_codes() -> None:
    assert SPAN == 1_966_560 == 1920 * 1024 + 480


# Decode


def test_decoded_samples_are_one_short_for_some_counts() -> None:
    short = [codes for codes in range(1, 9001) if decoded_samples(codes) != 1920 * codes]
    assert short[:8] == [29, 57, 58, 113, 114, 115, 116, 201]
    assert len(short) == 745
    assert all(decoded_samples(codes) == 1920 * codes - 1 for codes in short)


@pytest.mark.parametrize("codes", [1, 2, 101, 767, 1023, 1024, 1025, 1500, 1537, 1792, 1793, 2560, 2561, 4001])
def test_windows_are_the_official_ones(codes: int) -> None:
    spans = decoder_windows(codes, 0, "window")
    taken = [[index % codes for index in range(span.codes.start, span.codes.stop)] for span in spans]
    assert taken == official_code_windows(codes)
    assert [(span.known, span.dropped, span.frames) for span in spans] == [(128 if i else 0, 0, 512) for i in range(len(spans))]
    starts = [i * 1_474_560 for i in range(len(spans))]
    assert [span.samples for span in spans] == [Window(start, start + 1_966_080, 491_520 if start else 0) for start in starts]


@pytest.mark.parametrize("codes", [1664, 2432, 3200])
def test_counts_that_the_official_code_fails_on_are_padded(codes: int) -> None:
    """The official test takes 128 for 256, so that the last window is too short."""
    assert (codes - 128) % 768 == 0
    spans = decoder_windows(codes, 0, "window")
    assert [span.codes.size for span in spans] == [1024] * (codes // 768)
    assert 1920 * codes <= spans[-1].samples.stop


@pytest.mark.parametrize("fit", ["window", "length"])
@pytest.mark.parametrize("frames", [0, 2, 14, 66, 127, 128])
def test_windows_reach_the_end_of_the_sound(fit: str, frames: int) -> None:
    """Whatever the prompt: all samples are there, every fade is whole, and past the end lies no window of its own."""
    for codes in [*range(1, 200), *range(700, 1100), *range(1500, 1800, 7), 2560, 2561, 5000]:
        spans = decoder_windows(codes, frames, check_fit(fit))
        length = decoded_samples(codes)
        assert spans[-1].samples.stop >= length
        assert spans[0].dropped == spans[0].known == frames
        for before, span in itertools.pairwise(spans):
            assert span.samples.start == before.samples.stop - 491_520
            assert span.samples.start + 491_520 < length
            assert span.codes.start == before.codes.start + 768
        for span in spans:
            assert span.codes.size % 4 == 0
            assert span.samples.size == wave_samples(8 * (span.frames - span.dropped))
            assert span.codes.size == 1024 or (fit == "length" and span is spans[-1] and span.codes.size % BUCKET == 0)


def test_fit_length_ends_with_the_codes() -> None:
    sizes = {codes: [span.codes.size for span in decoder_windows(codes, 0, "length")] for codes in (1, 64, 65, 100, 1024, 1025, 1500)}
    assert sizes == {1: [64], 64: [64], 65: [128], 100: [128], 1024: [1024], 1025: [1024, 320], 1500: [1024, 768]}


@pytest.mark.parametrize("frames", [1, 31, 300, 1023, 1024, 1025, 1279, 1280, 1281, 1500, 2048, 3984, 4096])
def test_wave_is_as_long_as_the_official_chunks_make_it(frames: int) -> None:
    wave = [(0, min(frames, 1024))]
    while wave[-1][0] + 1024 < frames:
        start = wave[-1][0] + 256
        wave.append((start, min(start + 1024, frames)))
    first = (480 * wave[0][1] + 16) // 1024 * 1024
    length = first
    for start, stop in wave[1:]:
        length += min(480 * (stop - start) + 16, first) - first * 768 // 1024
    assert wave_samples(frames) == length


@pytest.mark.parametrize("fit", ["windows", None, 1, ""])
def test_wrong_fit_is_refused(fit: object) -> None:
    with refused(InputError, repr(fit), "'window'", "'length'"):
        check_fit(fit)
