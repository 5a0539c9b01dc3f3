"""What the savings suite found, put together for a clip that is encoded and a window that is decoded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from benchmarks.mucodec.official import chunked_frames, official_windows
from benchmarks.mucodec.window import FRAMES, run_frames
from benchmarks.mucodec.workload import Workload
from musicrt.runtime.measure import markdown_table
from musicrt.runtime.models.mucodec.config import SAMPLE_RATE
from musicrt.runtime.models.mucodec.lengths import CHUNK, CHUNK_SHIFT, WINDOW, encoded_codes, encoder_windows
from musicrt.runtime.models.mucodec.synthesis import receptive_frames

Times = Mapping[str, Sequence[float]]
"""Seconds of each repeat, by what ran."""
LAYERS = "MuQ's layers that are read"
KEPT = "encoder windows that are kept"
OVERLAP = "vocoder without overlaps"
FOLDED = "upsampling of the VAE folded into its convolutions"
ONE_CONTEXT = "context tokens once per window"
ONE_SCHEDULE = "time embeddings once per schedule"
ONE_BATCH = "rows of guidance as one batch (officially, too)"


@dataclass(frozen=True)
class Sizes:
    """What was measured: a clip of so many seconds, codes of MuQ, latent frames of the step and of the VAE, mel frames of the vocoder,
    ends of chunks in a batch; and the steps of a decode."""

    clip: float
    codes: int
    frames: int
    vae: int
    vocoder: int
    ends: int
    steps: int

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Saved:
    """Seconds of a whole with all savings, and what each of them takes off."""

    now: float
    savings: Mapping[str, float]

    @property
    def before(self) -> float:
        return self.now + sum(self.savings.values())


def save_encode(times: Times, sizes: Sizes) -> Saved:
    """An encode of the clip."""
    t = _medians(times, WINDOW / sizes.codes)
    samples = round(sizes.clip * SAMPLE_RATE)
    kept, computed = len(encoder_windows(encoded_codes(samples), "window")), official_windows(samples)
    layers = t["MuQ, all layers"] - t["MuQ"]
    savings = {LAYERS: kept * layers, KEPT: (computed - kept) * (t["spectrogram"] + t["MuQ, all layers"])}
    return Saved(kept * (t["spectrogram"] + t["MuQ"]), savings)


def save_decode(times: Times, sizes: Sizes, work: Workload) -> Saved:
    """A decode of one window, everything brought to its size by length."""
    step, vae, once = (_medians(times, factor) for factor in (FRAMES / sizes.frames, 2 * FRAMES / sizes.vae, 1.0))
    mel, end = 8 * FRAMES, end_frames(work)
    long, ends = 2 * once["vocoder"] / sizes.vocoder, 2 * once["vocoder, ends"] / (sizes.ends * end)  # for each frame of both channels
    batched = end * 2 * ((mel - CHUNK) // CHUNK_SHIFT)
    vocoder = long * (run_frames(work, [FRAMES], official=False)[FRAMES] - batched) + ends * batched
    now = step["context of both rows"] + once["all times"] + sizes.steps * step["step"] + vae["VAE"] + vocoder
    savings = {
        ONE_BATCH: sizes.steps * (step["step, one row after the other"] - step["step"]),
        ONE_CONTEXT: (sizes.steps - 1) * step["context of both rows"],
        ONE_SCHEDULE: sizes.steps * once["one time"] - once["all times"],
        FOLDED: vae["VAE, upsampling not folded"] - vae["VAE"],
        OVERLAP: long * chunked_frames(mel) - vocoder,
    }
    return Saved(now, savings)


def end_frames(work: Workload) -> int:
    """Mel frames that are run for an end of a chunk."""
    return 2 * receptive_frames(work.config.vocoder_48k)


def render(times: Times, sizes: Sizes, work: Workload) -> str:
    """The tables of the suite."""
    encode, decode = save_encode(times, sizes), save_decode(times, sizes, work)
    how = (
        f"MuQ was measured on {sizes.codes} codes, a step on {sizes.frames} latent frames, the VAE on {sizes.vae} of one channel, the "
        f"vocoder on {sizes.vocoder} mel frames of one channel and on {sizes.ends} ends of chunks. What is not a whole window "
        f"({WINDOW} codes, {FRAMES} latent frames, both channels) was brought to that by length, and the vocoder by the frames that run. "
        "The growth of attention with the length is left out, so steps take more than that."
    )
    return "\n\n".join(
        [
            f"## Encode of a clip of {sizes.clip:g} s: {encode.before:.2f} s without, {encode.now:.2f} s with the savings",
            _table(encode),
            f"## Decode of a window in {sizes.steps} steps: {decode.before:.1f} s without, {decode.now:.1f} s with the savings",
            _table(decode),
            how,
            "## What ran",
            markdown_table(("call", "median ms"), [[name, f"{value * 1e3:.2f}"] for name, value in _medians(times, 1.0).items()]),
        ]
    )


def _table(saved: Saved) -> str:
    rows = [*saved.savings.items(), ("all of them", saved.before - saved.now)]
    return markdown_table(("saving", "s", "share"), [[name, f"{seconds:.2f}", f"{seconds / saved.before:.1%}"] for name, seconds in rows])


def _medians(times: Times, factor: float) -> dict[str, float]:
    return {name: factor * float(np.median(values)) for name, values in times.items()}
