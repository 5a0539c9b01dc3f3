"""The decoder of the variational autoencoder: latent -> mel spectrogram (SPEC section 3.5)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from musicrt.runtime.models.semanticodec.config import LATENT_SHAPE, Config
from musicrt.runtime.networks.autoencoder import Decoder


class FirstStage(nn.Module):
    """The used part of the official autoencoder. Keys: `first_stage_model.` of the decoder's file."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        sizes = config.first_stage_config.ddconfig
        self.post_quant_conv = nn.Conv2d(LATENT_SHAPE[0], LATENT_SHAPE[0], 1)
        self.decoder = Decoder(LATENT_SHAPE[0], [sizes.ch * times for times in sizes.ch_mult], sizes.num_res_blocks + 1)

    def forward(self, z: Tensor) -> Tensor:
        """z: float32 [B, 8, t, f] -> [B, 1, 4t, 4f]."""
        return self.decoder(self.post_quant_conv(z))


class VaeDecoder(nn.Module):
    """Latent of the diffusion -> mel spectrogram. Keys: those of the decoder's file, without prefix."""

    scale_factor: Tensor

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.register_buffer("scale_factor", torch.ones(()))
        self.first_stage_model = FirstStage(config)

    def forward(self, latent: Tensor) -> Tensor:
        """latent: float32 [B, 8, 256, 16] -> mel float32 [B, 1024, 64], natural logarithm. Other lengths are taken, too."""
        return self.first_stage_model((1.0 / self.scale_factor) * latent)[:, 0]
