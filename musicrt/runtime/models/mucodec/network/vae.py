"""The first stage: mel VAE of each channel, and the vocoder (SPEC sections 4.8 and 4.9)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from musicrt.runtime.models.mucodec.config import MEL_BINS, VAE_CHANNELS, Config
from musicrt.runtime.networks.autoencoder import Decoder, Encoder
from musicrt.runtime.networks.hifigan import HifiGan


class FirstStage(nn.Module):
    """The official autoencoder. Keys: `first_stage_model.` of its file."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        sizes, vocoder = config.autoencoder.ddconfig, config.vocoder_48k
        self.encoder = Encoder(sizes.channels, sizes.num_res_blocks, 2 * VAE_CHANNELS)
        self.decoder = Decoder(VAE_CHANNELS, sizes.channels, sizes.num_res_blocks + 1)
        self.quant_conv = nn.Conv2d(2 * VAE_CHANNELS, 2 * VAE_CHANNELS, 1)
        self.post_quant_conv = nn.Conv2d(VAE_CHANNELS, VAE_CHANNELS, 1)
        self.vocoder = HifiGan(
            MEL_BINS,
            vocoder.upsample_initial_channel,
            vocoder.upsample_rates,
            vocoder.upsample_kernel_sizes,
            vocoder.resblock_kernel_sizes,
        )


class Scale(nn.Module):
    """What posterior samples are multiplied with to become latents. Key: that of the file."""

    scale_factor: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("scale_factor", torch.ones(()))
