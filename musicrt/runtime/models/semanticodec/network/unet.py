"""The denoiser: a U-Net whose transformers look at the tokens (SPEC section 3.4).

What depends on the step alone (`shifts`) and on the tokens alone (`project`) can be computed once and handed to `denoise`;
`forward` does all of it in every call, as officially.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from musicrt.runtime.models.semanticodec.config import LATENT_SHAPE, Config
from musicrt.runtime.models.semanticodec.network.layers import (
    ContextTransformer,
    CrossAttention,
    Downsample,
    PositionTransformer,
)
from musicrt.runtime.networks.autoencoder import Upsample, group_norm

NORM_EPS = 1e-5
"""Of the norms outside of the transformers."""


def embed_timestep(t: Tensor, channels: int) -> Tensor:
    """t: int64 or float [n] -> float32 [n, channels], cosines first."""
    half = channels // 2
    frequencies = torch.exp(-math.log(10000.0) * torch.arange(half, dtype=torch.float32, device=t.device) / half)
    angles = t[:, None].to(torch.float32) * frequencies
    return torch.cat([torch.cos(angles), torch.sin(angles)], dim=1)


class ResBlock(nn.Module):
    """norm-silu-conv twice around a residual; the step's shift is added in between."""

    def __init__(self, inputs: int, outputs: int, embedding: int) -> None:
        super().__init__()
        self.in_layers = nn.Sequential(group_norm(inputs, NORM_EPS), nn.SiLU(), nn.Conv2d(inputs, outputs, 3, padding=1))
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(embedding, outputs))
        self.out_layers = nn.Sequential(group_norm(outputs, NORM_EPS), nn.SiLU(), nn.Identity(), nn.Conv2d(outputs, outputs, 3, padding=1))
        self.skip_connection = nn.Identity() if inputs == outputs else nn.Conv2d(inputs, outputs, 1)
        self.channels = outputs

    def forward(self, x: Tensor, shift: Tensor) -> Tensor:
        """x: float32 [B, C, t, f]; shift: float32 [B, C'] = emb_layers(embedding) -> [B, C', t, f]."""
        return self.skip_connection(x) + self.out_layers(self.in_layers(x) + shift[:, :, None, None])


