"""The kernel that chooses tokens, run by real threads on the host: what `TokenSequence` and `Sampling` choose from the same logits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from musicrt.runtime.cuda.arguments import MOST_CARD, STATE, Choice, choice_settings, choice_state
from musicrt.runtime.errors import InputError
from musicrt.runtime.loops.autoregressive import TokenSequence
from musicrt.runtime.loops.delays import UNKNOWN, DelayPattern
from musicrt.runtime.loops.diffusion import Float, guide
from musicrt.runtime.loops.sampling import Sampling, pick
from musicrt.runtime.noise import uniform_numbers
from tests.conftest import refused
from tests.runtime.host_kernels import HostKernels, on_host

DELAYS = (0, 1, 2, 3)
CODEBOOKS = len(DELAYS)
SAMPLINGS = {
    "greedy": Sampling(temperature=0.0),
    "greedy, nearly": Sampling(top_k=0, temperature=1e-35),
    "cold": Sampling(top_k=0, temperature=0.01),
    "hot": Sampling(top_k=0, temperature=1e6),
    "all": Sampling(top_k=0),
    "top_k 1": Sampling(top_k=1),
    "top_k 3": Sampling(top_k=3, temperature=1.5),
    "top_k all": Sampling(top_k=-1),
    "top_p tiny": Sampling(top_p=1e-60),
    "top_p 0.5": Sampling(top_p=0.5),
    "top_p 0.95": Sampling(top_p=0.95, temperature=0.8),
    "top_p 1": Sampling(top_p=1.0),
}


class Written:
    """A sequence that the kernel writes, and all that it is handed for that. Any of it may be changed between two columns."""

    def __init__(self, sequence: TokenSequence, sampling: Sampling, guidance: float = 3.0, call: int = 0, threads: int = 4) -> None:
        batch, books, end = sequence.tokens.shape
        self.tokens = np.full((batch, books, end + 2), 99, np.int64)  # room for more than is needed
        self.tokens[:, :, :end] = sequence.tokens
        self.fed, self.length = np.zeros((batch, books, 1), np.int64), np.zeros(1, np.int64)
        self.state, self.settings = choice_state(sequence.first, end, end, call), choice_settings(sampling, guidance)
        self.delays, self.special, self.end = np.array(sequence.pattern.delays, np.int32), sequence.pattern.special, end
        self.kernels = HostKernels(sorting=threads)

    def choose(self, logits: NDArray[Any], *, seed: int | None = None, uniforms: NDArray[np.float64] | None = None) -> None:
        choice = Choice(
            logits=on_host(logits),
            settings=on_host(self.settings),
            delays=on_host(self.delays),
            special=self.special,
            tokens=on_host(self.tokens),
            fed=on_host(self.fed),
            length=on_host(self.length),
            state=on_host(self.state),
            seed=None if seed is None else on_host(np.array([seed], np.uint64)),
            uniforms=None if uniforms is None else on_host(uniforms),
        )
        self.kernels.choose(choice)

    def counter(self, name: str) -> int:
        return int(self.state[STATE.index(name)])


def sampled(name: str, card: int) -> Sampling:
    """One of `SAMPLINGS`, as a codebook of this size allows it."""
    sampling = SAMPLINGS[name]
    top_k = card if sampling.top_k < 0 else min(sampling.top_k, card)
    return Sampling(top_k, sampling.top_p, sampling.temperature).check(card)


def start(batch: int, card: int, timesteps: int = 5, known: int = 2) -> TokenSequence:
    prompt = np.random.default_rng(batch).integers(0, card, (batch, CODEBOOKS, known))
    return TokenSequence(DelayPattern(DELAYS, card), prompt, timesteps)


def expect(sequence: TokenSequence, column: int, logits: Float, sampling: Sampling, guidance: float, uniform: NDArray[np.float64]) -> None:
    """Write a column as the host's loop does."""
    guided = guide(logits.astype(np.float32), guidance)
    chosen = sampling.choose(guided.reshape(len(uniform), -1), lambda _call, weights: pick(weights, uniform), 0)
    sequence.write(column, chosen.reshape(sequence.tokens.shape[:2]))


