"""One pipeline of every system on every CPU backend, in several threads: the results are those of one call after the other."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from musicrt.runtime.model import load
from musicrt.runtime.models.vidmuse.frames import Clip
from musicrt.runtime.select import BACKENDS
from musicrt.runtime.session import Session
from tests.conftest import ForSystem
from tests.reference import signals

ON_CPU = [name for name, kind in BACKENDS.items() if kind.device == "cpu" and kind.obstacle() is None]
THREADS = 3

Request = Callable[[], NDArray[Any]]


def music2latent(codec: Any) -> list[Request]:
    latents = codec.encode(signals.audio("music", 0.1, 44100))
    return [
        lambda: codec.encode(signals.audio("music", 0.1, 44100)),
        lambda: codec.encode(signals.audio("music", 0.07, 44100)),
        *(lambda steps=steps: codec.decode(latents, steps=steps, seed=7) for steps in (1, 2, 3, 4, 5, 6)),
        lambda: np.concatenate(list(codec.decode_stream(latents, seed=8, window=0.05, overlap=0.02)), axis=1),
    ]


def semanticodec(codec: Any) -> list[Request]:
    tokens = codec.encode(signals.audio("music", 0.5, 16000))
    return [
        lambda: codec.encode(signals.audio("music", 0.5, 16000)),
        lambda: codec.decode(tokens, steps=2, sampler="dpm-solver++", seed=7),
        lambda: codec.decode(tokens, steps=1, guidance=1.0, seed=8),
    ]


def mucodec(codec: Any) -> list[Request]:
    codes = codec.encode(signals.audio("music", 0.3, 48000), fit="length")
    return [
        lambda: codec.encode(signals.audio("music", 0.3, 48000), fit="length"),
        lambda: codec.decode(codes, steps=2, seed=7, fit="length"),
        lambda: codec.decode(codes, steps=1, guidance=1.0, seed=8, fit="length"),
    ]


def vidmuse(codec: Any) -> list[Request]:
    pictures = np.random.default_rng(0).integers(0, 256, (3, 2, 224, 224), np.uint8)
    codes = codec.encode(signals.audio("music", 0.2, 32000))
    return [
        lambda: codec.generate(Clip.from_tensors(pictures, pictures), duration=0.3, seed=7),
        lambda: codec.generate(Clip.from_tensors(pictures, pictures), duration=0.2, top_k=5, guidance=1.5, seed=8),
        lambda: codec.decode(codes),
    ]


REQUESTS: dict[str, Callable[[Any], list[Request]]] = {one.__name__: one for one in (music2latent, semanticodec, mucodec, vidmuse)}


@pytest.mark.parametrize("system", REQUESTS)
@pytest.mark.parametrize("backend", ON_CPU)
def test_threads_get_what_one_call_after_the_other_gives(backend: str, system: str, tiny_bundles: ForSystem) -> None:
    with load(tiny_bundles(system), backend=backend, threads=1) as codec:
        opened = watch_opening(codec)
        requests = REQUESTS[system](codec)
        together = threading.Barrier(THREADS)

        def work(first: int) -> list[tuple[int, NDArray[Any]]]:
            together.wait(30)
            order = [*range(first, len(requests)), *range(first)]
            return [(number, requests[number]()) for number in order]

        with ThreadPoolExecutor(THREADS) as pool:
            found = [pair for pairs in pool.map(work, range(THREADS)) for pair in pairs]
        expected = [request() for request in requests]
    assert len(found) == THREADS * len(requests)
    for number, result in found:
        np.testing.assert_array_equal(result, expected[number])
    assert len(opened) == len(set(opened)), "a stage was opened twice"


def watch_opening(codec: Any) -> list[str]:
    opened, inner = [], codec.model._open_session

    def open_session(stage: str) -> Session:
        opened.append(stage)
        session: Session = inner(stage)
        return session

    codec.model._open_session = open_session
    return opened
