"""The options of encoding and decoding that systems may have, as the command line offers them.

None has a default here: what is not given is not passed on, so that each system's own default holds; and what is given to a system
that has no such option is refused by `Codec`. Names are those of the parameters of `encode_source` and `decode_stream`.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal

import typer

Command = Callable[..., None]
StepsOption = Annotated[int | None, typer.Option(help="Denoising steps.")]
_ChunkingOption = Annotated[
    Literal["seamless", "official"] | None,
    typer.Option(help="seamless: overlapping windows in constant memory; official: the official package's 60 s chunks."),
]

ENCODING: Mapping[str, Any] = {
    "chunking": _ChunkingOption,
    "channels": Annotated[Literal["first", "each"] | None, typer.Option(help="Encode the first channel only, or each by itself.")],
}
FEATURES: Mapping[str, Any] = {
    "extract_features": Annotated[
        bool | None, typer.Option("--features", help="The encoder's features instead of latents; these can't be decoded.")
    ],
}
DECODING: Mapping[str, Any] = {
    "steps": StepsOption,
    "sampler": Annotated[str | None, typer.Option(help="The way of taking them.")],
    "guidance": Annotated[float | None, typer.Option(help="Strength of classifier-free guidance; 1: none.")],
    "eta": Annotated[float | None, typer.Option(help="Noise in each step, from 0 (none) to 1.")],
    "seed": Annotated[int | None, typer.Option(help="The same seed gives the same audio.")],
    "chunking": _ChunkingOption,
}


def with_options(options: Mapping[str, Any]) -> Callable[[Command], Command]:
    """Gives a command options (name -> annotation) in the place of its `**options`, which then holds those that were given."""

    def decorate(command: Command) -> Command:
        @functools.wraps(command)
        def call(**arguments: Any) -> None:
            command(**{name: value for name, value in arguments.items() if name not in options or value is not None})

        signature = inspect.signature(command, eval_str=True)
        own = [parameter for parameter in signature.parameters.values() if parameter.kind is not parameter.VAR_KEYWORD]
        added = [inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=kind) for name, kind in options.items()]
        ordered = sorted([*added, *own], key=lambda parameter: parameter.kind)
        call.__signature__ = signature.replace(parameters=ordered)  # type: ignore[attr-defined]
        return call

    return decorate


def given_of(options: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Those of the given values that belong to `options`."""
    return {name: value for name, value in given.items() if name in options}
