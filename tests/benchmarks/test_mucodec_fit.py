"""The suite on fit="length", on stages that take milliseconds."""

from __future__ import annotations

import pytest

from benchmarks.mucodec.fit import compare_fits, render
from musicrt.runtime.errors import InputError
from tests.conftest import refused
from tests.runtime.mucodec_codecs import open_light


def test_fits_are_compared_on_the_part_that_is_kept() -> None:
    """The light stages see no surrounding, so only the looped audio at the very end can make a difference."""
    codec, sessions = open_light()
    found = compare_fits(codec, 2.0, 2)
    assert [call["x"].shape[2] for call in sessions["estimator"].calls] == [512, 512, 32, 32, 512, 512]
    assert found.codes < 0.05
    assert found.latents < 1e-5
    assert found.wave < 1e-4
    assert found.spread_latents > 0.1
    assert found.spread_wave > 0.01
    lines = render([found]).splitlines()
    assert lines[0].startswith("| s of audio | codes that differ |")
    assert lines[2].startswith("| 2 | ")
    assert lines[-1].startswith("With stand-in weights")
    assert sum("→" in line for line in lines) == 1


@pytest.mark.parametrize("seconds", [0.0, -1.0, 41.0, float("nan")])
def test_lengths_that_are_not_one_window_are_refused(seconds: float) -> None:
    codec, _ = open_light()
    with refused(InputError, str(seconds), "one window"):
        compare_fits(codec, seconds, 2)
