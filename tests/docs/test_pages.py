"""Every block of Python in docs/ runs, those of a page one after the other."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[2] / "docs"
PAGES = sorted(DOCS.glob("*.md"))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_blocks_of_a_page_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("onnxruntime")
    monkeypatch.chdir(tmp_path)
    text, names = page.read_text(), dict[str, object]()
    blocks = list(re.finditer(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL))
    assert len(blocks) == text.count("```python"), "a block that does not end, or is indented"
    for block in blocks:
        before = "\n" * text[: block.start(1)].count("\n")  # so that errors name the line of the page
        exec(compile(before + block[1], str(page), "exec"), names)
