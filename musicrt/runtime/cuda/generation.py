"""The loop of a language model on a GPU: from the first known column of tokens to the last, with nothing of the host between columns.

What `musicrt.runtime.loops.autoregressive` does column by column is here two things enqueued for each: the stage, bound to memory of the
GPU, and the kernel that chooses a token of each codebook and puts it where the stage reads it next. The host waits once for each block.

The stage has the inputs `tokens` int64 [batch, codebooks, columns] and `length` int64 [1], the columns before those; constant ones; states;
and the output `logits` [2, batch, codebooks, columns, card], row 0 with the condition.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from musicrt.runtime.cuda.arguments import STATE, Choice, choice_state
from musicrt.runtime.cuda.array import DeviceArray
from musicrt.runtime.cuda.device import Device
from musicrt.runtime.cuda.kernels import Kernels
from musicrt.runtime.cuda.repetition import GraphOfLoop, repeat, wants_loops
from musicrt.runtime.errors import BackendError
from musicrt.runtime.loops.autoregressive import TokenSequence, bad_logits
from musicrt.runtime.loops.delays import DelayPattern, Tokens
from musicrt.runtime.loops.sampling import Draws, Float
from musicrt.runtime.session import Array, Session

BLOCK = 50
"""Columns that are written before the host sees them; of the first ones as many more as make so many timesteps complete."""


@dataclass(frozen=True)
class _Prefill:
    """Several columns at once: where they lie, and the call that feeds them."""

    tokens: DeviceArray
    logits: DeviceArray
    feed: Callable[[], None]


class TokenLoop:
    """Writes sequences of one size, one after the other. Memory and graphs are made for the first, and serve all others.

    `begin` comes before each sequence, then either `write`, or `feed` where the host chooses. What is abandoned between two blocks leaves
    everything as it should be; after an error states may hold what is no number, and no other sequence is to be begun.
    """

    def __init__(
        self, session: Session, feeds: Mapping[str, Array], pattern: DelayPattern, sizes: Mapping[str, int], *, looping: bool | None = None
    ) -> None:
        """feeds: the constant inputs, of which shapes and dtypes count. sizes: of the axes `batch` and `capacity`, the columns there is
        room for. looping: write each block by one graph with a loop in it (see `GraphOfLoop`); None: as the environment says.

        Raises BackendError where the session has no GPU, or the GPU no such graphs, and InputError.
        """
        if session.gpu is None:
            raise BackendError(f"the session of stage {session.stage.name!r} works on the host's memory, expected one on a GPU")
        self._gpu: Device = session.gpu
        self._session, self._pattern, self._sizes = session, pattern, dict(sizes)
        self._looping = wants_loops() if looping is None else looping
        batch, books, room = sizes["batch"], len(pattern.delays), sizes["capacity"]
        empty = self._gpu.empty
        self._feeds = {name: empty(array.shape, array.dtype) for name, array in feeds.items()}
        self._fixed = {**self._feeds, **session.new_states(sizes), "length": empty((1,), np.int64)}
        self._fed, self._logits = empty((batch, books, 1), np.int64), self._empty_logits(1)
        self._step = session.bind_device({**self._fixed, "tokens": self._fed}, {"logits": self._logits})
        self._seed, self._uniforms = empty((1,), np.uint64), empty((room, batch * books), np.float64)
        self._choice = Choice(
            logits=self._logits,
            settings=empty((4,), np.float32),
            delays=empty((books,), np.int32),
            special=pattern.special,
            tokens=empty((batch, books, room + 1), np.int64),  # the last column is never fed
            fed=self._fed,
            length=self._fixed["length"],
            state=empty((len(STATE),), np.int32),
        )
        self._gpu.upload(np.array(pattern.delays, np.int32), self._choice.delays)
        self._tokens, self._state = np.zeros((batch, books, room + 1), np.int64), np.zeros(len(STATE), np.int32)  # as downloaded
        self._columns: dict[bool, Callable[[int], None]] = {}  # writes so many columns, by whether numbers are given
        self._prefill: _Prefill | None = None
        self._before, self._most = 0, 1

    def fits(self, feeds: Mapping[str, Array], sizes: Mapping[str, int]) -> bool:
        """Whether it is made for such inputs and sizes; there may be twice the room that is needed."""
        room = self._sizes["capacity"]
        same = all(self._sizes[name] == size for name, size in sizes.items() if name != "capacity")
        alike = {name: (array.shape, array.dtype) for name, array in feeds.items()}
        held = {name: (array.shape, array.dtype) for name, array in self._feeds.items()}
        return same and alike == held and sizes["capacity"] <= room <= 2 * sizes["capacity"]

    def begin(self, feeds: Mapping[str, Array], most: int) -> None:
        """Begin a sequence with these constant inputs, of which `most` columns may be fed at once; the session is in use."""
        for name, array in feeds.items():
            self._gpu.upload(np.ascontiguousarray(array), self._feeds[name])
        self._before, self._most = 0, most

    def feed(self, columns: Tokens) -> Float:
        """Feed columns, wait, and give the logits: see `musicrt.runtime.loops.autoregressive.Evaluate`. Raises BackendError."""
        first = min(columns.shape[2], self._most) if self._before == 0 else 1
        logits = self._logits
        with self._session.in_use():
            started = time.perf_counter()
            for start in (0, *range(first, columns.shape[2])):
                part = columns[:, :, start : first if start == 0 else start + 1]
                logits = self._feed(part)
                self._before += part.shape[2]
            values = np.empty(logits.shape, logits.dtype)
            self._gpu.download(logits, values)
            self._gpu.wait()
            seconds = time.perf_counter() - started
        self._session.tell(self._sizes, seconds, columns.shape[2] - first + 1)
        return values[:, :, :, -1].astype(np.float32)

    def write(self, sequence: TokenSequence, settings: Float, draws: Draws, call: int) -> Iterator[int]:
        """Write a sequence; yields as `write_columns` does, but the columns of a block together. The first draw is number `call`.

        settings: of `musicrt.runtime.cuda.arguments.choice_settings`. Raises BackendError for logits that nothing can be chosen from.
        """
        first, known, end = sequence.first, min(sequence.first, self._most), sequence.tokens.shape[2]
        given = draws.given is not None
        choice = replace(self._choice, uniforms=self._uniforms) if given else replace(self._choice, seed=self._seed)
        with self._session.in_use():
            self._load(sequence, settings, draws, call)
        runs = 0
        for start, stop in _spans(known, first, end, self._pattern.lag):
            with self._session.in_use():  # of a stream, blocks may be asked for by one thread or another
                started = time.perf_counter()
                draw = max(start - first, 0) + (0 if given else call)
                self._gpu.upload(choice_state(start, stop, end, draw), choice.state)
                left = stop - start
                if start == known:
                    logits = self._feed(sequence.tokens[:, :, :known], run=known > 1)
                    if known > 1:
                        self._gpu.kernels.choose(replace(choice, logits=logits))
                        left -= 1
                self._advance(choice)(left)
                runs += stop - start
                if stop > first:
                    self._collect(sequence)
                seconds = time.perf_counter() - started
            if stop > first:  # else the host has not waited
                self._session.tell(self._sizes, seconds, runs)
                runs = 0
                yield from map(self._pattern.complete, range(max(start, first), stop))

    def _load(self, sequence: TokenSequence, settings: Float, draws: Draws, call: int) -> None:
        """Put what a whole sequence needs into place."""
        end = sequence.tokens.shape[2]
        self._tokens[:, :, :end] = sequence.tokens
        self._gpu.upload(self._tokens, self._choice.tokens)
        self._gpu.upload(settings, self._choice.settings)
        if draws.given is None:
            self._gpu.upload(np.array([draws.seed], np.uint64), self._seed)
        else:
            table = np.zeros(self._uniforms.shape)
            table[: sequence.steps] = draws.given[call : call + sequence.steps]
            self._gpu.upload(table, self._uniforms)

    def _feed(self, columns: Tokens, run: bool = True) -> DeviceArray:
        """Put columns where the stage reads them, and run it: the logits. run: False where the next step will."""
        count = columns.shape[2]
        step, tokens, logits = self._step, self._fed, self._logits
        if count > 1:
            prefill = self._prefill_of(count)
            step, tokens, logits = prefill.feed, prefill.tokens, prefill.logits
        self._gpu.upload(np.ascontiguousarray(columns), tokens)
        self._gpu.upload(np.array([self._before], np.int64), self._fixed["length"])
        if run:
            step()
        return logits

    def _prefill_of(self, count: int) -> _Prefill:
        """What feeds so many columns; that of the last count is kept."""
        if self._prefill is None or self._prefill.tokens.shape[2] != count:
            self._prefill = None  # first, so that not both are in memory
            tokens, logits = self._gpu.empty((*self._fed.shape[:2], count), np.int64), self._empty_logits(count)
            feed = self._session.bind_device({**self._fixed, "tokens": tokens}, {"logits": logits})
            self._prefill = _Prefill(tokens, logits, feed)
        return self._prefill

    def _advance(self, choice: Choice) -> Callable[[int], None]:
        """What writes so many columns."""
        kind = choice.uniforms is not None
        if kind not in self._columns:
            step = partial(_step, self._step, self._gpu.kernels, choice)
            if self._looping:
                self._columns[kind] = GraphOfLoop(self._gpu, step, choice.state)
            else:
                self._columns[kind] = partial(repeat, self._gpu.capture(step))
        return self._columns[kind]

    def _collect(self, sequence: TokenSequence) -> None:
        """Wait for what was enqueued, and take over the tokens. Raises BackendError."""
        self._gpu.download(self._choice.tokens, self._tokens)
        self._gpu.download(self._choice.state, self._state)
        self._gpu.wait()
        if failed := int(self._state[STATE.index("failed")]):
            raise bad_logits(failed)
        sequence.tokens[...] = self._tokens[:, :, : sequence.tokens.shape[2]]

    def _empty_logits(self, columns: int) -> DeviceArray:
        spec = next(tensor for tensor in self._session.outputs if tensor.name == "logits")
        return self._gpu.empty(spec.resolve({**self._sizes, "columns": columns}), spec.dtype)


def _spans(known: int, first: int, end: int, lag: int) -> Iterator[tuple[int, int]]:
    """Columns that are enqueued together: those up to `first`, if there are any, which choose nothing; then blocks up to `end`."""
    if known < first:
        yield known, first
    stop = first
    while stop < end:
        start, stop = stop, min(stop + BLOCK + (lag if stop == first else 0), end)
        yield start, stop


def _step(stage: Callable[[], None], kernels: Kernels, choice: Choice) -> None:
    """Feed a column, and choose the next. Knows nothing of the loop, whose memory is then gone as soon as nobody holds the loop."""
    stage()
    kernels.choose(choice)
