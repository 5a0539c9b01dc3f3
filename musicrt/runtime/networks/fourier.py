"""The Fourier basis of spectra as convolutions, made of two small ones where it is used."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn


class FourierBasis(nn.Module):
    """Cosines, then negated sines, of the bins below Nyquist, times a window [size]: float32 [size, 1, size].

    At 2048 samples the basis has 17 MB, which no bundle needs to store: with the sample's index as `step * a + b`, the sum of two angles
    is the product of two turns. Backends that fold constants make it once, when a graph is opened.
    """

    def __init__(self, window: NDArray[np.float64]) -> None:
        super().__init__()
        size = len(window)
        step = 1 << (size.bit_length() // 2)
        self.coarse, self.fine = (_turns(size, index) for index in (np.arange(0, size, step), np.arange(step)))
        self.window = nn.Parameter(torch.tensor(window, dtype=torch.float32))

    def forward(self) -> Tensor:
        (cosine, sine), (cosine_step, sine_step) = self.fine[:, :, None], self.coarse[..., None]
        planes = (cosine_step * cosine - sine_step * sine, -(sine_step * cosine + cosine_step * sine))
        return (torch.cat(planes).flatten(1) * self.window)[:, None]


def _turns(size: int, index: NDArray[np.int64]) -> nn.Parameter:
    """Cosines and sines of all bins below Nyquist at some samples: float32 [2, size / 2, n]."""
    # Whole turns are taken off the angle as integers, so that the cosine of a large angle loses nothing.
    angles = 2.0 * np.pi / size * (np.arange(size // 2)[:, None] * index % size)
    return nn.Parameter(torch.tensor(np.stack([np.cos(angles), np.sin(angles)]), dtype=torch.float32))
