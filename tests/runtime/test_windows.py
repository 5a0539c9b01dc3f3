"""Cutting signals into windows and joining them again; batches of jobs; reading sources span by span."""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from musicrt.runtime.batches import Job, run_batches, split_signals, stack_channels
from musicrt.runtime.errors import AudioError, InputError
from musicrt.runtime.source import AudioSource, SampleReader, open_source
from musicrt.runtime.windows import Window, centred_ramp, chunk_windows, inclusive_ramp, join_windows, overlapping_windows
from tests.conftest import refused

Float = NDArray[np.float32]
Ramp = Callable[[int], Float]


def joined(windows: list[tuple[Window, Float]], length: int, scale: int = 1, guard: int = 0, ramp: Ramp = centred_ramp) -> Float:
    return np.concatenate(list(join_windows(windows, length, scale=scale, guard=guard, ramp=ramp)), axis=-1)


def cut(signal: Float, windows: list[Window], scale: int = 1) -> list[tuple[Window, Float]]:
    """What each window covers; past the end of the signal its beginning again."""
    length = signal.shape[-1] // scale
    return [(window, signal[..., np.arange(window.start * scale, window.stop * scale) % (length * scale)]) for window in windows]


# Official chunks


def test_chunks_lie_side_by_side_and_an_exact_fit_gets_a_useless_one() -> None:
    assert chunk_windows(7, 8) == [Window(0, 7)]
    assert chunk_windows(8, 8) == [Window(0, 8)]
    assert chunk_windows(9, 8) == [Window(0, 8), Window(8, 16)]
    assert chunk_windows(16, 8) == [Window(0, 8), Window(8, 16), Window(16, 24, dropped=True)]
    assert chunk_windows(17, 8) == [Window(0, 8), Window(8, 16), Window(16, 24)]


