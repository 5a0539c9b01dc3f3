"""The sampler of VidMuse: the language model writes the first columns of a window, or all, without a prompt."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import islice
from typing import Any

import numpy as np

from benchmarks.whole_loop.compose import Sampler
from benchmarks.whole_loop.generation import TOKENS, write_generation
from benchmarks.whole_loop.problems import SEED, Arrays, Problem, Run, Size
from musicrt.runtime.loops.autoregressive import TokenSequence
from musicrt.runtime.loops.delays import DelayPattern
from musicrt.runtime.loops.sampling import Sampling
from musicrt.runtime.model import Model
from musicrt.runtime.models.vidmuse.audiocraft import FRAME_RATE
from musicrt.runtime.models.vidmuse.composer import Composer
from musicrt.runtime.models.vidmuse.conditioner import rename
from musicrt.runtime.models.vidmuse.config import TOKENS_PER_FRAME, Config
from musicrt.runtime.models.vidmuse.noise import InjectedNumbers
from musicrt.runtime.models.vidmuse.options import Settings
from musicrt.runtime.models.vidmuse.spec import CAPACITY, cache_names


class VidMuse:
    """One video; random keys and values of its condition, as long as those of so many frames."""

    stage = "lm"
    result = TOKENS, np.int64

    def __init__(self, config: Mapping[str, Any], size: Size) -> None:
        self.config, self.size = Config.from_mapping(config), size
        self.pattern = DelayPattern(self.config.delays, self.config.special)
        greedy = size.choice == "greedy"
        self.sampling = Sampling(temperature=0.0) if greedy else Sampling(top_k=int(size.choice)).check(self.config.card)

    def sequence(self) -> TokenSequence:
        """A window that nothing is known of."""
        nothing = np.zeros((1, self.config.codebooks, 0), np.int64)
        return TokenSequence(self.pattern, nothing, max(round(self.size.seconds * FRAME_RATE), 1))

    @property
    def steps(self) -> int:
        """Columns that are written."""
        return min(self.size.steps, self.sequence().steps)

    def prepare(self, codec: Any) -> Arrays:
        """See `Problem`."""
        config, conditioner, generator = self.config, codec.composer.conditioner, np.random.default_rng(SEED)
        keys = conditioner.keys(generator.standard_normal((1, TOKENS_PER_FRAME * self.size.frames, config.width), np.float32))
        null_keys = rename(conditioner.keys(generator.standard_normal((1, TOKENS_PER_FRAME, config.width), np.float32)))
        return {**keys, **null_keys, "uniform": generator.random((self.steps, 1, config.codebooks))}

    def feeds(self, arrays: Arrays) -> Arrays:
        """See `Problem`."""
        config, columns = self.config, self.sequence().tokens.shape[2] - 1
        room = (2, config.heads, max(columns, CAPACITY.minimum), config.head_width)
        caches = {f"initial_{name}": np.zeros(room, np.float32) for name in cache_names(config.layers)}
        given = {name: array for name, array in arrays.items() if name != "uniform" or not self.sampling.is_greedy}
        return {**given, **caches}

    def sampler(self, arrays: Arrays) -> Sampler:
        """See `Problem`."""
        del arrays
        sequence, written = self.sequence(), slice(self.steps + 1)
        known, mask = sequence.tokens[:, :, written], self.pattern.mask(sequence.timesteps)[:, written]
        states = cache_names(self.config.layers)
        return write_generation(known, mask, self.config.special, self.sampling, self.size.guidance, states)

    def host(self, model: Model, arrays: Arrays) -> Run:
        """See `Problem`. Gives the columns that are written, in their order: [steps, 1, codebooks]."""
        composer, settings = Composer(model, self.config), Settings(self.sampling, self.size.guidance)
        keys = {name: array for name, array in arrays.items() if name.startswith("cross_")}
        null_keys = {name: array for name, array in arrays.items() if name.startswith("null_")}
        uniform = [step[0] for step in arrays["uniform"]]

        def run() -> Arrays:
            sequence, numbers = self.sequence(), InjectedNumbers(uniform, self.steps, self.config.codebooks)
            for _ in islice(composer.write_window(sequence, keys, null_keys, settings, numbers), self.steps):
                pass
            return {TOKENS: np.moveaxis(sequence.tokens[:, :, 1 : self.steps + 1], 2, 0)}

        return run


PROBLEMS: Mapping[str, Callable[[Mapping[str, Any], Size], Problem]] = {"vidmuse": VidMuse}
