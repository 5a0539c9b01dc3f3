"""The blocks of a page: what is run, what is only checked and why, and what is said to be printed."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = [*(ROOT / name for name in ("README.md", "SECURITY.md", "CONTRIBUTING.md")), *sorted((ROOT / "docs").glob("*.md"))]
REASONS = ("installs", "needs a GPU", "needs a server", "needs official weights", "takes minutes")
"""Why a block is not run, in a comment on the line before it; it is then checked."""

STEPS = 2
"""What every number of steps that is asked for is in tests: nothing but time depends on it."""
_BLOCK = re.compile(
    r"(?:^<!-- (?P<reason>[^\n]+) -->\n)?"
    r"^```(?P<language>\w*)\n(?P<text>.*?)^```$"
    r"(?:\n\n```text\n(?P<printed>.*?)^```$)?",
    re.MULTILINE | re.DOTALL,
)


@dataclass(frozen=True)
class Block:
    """One block. line: on which its text begins. reason: one of REASONS, if it can't be run. printed: what it prints, see `matches`."""

    language: str
    text: str
    line: int
    reason: str | None = None
    printed: str | None = None


def read_blocks(page: str) -> list[Block]:
    """The blocks of Python and shell in a page, in order; a block of text right behind one is what it prints."""
    found = list(_BLOCK.finditer(page))
    fences = sum(4 if one["printed"] is not None else 2 for one in found)
    assert fences == page.count("```"), "a block that does not end, or is indented"
    lines = [page.count("\n", 0, one.start("text")) + 1 for one in found]
    blocks = [
        Block(one["language"], one["text"], line, one["reason"], one["printed"])
        for one, line in zip(found, lines, strict=True)
        if one["language"] in ("python", "sh")
    ]
    assert {block.reason for block in blocks} <= {None, *REASONS}, f"a reason that is none of {', '.join(REASONS)}"
    return blocks


def matches(pattern: str, printed: str) -> bool:
    """Whether that was printed, but for spaces, and for anything that … stands for."""
    words = " ".join(pattern.split())
    return re.fullmatch(re.escape(words).replace("…", ".*"), " ".join(printed.split())) is not None
