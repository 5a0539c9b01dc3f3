"""Muon: momentum whose matrices are made orthogonal before they are taken as a step; learns in fewer steps than Adam (needs torch)."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

_LEAST = 1e-6
"""Squared singular values below this share of the largest are taken for it."""


class Muon(torch.optim.Optimizer):
    """For weights of two dimensions and more; the first is the rows, all others together the columns."""

    def __init__(self, weights: Iterable[nn.Parameter], lr: float, momentum: float = 0.95, decay: float = 0.02) -> None:
        super().__init__(weights, {"lr": lr, "momentum": momentum, "decay": decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        del closure
        for group in self.param_groups:
            for weight in group["params"]:
                state: dict[str, Any] = self.state[weight]
                if "speed" not in state:
                    state["speed"] = torch.zeros_like(weight)
                speed: Tensor = state["speed"].lerp_(weight.grad, 1.0 - group["momentum"])
                update = weight.grad.lerp(speed, group["momentum"]).flatten(1)
                rows, columns = update.shape
                weight.mul_(1.0 - group["lr"] * group["decay"])
                weight.add_(orthogonal(update).view(weight.shape), alpha=-group["lr"] * max(1.0, rows / columns) ** 0.5)


def orthogonal(matrix: Tensor) -> Tensor:
    """The nearest matrix whose singular values are one, but for those far below the largest, which stay small."""
    x: Tensor = matrix.T if len(matrix) > matrix[0].numel() else matrix
    values, vectors = torch.linalg.eigh((x @ x.T).double())
    root = (vectors * values.clamp_min(float(values[-1]) * _LEAST + 1e-30).rsqrt()) @ vectors.T
    x = root.to(x.dtype) @ x
    return x.T if len(matrix) > matrix[0].numel() else x