class UNet(nn.Module):
    """The whole denoiser. Keys: `model.diffusion_model.` of the decoder's file."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        sizes = config.unet_config
        channels, width = sizes.channels, sizes.model_channels
        self.embedding = 4 * width
        self.time_embed = nn.Sequential(nn.Linear(width, self.embedding), nn.SiLU(), nn.Linear(self.embedding, self.embedding))
        self.input_blocks = nn.ModuleList([nn.Sequential(nn.Conv2d(LATENT_SHAPE[0], width, 3, padding=1))])
        kept = [width]
        for level, outputs in enumerate(channels):
            for _ in range(sizes.num_res_blocks):
                self.input_blocks.append(nn.Sequential(*self._layers(width, level)))
                width = outputs
                kept.append(width)
            if level < len(channels) - 1:
                self.input_blocks.append(nn.Sequential(Downsample(width)))
                kept.append(width)
        last = len(channels) - 1
        self.middle_block = nn.Sequential(*self._layers(width, last), ResBlock(width, width, self.embedding))
        self.output_blocks = nn.ModuleList()
        for level in reversed(range(len(channels))):
            for index in range(sizes.num_res_blocks + 1):
                layers = self._layers(width + kept.pop(), level)
                width = channels[level]
                if level and index == sizes.num_res_blocks:
                    layers.append(Upsample(width))
                self.output_blocks.append(nn.Sequential(*layers))
        self.out = nn.Sequential(group_norm(width, NORM_EPS), nn.SiLU(), nn.Conv2d(width, LATENT_SHAPE[0], 3, padding=1))

    def _layers(self, inputs: int, level: int) -> list[nn.Module]:
        """A residual block and, on all levels but the finest, a transformer without and one with the context."""
        channels, heads = self.config.unet_config.channels[level], self.config.unet_config.num_head_channels
        layers: list[nn.Module] = [ResBlock(inputs, channels, self.embedding)]
        if level:
            layers += [PositionTransformer(channels, heads), ContextTransformer(channels, heads, self.config.context_dim)]
        return layers

    @property
    def layers(self) -> list[nn.Module]:
        """Those of all blocks, in execution order."""
        return [layer for block in (*self.input_blocks, self.middle_block, *self.output_blocks) for layer in block.children()]

    @property
    def context_attentions(self) -> list[CrossAttention]:
        """Those to the tokens, in execution order."""
        return [layer.block.attn2 for layer in self.layers if isinstance(layer, ContextTransformer)]

    def forward(self, x: Tensor, t: Tensor, context: Tensor) -> Tensor:
        """One evaluation as the official code does it: the eager baseline of the benchmarks.

        x: float32 [B, 8, 256, 16], noisy; t: int64 or float [B]; context: float32 [B, T, 2D + 192] -> v [B, 8, 256, 16].
        """
        keys, values = zip(*self.project(context), strict=True)
        return self.denoise(x, self.shifts(t), [key[None] for key in keys], [value[None] for value in values])[0]

    def shifts(self, t: Tensor) -> Tensor:
        """t: int64 or float [B] -> what every residual block adds, in execution order: float32 [B, sum of their channels]."""
        embedding = self.time_embed(embed_timestep(t, self.config.unet_config.model_channels))
        return torch.cat([layer.emb_layers(embedding) for layer in self.layers if isinstance(layer, ResBlock)], dim=1)

    def project(self, context: Tensor) -> list[tuple[Tensor, Tensor]]:
        """context: float32 [B, T, 2D + 192] -> key and value [B, T, C] of every context attention, in execution order."""
        return [attention.project(context) for attention in self.context_attentions]

    def denoise(self, x: Tensor, shifts: Tensor, keys: Sequence[Tensor], values: Sequence[Tensor]) -> Tensor:
        """One evaluation for G rows of guidance that see the same x; what comes before the first context is done once.

        x: float32 [B, 8, 256, 16]; shifts: as from `shifts`; keys, values: those of `project`,
        float32 [G, B, T, C] -> v [G, B, 8, 256, 16].
        """
        walk = _Walk([layer.channels for layer in self.layers if isinstance(layer, ResBlock)], shifts, keys, values)
        h = x
        for block in self.input_blocks:
            h = walk.run(block, h)
            walk.skips.append(h)
        h = walk.run(self.middle_block, h)
        for block in self.output_blocks:
            h = walk.run(block, torch.cat([h, walk.skips.pop()], dim=1))
        return self.out(h).reshape(walk.rows, *x.shape)


class _Walk:
    """One evaluation on its way through the blocks: what the layers are still to be given, and the skips."""

    def __init__(self, widths: list[int], shifts: Tensor, keys: Sequence[Tensor], values: Sequence[Tensor]) -> None:
        self.rows = keys[0].shape[0]
        self.skips: list[Tensor] = []
        self._shifts = list(torch.split(shifts, widths, dim=1))
        self._repeated = torch.split(self._repeat(shifts), widths, dim=1)
        self._contexts = [(key.flatten(0, 1), value.flatten(0, 1)) for key, value in zip(keys, values, strict=True)]
        self._shared = True

    def run(self, block: nn.Module, h: Tensor) -> Tensor:
        """Run the layers of a block one after the other: [B, C, t, f], or [G * B, C, t, f] from the first context on."""
        for layer in block.children():
            if isinstance(layer, ResBlock):
                h = layer(h, self._shifts.pop(0))
            elif isinstance(layer, ContextTransformer):
                positions = layer.attend_self(h)
                if self._shared:  # until here, no row of guidance knows of its context
                    self._shared = False
                    h, positions = self._repeat(h), self._repeat(positions)
                    self.skips = [self._repeat(skip) for skip in self.skips]
                    self._shifts = list(self._repeated[-len(self._shifts) :])
                h = layer.attend_context(h, positions, self._contexts.pop(0))
            else:
                h = layer(h)
        return h

    def _repeat(self, x: Tensor) -> Tensor:
        """[B, ...] -> [G * B, ...], row by row."""
        return x.unsqueeze(0).expand(self.rows, *x.shape).flatten(0, 1)
