"""The kernel that joins windows, run on the host: bit for bit what `join_windows` gives."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from musicrt.runtime.errors import InputError
from musicrt.runtime.loops.diffusion import Float
from musicrt.runtime.windows import Window, centred_ramp, inclusive_ramp, join_windows, overlapping_windows
from tests.conftest import refused
from tests.runtime.host_kernels import HostKernels, on_host


def normal(*shape: int, seed: int = 0) -> Float:
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def windows_of(length: int, size: int, overlap: int) -> Iterator[tuple[Window, Float]]:
    for index, window in enumerate(overlapping_windows(length, size, overlap)):
        yield window, normal(3, window.size * 2, seed=index)


@pytest.mark.parametrize("guard", [0, 1, 50])
@pytest.mark.parametrize("inclusive", [False, True])
@pytest.mark.parametrize(("length", "size", "overlap"), [(5, 8, 2), (100, 20, 5), (23, 20, 10), (64, 16, 1), (50, 10, 0)])
def test_windows_are_joined_as_on_the_host(length: int, size: int, overlap: int, inclusive: bool, guard: int) -> None:
    scale, ramp = 2, inclusive_ramp if inclusive else centred_ramp
    parts = join_windows(windows_of(length, size, overlap), length, scale=scale, guard=guard, ramp=ramp)
    out, kernels = np.full((3, length * scale), np.nan, np.float32), HostKernels()
    for window, value in windows_of(length, size, overlap):
        taken = (min(window.stop, length) - window.start) * scale
        kernels.join(on_host(out), on_host(value), window.start * scale, taken, window.fade * scale, guard * scale, inclusive)
    np.testing.assert_array_equal(out, np.concatenate(list(parts), axis=-1))


def test_a_fade_of_one_position_is_that_of_the_host() -> None:
    for ramp, inclusive in ((centred_ramp, False), (inclusive_ramp, True)):
        values = [normal(1, 4, seed=seed) for seed in (1, 2)]
        parts = join_windows(zip((Window(0, 4), Window(3, 7, fade=1)), values, strict=True), 7, ramp=ramp)
        out, kernels = np.zeros((1, 7), np.float32), HostKernels()
        kernels.join(on_host(out), on_host(values[0]), 0, 4)
        kernels.join(on_host(out), on_host(values[1]), 3, 4, 1, inclusive=inclusive)
        np.testing.assert_array_equal(out, np.concatenate(list(parts), axis=-1))


def test_windows_that_do_not_fit_are_refused() -> None:
    out, value = on_host(np.zeros((2, 10), np.float32)), on_host(np.zeros((2, 4), np.float32))
    for start, taken, fade in ((7, 4, 0), (0, 5, 0), (0, 4, 5), (-1, 4, 0)):
        with refused(InputError, f"{taken} of 4 positions with a fade of {fade} for {start} of 10"):
            HostKernels().join(out, value, start, taken, fade)
