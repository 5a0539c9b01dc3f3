"""What stands in README.md, SECURITY.md, CONTRIBUTING.md and docs/ runs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.docs.blocks import PAGES
from tests.docs.pages import run_page


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_blocks_of_a_page(page: Path, workshop: Callable[[str], None], monkeypatch: pytest.MonkeyPatch) -> None:
    text = page.read_text()
    workshop(text)
    run_page(text, page.name, monkeypatch)
