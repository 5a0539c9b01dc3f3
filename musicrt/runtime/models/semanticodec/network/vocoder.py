"""The vocoder (SPEC section 3.6)."""

from __future__ import annotations

from musicrt.runtime.models.semanticodec.config import VOCODER_BINS, Config
from musicrt.runtime.networks.hifigan import HifiGan


class Vocoder(HifiGan):
    """Mel spectrogram float32 [B, frames, 64] -> waveform [B, 160 * frames + 32], 16 kHz.

    Keys: `first_stage_model.vocoder.` of the decoder's file.
    """

    def __init__(self, config: Config) -> None:
        sizes = config.vocoder
        super().__init__(
            VOCODER_BINS, sizes.upsample_initial_channel, sizes.upsample_rates, sizes.upsample_kernel_sizes, sizes.resblock_kernel_sizes
        )
