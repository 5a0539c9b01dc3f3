"""Generation of tokens column by column: the delay pattern, what is fed and kept, guidance, and the choice of a token."""

from __future__ import annotations

import numpy as np
import pytest

from musicrt.runtime.errors import BackendError, InputError
from musicrt.runtime.loops.autoregressive import Choose, Evaluate, TokenSequence, write_columns
from musicrt.runtime.loops.delays import UNKNOWN, DelayPattern, Tokens
from musicrt.runtime.loops.diffusion import check_guidance
from musicrt.runtime.loops.sampling import Draw, Float, Sampling, pick, race, softmax
from tests.conftest import refused

PATTERN = DelayPattern((0, 1, 2, 3), 99)
NO_PROMPT = np.zeros((1, 4, 0), np.int64)


def codes_of(batch: int, timesteps: int) -> Tokens:
    """Each its own number: 1000 row + 100 codebook + timestep."""
    row, book, time = np.ogrid[:batch, :4, :timesteps]
    return np.asarray(1000 * row + 10 * book + time)


def by(*uniforms: float) -> Draw:
    return lambda _call, weights: pick(weights, np.array(uniforms))


# Delays


def test_sequence_of_three_timesteps() -> None:
    x = 99
    expected = [[x, 0, 1, 2, x, x, x], [x, x, 10, 11, 12, x, x], [x, x, x, 20, 21, 22, x], [x, x, x, x, 30, 31, 32]]
    sequence = PATTERN.build(codes_of(2, 3))
    np.testing.assert_array_equal(sequence[0], expected)
    np.testing.assert_array_equal(PATTERN.mask(3), np.array(expected) != x)
    np.testing.assert_array_equal(PATTERN.revert(sequence), codes_of(2, 3))
    assert PATTERN.columns(3) == 7


@pytest.mark.parametrize("delays", [(0,), (0, 0, 0, 0), (0, 1, 2, 3), (0, 2, 2, 7), (1, 4)])
@pytest.mark.parametrize("timesteps", [1, 2, 9])
def test_every_token_has_its_place_and_comes_back(delays: tuple[int, ...], timesteps: int) -> None:
    pattern = DelayPattern(delays, -7)
    codes = np.arange(2 * len(delays) * timesteps).reshape(2, len(delays), timesteps)
    sequence, mask = pattern.build(codes), pattern.mask(timesteps)
    for book, delay in enumerate(delays):
        for time in range(timesteps):
            np.testing.assert_array_equal(sequence[:, book, 1 + time + delay], codes[:, book, time])
    assert mask.sum() == len(delays) * timesteps
    assert (sequence[:, ~mask] == -7).all()
    np.testing.assert_array_equal(pattern.revert(sequence), codes)
    np.testing.assert_array_equal(pattern.revert(sequence, range(1, timesteps)), codes[:, :, 1:])
    assert pattern.complete(sequence.shape[2] - 1) == timesteps
    assert pattern.complete(0) == 0


def test_timesteps_are_complete_when_the_last_codebook_is() -> None:
    assert [PATTERN.complete(column) for column in range(7)] == [0, 0, 0, 0, 1, 2, 3]


@pytest.mark.parametrize("delays", [(), (1, 0), (-1, 0)])
def test_delays_that_fall(delays: tuple[int, ...]) -> None:
    with refused(InputError, f"got delays {list(delays)}"):
        DelayPattern(delays, 0)


# The loop


class Model:
    """Gives each codebook one likely token, the number of the column, and keeps what it is fed."""

    def __init__(self, card: int = 50) -> None:
        self.fed: list[Tokens] = []
        self._card = card

    def __call__(self, columns: Tokens) -> Float:
        self.fed.append(columns.copy())
        column = sum(part.shape[2] for part in self.fed)
        logits = np.zeros((2, *columns.shape[:2], self._card), np.float32)
        logits[0, ..., column] = 1
        return logits


def greedy(logits: Float) -> Tokens:
    tokens: Tokens = np.argmax(logits, axis=1)
    return tokens


def generate(timesteps: int, prompt: Tokens, evaluate: Evaluate, choose: Choose = greedy, guidance: float = 1.0) -> Tokens:
    sequence = TokenSequence(PATTERN, prompt, timesteps)
    for _ in write_columns(sequence, evaluate, choose, guidance):
        pass
    return sequence.codes()


def test_columns_are_fed_one_by_one_and_the_last_never() -> None:
    model = Model()
    codes = generate(3, NO_PROMPT, model)
    np.testing.assert_array_equal(codes[0], [[1, 2, 3], [2, 3, 4], [3, 4, 5], [4, 5, 6]])
    assert [part.shape[2] for part in model.fed] == [1] * 6
    np.testing.assert_array_equal(np.concatenate(model.fed, axis=2), PATTERN.build(codes)[:, :, :6])


