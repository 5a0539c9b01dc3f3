"""The loop of a bundle's system, ready to run in several ways on the same inputs: what is compared, and what is timed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol
from unittest import mock

import numpy as np
from numpy.typing import NDArray

from musicrt.runtime.cuda.arguments import choice_settings
from musicrt.runtime.cuda.denoising import DeviceLoops
from musicrt.runtime.cuda.device import Device
from musicrt.runtime.cuda.generation import TokenLoop
from musicrt.runtime.errors import BackendError, Cancelled
from musicrt.runtime.generator import Generator
from musicrt.runtime.loops.autoregressive import TokenSequence, write_columns
from musicrt.runtime.loops.delays import DelayPattern
from musicrt.runtime.loops.denoiser import Denoiser, Loop, LoopRunner
from musicrt.runtime.loops.diffusion import Draw, OnStep
from musicrt.runtime.loops.sampling import Draws, Float, Sampling, Tokens, pick
from musicrt.runtime.measure import synthesise_music
from musicrt.runtime.session import Array, Session

HOST, CALLS, GRAPH, LOOP = "on the host", "call by call", "graph", "graph with a loop"
"""Ways to run a loop: the first is what the others are compared with. In the loop over tokens it is only the choice that is on the host."""
Run = Callable[[], NDArray[Any]]


class Case(Protocol):
    """A loop with its inputs. steps: evaluations of the network in a run."""

    session: Session
    device: Device
    steps: int

    def ways(self) -> dict[str, Run]:
        """What it gives, by the ways to run it, that of the host first. Those that can't be run here raise BackendError."""
        ...

    def feeds(self) -> dict[str, Array]:
        """What the network is given in a step, states included."""
        ...


def open_case(codec: Any, seconds: float, steps: int) -> Case:
    """The loop of a pipeline for so much audio. steps: of samplers. Raises BackendError where its sessions are not on a GPU."""
    return TokenCase(codec, seconds) if isinstance(codec, Generator) else SignalCase(codec, seconds, steps)


class SignalCase:
    """The sampler of a codec, as a decode of synthesised music runs it the first time."""

    def __init__(self, codec: Any, seconds: float, steps: int) -> None:
        def catch(length: float) -> tuple[Loop, Denoiser, Draw]:
            values = codec.encode(synthesise_music(length, codec.sample_rate))
            return _catch(lambda: codec.decode(values, seed=1, steps=steps))

        self._loop, self._denoiser, self._draw = catch(seconds)
        self._shorter = catch(seconds / 2)
        self.session, self.steps = self._denoiser.session, self._loop.steps
        self.device = _gpu_of(self.session)

    def ways(self) -> dict[str, Run]:
        """See `Case`."""
        ways: dict[str, Run] = {HOST: lambda: self._loop.run(self._denoiser.on_host(), self._draw, lambda: None)}
        for name in (CALLS, GRAPH) if self.device.graphs else (CALLS,):
            ways[name] = self._on_device(DeviceLoops(self.device), name)
        return ways

    def feeds(self) -> dict[str, Array]:
        """See `Case`."""
        x, position = self._draw(0), self._loop.positions[0]
        rows = {name: np.repeat(table[position][None], len(x), axis=0) for name, table in self._denoiser.tables.items()}
        return {**self._denoiser.constants, **rows, self._denoiser.signal: x}

    def _on_device(self, loops: DeviceLoops, name: str) -> Run:
        def run() -> Float:
            with _graphs(self.device, name != CALLS):
                return loops.run(self._loop, self._denoiser, self._draw, lambda: None)

        if name == GRAPH:  # what is compared is a graph that is replayed after calls of other shapes
            run()
            loops.run(*self._shorter, lambda: None)
        return run


class TokenCase:
    """One window of a generator, on a condition of noise."""

    def __init__(self, codec: Any, seconds: float) -> None:
        from benchmarks.vidmuse.workload import Workload  # the only generator there is
        from musicrt.runtime.models.vidmuse.conditioner import rename

        config, conditioner = codec.config, codec.composer.conditioner
        work = Workload.build(codec.model.spec.config, max(int(2 * seconds), 1) * 50)
        self._pattern: DelayPattern = work.pattern
        self._timesteps = work.timesteps(seconds)
        self._feeds = {**conditioner.keys(work.condition()), **rename(conditioner.keys(work.null_condition()))}
        self._noise, self._sampling = work.noise(seconds), Sampling(min(250, config.card))
        self._prompt: Tokens = np.zeros((1, config.codebooks, 0), np.int64)
        self.session, self.steps = codec.model.session("lm"), len(self._noise)
        self.device = _gpu_of(self.session)
        self._sizes = {"batch": 1, "capacity": max(self.steps, self.session.limits["capacity"][0])}

    def ways(self) -> dict[str, Run]:
        """See `Case`."""
        ways: dict[str, Run] = {HOST: self._choose_on_host(self._loop(looping=False))}
        for name in (CALLS, GRAPH, LOOP) if self.device.graphs else (CALLS,):
            ways[name] = self._on_device(self._loop(looping=name == LOOP), name)
        return ways

    def feeds(self) -> dict[str, Array]:
        """See `Case`. All of the caches is empty."""
        states = {state.name: np.zeros(state.resolve(self._sizes), state.dtype) for state in self.session.states}
        tokens = np.full((1, self._prompt.shape[1], 1), self._pattern.special, np.int64)
        return {**self._feeds, **states, "tokens": tokens, "length": np.zeros(1, np.int64)}

    def _loop(self, *, looping: bool) -> TokenLoop:
        return TokenLoop(self.session, self._feeds, self._pattern, self._sizes, looping=looping)

    def _choose_on_host(self, loop: TokenLoop) -> Run:
        def run() -> Tokens:
            loop.begin(self._feeds, 1)
            sequence, numbers = TokenSequence(self._pattern, self._prompt, self._timesteps), iter(self._noise)

            def choose(logits: Float) -> Tokens:
                return self._sampling.choose(logits, lambda _call, weights: pick(weights, next(numbers)), 0)

            for _ in write_columns(sequence, loop.feed, choose, 3.0):
                pass
            return sequence.codes()

        return run

    def _on_device(self, loop: TokenLoop, name: str) -> Run:
        def run() -> Tokens:
            with _graphs(self.device, name != CALLS):
                loop.begin(self._feeds, 1)
                sequence = TokenSequence(self._pattern, self._prompt, self._timesteps)
                for _ in loop.write(sequence, choice_settings(self._sampling, 3.0), Draws(given=self._noise), 0):
                    pass
                return sequence.codes()

        return run


def _catch(decode: Callable[[], object]) -> tuple[Loop, Denoiser, Draw]:
    """The first loop that a decode runs."""
    caught: list[tuple[Loop, Denoiser, Draw]] = []

    def run(_self: LoopRunner, loop: Loop, denoiser: Denoiser, draw: Draw, _on_step: OnStep) -> Float:
        caught.append((loop, denoiser, draw))
        raise Cancelled

    with mock.patch.object(LoopRunner, "run", run):
        try:
            decode()
        except Cancelled:
            return caught[0]
    raise BackendError("the decode ran no sampling loop; choose more --seconds")


def _gpu_of(session: Session) -> Device:
    if session.gpu is None:
        raise BackendError(f"the loops of stage {session.stage.name!r} run on the host here; pip install 'musicrt[device]'")
    return session.gpu


@contextmanager
def _graphs(device: Device, wanted: bool) -> Iterator[None]:
    """With graphs or without."""
    before, device.graphs = device.graphs, wanted
    try:
        yield
    finally:
        device.graphs = before
