"""The commands in a block of shell: ours are run in this process, or read as the command line would; of others we know what is ours."""

from __future__ import annotations

import importlib.util
import re
import shlex
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
import typer.main

from musicrt.cli.app import app
from tests.command import call
from tests.docs.blocks import ROOT, STEPS

PLACEHOLDERS = {"BUNDLE": "bundles/music2latent", "FOLDER": "music", "REPORT": "report"}
"""What stands for something of the reader's, and what it is here."""
EXTRAS = set(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"])

_SETTING = re.compile(r"[A-Z_]+=.*")


@dataclass(frozen=True)
class Command:
    """Words, without the variables that are set before them. line: of the block, from 0 on."""

    words: list[str]
    settings: dict[str, str]
    line: int


def read_commands(block: str) -> Iterator[Command]:
    """Those of a block, in order, without comments."""
    for number, line in enumerate(re.sub(r"\\\n", "  ", block).splitlines()):
        lexer = shlex.shlex(line, posix=True, punctuation_chars="&|;")
        lexer.whitespace_split = True
        words: list[str] = []
        for word in [*lexer, ";"]:
            if word not in ("&&", "||", "&", "|", ";"):
                words.append(word)
            elif words:
                first = next((at for at, one in enumerate(words) if not _SETTING.fullmatch(one)), len(words))
                yield Command(words[first:], dict(one.split("=", 1) for one in words[:first]), number)
                words = []


def run_command(command: Command, monkeypatch: pytest.MonkeyPatch) -> str:
    """Run one of ours, and give what it says on a terminal."""
    program, *arguments = command.words
    assert program == "musicrt", f"{program} is not run in tests: say before the block why, in a comment"
    arguments = [str(STEPS) if before == "--steps" else word for before, word in zip(command.words, arguments, strict=False)]
    with monkeypatch.context() as context:
        for name, value in command.settings.items():
            context.setenv(name, value)
        ended = call(*(PLACEHOLDERS.get(word, word) for word in arguments))
    return "\n".join([*ended.notes, ended.out])


def check_command(command: Command) -> None:
    """Read the command line of one of ours, also behind another's `--`; of others, look up the extras, modules and scripts that are ours.

    Raises what the command line raises for a wrong one, and AssertionError.
    """
    words = command.words
    ours = words[words.index("--") + 1 :] if "--" in words else words
    if ours[0] == "musicrt":
        read_arguments(ours[1:])
    for extras in re.findall(r"(?:musicrt|\.)\[([\w,-]+)\]", " ".join(words)):
        assert set(extras.split(",")) <= EXTRAS, extras
    for word, following in zip(words, [*words[1:], ""], strict=True):
        if word == "-m" and not words[0].startswith("musicrt"):
            assert importlib.util.find_spec(following) is not None, following
        if word.startswith("scripts/"):
            assert (ROOT / word).is_file(), word


def read_arguments(arguments: list[str]) -> None:
    """As `musicrt` does, but for running the command."""
    group = typer.main.get_group(app)
    parent = None
    while True:
        name, command, arguments = group.resolve_command(group.context_class(group), arguments)
        assert command is not None, name
        parent = command.context_class(command, parent=parent, info_name=name)
        if not isinstance(command, typer.core.TyperGroup):
            command.make_context(name, arguments)
            return
        group = command