def write_both(
    sequence: TokenSequence, written: Written, sampling: Sampling, logits_of: Callable[[int], NDArray[Any]], guidance: float = 3.0
) -> None:
    """Write the rest of a sequence by both, with given numbers, and compare after each column."""
    batch, books, end = sequence.tokens.shape
    uniforms = np.random.default_rng(9).random((end, batch * books))
    for call, column in enumerate(range(sequence.first, end)):
        logits = logits_of(column)
        expect(sequence, column, logits, sampling, guidance, uniforms[call])
        written.choose(logits, uniforms=uniforms)
        np.testing.assert_array_equal(written.tokens[:, :, :end], sequence.tokens)
        np.testing.assert_array_equal(written.fed[:, :, 0], sequence.tokens[:, :, column])
        assert written.length[0] == column
        assert [written.counter(name) for name in STATE] == [column + 1, end, end, call + 1, 0, 0]
    assert not (sequence.tokens == UNKNOWN).any()
    assert (written.tokens[:, :, end:] == 99).all()


def random_logits(batch: int, card: int, kind: Any = np.float32) -> Callable[[int], NDArray[Any]]:
    """Of a column; in float16 many are equal."""
    return lambda column: (2 * np.random.default_rng(column).standard_normal((2, batch, CODEBOOKS, card))).astype(kind)


@pytest.mark.parametrize(("batch", "card"), [(1, 64), (2, 100), (7, 5)])
@pytest.mark.parametrize("kind", [np.float32, np.float16])
@pytest.mark.parametrize("name", SAMPLINGS)
def test_sequence_is_that_of_the_host(name: str, kind: Any, batch: int, card: int) -> None:
    sequence, sampling = start(batch, card), sampled(name, card)
    write_both(sequence, Written(sequence, sampling), sampling, random_logits(batch, card, kind))


@pytest.mark.parametrize("card", [1, 2, 3, 1024, 2000, 2048, MOST_CARD])
@pytest.mark.parametrize("name", ["greedy", "all", "top_k 3", "top_p 0.95"])
def test_codebooks_may_have_any_size(name: str, card: int) -> None:
    sequence, sampling = start(1, card, timesteps=2, known=1), sampled(name, card)
    write_both(sequence, Written(sequence, sampling), sampling, random_logits(1, card))


@pytest.mark.parametrize("threads", [1, 2, 3, 8, 13, 64])
@pytest.mark.parametrize("name", ["greedy", "top_k 3", "top_p 0.95"])
def test_any_number_of_threads_chooses_the_same(name: str, threads: int) -> None:
    sequence, sampling = start(1, 40, timesteps=2, known=0), sampled(name, 40)
    write_both(sequence, Written(sequence, sampling, threads=threads), sampling, random_logits(1, 40))


@pytest.mark.parametrize("guidance", [0.0, 1.0, -1.5, 7.0])
def test_guidance_is_that_of_the_host(guidance: float) -> None:
    sequence, sampling = start(2, 30), Sampling(top_k=10)
    write_both(sequence, Written(sequence, sampling, guidance), sampling, random_logits(2, 30), guidance)


@pytest.mark.parametrize("name", SAMPLINGS)
def test_equal_logits_are_taken_in_order(name: str) -> None:
    """Eight tokens of the same weight, and eight without any: sums of eighths are exact, so numbers may lie on them."""
    sampling, logits = sampled(name, 16), np.full((2, 1, CODEBOOKS, 16), -np.inf, np.float32)
    logits[0, :, :, 1::2] = 3.0
    logits[1] = 3.0
    for uniform in ([0.0, 0.125, 0.25, 0.375], [0.5, 0.625, 0.75, 0.875], [0.1, 0.499999, 1 - 2**-53, 2**-53]):
        sequence = start(1, 16, timesteps=9, known=8)
        written = Written(sequence, sampling)
        expect(sequence, sequence.first, logits, sampling, 3.0, np.array(uniform))
        written.choose(logits, uniforms=np.array([uniform]))
        np.testing.assert_array_equal(written.tokens[:, :, : written.end], sequence.tokens)
        assert written.counter("failed") == 0


@pytest.mark.parametrize("name", SAMPLINGS)
def test_one_token_that_is_left_is_chosen(name: str) -> None:
    sampling, logits = sampled(name, 33), np.full((2, 2, CODEBOOKS, 33), -np.inf, np.float32)
    logits[0, :, :, 20], logits[1] = -4.0, 0.0
    sequence = start(2, 33, timesteps=9, known=5)
    written = Written(sequence, sampling, guidance=1.0)
    written.choose(logits, uniforms=np.full((1, 2 * CODEBOOKS), 0.7))
    assert set(written.fed.ravel()) <= {20, *sequence.tokens[:, :, sequence.first].ravel()} - {UNKNOWN}
    assert (written.fed[:, 0] == 20).all()
    assert written.counter("failed") == 0


