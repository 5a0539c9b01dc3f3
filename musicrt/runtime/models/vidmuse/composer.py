"""From frames to tokens: window after window of one batch of videos (SPEC sections 5 to 8)."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

import numpy as np

from musicrt.runtime.cuda.arguments import choice_settings
from musicrt.runtime.loops import autoregressive
from musicrt.runtime.loops.delays import DelayPattern, Tokens
from musicrt.runtime.loops.diffusion import OnStep
from musicrt.runtime.loops.sampling import Float
from musicrt.runtime.model import Model
from musicrt.runtime.models.vidmuse.conditioner import Conditioner, Keys, Scene
from musicrt.runtime.models.vidmuse.config import Config
from musicrt.runtime.models.vidmuse.language import Language
from musicrt.runtime.models.vidmuse.noise import Numbers, UniformNumbers
from musicrt.runtime.models.vidmuse.options import Settings
from musicrt.runtime.models.vidmuse.plan import Plan, Task

BLOCK = 50
"""Timesteps that are given together, at least: a second of music."""


class Composer:
    """Writes codes."""

    def __init__(self, model: Model, config: Config) -> None:
        self.conditioner, self.language = Conditioner(model), Language(model, config)
        self.pattern = DelayPattern(config.delays, config.special)

    def write_all(self, plan: Plan) -> Iterator[Tokens]:
        """Write the codes of every video of a plan, int64 [1, codebooks, n], in order; a group runs when the first of it is asked for.

        Errors as of `write`.
        """
        ready: dict[int, Tokens] = {}
        groups = zip(plan.groups, plan.numbers, strict=True)
        for number in range(len(plan.tasks)):
            if number not in ready:
                group, numbers = next(groups)
                tasks = [plan.tasks[member] for member in group]
                codes = np.concatenate(list(self.write(tasks, plan.settings, numbers, plan.on_step)), axis=2)
                ready |= zip(group, np.split(codes, len(group)), strict=True)
            yield ready.pop(number)

    def write(self, tasks: Sequence[Task], settings: Settings, numbers: Numbers, on_step: OnStep) -> Iterator[Tokens]:
        """Write the codes of videos with the same windows; blocks int64 [batch, codebooks, n] in order, the prompt first.

        Their clips are closed at the end. Raises VideoError, BackendError, and what `on_step` raises.
        """
        try:
            yield from self._write(tasks, settings, numbers, on_step)
        finally:
            for task in tasks:
                task.clip.close()

    def write_window(
        self, sequence: autoregressive.TokenSequence, keys: Keys, null_keys: Keys, settings: Settings, numbers: Numbers, call: int = 0
    ) -> Iterator[int]:
        """Write one sequence, whose first draw is number `call`; yields how many timesteps are complete. Raises BackendError.

        Where the language model runs on a GPU, it is there that tokens are drawn by `UniformNumbers`, a block of columns at a time; what
        is yielded comes together then. Other numbers draw on the host, which gets the logits of every column.
        """
        with self.language.open(keys, null_keys, sequence.tokens.shape[2] - 1) as window:
            numbers.begin()
            if window.loop is not None and isinstance(numbers, UniformNumbers):
                yield from window.loop.write(sequence, choice_settings(settings.sampling, settings.guidance), numbers.draws, call)
                return
            calls = itertools.count(call)
            yield from autoregressive.write_columns(
                sequence, window.feed, lambda logits: self.choose(logits, settings, numbers, next(calls)), settings.guidance
            )

    def choose(self, logits: Float, settings: Settings, numbers: Numbers, call: int) -> Tokens:
        """A token for each row of guided logits float32 [rows, card]."""
        return settings.sampling.choose(logits, numbers.draw, call)

    def _write(self, tasks: Sequence[Task], settings: Settings, numbers: Numbers, on_step: OnStep) -> Iterator[Tokens]:
        scene = Scene(self.conditioner, [task.clip for task in tasks])
        known, chunks, call = np.concatenate([task.prompt for task in tasks]), tasks[0].chunks, 0
        for number, chunk in enumerate(chunks):
            sequence = autoregressive.TokenSequence(self.pattern, known, chunk.timesteps)
            keys = self.conditioner.keys(scene.condition(chunk.local))
            given = known.shape[2] if number else 0
            for complete in self.write_window(sequence, keys, self.conditioner.null_keys(), settings, numbers, call):
                on_step()
                if complete - given >= BLOCK or complete == chunk.timesteps:
                    yield sequence.codes(range(given, complete))
                    given = complete
            del keys  # the largest arrays beside the caches: gone before those of the next window are made
            call += sequence.steps
            if number + 1 < len(chunks):
                known = sequence.codes(range(chunk.timesteps - chunks[number + 1].known, chunk.timesteps))
