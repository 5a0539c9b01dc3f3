"""How Sphinx makes the site of the pages and of the API reference; `scripts/docs` runs it. A warning is an error.

The sources are the Markdown files of the repository where they lie, so that their links hold here as on a page of the repository.
"""

from __future__ import annotations

import inspect
import itertools
import re
import sys
from collections.abc import Iterator
from typing import Any

from sphinx.application import Sphinx
from sphinx.util import logging

import musicrt

project, author, copyright = "MusicRT", "MusicRT maintainers", "MusicRT maintainers"
version = release = musicrt.__version__
extensions = ["myst_parser", "sphinx.ext.autodoc"]
root_doc = "docs/site/index"
include_patterns = ["*.md", "docs/**", "benchmarks/**.md", "musicrt/**.md", "tests/reference/README.md", "tools/nano/MODEL_CARD.md"]
exclude_patterns = [".venv", "build"]
suppress_warnings = ["toc.not_included"]  # results are reached by links

myst_heading_anchors = 4
default_role = "py:obj"  # `name` in a docstring leads to what is documented under that name, and is code anyway
autodoc_default_options = {"members": True, "undoc-members": True, "member-order": "bysource"}
# Nothing runs, so nothing has to be there.
autodoc_mock_imports = ["torch", "onnx", "onnx_ir", "onnxscript", "onnxruntime", "ray", "starlette"]
autodoc_preserve_defaults = True
autoclass_content = "both"
autodoc_type_aliases = {name: name for name in ("Audio", "Noise", "Progress", "Prompt", "Video")}
python_maximum_signature_line_length = 100

html_theme = "alabaster"  # comes with Sphinx, and loads nothing from elsewhere
html_theme_options = {"page_width": "1280px", "body_max_width": "none", "sidebar_width": "250px", "show_powered_by": False}
html_additional_pages = {"index": "start.html"}
html_show_sourcelink = False
templates_path = ["."]

_SECTIONS = re.compile(r" \(SPEC sections? [^)]*\)")
"""What comments for maintainers refer to."""
_ARRAYS = re.compile(r"NDArray|Tensor|Float|Tokens|Codes")
_SHAPE = re.compile(r"\[|[Aa]rguments and errors as|[Ss]ee `")
"""In the docstring of what gives arrays."""
_RAISE, _ERRORS = re.compile(r"^\s*raise \w", re.MULTILINE), re.compile(r"[Rr]aises|[Ee]rrors")
"""In the source of what raises, and in its docstring."""
_ALIAS = re.compile(r"TypeAliasForwardRef\('(\w+)'\)")
_NDARRAY = re.compile(r"~numpy\.ndarray\[tuple\[.*?\.\.\.\], ~numpy\.dtype\[[^]]*?(\w+)\]\]")
_log = logging.getLogger(__name__)


def setup(app: Sphinx) -> None:
    """Called by Sphinx."""
    app.connect("autodoc-process-docstring", finish_docstring)
    app.connect("autodoc-process-signature", shorten_types)


def finish_docstring(_app: Sphinx, what: str, name: str, thing: Any, _options: Any, lines: list[str]) -> None:
    """Warns of a docstring that is missing, or lacks shape or errors; makes a list of its arguments, written as `name: what it is`."""
    text = _SECTIONS.sub("", "\n".join(lines)).strip()
    if not text and what != "attribute":
        _log.warning("%s %s has no docstring", what, name)
    if what in ("function", "method") and _ARRAYS.search(str(_returned(thing))) and not _SHAPE.search(text):
        _log.warning("the docstring of %s says no shape", name)
    if inspect.isroutine(thing) and _RAISE.search(inspect.getsource(thing)) and not _ERRORS.search(text):
        _log.warning("the docstring of %s says nothing of what it raises", name)
    lines[:] = list_arguments(text, set(_parameters(thing)))


def shorten_types(_app: Sphinx, _what: str, _name: str, _thing: Any, _options: Any, *signature: str | None) -> tuple[str | None, ...]:
    """Types in a signature and behind it as our code writes them."""
    shorter = (_ALIAS.sub(r"\1", part) if part else part for part in signature)
    return tuple(_NDARRAY.sub(r"NDArray[\1]", part) if part else part for part in shorter)


def list_arguments(text: str, known: set[str]) -> list[str]:
    """Lines of reStructuredText in which each argument is a field, and what comes behind the arguments a paragraph."""
    name = rf"(?:{'|'.join(sorted(known)) or '(?!)'})"
    argument = rf"`?({name}(?:`?, `?{name})*)`?:\s"
    begin = re.compile(rf"(?:^|(?<=\. ))(?:{argument}|(?=(?:Raises|Returns|Yields|Other arguments) ))", re.MULTILINE)
    made: list[str] = []
    for paragraph in text.split("\n\n"):
        starts = [match.start() for match in begin.finditer(paragraph)]
        for first, last in itertools.pairwise([*sorted({0, *starts}), len(paragraph)]):
            found, piece = begin.match(paragraph, first), paragraph[first:last].rstrip()
            if found and found[1]:
                said, _, piece = re.sub(r"\.\n(?! )", ".\n\n", paragraph[found.end() : last]).partition("\n\n")
                made.append(f":param {re.sub('[` ]', '', found[1])}: {' '.join(said.split())}")
            if piece:
                made += ["", *piece.splitlines(), ""]
        made.append("")
    return made


def _parameters(thing: Any) -> Iterator[str]:
    """Names of what a function or class is called with, those of its `**options` included."""
    if not inspect.isroutine(thing) and not _is_plain_class(thing):
        return
    for parameter in inspect.signature(thing).parameters.values():
        yield parameter.name
        if options := re.fullmatch(r"Unpack\[(\w+)\]", str(parameter.annotation)):
            yield from inspect.get_annotations(vars(sys.modules[thing.__module__])[options[1]])


def _is_plain_class(thing: Any) -> bool:
    return inspect.isclass(thing) and not issubclass(thing, Exception)  # those have no signature


def _returned(thing: Any) -> Any:
    return inspect.get_annotations(inspect.unwrap(thing)).get("return", "") if inspect.isroutine(thing) else ""
