"""The folder in which the blocks of a page are run: short files under the names that pages use, and tiny bundles."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import musicrt
from musicrt.runtime.audio_writer import write_audio
from tests.conftest import ForSystem

TINY = ("semanticodec", "mucodec", "vidmuse")
"""The tiny bundles in the folder `bundles`; `music2latent` is nano, which is quicker."""
RATE = 44100


@pytest.fixture
def workshop(tiny_bundles: ForSystem, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Makes the working directory of a page, with the bundles that it names."""
    pytest.importorskip("onnxruntime")
    from tests.runtime.video_files import make_video  # skips where videos can't be made

    def make(page: str) -> None:
        monkeypatch.chdir(tmp_path)
        shutil.copytree(musicrt.EMBEDDED, "bundles/music2latent", copy_function=_link)
        for system in TINY:
            if f"bundles/{system}" in page:
                shutil.copytree(tiny_bundles(system), f"bundles/{system}", copy_function=_link)
        for path in (Path("song.flac"), Path("intro.flac"), Path("music/a.flac"), Path("music/b.flac")):
            path.parent.mkdir(exist_ok=True)
            write_audio(path, _chord(), RATE)
        make_video(Path("clip.mp4"), 26)

    return make


def _link(source: str, target: str) -> None:
    """The same file once more; what changes a bundle writes new ones."""
    with contextlib.suppress(OSError):
        os.link(source, target)
        return
    shutil.copy2(source, target)


def _chord() -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    """Two seconds, float32 [2, samples]."""
    time = np.arange(2 * RATE) / RATE
    notes = [0.1 * np.sin(2 * np.pi * pitch * time) for pitch in (220.0, 277.2, 329.6)]
    return np.stack([notes[0] + notes[1], notes[1] + notes[2]]).astype(np.float32)
