"""What a pipeline can be asked for, as models of Triton: a tensor in, options, a tensor out."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args, get_origin, get_type_hints

import numpy as np
from numpy.typing import NDArray

from musicrt.runtime.generator import Generator
from musicrt.runtime.pipeline import Codec

Array = NDArray[Any]

_NUMBERS = {bool: "bool", int: "int64", float: "float64"}
_OWN = frozenset({"max_batch_size"})
"""Options that are the server's to set."""
_WARM_SECONDS = 1
_WARM_RATE = 2.0  # frames a second


@dataclass(frozen=True)
class Tensor:
    """An input or output, without the axis of the rows of a request. dtype: in the words of NumPy; dims: -1 is any size."""

    name: str
    dtype: str
    dims: tuple[int, ...] = (1,)


@dataclass(frozen=True)
class Verb:
    """One model. source: what it works on; beside it more inputs that are needed. numbers: options that are tensors. words: those that
    are request parameters. warm: inputs of a short run.
    """

    name: str
    source: Tensor
    needed: tuple[Tensor, ...]
    numbers: tuple[Tensor, ...]
    words: Mapping[str, tuple[str, ...]]
    output: Tensor
    warm: Mapping[str, Array]

    @property
    def inputs(self) -> tuple[Tensor, ...]:
        """All of them, those that are needed first."""
        return (self.source, *self.needed, *self.numbers)


def verbs_of(codec: Codec) -> dict[str, Verb]:
    """Those that a pipeline has, by name: `encode`, `decode`, and `generate` where it makes music for videos. Opens no stage."""
    values = Tensor("values", str(codec.shortest.dtype), (-1,) * codec.shortest.ndim)
    audio = Tensor("audio", "float32", (-1, -1))
    silence = np.zeros((1, _WARM_SECONDS * codec.sample_rate), np.float32)
    verbs = [
        _verb("encode", codec, audio, (), values, {"audio": silence}),
        _verb("decode", codec, values, (), audio, {"values": codec.shortest}),
    ]
    if isinstance(codec, Generator):
        frames, rate = Tensor("frames", "uint8", (-1, -1, -1, 3)), Tensor("rate", "float64")
        black = {"frames": np.zeros((2, 64, 64, 3), np.uint8), "rate": np.array([_WARM_RATE])}
        verbs.append(_verb("generate", codec, frames, (rate,), audio, black))
    return {verb.name: verb for verb in verbs}


def typed_options(method: Callable[..., Any]) -> dict[str, Any]:
    """The types of a method's keyword-only parameters, also of those that a `TypedDict` names."""
    hints, found = get_type_hints(method), dict[str, Any]()
    for one in inspect.signature(method).parameters.values():
        if one.kind is one.VAR_KEYWORD:
            found |= get_type_hints(get_args(hints[one.name])[0])
        elif one.kind is one.KEYWORD_ONLY:
            found[one.name] = hints[one.name]
    return found


def _verb(name: str, codec: Codec, source: Tensor, needed: tuple[Tensor, ...], output: Tensor, warm: Mapping[str, Array]) -> Verb:
    numbers, words = list[Tensor](), dict[str, tuple[str, ...]]()
    for option, hint in typed_options(getattr(codec, name)).items():
        kinds = [kind for kind in get_args(hint) or (hint,) if kind is not type(None)]
        if get_origin(hint) is Literal:
            words[option] = get_args(hint)
        elif len(kinds) == 1 and kinds[0] in _NUMBERS and option not in _OWN:
            numbers.append(Tensor(option, _NUMBERS[kinds[0]]))
    short = {"steps": 1, "duration": 0.1}
    options = {one.name: np.array([short[one.name]], one.dtype) for one in numbers if one.name in short}
    return Verb(name, source, needed, tuple(numbers), words, output, {**warm, **options})
