"""From log-mel to waveform: what the official overlapping vocoder chunks give, without computing the overlaps (SPEC section 4.9).

Officially chunks of 1024 frames begin every 256, and are cross-faded over three quarters: 3.25 times the work for a window. A chunk's wave
is that of the whole mel but for the frames within reach of its ends, which see silence beyond. So the whole mel runs once, in blocks
that see what they depend on, and the ends of chunks run by themselves; then the chunks are put together and cross-faded as officially.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from musicrt.runtime.model import Model
from musicrt.runtime.models.mucodec.config import MEL_HOP, VAE_CHANNELS, Config, VocoderConfig
from musicrt.runtime.models.mucodec.lengths import CHUNK, CHUNK_SHIFT, wave_samples

Float = NDArray[np.float32]
_BLOCK = 2048
"""Frames that run together at most: as many as officially, where both channels of a chunk do."""
_ENDS = 24
"""Ends of chunks that run together at most: about as many frames."""
_OUTER = 3
"""Values that the first and the last convolution see on either side."""


class Synthesis:
    """Runs VAE and vocoder, channel by channel. `reach`: mel frames on either side that a frame's samples depend on."""

    def __init__(self, model: Model, config: Config) -> None:
        self._model = model
        self.reach = receptive_frames(config.vocoder_48k)

    def render(self, latents: Float, samples: int) -> Float:
        """Latents [1, 32, T, 32] of both channels -> the first samples of their sound, float32 [2, samples]. Raises BackendError."""
        return np.stack([self.waveform(self.mel(latents[:, half]), samples) for half in (np.s_[:VAE_CHANNELS], np.s_[VAE_CHANNELS:])])

    def mel(self, latents: Float) -> Float:
        """Latents [1, 16, T, 32] of one channel -> log-mel [8 T, 256]; one at a time, because of the memory. Raises BackendError."""
        mel: Float = self._model.session("vae").run({"latents": np.ascontiguousarray(latents)})["mel"][0]
        return mel

    def waveform(self, mel: Float, samples: int | None = None) -> Float:
        """Log-mel [frames, 256] of one channel -> its first `samples` (None: `wave_samples` of its frames). Raises BackendError."""
        wanted = wave_samples(len(mel)) if samples is None else samples
        whole = self._whole(mel, wanted)
        starts = list(range(CHUNK_SHIFT, len(mel) - CHUNK + CHUNK_SHIFT, CHUNK_SHIFT))  # of all chunks but the first
        if not starts:
            return whole
        margin, size, fade = self.reach * MEL_HOP, CHUNK * MEL_HOP, (CHUNK - CHUNK_SHIFT) * MEL_HOP
        heads = [start for start in starts if start * MEL_HOP < wanted]
        tails = [start + CHUNK for start in (0, *starts[:-1]) if (start + CHUNK) * MEL_HOP - margin < wanted]
        first = dict(zip(heads, self._run([mel[start : start + 2 * self.reach] for start in heads]), strict=True))
        last = dict(zip(tails, self._run([mel[stop - 2 * self.reach : stop] for stop in tails]), strict=True))

        def chunk(start: int) -> Float:
            """The wave of one chunk, as far as it is wanted."""
            wave = whole[start * MEL_HOP : start * MEL_HOP + size].copy()
            if start in first:
                wave[:margin] = first[start][: min(margin, len(wave))]
            if start + CHUNK in last:
                end = wave[size - margin :]
                end[:] = last[start + CHUNK][margin : margin + len(end)]
            return wave

        output, rise = whole.copy(), np.linspace(0.0, 1.0, fade)
        output[:size] = chunk(0)
        for start in heads:
            wave, at = chunk(start), start * MEL_HOP
            shared = wave[:fade]
            faded, ramp = output[at : at + len(shared)], rise[: len(shared)]
            faded[:] = faded * (1 - ramp) + shared * ramp
            output[at + fade : at + size] = wave[fade:]
        return output

    def _whole(self, mel: Float, samples: int) -> Float:
        """The first samples of the wave of a whole mel, block by block."""
        frames, pieces = min(-(-samples // MEL_HOP), len(mel)), [np.zeros(0, np.float32)]
        block = min(_BLOCK, self._most("mel_frames") - 2 * self.reach)
        for start in range(0, frames, block):
            stop = min(start + block, frames)
            before, after = max(start - self.reach, 0), min(stop + self.reach, len(mel))
            end = None if stop == frames else (stop - before) * MEL_HOP
            pieces.append(self._vocode(mel[None, before:after])[0, (start - before) * MEL_HOP : end])
        return np.concatenate(pieces)[:samples]

    def _run(self, mels: Sequence[Float]) -> list[Float]:
        """The waves of pieces of mel of one length."""
        size = min(_ENDS, self._most("batch"))
        batches = [np.stack(mels[start : start + size]) for start in range(0, len(mels), size)]
        return [wave for batch in batches for wave in self._vocode(batch)]

    def _most(self, axis: str) -> int:
        """How much of an axis the vocoder takes at once: an engine may be made for less than is worth while."""
        return self._model.session("vocoder").limits[axis][1]

    def _vocode(self, mel: Float) -> Float:
        return self._model.session("vocoder").run({"mel": np.ascontiguousarray(mel)})["waveform"]


def receptive_frames(config: VocoderConfig) -> int:
    """Frames before and after its own that a sample of the vocoder depends on: 22 as released (SPEC section 4.9)."""
    kernels = zip(config.resblock_kernel_sizes, config.resblock_dilation_sizes, strict=True)
    inside = max(sum((kernel - 1) // 2 * (dilation + 1) for dilation in dilations) for kernel, dilations in kernels)
    low, high = -_OUTER, MEL_HOP - 1 + _OUTER  # what the samples of frame 0 depend on, layer by layer towards the input
    for rate, kernel in reversed(list(zip(config.upsample_rates, config.upsample_kernel_sizes, strict=True))):
        padding = (kernel - rate) // 2
        low, high = -((kernel - 1 - padding + inside - low) // rate), (high + inside + padding) // rate
    return max(_OUTER - low, high + _OUTER)
