"""The commands in a block of shell: ours are run in this process, or read as the command line would; of others we know what is ours."""

from __future__ import annotations

import importlib.util
import itertools
import re
import shlex
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import typer.main
from typer.core import TyperGroup

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
                continue
            settings = list(itertools.takewhile(_SETTING.fullmatch, words))
            if words := words[len(settings) :]:
                yield Command(words, dict(one.split("=", 1) for one in settings), number)
            words = []


def run_command(command: Command, monkeypatch: pytest.MonkeyPatch) -> str:
    """Run one of ours, and give what it says on a terminal."""
    assert command.words[0] == "musicrt", f"{command.words[0]} is not run in tests: say before the block why, in a comment"
    arguments = [str(STEPS) if before == "--steps" else PLACEHOLDERS.get(word, word) for before, word in itertools.pairwise(command.words)]
    with monkeypatch.context() as context:
        for name, value in command.settings.items():
            context.setenv(name, value)
        ended = call(*arguments)
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
    if words[0].startswith("python") and "-m" in words:
        module = words[words.index("-m") + 1]
        assert importlib.util.find_spec(module) is not None, module
    if words[0].startswith("scripts/"):
        assert (ROOT / words[0]).is_file(), words[0]


def read_arguments(arguments: list[str]) -> None:
    """As `musicrt` does, but for running the command."""
    command: Any = typer.main.get_group(app)
    name: str | None = "musicrt"
    while isinstance(command, TyperGroup):
        name, command, arguments = command.resolve_command(command.context_class(command), arguments)
    command.make_context(name, arguments)
