"""The image tower of CLIP, ViT-B/32, without its last norm (SPEC section 5)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from musicrt.runtime.models.vidmuse.config import TOKENS_PER_FRAME, ClipConfig

_QUICK = 1.702


class Embeddings(nn.Module):
    """Patches and the class token, with their positions."""

    def __init__(self, config: ClipConfig) -> None:
        super().__init__()
        width, size = config.hidden_size, config.patch_size
        self.class_embedding = nn.Parameter(torch.empty(width))
        self.patch_embedding = nn.Conv2d(3, width, size, stride=size, bias=False)
        self.position_embedding = nn.Embedding(TOKENS_PER_FRAME, width)

    def forward(self, pixels: Tensor) -> Tensor:
        """pixels: float32 [F, 3, 224, 224] -> [F, 50, 768], the class token first, patches row by row."""
        patches = self.patch_embedding(pixels).flatten(2).transpose(1, 2)
        first = self.class_embedding.expand(patches.shape[0], 1, -1)
        return torch.cat([first, patches], dim=1) + self.position_embedding.weight


class Attention(nn.Module):
    """Self-attention with biases."""

    def __init__(self, config: ClipConfig) -> None:
        super().__init__()
        width = config.hidden_size
        self.heads = config.num_attention_heads
        self.k_proj = nn.Linear(width, width)
        self.v_proj = nn.Linear(width, width)
        self.q_proj = nn.Linear(width, width)
        self.out_proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """x: [F, n, 768] -> the same shape."""
        projections = (self.q_proj, self.k_proj, self.v_proj)
        query, key, value = (linear(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for linear in projections)
        return self.out_proj(F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2))


class Mlp(nn.Module):
    """Two layers around a quick GELU: x * sigmoid(1.702 x)."""

    def __init__(self, config: ClipConfig) -> None:
        super().__init__()
        self.fc1 = nn.Linear(config.hidden_size, config.intermediate_size)
        self.fc2 = nn.Linear(config.intermediate_size, config.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        y = self.fc1(x)
        return self.fc2(y * torch.sigmoid(_QUICK * y))


class Layer(nn.Module):
    """A layer of the encoder."""

    def __init__(self, config: ClipConfig) -> None:
        super().__init__()
        width, eps = config.hidden_size, config.layer_norm_eps
        self.self_attn = Attention(config)
        self.layer_norm1 = nn.LayerNorm(width, eps=eps)
        self.mlp = Mlp(config)
        self.layer_norm2 = nn.LayerNorm(width, eps=eps)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.self_attn(self.layer_norm1(x))
        return x + self.mlp(self.layer_norm2(x))


class Encoder(nn.Module):
    """The layers."""

    def __init__(self, config: ClipConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList([Layer(config) for _ in range(config.num_hidden_layers)])


class VisionTransformer(nn.Module):
    """Pixels -> hidden states of the last layer."""

    def __init__(self, config: ClipConfig) -> None:
        super().__init__()
        self.embeddings = Embeddings(config)
        self.pre_layrnorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)  # the official spelling
        self.encoder = Encoder(config)

    def forward(self, pixels: Tensor) -> Tensor:
        """pixels: float32 [F, 3, 224, 224], normalised -> [F, 50, 768]."""
        x = self.pre_layrnorm(self.embeddings(pixels))
        for layer in self.encoder.layers:
            x = layer(x)
        return x


class ImageTower(nn.Module):
    """`VisionTransformer` under the name that it has in the checkpoint."""

    def __init__(self, config: ClipConfig) -> None:
        super().__init__()
        self.vision_model = VisionTransformer(config)
