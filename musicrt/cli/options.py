"""The options of encoding, decoding and generating that systems may have, as the command line offers them.

None has a default here: what is not given is not passed on, so that each system's own default holds; and what is given to a system
that has no such option is refused. Names are those of the parameters of the methods in `WAYS` of `musicrt/runtime/pipeline.py`.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from typer.core import TyperCommand, TyperOption

from musicrt.runtime.errors import InputError
from musicrt.runtime.registry import system_module, system_names

if TYPE_CHECKING:
    from musicrt.runtime.record import Way

Command = Callable[..., None]


@dataclass(frozen=True)
class Flag:
    """An option on the command line: what it is called there, the type of its value, and its help."""

    name: str
    kind: Any
    help: str

    @property
    def annotation(self) -> Any:
        """That of a command's parameter."""
        return Annotated[self.kind | None, typer.Option(self.name, help=self.help)]


_CHUNKING = Flag(
    "--chunking",
    Literal["seamless", "official"],
    "seamless: overlapping windows in constant memory; official: the official package's 60 s chunks.",
)
_MAX_BATCH_SIZE = Flag("--max-batch-size", int, "Pieces of audio, or videos, that run together; fewer take less memory.")

_GUIDANCE = Flag("--guidance", float, "Strength of classifier-free guidance; 1: none.")
_PROMPT = Flag("--prompt", Path, "An audio file that comes before what is made, and sets its manner.")
_SEED = Flag("--seed", int, "The same seed gives the same audio.")
_FIT = Flag(
    "--fit",
    Literal["window", "length"],
    "window: whole windows as in the official package; length: only what the audio fills, much less work for short audio, other results.",
)

ENCODING: Mapping[str, Flag] = {
    "chunking": _CHUNKING,
    "channels": Flag("--channels", Literal["first", "each"], "Encode the first channel only, or each by itself."),
    "fit": _FIT,
    "max_batch_size": _MAX_BATCH_SIZE,
}
FEATURES: Mapping[str, Flag] = {
    "extract_features": Flag("--features", bool, "The encoder's features instead of latents; these can't be decoded."),
}
DECODING: Mapping[str, Flag] = {
    "steps": Flag("--steps", int, "Denoising steps."),
    "sampler": Flag(
        "--sampler",
        Literal["ddim", "dpm-solver++"],
        "How the steps are taken; dpm-solver++ adds no noise and gets by with 10 to 20.",
    ),
    "guidance": _GUIDANCE,
    "eta": Flag("--eta", float, "Noise in each step of ddim, from 0 (none) to 1."),
    "prompt": _PROMPT,
    "seed": _SEED,
    "chunking": _CHUNKING,
    "fit": _FIT,
    "max_batch_size": _MAX_BATCH_SIZE,
}
GENERATION: Mapping[str, Flag] = {
    "duration": Flag("--duration", float, "Seconds of music; the whole seconds of the video by default."),
    "top_k": Flag("--top-k", int, "Draw each token from so many likeliest ones; 0: from all."),
    "top_p": Flag("--top-p", float, "Instead from those that together have this probability; 0: off."),
    "temperature": Flag("--temperature", float, "Above 1 draws less likely tokens more often; 0: always the likeliest."),
    "guidance": _GUIDANCE,
    "extend_stride": Flag("--extend-stride", float, "Seconds from window to window of music that is longer than one."),
    "prompt": _PROMPT,
    "seed": _SEED,
    "global_frames": Flag("--global-frames", int, "Pictures from all over the video that every window sees."),
    "antialias": Flag("--antialias/--no-antialias", bool, "Resize pictures as newer versions of torchvision do."),
    "loudness": Flag("--loudness/--no-loudness", bool, "Bring the music to -16 LKFS; without, as it is made."),
    "max_batch_size": _MAX_BATCH_SIZE,
}
OPTIONS: Mapping[str, Flag] = {**ENCODING, **FEATURES, **DECODING, **GENERATION}
OFFERED: Mapping[str, Mapping[str, Flag]] = {
    "encode": {**ENCODING, **FEATURES},
    "decode": DECODING,
    "roundtrip": {**ENCODING, **DECODING},
    "generate": GENERATION,
}
"""The options of each command."""
_WAYS: Mapping[str, tuple[Way, ...]] = {
    "encode": ("encode",),
    "decode": ("decode",),
    "roundtrip": ("encode", "decode"),
    "generate": ("generate",),
}
"""What a pipeline is asked for by each command."""


class OptionsCommand(TyperCommand):
    """A command whose help says which systems have an option. They are only asked for that help, because to import them takes time."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        owners = owners_of_options(str(self.name))
        for parameter in self.params:
            if isinstance(parameter, TyperOption) and parameter.name in OPTIONS:
                parameter.help = f"{OPTIONS[parameter.name].help} ({', '.join(owners[parameter.name])})"
        super().format_options(ctx, formatter)


def owners_of_options(command: str) -> dict[str, list[str]]:
    """The systems that have each option of a command."""
    from musicrt.runtime.pipeline import options_in, ways_in

    codecs = {system: system_module(system, "pipeline").Pipeline for system in system_names()}
    known = {
        system: {option for way in _WAYS[command] if way in ways_in(codec) for option in options_in(codec, way)}
        for system, codec in codecs.items()
    }
    return {name: [system for system, names in known.items() if name in names] for name in OPTIONS}


def generators() -> list[str]:
    """The systems that make music for videos."""
    return [system for system in system_names() if hasattr(system_module(system, "pipeline").Pipeline, "generate_stream")]


def with_options(options: Mapping[str, Flag]) -> Callable[[Command], Command]:
    """Gives a command options in the place of its `**options`, which then holds those that were given."""

    def decorate(command: Command) -> Command:
        @functools.wraps(command)
        def call(**arguments: Any) -> None:
            command(**{name: value for name, value in arguments.items() if name not in options or value is not None})

        signature = inspect.signature(command, eval_str=True)
        own = [parameter for parameter in signature.parameters.values() if parameter.kind is not parameter.VAR_KEYWORD]
        keyword = inspect.Parameter.KEYWORD_ONLY
        added = [inspect.Parameter(name, keyword, default=None, annotation=flag.annotation) for name, flag in options.items()]
        ordered = sorted([*added, *own], key=lambda parameter: parameter.kind)
        call.__signature__ = signature.replace(parameters=ordered)  # type: ignore[attr-defined]
        return call

    return decorate


def given_of(options: Mapping[str, Flag], given: Mapping[str, Any]) -> dict[str, Any]:
    """Those of the given values that belong to `options`."""
    return {name: value for name, value in given.items() if name in options}


def check_flags(codec: Any, command: str, given: Iterable[str]) -> None:
    """Raises InputError, in the words of the command line, for an option that was given to a command and that a codec has not."""
    from musicrt.runtime.pipeline import options_in

    offered, known = OFFERED[command], {name for way in _WAYS[command] for name in options_in(codec, way)}
    unknown = [name for name in given if name not in known]
    if unknown:
        has = ", ".join(flag.name for name, flag in offered.items() if name in known) or "none"
        raise InputError(f"{codec.model.spec.system} has no option {offered[unknown[0]].name}; of this command's it has {has}")