def test_prompt_is_fed_at_once_and_kept_where_it_comes_later() -> None:
    model, prompt = Model(), codes_of(2, 2)
    codes = generate(4, prompt, model)
    np.testing.assert_array_equal(codes[:, :, :2], prompt)
    np.testing.assert_array_equal(codes[1, :, 2:], [[3, 4], [4, 5], [5, 6], [6, 7]])
    assert [part.shape[2] for part in model.fed] == [3, 1, 1, 1, 1]
    np.testing.assert_array_equal(model.fed[0], PATTERN.build(codes)[:, :, :3])
    assert all((part != UNKNOWN).all() for part in model.fed)


@pytest.mark.parametrize("bad", [[np.nan, 0, 0], [np.inf, 0, 0], [-np.inf] * 3])
def test_logits_that_are_no_numbers(bad: list[float]) -> None:
    fed: list[Tokens] = []

    def evaluate(columns: Tokens) -> Float:
        fed.append(columns)
        logits = np.zeros((2, *columns.shape[:2], 3), np.float32)
        logits[0, 0, 0, :2] = -np.inf
        if len(fed) == 3:
            logits[:, -1, 2] = bad
        return logits

    with refused(BackendError, "got logits that are no numbers at column 3 of the sequence"):
        generate(4, np.zeros((2, 4, 0), np.int64), evaluate, guidance=3.0)
    assert len(fed) == 3


def test_what_is_complete_is_final() -> None:
    sequence = TokenSequence(PATTERN, NO_PROMPT, 5)
    assert (sequence.first, sequence.steps) == (1, 8)
    seen = []
    for complete in write_columns(sequence, Model(), greedy, 1.0):
        part = sequence.codes(range(complete))
        assert (part != UNKNOWN).all()
        seen.append(part)
    assert [part.shape[2] for part in seen] == [0, 0, 0, 1, 2, 3, 4, 5]
    for part in seen:
        np.testing.assert_array_equal(part, seen[-1][:, :, : part.shape[2]])


@pytest.mark.parametrize(("scale", "expected"), [(1.0, 0), (3.0, 1), (0.0, 2), (-1.0, 2)])
def test_guidance_moves_away_from_the_logits_without_condition(scale: float, expected: int) -> None:
    """With, without: tokens 0 to 2. 3 with - 2 without = [-1, 0.7, -5.8]."""
    logits = np.array([[1.0, 0.9, 0.0], [2.0, 1.0, 2.9]], np.float32)

    def evaluate(columns: Tokens) -> Float:
        return np.broadcast_to(logits[:, None, None], (2, *columns.shape[:2], 3)).copy()

    assert (generate(2, NO_PROMPT, evaluate, guidance=scale) == expected).all()


def test_wrong_arguments_of_the_loop() -> None:
    with refused(InputError, "got a prompt of 3 timesteps for a result of 3"):
        TokenSequence(PATTERN, codes_of(1, 3), 3)
    for scale in (float("nan"), float("inf"), "3", True, None):
        with refused(InputError, f"got guidance {scale!r}"):
            check_guidance(scale)


# The choice of a token

LOGITS = np.log(np.array([[0.1, 0.4, 0.2, 0.3]], np.float32))


def test_uniform_numbers_pick_by_cumulative_sums() -> None:
    weights = np.array([[0.25, 0.0, 0.5, 0.25, 0.0]] * 7, np.float32)
    below = np.nextafter(0.75, 0)
    np.testing.assert_array_equal(pick(weights, np.array([0.0, 0.2, 0.25, 0.5, below, 0.75, 1 - 2**-53])), [0, 0, 2, 2, 2, 3, 3])


def test_weights_need_not_sum_up_to_one() -> None:
    assert pick(np.full((1, 3), 0.2, np.float32), np.array([0.99]))[0] == 2


def test_first_exponential_number_to_arrive_wins() -> None:
    weights, arrivals = np.array([[0.5, 0.3, 0.2]], np.float32), np.array([[2.0, 1.0, 0.9]], np.float32)
    assert race(weights, arrivals)[0] == 1
    assert race(weights, np.array([[1.0, np.inf, np.inf]], np.float32))[0] == 0


