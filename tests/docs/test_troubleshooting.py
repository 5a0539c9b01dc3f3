"""docs/troubleshooting.md quotes messages that are still raised, and has every class of errors with its exit code."""

from __future__ import annotations

import re

import pytest

from musicrt.runtime import errors
from tests.docs.blocks import ROOT
from tests.docs.commands import read_arguments
from tests.docs.messages import is_raised, templates

PAGE = (ROOT / "docs" / "troubleshooting.md").read_text()
SECTIONS = {heading: text for heading, _, text in (part.partition("\n") for part in PAGE.split("\n## ")[1:])}


def test_quoted_messages_are_still_raised() -> None:
    quoted = [(message, heading) for heading, text in SECTIONS.items() for message in re.findall(r"^- `(.+)`$", text, re.MULTILINE)]
    assert len(quoted) == PAGE.count("\n- `") > 100
    assert [message for message, heading in quoted if not is_raised(message, heading)] == []


def test_every_class_is_there_with_its_exit_code() -> None:
    rows = {name: int(code) for code, name in re.findall(r"^\| (\d+) \| `(\w+)` \|", PAGE, re.MULTILINE)}
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, errors.MusicRTError)]
    assert rows == {kind.__name__: kind.exit_code for kind in kinds}


def test_commands_that_messages_advise_can_be_typed() -> None:
    advised = {found for text in templates() for found in re.findall(r"with: musicrt ([^;) ]+ [^;)]+)", text)}
    assert len(advised) > 5
    for command in advised:
        read_arguments(re.sub("…+", "x", command).split())


@pytest.mark.parametrize(
    ("message", "section", "raised"),
    [
        ("… exists already; choose another folder or remove it first", "OutputError", True),
        ("bundles/nano exists already; choose another folder or remove it first", "Cancelled, OutputError", True),
        ("… exists already; choose another folder or remove it first", "InputError", False),
        ("… exists already; choose another one", "OutputError", False),
        ("…: … is what nobody says; …", "OutputError", False),
    ],
)
def test_a_message_that_nobody_raises_is_found(message: str, section: str, raised: bool) -> None:
    assert is_raised(message, section) == raised
