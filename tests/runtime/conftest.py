"""VidMuse's light pipeline on the host, and blocks so short that a small window has several."""

from __future__ import annotations

import pytest

from musicrt.runtime.cuda import generation
from musicrt.runtime.models.vidmuse import composer
from musicrt.runtime.models.vidmuse.pipeline import Pipeline
from tests.runtime.vidmuse_codecs import open_light


@pytest.fixture
def short_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generation, "BLOCK", 4)
    monkeypatch.setattr(composer, "BLOCK", 4)


@pytest.fixture(scope="module")
def host() -> Pipeline:
    return open_light()[0]