@pytest.mark.parametrize("scale", [1, 3])
def test_chunks_join_to_the_signal(scale: int) -> None:
    for length in range(1, 50):
        signal = np.arange(2 * length * scale, dtype=np.float32).reshape(2, -1)
        windows = cut(signal, chunk_windows(length, 8), scale)
        blocks = list(join_windows(windows, length, scale=scale))
        np.testing.assert_array_equal(np.concatenate(blocks, axis=-1), signal)
        assert len(blocks) == -(-length // 8)


# Overlapping windows


@pytest.mark.parametrize(("size", "overlap"), [(1, 0), (2, 1), (8, 0), (8, 1), (8, 3), (8, 4), (9, 4), (20, 5)])
def test_overlapping_windows_cover_every_length(size: int, overlap: int) -> None:
    for length in range(1, 201):
        windows = overlapping_windows(length, size, overlap)
        assert windows[0].start == 0
        assert windows[0].fade == 0
        assert windows[-1].stop == length
        assert {window.size for window in windows} == {min(size, length)}
        for before, window in itertools.pairwise(windows):
            assert window.start > before.start
            assert before.stop - window.start == window.fade >= overlap
        for before, after in zip(windows, windows[2:], strict=False):
            assert before.stop <= after.start or after is windows[-1], "only the last window may reach further back"


@pytest.mark.parametrize("guard", [0, 1, 2, 100])
@pytest.mark.parametrize("scale", [1, 4])
@pytest.mark.parametrize(("size", "overlap"), [(8, 0), (8, 1), (8, 3), (8, 4), (20, 5)])
@pytest.mark.parametrize("ramp", [centred_ramp, inclusive_ramp])
def test_equal_windows_join_to_the_signal(size: int, overlap: int, scale: int, guard: int, ramp: Ramp) -> None:
    """Where both windows agree, the cross-fade changes nothing, and every position is given once."""
    for length in range(1, 70):
        signal = np.arange(1.0, 1.0 + 3 * length * scale, dtype=np.float32).reshape(3, -1)
        windows = cut(signal, overlapping_windows(length, size, overlap), scale)
        np.testing.assert_allclose(joined(windows, length, scale, guard, ramp), signal, rtol=1e-6)


def test_windows_fade_into_each_other() -> None:
    windows = overlapping_windows(10, 6, 2)
    assert windows == [Window(0, 6), Window(4, 10, fade=2)]
    ones_and_threes = [(windows[0], np.full(6, 1.0, np.float32)), (windows[1], np.full(6, 3.0, np.float32))]
    np.testing.assert_allclose(joined(ones_and_threes, 10), [1, 1, 1, 1, 1.5, 2.5, 3, 3, 3, 3])


def test_guarded_positions_come_from_the_other_window() -> None:
    """The fade happens in the middle of the overlap; the ends of a window, which saw its padding, are not heard."""
    windows = [Window(0, 10), Window(4, 14, fade=6)]
    ones_and_threes = [(windows[0], np.full(10, 1.0, np.float32)), (windows[1], np.full(10, 3.0, np.float32))]
    expected = [1] * 4 + [1, 1, 1.5, 2.5, 3, 3] + [3] * 4
    np.testing.assert_allclose(joined(ones_and_threes, 14, guard=2), expected)
    all_but_one = joined(ones_and_threes, 14, guard=50)  # more than there is: the fade shrinks to its middle
    np.testing.assert_allclose(all_but_one, [1] * 6 + [1.5, 2.5] + [3] * 6)


@pytest.mark.parametrize("length", [2, 3, 10, 1000])
def test_ramps_rise_to_their_ends(length: int) -> None:
    centred, inclusive = centred_ramp(length), inclusive_ramp(length)
    for ramp in (centred, inclusive):
        assert ramp.dtype == np.float32
        assert ramp.shape == (length,)
        np.testing.assert_allclose(ramp + ramp[::-1], 1.0, rtol=1e-6)
        np.testing.assert_allclose(np.diff(ramp), ramp[1] - ramp[0], rtol=1e-3)
    assert (inclusive[0], inclusive[-1]) == (0.0, 1.0)
    np.testing.assert_allclose([centred[0], centred[-1]], [0.5 / length, 1 - 0.5 / length], rtol=1e-6)
    assert inclusive_ramp(1).tolist() == [0.0]


def test_ramp_says_how_windows_fade() -> None:
    windows = [Window(0, 8), Window(3, 11, fade=5)]
    ones_and_threes = [(windows[0], np.full(8, 1.0, np.float32)), (windows[1], np.full(8, 3.0, np.float32))]
    np.testing.assert_allclose(joined(ones_and_threes, 11, ramp=inclusive_ramp), [1, 1, 1, 1, 1.5, 2, 2.5, 3, 3, 3, 3])
    squared = joined(ones_and_threes, 11, ramp=lambda length: inclusive_ramp(length) ** 2)
    np.testing.assert_allclose(squared[3:8], 1 + 2 * (np.arange(5) / 4) ** 2)


def test_windows_are_not_changed_by_joining() -> None:
    signal = np.arange(10, dtype=np.float32)
    windows = [(window, value.copy()) for window, value in cut(signal, overlapping_windows(10, 6, 2))]
    kept = [value.copy() for _, value in windows]
    joined(windows, 10)
    for (_, value), before in zip(windows, kept, strict=True):
        np.testing.assert_array_equal(value, before)


def test_blocks_come_one_window_late() -> None:
    asked: list[Window] = []

    def results() -> Iterator[tuple[Window, Float]]:
        for window, value in cut(np.arange(30, dtype=np.float32), overlapping_windows(30, 10, 2)):
            asked.append(window)
            yield window, value

    blocks = join_windows(results(), 30)
    assert asked == []
    np.testing.assert_array_equal(next(blocks), np.arange(8))
    assert [window.start for window in asked] == [0, 8]


@pytest.mark.parametrize(("size", "overlap"), [(8, -1), (8, 5), (0, 1)])
def test_impossible_overlap_is_refused(size: int, overlap: int) -> None:
    with refused(InputError, f"overlap of {overlap}", f"windows of {size}"):
        overlapping_windows(20, size, overlap)


# Batches


def job(signal: int, channel: int, width: int, start: int = 0, dropped: bool = False) -> Job:
    return Job(signal, channel, Window(start, start + width, dropped=dropped), np.full(width, 10 * signal + channel, np.float32))


def test_jobs_of_one_shape_run_together_in_order() -> None:
    batches: list[list[tuple[int, int]]] = []

    def run(jobs: list[Job]) -> list[Float]:
        batches.append([(job.signal, job.channel) for job in jobs])
        return [job.data * 2 for job in jobs]

    jobs = [job(0, 0, 4), job(0, 1, 4), job(1, 0, 3), job(2, 0, 4), job(2, 1, 4), job(3, 0, 3)]
    results = list(run_batches(jobs, 3, run))
    assert batches == [[(0, 0), (0, 1), (2, 0)], [(1, 0), (3, 0)], [(2, 1)]]
    assert [signal for signal, _, _ in results] == [0, 0, 2, 1, 3, 2]
    values = [value[0] / 2 for _, _, value in results if value is not None]
    assert values == [0, 1, 20, 10, 30, 21]


def test_jobs_are_taken_as_they_are_needed() -> None:
    taken: list[int] = []

    def jobs() -> Iterator[Job]:
        for number in range(10):
            taken.append(number)
            yield job(number, 0, 4)

    results = run_batches(jobs(), 2, lambda batch: [job.data for job in batch])
    assert taken == []
    next(results)
    assert taken == [0, 1]


def test_data_of_jobs_that_have_run_are_let_go() -> None:
    """They may be as large as the signal: the streams of a file, and batches that wait for each other, keep results only."""
    alive: list[weakref.ref[Any]] = []

    def jobs() -> Iterator[Job]:
        for number in range(6):
            made = job(number % 2, 0, 4)
            alive.append(weakref.ref(made.data))
            yield made
            del made

    split_signals(run_batches(jobs(), 2, lambda batch: [one.data * 2 for one in batch]), [1, 1])
    assert [one() for one in alive] == [None] * 6


def test_channels_are_stacked_and_dropped_windows_fall_away() -> None:
    jobs = [job(0, 0, 2), job(0, 1, 2), job(0, 0, 2, start=2, dropped=True), job(0, 1, 2, start=2, dropped=True), job(0, 0, 2, start=4)]
    jobs.append(job(0, 1, 2, start=4))
    results = [(0, one.window, None if one.window.dropped else one.data) for one in jobs]
    stacked = list(stack_channels(results, 2))
    assert [window.start for window, _ in stacked] == [0, 4]
    for _, value in stacked:
        np.testing.assert_array_equal(value, [[0, 0], [1, 1]])


def test_results_are_split_by_signal() -> None:
    jobs = [job(1, 0, 2), job(0, 0, 2), job(0, 1, 2), job(1, 0, 2, start=2)]
    first, second, third = (list(signal) for signal in split_signals(((one.signal, one.window, one.data) for one in jobs), [2, 1, 1]))
    assert [(window.start, value.tolist()) for window, value in first] == [(0, [[0, 0], [1, 1]])]
    assert [(window.start, value.tolist()) for window, value in second] == [(0, [[10, 10]]), (2, [[10, 10]])]
    assert third == []


# Sources


def source_of(samples: int, block: int, promised: int | None = None) -> AudioSource:
    signal = np.arange(2 * samples, dtype=np.float32).reshape(2, samples)

    def open_blocks() -> Iterator[Float]:
        return (signal[:, start : start + block] for start in range(0, samples, block))

    return AudioSource("song.wav", 2, samples if promised is None else promised, 44100, open_blocks)


@pytest.mark.parametrize("block", [1, 3, 7, 100])
@pytest.mark.parametrize(("size", "step"), [(4, 4), (4, 1), (5, 3), (3, 5), (50, 20)])
def test_spans_are_read_whatever_the_blocks(block: int, size: int, step: int) -> None:
    reader = SampleReader(source_of(41, block))
    signal = np.pad(np.arange(82, dtype=np.float32).reshape(2, 41), ((0, 0), (0, 100)))
    for start in range(0, 45, step):
        np.testing.assert_array_equal(reader.read(start, start + size), signal[:, start : start + size])


def test_reader_forgets_what_lies_behind() -> None:
    reader = SampleReader(source_of(1000, 10))
    for start in range(0, 900, 30):
        reader.read(start, start + 50)
        assert reader._buffer.shape[1] <= 60


def test_source_that_ends_early_is_refused() -> None:
    reader = SampleReader(source_of(41, 10, promised=50))
    reader.read(0, 41)
    with refused(AudioError, "song.wav", 41, 50):
        reader.read(0, 42)


def test_array_is_a_source_of_its_own_rate() -> None:
    audio = np.zeros((2, 4800), np.float32)
    source = open_source(audio, 44100, 48000)
    assert (source.channels, source.samples, source.source_rate) == (2, 4410, 48000)
    assert sum(block.shape[1] for block in source.open()) == 4410
    assert open_source(audio, 44100).samples == 4800
    assert open_source(source, 44100) is source


def test_source_can_be_read_again() -> None:
    audio = np.arange(400_000, dtype=np.float32).reshape(2, -1) / 400_000
    source = open_source(audio, 44100)
    for _ in range(2):
        np.testing.assert_array_equal(np.concatenate(list(source.open()), axis=1), audio)
