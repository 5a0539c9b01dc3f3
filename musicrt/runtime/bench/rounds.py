"""Fresh processes in rounds: other work of the machine meets all contenders alike."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

from musicrt.runtime.errors import InputError

T = TypeVar("T")


def split_repeats(repeats: int, rounds: int) -> list[int]:
    """How many repeats each round takes. Raises InputError."""
    if not 1 <= rounds <= repeats:
        raise InputError(f"got {rounds} rounds and {repeats} repeats, expected from 1 round to one for each repeat")
    return [repeats // rounds + (index < repeats % rounds) for index in range(rounds)]


def in_turn(contenders: Sequence[T], index: int) -> list[T]:
    """The order of the round `index`: another contender is the first in each."""
    first = index % len(contenders)
    return [*contenders[first:], *contenders[:first]]
