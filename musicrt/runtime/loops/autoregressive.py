"""Generation of tokens, column by column (SPEC of VidMuse, section 7): what is known of a sequence, what is fed, guidance, and the choice.

Random numbers are an input, so every backend can be compared token by token.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

from musicrt.runtime.errors import BackendError, InputError
from musicrt.runtime.loops.delays import UNKNOWN, DelayPattern, Tokens
from musicrt.runtime.loops.diffusion import guide

Float = NDArray[np.float32]
Evaluate = Callable[[Tokens], Float]
"""`evaluate(columns)`: feeds the next columns int64 [batch, codebooks, n], and gives the logits after the last of them, float32 [2, batch,
codebooks, card]: row 0 with the condition, row 1 without. The caller may change what it was given."""
Choose = Callable[[Float], Tokens]
"""`choose(logits)`: a token for each row of guided logits float32 [rows, card], rows in the order batch, codebook; int64 [rows]."""


class TokenSequence:
    """A sequence that is being written: `tokens` int64 [batch, codebooks, columns], in which what is not yet chosen is `UNKNOWN`."""

    def __init__(self, pattern: DelayPattern, prompt: Tokens, timesteps: int) -> None:
        """prompt: int64 [batch, codebooks, P], the first timesteps, perhaps none. Raises InputError unless P < timesteps."""
        known = prompt.shape[2]
        if known >= timesteps:
            raise InputError(f"got a prompt of {known} timesteps for a result of {timesteps}; shorten the prompt or lengthen the result")
        self.pattern, self.timesteps, self.known = pattern, timesteps, known
        unknown = np.full((*prompt.shape[:2], timesteps - known), UNKNOWN, np.int64)
        self.tokens = pattern.build(np.concatenate([prompt, unknown], axis=2))
        self._mask = pattern.mask(timesteps)

    @property
    def first(self) -> int:
        """The first column to be written."""
        return self.pattern.first_column(self.known)

    @property
    def steps(self) -> int:
        """How many columns are to be written."""
        return self.pattern.columns(self.timesteps) - self.first

    def write(self, column: int, chosen: Tokens) -> None:
        """Write tokens int64 [batch, codebooks] where none is known; outside the pattern there are only special tokens."""
        place = self.tokens[:, :, column]
        wanted = np.where(self._mask[:, column], chosen, self.pattern.special)
        place[...] = np.where(place == UNKNOWN, wanted, place)

    def codes(self, timesteps: range | None = None) -> Tokens:
        """The codes int64 [batch, codebooks, n] of some timesteps, by default of all."""
        return self.pattern.revert(self.tokens, timesteps)


def write_columns(sequence: TokenSequence, evaluate: Evaluate, choose: Choose, guidance: float) -> Iterator[int]:
    """Write a sequence; yields how many timesteps are complete, after each column. What is known is fed first, then column by column.

    Raises BackendError for logits that nothing can be chosen from, and what the callables raise.
    """
    batch, codebooks, columns = sequence.tokens.shape
    fed = 0
    for column in range(sequence.first, columns):
        logits = guide_logits(evaluate(sequence.tokens[:, :, fed:column]), guidance, column)
        chosen = choose(logits.reshape(batch * codebooks, -1))
        sequence.write(column, chosen.reshape(batch, codebooks))
        fed = column
        yield sequence.pattern.complete(column)


def guide_logits(logits: Float, guidance: float, column: int) -> Float:
    """Guided logits [batch, codebooks, card] of those with and without condition, [2, ...], which are overwritten.

    Raises BackendError where those of a codebook have NaN, infinity or nothing but minus infinity among them.
    """
    with np.errstate(invalid="ignore", over="ignore"):  # that is what is looked for
        guided = guide(logits, guidance)
        largest = guided.max(axis=-1)
    if not np.isfinite(largest).all():
        raise bad_logits(column)
    return guided


def bad_logits(column: int) -> BackendError:
    """What is raised where no token of a column can be chosen."""
    return BackendError(
        f"got logits that are no numbers at column {column} of the sequence; run another backend, or export the bundle again"
    )
