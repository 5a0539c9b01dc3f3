"""MuQ up to the tapped layer: convolutional front-end and conformer (SPEC sections 3.3 and 3.4)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from musicrt.runtime.models.mucodec.config import MUQ_BINS, Config
from musicrt.runtime.models.mucodec.muq_config import ConformerConfig

NORM_EPS = 1e-5
"""Of the batch norms."""


class BatchNorm(nn.Module):
    """Statistics and scale of a batch norm, which is folded into the convolution before it."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.running_mean = nn.Parameter(torch.zeros(channels))
        self.running_var = nn.Parameter(torch.ones(channels))

    def fold_into(self, convolution: nn.Conv1d | nn.Conv2d) -> None:
        """Give the convolution the weights with which it does the work of both."""
        scale = self.weight.data / torch.sqrt(self.running_var.data + NORM_EPS)
        bias = 0.0 if convolution.bias is None else convolution.bias.data
        convolution.weight = nn.Parameter(convolution.weight.data * scale.reshape(-1, *[1] * (convolution.weight.ndim - 1)))
        convolution.bias = nn.Parameter((bias - self.running_mean.data) * scale + self.bias.data)


class ConvBlock(nn.Module):
    """Two convolutions beside one: half as many rows and columns."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride=2, padding=1)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1)
        self.conv3 = nn.Conv2d(inputs, outputs, 3, stride=2, padding=1)
        self.bn1, self.bn2, self.bn3 = BatchNorm(outputs), BatchNorm(outputs), BatchNorm(outputs)

    def fold(self) -> None:
        for norm, convolution in (("bn1", self.conv1), ("bn2", self.conv2), ("bn3", self.conv3)):
            getattr(self, norm).fold_into(convolution)
            delattr(self, norm)

    def forward(self, x: Tensor) -> Tensor:
        """x: float32 [B, C, f, t] -> [B, C', f/2, t/2]. Folded."""
        return F.relu(self.conv3(x) + self.conv2(F.relu(self.conv1(x))))


class FrontEnd(nn.Module):
    """Spectrogram as an image -> one vector per code."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.conv = nn.ModuleList([ConvBlock(1, channels), ConvBlock(channels, channels)])
        self.linear = nn.Linear(channels * MUQ_BINS // 4, width)

    def forward(self, mel: Tensor) -> Tensor:
        """mel: float32 [B, 128, 4C] -> [B, C, D]."""
        x = mel[:, None]
        for block in self.conv:
            x = block(x)
        return self.linear(x.permute(0, 3, 1, 2).flatten(2))


class FeedForward(nn.Module):
    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.intermediate_dense = nn.Linear(width, hidden)
        self.output_dense = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.output_dense(F.silu(self.intermediate_dense(x)))


class Attention(nn.Module):
    """Self-attention, whose queries and keys are made of the rotated input; values are made of the input itself."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.linear_q = nn.Linear(width, width)
        self.linear_k = nn.Linear(width, width)
        self.linear_v = nn.Linear(width, width)
        self.linear_out = nn.Linear(width, width)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """x: float32 [B, T, D]; cos, sin: [T, D / heads / 2] -> [B, T, D]."""
        rotated = self._rotate(x, cos[:, None], sin[:, None])
        query, key, value = (self._split(y) for y in (self.linear_q(rotated), self.linear_k(rotated), self.linear_v(x)))
        return self.linear_out(F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2))

    def _rotate(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        first, second = x.reshape(*x.shape[:2], self.heads, -1).chunk(2, dim=3)
        return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=3).flatten(2)

    def _split(self, x: Tensor) -> Tensor:
        return x.reshape(*x.shape[:2], self.heads, -1).transpose(1, 2)


class ConvModule(nn.Module):
    """A depthwise convolution along time between two pointwise ones."""

    def __init__(self, width: int, kernel: int, eps: float) -> None:
        super().__init__()
        self.layer_norm = nn.LayerNorm(width, eps=eps)
        self.pointwise_conv1 = nn.Conv1d(width, 2 * width, 1, bias=False)
        self.depthwise_conv = nn.Conv1d(width, width, kernel, padding=kernel // 2, groups=width, bias=False)
        self.batch_norm = BatchNorm(width)
        self.pointwise_conv2 = nn.Conv1d(width, width, 1, bias=False)

    def fold(self) -> None:
        self.batch_norm.fold_into(self.depthwise_conv)
        del self.batch_norm

    def forward(self, x: Tensor) -> Tensor:
        """x: float32 [B, T, D] -> the same shape. Folded."""
        y = F.glu(self.pointwise_conv1(self.layer_norm(x).transpose(1, 2)), dim=1)
        return self.pointwise_conv2(F.silu(self.depthwise_conv(y))).transpose(1, 2)


class ConformerLayer(nn.Module):
    """Half a feed-forward, attention, convolution, and the other half."""

    def __init__(self, sizes: ConformerConfig) -> None:
        super().__init__()
        width, hidden, eps = sizes.hidden_size, sizes.intermediate_size, sizes.layer_norm_eps
        self.ffn1_layer_norm = nn.LayerNorm(width, eps=eps)
        self.ffn1 = FeedForward(width, hidden)
        self.self_attn_layer_norm = nn.LayerNorm(width, eps=eps)
        self.self_attn = Attention(width, sizes.num_attention_heads)
        self.conv_module = ConvModule(width, sizes.conv_depthwise_kernel_size, eps)
        self.ffn2_layer_norm = nn.LayerNorm(width, eps=eps)
        self.ffn2 = FeedForward(width, hidden)
        self.final_layer_norm = nn.LayerNorm(width, eps=eps)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """x: float32 [B, T, D]; cos, sin: the rotation of each position -> [B, T, D]."""
        x = x + 0.5 * self.ffn1(self.ffn1_layer_norm(x))
        x = x + self.self_attn(self.self_attn_layer_norm(x), cos, sin)
        x = x + self.conv_module(x)
        x = x + 0.5 * self.ffn2(self.ffn2_layer_norm(x))
        return self.final_layer_norm(x)


class Conformer(nn.Module):
    """The layers up to the tapped one."""

    def __init__(self, sizes: ConformerConfig, layers: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList([ConformerLayer(sizes) for _ in range(layers)])


class Muq(nn.Module):
    """MuQ as far as it is read. Keys: `model.` of its file."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.conv = FrontEnd(config.muq.conv_dim, config.muq.encoder_dim)
        self.conformer = Conformer(config.muq_w2v2, config.layers)

    def fold(self) -> None:
        """Fold the batch norms; `ConvBlock` and `ConvModule` run without them only."""
        for module in list(self.modules()):
            if isinstance(module, ConvBlock | ConvModule):
                module.fold()


def rotation_rates(config: Config) -> Tensor:
    """Radians per position of each pair of channels of a head: float32 [D / heads / 2]."""
    head = config.muq.encoder_dim // config.muq_w2v2.num_attention_heads
    return 1.0 / (config.muq_w2v2.rotary_embedding_base ** (torch.arange(0, head, 2, dtype=torch.float32) / head))
