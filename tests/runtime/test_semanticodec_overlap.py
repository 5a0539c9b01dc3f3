"""How SemantiCodec's windows are laid out and joined, against the official steps written down plainly (SPEC section 3.7)."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from numpy.typing import NDArray

from musicrt.runtime.fake_session import FakeSession
from musicrt.runtime.model import Model
from musicrt.runtime.models.semanticodec.lengths import FADE, WINDOW_HOP, WINDOW_SAMPLES, decode_windows, decoded_samples, token_windows
from musicrt.runtime.models.semanticodec.pipeline import Pipeline
from musicrt.runtime.models.semanticodec.spec import build_spec
from musicrt.runtime.select import Choice

Float = NDArray[np.float32]


def rules(stack: int) -> Pipeline:
    """A pipeline of the official size without weights: what is tested here needs none."""
    spec = build_spec({"token_rate": 100 // stack}, "custom")
    return Pipeline(Model(spec, lambda stage: FakeSession(spec.stage(stage)), Choice("fake", "no weights")))


def tokens_for(windows: int, rest: int, stack: int) -> int:
    """How many tokens make so many windows, the last of them with `rest` tokens."""
    size = 512 // stack
    return (windows - 1) * (size - size // 16) + rest


def overlap_and_add(windows: list[Float], kept: int) -> Float:
    """The official way: each window is added to all that there is so far, and the end is cut at last."""
    output = windows[0].copy()
    for window in windows[1:]:
        window = window.copy()
        window[:FADE] *= np.linspace(0, 1, FADE)
        output[-FADE:] *= np.linspace(1, 0, FADE)
        output[-FADE:] += window[:FADE]
        output = np.concatenate([output, window[FADE:]])
    return output[:kept]


def join(codec: Pipeline, windows: list[Float], tokens: int, stack: int) -> list[Float]:
    plan = decode_windows(tokens, stack)
    results = [(window, whole[None, : window.size]) for window, whole in zip(plan, windows, strict=True)]
    return [block[0] for block in codec.decoder.join(results, tokens)]


@pytest.mark.parametrize("stack", [1, 2, 4])
@pytest.mark.parametrize("count", [1, 2, 3, 20, 21, 25])
def test_windows_join_as_officially(stack: int, count: int) -> None:
    """Every window is 32 samples longer than was meant, so from the 21st on a short last one ends within its fade."""
    codec, shortest = rules(stack), 512 // stack // 16 + 1
    generator = np.random.default_rng(count)
    windows = [generator.standard_normal(WINDOW_SAMPLES, np.float32) * np.float32(0.01) for _ in range(count)]
    for rest in (shortest, 512 // stack // 2, 512 // stack):
        tokens = tokens_for(count, rest, stack)
        assert len(token_windows(tokens, stack)) == count
        got = np.concatenate(join(codec, windows, tokens, stack))
        expected = overlap_and_add(windows, decoded_samples(tokens, stack))
        assert got.shape == expected.shape
        assert np.abs(got - expected).max() < 1e-8


@pytest.mark.parametrize(("count", "rest", "blocks"), [(340, 17, 340), (341, 17, 340), (400, 17, 399), (400, 256, 400)])
def test_windows_drift_away_from_their_tokens(count: int, rest: int, blocks: int) -> None:
    """After an hour they lie 11 000 samples late: a short last one then begins where nothing more is kept."""
    tokens = tokens_for(count, rest, 2)
    plan = decode_windows(tokens, 2)
    assert len(plan) == count
    assert plan[-1].start == (count - 1) * WINDOW_HOP == (count - 1) * (153600 + 32)
    joined = join(rules(2), [np.zeros(WINDOW_SAMPLES, np.float32)] * count, tokens, 2)
    assert sum(map(len, joined)) == decoded_samples(tokens, 2) == 640 * tokens
    assert sum(len(block) > 0 for block in joined) == blocks


@pytest.mark.parametrize("stack", [1, 2, 4])
def test_plan_covers_what_is_kept(stack: int) -> None:
    lengths = [*range(1, 600), *(tokens_for(count, rest, stack) for count in (30, 500) for rest in range(40, 512 // stack, 7))]
    for tokens in lengths:
        plan = decode_windows(tokens, stack)
        assert len(plan) == len(token_windows(tokens, stack))
        assert plan[0].start == plan[0].fade == 0
        assert plan[-1].stop >= decoded_samples(tokens, stack)
        assert all(FADE <= window.size <= WINDOW_SAMPLES for window in plan)
        for before, window in itertools.pairwise(plan):
            assert before.size == WINDOW_SAMPLES
            assert before.stop - window.start == window.fade == FADE
    assert decode_windows(1, stack)[0].size == FADE
