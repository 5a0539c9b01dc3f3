"""Every block of Python in docs/ runs, those of a page one after the other; of those that need a server our names are looked up."""

from __future__ import annotations

import ast
import importlib.util
import re
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[2] / "docs"
PAGES = sorted(DOCS.glob("*.md"))
SERVED = "<!-- needs a server -->\n"
"""Before a block that is not run."""


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_blocks_of_a_page_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("onnxruntime")
    monkeypatch.chdir(tmp_path)
    text, names = page.read_text(), dict[str, object]()
    blocks = list(re.finditer(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL))
    assert len(blocks) == text.count("```python"), "a block that does not end, or is indented"
    for block in blocks:
        before = "\n" * text[: block.start(1)].count("\n")  # so that errors name the line of the page
        if text[: block.start()].endswith(SERVED):
            look_up_names(ast.parse(before + block[1], str(page)))
        else:
            exec(compile(before + block[1], str(page), "exec"), names)


def look_up_names(block: ast.Module) -> None:
    """Every name that is imported from our modules is defined there; they are read, because importing them may take a server's package."""
    for node in ast.walk(block):
        if isinstance(node, ast.ImportFrom) and str(node.module).startswith("musicrt"):
            found = importlib.util.find_spec(str(node.module))
            assert found is not None, node.module
            assert found.origin is not None, node.module
            tree = ast.parse(Path(found.origin).read_text())
            defined = {one.name for one in tree.body if isinstance(one, ast.FunctionDef | ast.ClassDef)}
            assert {name.name for name in node.names} <= defined, ast.unparse(node)
