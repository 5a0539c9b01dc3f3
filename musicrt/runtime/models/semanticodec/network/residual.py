"""Codebooks, their searches, and the LSTM whose output the acoustic code stands for (SPEC section 2.4)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from musicrt.runtime.models.semanticodec.config import Config


def search(x: Tensor, codebook: Tensor) -> Tensor:
    """Nearest entries: x float32 [..., D], codebook [n, D] -> codes int64 [...], the lowest where several are as near.

    |x|^2 is the same for all entries and left out. Wants float32: distances lie closer together than half precision tells apart.
    """
    return F.linear(-2.0 * x, codebook, codebook.square().sum(1)).argmin(-1)


class SemanticCodebook(nn.Module):
    """Centroids of AudioMAE's representation: the array of the .npy file."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.array = nn.Parameter(torch.zeros(config.codebook_sizes[0], config.feature_dim))

    def forward(self, representation: Tensor) -> tuple[Tensor, Tensor]:
        """representation: float32 [B, T, D] -> semantic codes int64 [B, T] and their centroids float32 [B, T, D]."""
        codes = search(representation, self.array)
        return codes, self.look_up(codes)

    def look_up(self, codes: Tensor) -> Tensor:
        """codes: int64 [...] -> centroids float32 [..., D]."""
        return F.embedding(codes, self.array)


class AcousticCodebook(nn.Module):
    """Entries that stand for residuals. Keys: `quantizer._codebook.` of the encoder's file."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.embed = nn.Parameter(torch.zeros(1, config.encoder.codebook_size, config.feature_dim))

    def forward(self, residual: Tensor) -> Tensor:
        """residual: float32 [B, T, D] -> acoustic codes int64 [B, T].

        Officially by the distance itself; its square root and the clamp below it move no minimum.
        """
        return search(residual, self.embed[0])


class ResidualEncoder(nn.Module):
    """Bidirectional LSTM and projection. Keys: those of the encoder's file, without prefix."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        width = 2 * config.feature_dim
        self.encoder = nn.LSTM(width, width, config.lstm_layers, batch_first=True, bidirectional=True)
        self.encoder_output_linear = nn.Linear(2 * width, config.feature_dim, bias=False)

    def forward(self, representation: Tensor, centroids: Tensor, mask: Tensor) -> Tensor:
        """representation, centroids: float32 [B, T, D]; mask: float32 [B, T], 1 for active tokens, else 0 -> residual [B, T, D].

        The LSTM reads rows of -1 where the mask is 0, so active tokens depend on how many follow them.
        """
        active = mask[:, :, None]
        z = torch.cat([representation, centroids], dim=2) * active + (active - 1.0)
        hidden, _ = self.encoder(z)
        return self.encoder_output_linear(hidden)
