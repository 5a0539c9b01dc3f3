"""The options of encoding and decoding on the command line, held against those that the systems have."""

from __future__ import annotations

import typing
from collections.abc import Callable
from typing import Any, Literal

import pytest

from musicrt.cli.options import DECODING, ENCODING, FEATURES, GENERATION, OPTIONS, generators, owners_of_options
from musicrt.runtime.pipeline import options_of
from musicrt.runtime.registry import system_module, system_names
from tests.command import call

CODECS = {system: system_module(system, "pipeline").Pipeline for system in system_names()}
ENCODERS = {
    "chunking": ["music2latent"],
    "channels": ["semanticodec"],
    "fit": ["mucodec"],
    "max_batch_size": ["mucodec", "semanticodec"],
    "extract_features": ["music2latent"],
}
DECODERS = {
    "steps": ["mucodec", "music2latent", "semanticodec"],
    "sampler": ["semanticodec"],
    "guidance": ["mucodec", "semanticodec"],
    "eta": ["semanticodec"],
    "prompt": ["mucodec"],
    "seed": ["mucodec", "music2latent", "semanticodec"],
    "chunking": ["music2latent"],
    "fit": ["mucodec"],
    "max_batch_size": ["semanticodec"],
}
OWNERS = {
    "encode": ENCODERS,
    "decode": DECODERS,
    "roundtrip": {**DECODERS, **ENCODERS},
    "generate": {name: ["vidmuse"] for name in GENERATION},
}


@pytest.mark.parametrize(("method", "offered"), [("encode_source", {**ENCODING, **FEATURES}), ("decode_stream", DECODING)])
def test_every_option_is_one_of_some_system(method: str, offered: dict[str, Any]) -> None:
    known = {name for codec in CODECS.values() for name in options_of(getattr(codec, method))}
    assert set(offered) <= known


@pytest.mark.parametrize("command", OWNERS)
def test_systems_of_each_option(command: str) -> None:
    assert {name: systems for name, systems in owners_of_options(command).items() if systems} == OWNERS[command]


def test_systems_that_generate() -> None:
    assert generators() == ["vidmuse"]
    known = {name for method in ("generate_stream", "compose") for name in options_of(getattr(CODECS["vidmuse"], method))}
    assert known - set(GENERATION) == {"noise"}  # arrays
    assert set(GENERATION) <= known


def literals_of(method: Callable[..., Any], name: str) -> set[str]:
    """The values of a parameter that is one of a few words; none for any other, or where there is no such parameter."""
    kind = typing.get_type_hints(method).get(name)
    return set(typing.get_args(kind)) if typing.get_origin(kind) is Literal else set()


@pytest.mark.parametrize("name", [name for name, flag in OPTIONS.items() if typing.get_origin(flag.kind) is Literal])
def test_words_that_an_option_takes_are_those_of_the_systems(name: str) -> None:
    methods = [method for codec in CODECS.values() for method in (codec.encode_source, codec.decode_stream)]
    assert set(typing.get_args(OPTIONS[name].kind)) == set().union(*(literals_of(method, name) for method in methods))


@pytest.mark.parametrize(
    ("command", "offered"),
    [
        ("encode", {**ENCODING, **FEATURES}),
        ("decode", DECODING),
        ("roundtrip", {**ENCODING, **DECODING}),
        ("generate", GENERATION),
    ],
)
def test_help_says_which_systems_have_an_option(command: str, offered: dict[str, Any]) -> None:
    for _ in range(2):
        words = call(command, "--help").out.split()
        for name, flag in OPTIONS.items():
            said = f"{flag.help} ({', '.join(OWNERS[command].get(name, []))})"
            assert words.count(flag.name.split("/")[0]) == (name in offered)
            assert ("".join(said.split()) in "".join(words)) == (name in offered)