@pytest.mark.parametrize(("k", "kept"), [(1, [1]), (2, [1, 3]), (3, [1, 2, 3]), (4, [0, 1, 2, 3]), (0, [0, 1, 2, 3])])
def test_top_k_keeps_the_likeliest(k: int, kept: list[int]) -> None:
    weights, tokens = Sampling(top_k=k).weigh(LOGITS)
    assert tokens is None
    np.testing.assert_array_equal(np.flatnonzero(weights), kept)
    full = np.array([0.1, 0.4, 0.2, 0.3])[kept]
    np.testing.assert_allclose(weights[0, kept], full / full.sum(), rtol=1e-6)


def test_ties_widen_top_k() -> None:
    weights, _ = Sampling(top_k=2).weigh(np.array([[0.0, 1.0, 0.0, 0.0, -1.0]], np.float32))
    np.testing.assert_array_equal(np.flatnonzero(weights), [0, 1, 2, 3])


@pytest.mark.parametrize(
    ("p", "kept"), [(0.05, [1]), (0.39, [1]), (0.5, [1, 3]), (0.75, [1, 3, 2]), (0.95, [1, 3, 2, 0]), (1.0, [1, 3, 2, 0])]
)
def test_top_p_keeps_what_begins_within_it(p: float, kept: list[int]) -> None:
    weights, tokens = Sampling(top_k=1, top_p=p).weigh(LOGITS)
    assert tokens is not None
    np.testing.assert_array_equal(tokens[0], [1, 3, 2, 0])
    np.testing.assert_array_equal(tokens[0][weights[0] > 0], kept)
    assert abs(weights.sum() - 1) < 1e-6


def test_tokens_of_top_p_are_mapped_back() -> None:
    sampling = Sampling(top_p=0.85)
    assert [sampling.choose(LOGITS, by(u), 0)[0] for u in (0.0, 0.43, 0.45, 0.77, 0.79, 0.999)] == [1, 1, 3, 3, 2, 2]


def test_temperature_flattens_and_zero_is_greedy() -> None:
    weights, _ = Sampling(top_k=0, temperature=2.0).weigh(LOGITS)
    roots = np.sqrt([0.1, 0.4, 0.2, 0.3])
    np.testing.assert_allclose(weights[0], roots / roots.sum(), rtol=1e-6)
    ties = np.array([[1.0, 3.0, 3.0], [5.0, 5.0, 0.0]], np.float32)

    def never(_call: int, _weights: Float) -> Tokens:
        raise AssertionError

    np.testing.assert_array_equal(Sampling(top_k=0, temperature=0).choose(ties, never, 0), [1, 0])


@pytest.mark.parametrize("temperature", [1e-6, 1e-38, 1e-60, 5e-324])
def test_cold_is_nearly_greedy(temperature: float) -> None:
    logits = np.array([[-1e6, 3e6, -40.0, 2.9e6]], np.float32)
    for options in ({"top_k": 0}, {"top_k": 3}, {"top_p": 0.9}):
        weights, _ = Sampling(temperature=temperature, **options).weigh(logits)
        np.testing.assert_array_equal(np.sort(weights[0]), [0, 0, 0, 1])


def test_call_is_handed_on() -> None:
    calls: list[int] = []

    def draw(call: int, weights: Float) -> Tokens:
        calls.append(call)
        return np.zeros(len(weights), np.int64)

    Sampling().choose(np.zeros((1, 300), np.float32), draw, 17)
    assert calls == [17]


def test_softmax_of_large_logits() -> None:
    weights = softmax(np.array([[1000.0, 999.0, -1000.0]], np.float32))
    np.testing.assert_allclose(weights, [[1 / (1 + np.exp(-1)), 1 / (1 + np.e), 0]], rtol=1e-6)
    assert weights.dtype == np.float32


@pytest.mark.parametrize(
    ("sampling", "says"),
    [
        (Sampling(top_k=-1), "got top_k -1, expected a whole number from 1 to 64"),
        (Sampling(top_k=65), "got top_k 65"),
        (Sampling(top_k=2.0), "got top_k 2.0"),  # type: ignore[arg-type]
        (Sampling(top_k=True), "got top_k True"),
        (Sampling(top_k=0, top_p=-0.1), "got top_p -0.1"),
        (Sampling(top_k=0, top_p=1.1), "got top_p 1.1"),
        (Sampling(top_k=0, top_p=float("nan")), "got top_p nan"),
        (Sampling(top_k=0, temperature=-1.0), "got temperature -1.0"),
        (Sampling(top_k=0, temperature=float("inf")), "got temperature inf"),
        (Sampling(top_k=0, temperature="hot"), "got temperature 'hot'"),  # type: ignore[arg-type]
    ],
)
def test_values_outside_their_range(sampling: Sampling, says: str) -> None:
    with refused(InputError, says):
        sampling.check(64)
