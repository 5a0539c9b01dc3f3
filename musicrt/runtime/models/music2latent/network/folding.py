"""Blocks with everything folded that the maths allows: see `stages.py`."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from musicrt.runtime.layers import bias_of
from musicrt.runtime.models.music2latent.network.blocks import ResBlock, SelfAttention


class ChannelAttention(nn.Module):
    """Self-attention over frequency in the order [B, t, C, f]: no axis but t moves, no head is transposed.

    `gain`: the residual stream comes and leaves multiplied by this constant.
    """

    def __init__(self, layer: SelfAttention, gain: float) -> None:
        super().__init__()
        norm, mha = layer.norm, layer.mha
        channels, self.heads = norm.num_channels, layer.heads
        self.width = channels // self.heads
        self.norm = nn.GroupNorm(norm.num_groups, channels, eps=norm.eps * gain**2, affine=False)
        weight, out = mha.in_proj_weight.data, mha.out_proj
        bias = mha.in_proj_bias.data + weight @ norm.bias.data
        weight = weight * norm.weight.data
        scale = 1.0 / math.sqrt(self.width)
        self.query = nn.Parameter(weight[:channels] * scale)
        self.query_bias = nn.Parameter(bias[:channels, None] * scale)
        self.key = nn.Parameter(weight[channels : 2 * channels].clone())
        self.value = nn.Parameter(weight[2 * channels :].clone())
        self.out = nn.Parameter(out.weight.data * gain)
        self.out_bias = nn.Parameter((out.bias.data + out.weight.data @ bias[2 * channels :])[:, None] * gain)

    def forward(self, x: Tensor) -> Tensor:
        """x: float32 [B, C, f, t] -> the same shape."""
        batch, channels, bins, frames = x.shape
        y = self.norm(x).permute(0, 3, 1, 2)
        heads = (batch, frames, self.heads, self.width, bins)
        query = (self.query @ y + self.query_bias).reshape(heads)
        key = (self.key @ y).reshape(heads)
        value = (self.value @ y).reshape(heads)
        weights = torch.softmax(query.transpose(-1, -2) @ key, -1)
        y = (value @ weights.transpose(-1, -2)).reshape(batch, frames, channels, bins)
        return x + (self.out @ y + self.out_bias).permute(0, 2, 3, 1)


def fold_block(block: ResBlock, gain: float = 1.0) -> None:
    """Make a residual block work on a stream that is multiplied by `gain`, and its attention channel-first."""
    block.norm1.eps *= gain**2
    scale_convolution(block.conv2, gain, gain)
    if hasattr(block, "res_conv"):
        scale_convolution(block.res_conv, 1.0, gain)
    if hasattr(block, "att"):
        block.att = ChannelAttention(block.att, gain)  # type: ignore[assignment]


def scale_convolution(layer: nn.Conv1d | nn.Conv2d, factor: float, bias_factor: float) -> None:
    """Multiply the weight and bias of a convolution in place."""
    layer.weight.data *= factor
    bias_of(layer).mul_(bias_factor)
