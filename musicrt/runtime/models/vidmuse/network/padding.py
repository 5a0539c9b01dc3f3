"""What a convolution of EnCodec sees beyond the ends of a signal (SPEC section 9)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class EndPadding(nn.Module):
    """The samples before and behind a signal: zeros, or the signal mirrored at its ends.

    Of a stride of r a signal is padded to a whole number of steps. How many samples that takes depends on the length; here it is always as
    many as it may take, because a convolution leaves out what does not fill a step.
    """

    def __init__(self, kernel: int, stride: int, mode: str) -> None:
        super().__init__()
        total = kernel - stride
        self.left, self.right, self.stride, self.mode = total - total // 2, total // 2, stride, mode

    def forward(self, x: Tensor) -> Tensor:
        """x: float32 [B, C, n] -> [B, C, left + n + right + stride - 1]."""
        right = self.right + self.stride - 1
        if not self.left + right:
            return x
        if self.mode == "constant":
            return F.pad(x, (self.left, right))
        length = torch.full((), x.shape[2], dtype=torch.int64, device=x.device)
        needed = self.right + (self.stride - length % self.stride) % self.stride
        # A signal that is not longer than what is needed beyond an end counts as one sample longer than that, with zeros.
        last = torch.maximum(length - 1, needed.clamp(min=self.left))
        before = torch.arange(self.left, 0, -1, device=x.device)
        behind = last - (last - length - torch.arange(right, device=x.device)).abs()
        return torch.cat([_take(x, before, length), x, _take(x, behind, length)], dim=2)


def _take(x: Tensor, places: Tensor, length: Tensor) -> Tensor:
    """Samples at places, zeros behind the end."""
    found = x[:, :, torch.minimum(places.clamp(min=0), length - 1)]
    return found * (places < length).to(x.dtype)
