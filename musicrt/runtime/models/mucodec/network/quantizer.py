"""The residual quantizer, and how its features condition the estimator (SPEC sections 3.5 and 4.4)."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from musicrt.runtime.models.mucodec.config import LATENT_BINS, LATENT_CHANNELS, Config


class Projection(nn.Module):
    """A linear layer under weight norm, stored as a convolution of one tap."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight_g = nn.Parameter(torch.ones(outputs, 1, 1))
        self.weight_v = nn.Parameter(torch.ones(outputs, inputs, 1))
        self.bias = nn.Parameter(torch.zeros(outputs))

    def weight(self) -> Tensor:
        """float32 [outputs, inputs]."""
        direction = self.weight_v.data / self.weight_v.data.norm(dim=(1, 2), keepdim=True)
        return (self.weight_g.data * direction)[..., 0]


class Codebook(nn.Module):
    """One codebook and the projections to its width and back."""

    def __init__(self, features: int, size: int, width: int) -> None:
        super().__init__()
        self.in_proj = Projection(features, width)
        self.out_proj = Projection(width, features)
        self.codebook = nn.Embedding(size, width, _weight=torch.zeros(size, width))

    @property
    def entries(self) -> Tensor:
        """float32 [size, width], not normalised."""
        return self.codebook.weight.data


class ResidualQuantizer(nn.Module):
    """Codebooks, each for what those before it leave. Keys: `rvq_muencoder_emb.` of the main file."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        sizes = config.rvq
        self.quantizers = nn.ModuleList(
            [Codebook(sizes.input_dim, sizes.codebook_size, sizes.codebook_dim) for _ in range(sizes.n_codebooks)]
        )

    @property
    def books(self) -> list[Codebook]:
        return cast(list[Codebook], list(self.quantizers))


class Conditioner(nn.Module):
    """What makes a condition of features. Keys: those of the main file, without prefix."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.cond_muencoder_emb = nn.Linear(config.features, LATENT_CHANNELS * LATENT_BINS // 2)
        self.zero_cond_embedding1 = nn.Parameter(torch.zeros(LATENT_CHANNELS * LATENT_BINS))


class NormFeat(nn.Module):
    """Sums of latents over training, from which they are normalised. Keys: `normfeat.` of the main file."""

    def __init__(self) -> None:
        super().__init__()
        self.counts = nn.Parameter(torch.ones(1))
        self.sum_x = nn.Parameter(torch.zeros(LATENT_CHANNELS, LATENT_BINS))
        self.sum_x2 = nn.Parameter(torch.ones(LATENT_CHANNELS, LATENT_BINS))

    def mean_and_deviation(self) -> tuple[Tensor, Tensor]:
        """float32 [32, 1, 32] each: for every channel and bin, the same for all frames."""
        mean = self.sum_x.data / self.counts.data
        deviation = (self.sum_x2.data / self.counts.data - mean.square()).clamp(min=0.0).sqrt()
        return mean[:, None], deviation[:, None]
