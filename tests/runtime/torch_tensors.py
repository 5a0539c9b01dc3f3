"""Tensors for tests of networks. Importing this needs torch."""

from __future__ import annotations

import torch
from torch import Tensor

from tests.reference.signals import normal


def draw(name: str, *shape: int) -> Tensor:
    """Normal values that follow from the name."""
    drawn: Tensor = torch.from_numpy(normal(name, shape))
    return drawn


def assert_close(got: Tensor, expected: Tensor, tolerance: float = 1e-5) -> None:
    assert got.shape == expected.shape
    assert float((got - expected).norm()) <= tolerance * float(expected.norm())
