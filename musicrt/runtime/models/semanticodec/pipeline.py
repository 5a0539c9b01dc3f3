"""Encode and decode with SemantiCodec: segments, windows, batches, and the stages in between (SPEC sections 2 and 3)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, Unpack

import numpy as np
from numpy.typing import NDArray

from musicrt.runtime.batches import Done, Job, check_batch, run_batches, run_data, split_signals, stack_channels
from musicrt.runtime.codes import check_range, read_codes
from musicrt.runtime.encoded import Encoded
from musicrt.runtime.errors import InputError
from musicrt.runtime.loops.ddim import uniform_timesteps
from musicrt.runtime.model import Model
from musicrt.runtime.models.semanticodec.config import HOP, SEGMENT_FRAMES, Config
from musicrt.runtime.models.semanticodec.decoder import WindowDecoder
from musicrt.runtime.models.semanticodec.encoder import SegmentEncoder
from musicrt.runtime.models.semanticodec.lengths import WINDOW_HOP, decode_windows, decoded_samples, encoded_tokens
from musicrt.runtime.models.semanticodec.noise import Arrays, InjectedNoise, Noise, Place, choose_noise
from musicrt.runtime.models.semanticodec.options import Channels, DecodeOptions, EncodeOptions, SamplerName
from musicrt.runtime.models.semanticodec.sampler import Sampler
from musicrt.runtime.models.semanticodec.spec import BATCH
from musicrt.runtime.pipeline import Codec, options_in, with_record
from musicrt.runtime.progress import Progress, Tally, ignore_progress
from musicrt.runtime.source import Audio, AudioSource, open_source
from musicrt.runtime.windows import Window

Float = NDArray[np.float32]
Tokens = NDArray[np.int64]

SEGMENTS = 16
"""Segments that are encoded together: each step of the LSTM reads its weights once for all of them."""
WINDOWS = 1
"""Windows that are decoded together: the rows of the guidance fill a CPU."""


class Pipeline(Codec):
    """A SemantiCodec codec. Tokens: int64 [batch, frames, 2], a semantic and an acoustic code each, 12.5, 25 or 50 frames per second."""

    batched = frozenset({"encode", "decode"})

    def __init__(self, model: Model) -> None:
        super().__init__(model)
        self.config = Config.from_mapping(model.spec.config)
        self.segments = SegmentEncoder(model, self.config)
        self.decoder = WindowDecoder(model, self.config)
        self.sampler = Sampler(model, self.config)

    def encode(self, audio: Audio, **options: Unpack[EncodeOptions]) -> Tokens:
        """Encode one signal: int64 [1, frames, 2]. Arguments and errors as in `encode_batch`."""
        return self.encode_batch([audio], **options)[0]

    def encode_batch(
        self,
        audio: Sequence[Audio],
        *,
        sample_rate: int | None = None,
        channels: Channels = "first",
        max_batch_size: int = SEGMENTS,
        on_progress: Progress = ignore_progress,
    ) -> list[Tokens]:
        """Encode several signals; segments are independent, and are batched across signals.

        audio: each a path, or an array [samples] or [channels, samples] in [-1, 1].
        sample_rate: that of arrays, if not 16000; files know theirs.
        channels: "first" drops all others, as officially; "each" gives every channel a row of tokens.
        max_batch_size: segments that run together; it bounds the memory, whatever the length of the audio.
        Returns an int64 [rows, frames, 2] for each. Raises AudioError, InputError, BackendError.
        """
        sources = [open_source(one, self.sample_rate, sample_rate, kernel="sinc") for one in audio]
        rows = [_count_rows(source, channels) for source in sources]
        counts = [encoded_tokens(source.samples, self.config.stack) for source in sources]
        tally = Tally(sum(row * -(-count // self.config.tokens) for row, count in zip(rows, counts, strict=True)), on_progress)
        jobs = chain.from_iterable(self.segments.plan(i, *job) for i, job in enumerate(zip(sources, rows, counts, strict=True)))
        results = split_signals(run_data(jobs, check_batch(max_batch_size, BATCH.maximum), self.segments.encode, tally), rows)
        return [np.concatenate([value for _, value in result], axis=1)[:, :count] for result, count in zip(results, counts, strict=True)]

    @with_record
    def encode_source(
        self,
        audio: str | Path,
        *,
        channels: Channels = "first",
        max_batch_size: int = SEGMENTS,
        on_progress: Progress = ignore_progress,
    ) -> Encoded:
        """Encode a file, with what it takes to decode it. Arguments and errors as in `encode_batch`."""
        source = self._open_file(audio, kernel="sinc")
        values = self.encode(source, channels=channels, max_batch_size=max_batch_size, on_progress=on_progress)
        return self._describe(values, "tokens", source.source_rate, source.samples, self.config.bits)

    def decode(self, tokens: NDArray[Any], **options: Unpack[DecodeOptions]) -> Float:
        """Decode tokens [batch, frames, 2] or [frames, 2]: float32 [batch, 1, samples], 320 K samples for each frame.

        noise: instead of a seed, arrays [batch, 8, 256, 16] in the official order: for each window the initial noise, then one for
            every step; or a `Noise`. Other arguments and errors as in `decode_batch`.
        """
        return np.concatenate(list(self.decode_stream(tokens, **options)), axis=-1)[:, None]

    def decode_batch(self, tokens: Sequence[NDArray[Any]], **options: Unpack[DecodeOptions]) -> list[Float]:
        """Decode several token arrays, each [batch, frames, 2] or [frames, 2]; windows are batched across them.

        steps: evaluations of the network, 50 by default; DDIM takes some more for most numbers that do not divide 1000.
        guidance: how far the tokens are followed, 2.0 by default; 1.0 costs half.
        sampler: "ddim", or "dpm-solver++", which adds no noise and gets by with 10 to 20 steps.
        eta: of "ddim" only; 1.0, the default, adds noise in every step as officially, 0.0 none.
        seed: the same seed gives the same result, whatever the batches. noise: of a single array only, see `decode`.
        max_batch_size: windows that run together. on_progress: called after each evaluation.
        Returns a float32 [batch, 1, samples] for each. Raises InputError, BackendError.
        """
        self.check_options(options_in(self, "decode"), options)
        signals = [self.check_tokens(one) for one in tokens]
        if options.get("noise") is not None and len(signals) != 1:
            raise InputError(f"got noise for {len(signals)} token arrays, expected one; decode them one by one, or pass a seed")
        plans = [decode_windows(signal.shape[1], self.config.stack) for signal in signals]
        results = split_signals(self._decode_windows(signals, plans, **options), [len(signal) for signal in signals])
        return [
            np.concatenate(list(self.decoder.join(result, signal.shape[1])), axis=-1)[:, None]
            for result, signal in zip(results, signals, strict=True)
        ]

    def decode_stream(
        self,
        values: NDArray[Any],
        *,
        steps: int | None = None,
        guidance: float | None = None,
        eta: float | None = None,
        sampler: SamplerName = "ddim",
        seed: int | None = None,
        noise: Noise | Arrays | None = None,
        max_batch_size: int = WINDOWS,
        on_progress: Progress = ignore_progress,
    ) -> Iterator[Float]:
        """Decode tokens of any length in bounded memory. Arguments as in `decode` and `decode_batch`.

        Yields float32 [batch, samples]; together what `decode` gives. Raises InputError, BackendError.
        """
        signal = self.check_tokens(values)
        plan = decode_windows(signal.shape[1], self.config.stack)
        results = self._decode_windows(
            [signal],
            [plan],
            steps=steps,
            guidance=guidance,
            eta=eta,
            sampler=sampler,
            seed=seed,
            noise=noise,
            max_batch_size=max_batch_size,
            on_progress=on_progress,
        )
        return self.decoder.join(stack_channels(results, len(signal)), signal.shape[1])

    def check_tokens(self, tokens: NDArray[Any]) -> Tokens:
        """Tokens as int64 [batch, frames, 2]. Raises InputError."""
        array = read_codes(tokens, "[batch, frames, 2]", "pass them to decode_batch", "tokens")
        if array.ndim != 3 or array.shape[2] != 2 or array.size == 0:
            raise InputError(
                f"got tokens of shape {list(np.shape(tokens))}, expected [batch, frames, 2]: a semantic and an acoustic code each"
            )
        for kind, codes, size in zip(("semantic", "acoustic"), np.moveaxis(array, 2, 0), self.config.codebook_sizes, strict=True):
            check_range(codes, size, f"{kind} codes")
        return array.astype(np.int64)

    def output_channels(self, channels: int, /, **options: Any) -> int:
        """One, unless `encode_source` is told to encode each."""
        return channels if options.get("channels") == "each" else 1

    @property
    def shortest(self) -> NDArray[Any]:
        """See `Codec`."""
        return np.zeros((1, 1, 2), np.int64)

    def seconds_of(self, values: NDArray[Any]) -> float:
        """See `Codec`."""
        return decoded_samples(values.shape[-2], self.config.stack) / self.sample_rate

    def window_seconds(self, seconds: float) -> float:
        """10.24, whatever the audio: a segment, or a window."""
        del seconds
        return SEGMENT_FRAMES * HOP / self.sample_rate

    def axis_sizes(self, seconds: float, steps: int | None = None) -> dict[str, int]:
        """Sizes of the stages' axes: always a whole segment or window, decoded with guidance. Raises InputError for bad `seconds`."""
        if not 0 < seconds < math.inf:
            raise InputError(f"got {seconds!r} s of audio, expected a positive number")
        asked = self.config.ddim_sample_step if steps is None else steps
        steps = len(uniform_timesteps(asked, self.config.decoder.timesteps))  # DDIM takes some more for some numbers
        return {"batch": 1, "frames": SEGMENT_FRAMES, "tokens": self.config.tokens, "guidance": 2, "steps": steps}

    def _decode_windows(self, signals: Sequence[Tokens], plans: Sequence[list[Window]], **options: Unpack[DecodeOptions]) -> Iterator[Done]:
        """Every row of every window with its waveform, which ends where the window does."""
        steps, guidance = (self.model.spec.given(name, options.get(name)) for name in ("steps", "guidance"))
        sample = self.sampler.prepare(options.get("sampler", "ddim"), steps, guidance, options.get("eta"))
        noise, on_progress = choose_noise(options.get("seed"), options.get("noise")), options.get("on_progress", ignore_progress)
        if isinstance(noise, InjectedNoise):
            noise.check(len(signals[0]), len(plans[0]), sample.draws)
        tally = Tally(sample.steps * sum(len(signal) * len(plan) for signal, plan in zip(signals, plans, strict=True)), on_progress)

        def run(jobs: list[Job]) -> list[Float]:
            draw = noise.at([Place(job.channel, job.window.start // WINDOW_HOP) for job in jobs], sample.draws)
            latents = sample.run(np.stack([job.data for job in jobs]), draw, partial(tally.add, len(jobs)))
            return [self.decoder.synthesise(latent, job.window.size) for latent, job in zip(latents, jobs, strict=True)]

        jobs = chain.from_iterable(self.decoder.plan(i, *job) for i, job in enumerate(zip(signals, plans, strict=True)))
        return run_batches(jobs, check_batch(options.get("max_batch_size", WINDOWS), BATCH.maximum), run)


def _count_rows(source: AudioSource, channels: Channels) -> int:
    if channels not in ("first", "each"):
        raise InputError(f"got channels {channels!r}, expected 'first' or 'each'")
    if source.samples < 1:
        raise InputError(f"{source.name} holds no samples; expected at least one")
    return source.channels if channels == "each" else 1