def test_seeded_numbers_are_those_of_the_host() -> None:
    for seed, call in ((0, 0), (2**64 - 1, 1500), (1234567, 2**31 - 1)):
        sequence, sampling = start(2, 50), Sampling(top_k=0)
        written, logits = Written(sequence, sampling, call=call), random_logits(2, 50)(0)
        expect(sequence, sequence.first, logits, sampling, 3.0, np.tile(uniform_numbers(seed, CODEBOOKS, draw=call), 2))
        written.choose(logits, seed=seed)
        np.testing.assert_array_equal(written.tokens[:, :, : written.end], sequence.tokens)


def test_after_several_columns_at_once_the_last_counts() -> None:
    sequence, sampling = start(2, 20), Sampling(top_k=5)
    written, many = Written(sequence, sampling), random_logits(2, 20 * 6)(0).reshape(2, 2, CODEBOOKS, 6, 20)
    uniform = np.random.default_rng(1).random((1, 2 * CODEBOOKS))
    expect(sequence, sequence.first, many[:, :, :, -1], sampling, 3.0, uniform[0])
    written.choose(many, uniforms=uniform)
    np.testing.assert_array_equal(written.tokens[:, :, : written.end], sequence.tokens)


@pytest.mark.parametrize("name", SAMPLINGS)
@pytest.mark.parametrize(("value", "everywhere"), [(np.nan, False), (np.nan, True), (np.inf, False), (-np.inf, True)])
def test_logits_that_say_nothing_are_reported(name: str, value: float, everywhere: bool) -> None:
    """Other rows are chosen from as ever, and all tokens stay within the codebook; the first such column is kept."""
    sequence, sampling = start(2, 24), sampled(name, 24)
    written, uniforms = Written(sequence, sampling, guidance=1.0), np.full((9, 2 * CODEBOOKS), 0.4)
    first, logits = sequence.first, random_logits(2, 24)(0)
    expect(sequence, first, logits, sampling, 1.0, uniforms[0])
    if everywhere:
        logits[0, 1, 0], logits[1, 1, 0] = value, 0.0
    else:
        logits[0, 1, 0, 3] = value
    written.choose(logits, uniforms=uniforms)
    assert written.counter("failed") == first
    assert 0 <= written.fed[1, 0, 0] < 24
    np.testing.assert_array_equal(written.fed[0, :, 0], sequence.tokens[0, :, first])
    written.choose(logits, uniforms=uniforms)
    assert (written.counter("failed"), written.counter("column")) == (first, first + 2)


def test_minus_infinity_in_both_rows_is_no_number() -> None:
    sequence = start(1, 8)
    written, logits = Written(sequence, Sampling(top_k=0)), np.full((2, 1, CODEBOOKS, 8), -np.inf, np.float32)
    logits[..., 2] = 1.0
    written.choose(logits, seed=1)
    assert written.fed[0, 0, 0] == 2
    assert written.counter("failed") == sequence.first  # as on the host: -inf less -inf


def test_nothing_is_done_at_the_stop() -> None:
    sequence = start(1, 8)
    written = Written(sequence, Sampling(temperature=0.0))
    written.state[STATE.index("stop")] = sequence.first
    before = [array.copy() for array in (written.tokens, written.fed, written.length, written.state)]
    written.choose(random_logits(1, 8)(0))
    for array, held in zip((written.tokens, written.fed, written.length, written.state), before, strict=True):
        np.testing.assert_array_equal(array, held)


def test_arrays_that_do_not_fit_are_refused() -> None:
    written = Written(start(1, 8), Sampling())
    for logits, words in (
        (np.zeros((2, 1, CODEBOOKS, MOST_CARD + 1), np.float32), [MOST_CARD + 1, f"1 to {MOST_CARD}"]),
        (np.zeros((1, 1, CODEBOOKS, 8), np.float32), ["logits: got float32 [1, 1, 4, 8]", "[2, 1, 4, any]"]),
        (np.zeros((2, 1, CODEBOOKS, 8)), ["logits: got float64", "expected float32 or float16"]),
    ):
        with refused(InputError, *words):
            written.choose(logits)
    with refused(InputError, "a seed and uniform numbers"):
        written.choose(np.zeros((2, 1, CODEBOOKS, 8), np.float32), seed=1, uniforms=np.zeros((1, CODEBOOKS)))
    with refused(InputError, "uniforms: got float64 [1, 3]", "[any, 4]"):
        written.choose(np.zeros((2, 1, CODEBOOKS, 8), np.float32), uniforms=np.zeros((1, 3)))
