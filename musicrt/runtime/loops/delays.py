"""Token sequences in which every codebook lags behind by a delay of its own (SPEC of VidMuse, section 7; Copet et al. 2023).

For timesteps 0 to T - 1 the sequence has 1 + T + max(delays) columns. Column 0 is all special tokens; column s holds, for codebook q, the
token of timestep s - 1 - delays[q] where there is such a timestep, else the special token.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from musicrt.runtime.errors import InputError

Tokens = NDArray[np.int64]
Mask = NDArray[np.bool_]
UNKNOWN = -1
"""Stands for a token that is still to be chosen."""


@dataclass(frozen=True)
class DelayPattern:
    """`delays`: of each codebook, rising. `special`: the token where there is none. Raises InputError for delays that do not rise."""

    delays: tuple[int, ...]
    special: int

    def __post_init__(self) -> None:
        if not self.delays or self.delays[0] < 0 or list(self.delays) != sorted(self.delays):
            raise InputError(f"got delays {list(self.delays)}, expected whole numbers from 0 on that do not fall")

    @property
    def lag(self) -> int:
        """The largest delay: the columns from the one that has the first codebook's token of a timestep to the one with the last's."""
        return self.delays[-1]

    def columns(self, timesteps: int) -> int:
        """Length of the sequence of so many timesteps."""
        return 1 + timesteps + self.lag

    def first_column(self, timesteps: int) -> int:
        """The first column in which there is a token that so many known timesteps leave open."""
        return 1 + timesteps + self.delays[0]

    def complete(self, column: int) -> int:
        """How many timesteps are known in all codebooks once a column is."""
        return max(column - self.lag, 0)

    def mask(self, timesteps: int) -> Mask:
        """Where the sequence holds tokens: bool [codebooks, columns]."""
        times = self._times(timesteps)
        return (times >= 0) & (times < timesteps)

    def build(self, codes: Tokens) -> Tokens:
        """Codes int64 [batch, codebooks, T], some of them `UNKNOWN` perhaps, as a sequence int64 [batch, codebooks, columns]."""
        times, mask = self._times(codes.shape[2]), self.mask(codes.shape[2])
        sequence = np.full((len(codes), *times.shape), self.special, np.int64)
        rows, columns = np.nonzero(mask)
        sequence[:, rows, columns] = codes[:, rows, times[rows, columns]]
        return sequence

    def revert(self, sequence: Tokens, timesteps: range | None = None) -> Tokens:
        """The codes int64 [batch, codebooks, n] of a sequence: those of some timesteps, by default of all."""
        wanted = range(sequence.shape[2] - 1 - self.lag) if timesteps is None else timesteps
        parts = [sequence[:, row, wanted.start + 1 + delay : wanted.stop + 1 + delay] for row, delay in enumerate(self.delays)]
        return np.stack(parts, axis=1)

    def _times(self, timesteps: int) -> Tokens:
        """The timestep of each place: int64 [codebooks, columns]."""
        return np.arange(self.columns(timesteps)) - 1 - _column(self.delays)


def _column(values: Sequence[int]) -> Tokens:
    return np.array(values, np.int64)[:, None]
