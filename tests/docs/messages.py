"""The messages in the source of the package, in which … stands for what changes, and the errors that are raised with them."""

from __future__ import annotations

import ast
import functools
import itertools
import re
from collections.abc import Mapping
from typing import TypeGuard

from musicrt.runtime import errors
from tests.docs.blocks import ROOT

ANYTHING = "…"
_TELLING = 0.4
"""The share of a quoted message that has to stand in the source word by word: a template such as "…: …" fits everything."""


@functools.cache
def templates() -> Mapping[str, set[str]]:
    """All texts of the package's code but docstrings, and the names of the errors that are made with them as they stand there."""
    found: dict[str, set[str]] = {}
    for path in sorted((ROOT / "musicrt").rglob("*.py")):
        tree = ast.parse(path.read_text())
        passed = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}  # docstrings
        passed |= {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in node.values}
        calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and node.args]
        kinds = {id(call.args[0]): call.func.id for call in calls if _is_error(call.func)}
        for node in ast.walk(tree):
            if isinstance(node, ast.JoinedStr | ast.Constant) and id(node) not in passed:
                for text in _texts(node):
                    found.setdefault(text, set()).update([kinds[id(node)]] if id(node) in kinds else [])
    return {text: names for text, names in found.items() if " " in text}


def is_raised(quoted: str, section: str) -> bool:
    """Whether some text of the package may become the quoted message, and is raised as one of the errors that the section is named after.

    Of a text that comes into an error by way of a variable the error is not known: it fits every section.
    """
    letters = len(quoted.replace(ANYTHING, ""))
    return any(
        (re.fullmatch(_pattern(text), quoted) or re.fullmatch(_pattern(quoted), text)) and (not names or names & set(section.split(", ")))
        for text, names in templates().items()
        if _TELLING * letters <= len(text.replace(ANYTHING, ""))
    )


def _is_error(function: ast.expr) -> TypeGuard[ast.Name]:
    return isinstance(function, ast.Name) and hasattr(errors, function.id)


@functools.cache
def _pattern(text: str) -> re.Pattern[str]:
    return re.compile(re.escape(text).replace(ANYTHING, ".+"), re.DOTALL)


def _texts(node: ast.expr) -> list[str]:
    """What a text may be: a choice between two within it gives both."""
    if isinstance(node, ast.Constant):
        return [node.value] if isinstance(node.value, str) else [ANYTHING]
    if isinstance(node, ast.IfExp):
        return [*_texts(node.body), *_texts(node.orelse)]
    if isinstance(node, ast.FormattedValue):
        return _texts(node.value) if isinstance(node.value, ast.IfExp) else [ANYTHING]
    if isinstance(node, ast.JoinedStr):
        return ["".join(parts) for parts in itertools.product(*map(_texts, node.values))]
    return [ANYTHING]
