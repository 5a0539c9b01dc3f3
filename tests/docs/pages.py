"""A page: its blocks of Python and shell are run one after the other, or checked where they say why they can't run."""

from __future__ import annotations

import ast
import contextlib
import importlib.util
import io
import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

import musicrt
from musicrt.cli import output
from tests.docs.blocks import STEPS, Block, matches, read_blocks
from tests.docs.commands import check_command, read_commands, run_command

_LOG = logging.getLogger("musicrt")


def run_page(text: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run the blocks of a page one after the other; those of Python share their names.

    Raises what a block raises, and AssertionError; the note of an error says where in the page it was.
    """
    monkeypatch.setattr(output.console, "width", 140)
    names: dict[str, object] = {}
    with logs_restored():
        for block in read_blocks(text):
            with at_line(name, block.line):
                printed = run_python(block, name, names) if block.language == "python" else run_shell(block, name, monkeypatch)
                if block.printed is not None and block.reason is None:
                    assert matches(block.printed, printed), f"printed:\n{printed}"


def run_python(block: Block, name: str, names: dict[str, object]) -> str:
    """What it prints; of one that can't run, our names are looked up."""
    tree = ast.parse("\n" * (block.line - 1) + block.text, name)
    if block.reason is not None:
        look_up_names(tree)
        return ""
    for node in ast.walk(tree):
        if isinstance(node, ast.keyword) and node.arg in ("steps", "ddim_sample_step"):
            node.value = ast.copy_location(ast.Constant(STEPS), node.value)
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        exec(compile(tree, name, "exec"), names)
    return printed.getvalue()


def run_shell(block: Block, name: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """What its commands print; those of a block that can't run are read."""
    printed = []
    for command in read_commands(block.text):
        with at_line(name, block.line + command.line):
            if block.reason is None:
                printed.append(run_command(command, monkeypatch))
            else:
                check_command(command)
    return "\n".join(printed)


def look_up_names(block: ast.Module) -> None:
    """Every name of ours is defined; modules are read, because importing them may take a server's package."""
    for node in ast.walk(block):
        if isinstance(node, ast.ImportFrom) and str(node.module).split(".")[0] == "musicrt":
            wanted, defined = {name.name for name in node.names}, names_of(str(node.module))
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "musicrt":
            wanted, defined = {node.attr}, set(musicrt.__all__)
        else:
            continue
        assert wanted <= defined, ast.unparse(node)


def names_of(module: str) -> set[str]:
    """What a module of ours defines, or hands on."""
    if module == "musicrt":
        return set(musicrt.__all__)
    found = importlib.util.find_spec(module)
    assert found is not None, module
    assert found.origin is not None, module
    body = ast.parse(Path(found.origin).read_text()).body
    assigned = [name for one in body if isinstance(one, ast.Assign | ast.AnnAssign) for name in ast.walk(one) if isinstance(name, ast.Name)]
    return {name.id for name in assigned} | {one.name for one in body if isinstance(one, ast.FunctionDef | ast.ClassDef)}


@contextlib.contextmanager
def logs_restored() -> Iterator[None]:
    """Handlers that a page adds go with it, and so does its level."""
    handlers, level = [*_LOG.handlers], _LOG.level
    try:
        yield
    finally:
        _LOG.handlers = handlers
        _LOG.setLevel(level)


@contextlib.contextmanager
def at_line(name: str, line: int) -> Iterator[None]:
    """Says of an error where in a page it was."""
    try:
        yield
    except BaseException as error:
        error.add_note(f"{name}, line {line}")
        raise
