"""Encode and decode with SemantiCodec: segments, windows, batches, and the stages in between (SPEC sections 2 and 3)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, Unpack

import numpy as np
from numpy.typing import NDArray

from musicrt.runtime.batches import Job, check_batch, run_batches, stack_channels
from musicrt.runtime.encoded import Encoded
from musicrt.runtime.errors import InputError
from musicrt.runtime.loops.ddim import uniform_timesteps
from musicrt.runtime.model import Model
from musicrt.runtime.models.semanticodec.config import HOP, SEGMENT_FRAMES, Config
from musicrt.runtime.models.semanticodec.encoder import SegmentEncoder
from musicrt.runtime.models.semanticodec.lengths import decoded_samples, encoded_tokens, token_windows
from musicrt.runtime.models.semanticodec.noise import Arrays, InjectedNoise, Noise, Place, SeededNoise
from musicrt.runtime.models.semanticodec.options import Channels, DecodeOptions, EncodeOptions, SamplerName
from musicrt.runtime.models.semanticodec.sampler import Sampler
from musicrt.runtime.models.semanticodec.spec import BATCH
from musicrt.runtime.pipeline import Codec, Progress, ignore_progress, options_in, with_record
from musicrt.runtime.source import Audio, AudioSource, open_source
from musicrt.runtime.windows import Window, inclusive_ramp, join_windows

Float = NDArray[np.float32]
Tokens = NDArray[np.int64]

SEGMENTS = 16
"""Segments that are encoded together: each step of the LSTM reads its weights once for all of them."""
WINDOWS = 1
"""Windows that are decoded together: the rows of the guidance fill a CPU."""
WINDOW_SAMPLES = SEGMENT_FRAMES * HOP + 32
"""What the vocoder makes of a window."""
FADE = 10240
"""Samples that neighbouring windows share. Windows are 32 samples longer than was meant: each begins 2 ms late (SPEC section 3.7)."""
WINDOW_HOP = WINDOW_SAMPLES - FADE
_VOCODER_MARGIN = 32  # frames; a sample depends on 23 frames after its own


class Pipeline(Codec):
    """A SemantiCodec codec. Tokens: int64 [batch, frames, 2], a semantic and an acoustic code each, 12.5, 25 or 50 frames per second."""

    batched = frozenset({"encode", "decode"})

    def __init__(self, model: Model) -> None:
        super().__init__(model)
        self.config = Config.from_mapping(model.spec.config)
        self.segments = SegmentEncoder(model, self.config)
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
        total = sum(row * -(-count // self.config.tokens) for row, count in zip(rows, counts, strict=True))
        jobs = chain.from_iterable(self.segments.plan(i, *job) for i, job in enumerate(zip(sources, rows, counts, strict=True)))
        results: list[list[tuple[Window, Tokens | None]]] = [[] for _ in sources]
        for job, value in run_batches(jobs, check_batch(max_batch_size, BATCH.maximum), self._encoder(total, on_progress)):
            results[job.signal].append((job.window, value))
        return [
            np.concatenate([value for _, value in stack_channels(result, row)], axis=1)[:, :count]
            for result, row, count in zip(results, rows, counts, strict=True)
        ]

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
        results: list[list[tuple[Window, Float | None]]] = [[] for _ in signals]
        for job, value in self._decode_windows(signals, plans, **options):
            results[job.signal].append((job.window, value))
        return [
            np.concatenate(list(self._join(result, signal, plan)), axis=-1)[:, None]
            for result, signal, plan in zip(results, signals, plans, strict=True)
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
        return self._join(((job.window, value) for job, value in results), signal, plan)

    def check_tokens(self, tokens: NDArray[Any]) -> Tokens:
        """Tokens as int64 [batch, frames, 2]. Raises InputError."""
        try:
            array = np.asarray(tokens)
        except ValueError:
            raise InputError("got tokens of several lengths, expected int64 [batch, frames, 2]; pass them to decode_batch") from None
        if array.dtype.kind not in "iu":
            raise InputError(f"got tokens of dtype {array.dtype}, expected whole numbers (int64 [batch, frames, 2])")
        array = array[None] if array.ndim == 2 else array
        if array.ndim != 3 or array.shape[2] != 2 or array.size == 0:
            raise InputError(
                f"got tokens of shape {list(np.shape(tokens))}, expected [batch, frames, 2]: a semantic and an acoustic code each"
            )
        for kind, codes, size in zip(("semantic", "acoustic"), np.moveaxis(array, 2, 0), self.config.codebook_sizes, strict=True):
            if codes.min() < 0 or codes.max() >= size:
                raise InputError(
                    f"got {kind} codes from {codes.min()} to {codes.max()}, expected 0 to {size - 1}; load the bundle they were made with"
                )
        return array.astype(np.int64)

    def embed(self, tokens: Tokens) -> Float:
        """Tokens [batch, n, 2] -> their code vectors float32 [batch, n, 2D], the acoustic one first. Raises BackendError."""
        semantic, acoustic = np.ascontiguousarray(tokens.transpose(2, 0, 1))
        return self.model.session("embedding").run({"semantic": semantic, "acoustic": acoustic})["feature"]

    def synthesise(self, latent: Float, samples: int = WINDOW_SAMPLES) -> Float:
        """Latent [8, 256, 16] -> the first samples of its window; the vocoder sees what these depend on. Raises BackendError."""
        mel = self.model.session("vae").run({"latent": latent[None]})["mel"]
        frames = -(-samples // HOP) + _VOCODER_MARGIN
        return self.model.session("vocoder").run({"mel": mel[:, :frames]})["waveform"][0, :samples]

    def output_channels(self, channels: int, /, **options: Any) -> int:
        """One, unless `encode_source` is told to encode each."""
        return channels if options.get("channels") == "each" else 1

    def check_decoding(self, **options: Any) -> None:
        """Raises InputError for a value that `decode_stream` would refuse, by a stream of one token that is never read.

        But for `noise`, which has to fit the tokens.
        """
        self.decode_stream(self.shortest, **{**options, "noise": None})

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

    def _encoder(self, total: int, on_progress: Progress) -> Callable[[list[Job]], list[Tokens]]:
        """A batch of mel spectrograms -> tokens [T, 2] of each."""
        done = 0

        def run(jobs: list[Job]) -> list[Tokens]:
            nonlocal done
            tokens = self.segments.encode([job.data for job in jobs])
            done += len(jobs)
            on_progress(done, total)
            return tokens

        return run

    def _decode_windows(
        self, signals: Sequence[Tokens], plans: Sequence[list[Window]], **options: Unpack[DecodeOptions]
    ) -> Iterator[tuple[Job, Float | None]]:
        """Every row of every window with its waveform, which ends where the window does."""
        defaults = self.model.spec.defaults
        steps, guidance = options.get("steps"), options.get("guidance")
        sample = self.sampler.prepare(
            options.get("sampler", "ddim"),
            defaults["steps"] if steps is None else steps,
            defaults["guidance"] if guidance is None else guidance,
            options.get("eta"),
        )
        noise, on_progress = _make_noise(options.get("seed"), options.get("noise")), options.get("on_progress", ignore_progress)
        if isinstance(noise, InjectedNoise):
            noise.check(len(signals[0]), len(plans[0]), sample.draws)
        total = sample.steps * sum(len(signal) * len(plan) for signal, plan in zip(signals, plans, strict=True))
        done = 0

        def run(jobs: list[Job]) -> list[Float]:
            draw = noise.at([Place(job.channel, job.window.start // WINDOW_HOP) for job in jobs], sample.draws)

            def count() -> None:
                nonlocal done
                done += len(jobs)
                on_progress(done, total)

            latents = sample.run(np.stack([job.data for job in jobs]), draw, count)
            return [self.synthesise(latent, job.window.size) for latent, job in zip(latents, jobs, strict=True)]

        jobs = chain.from_iterable(self._decode_jobs(i, *job) for i, job in enumerate(zip(signals, plans, strict=True)))
        return run_batches(jobs, check_batch(options.get("max_batch_size", WINDOWS), BATCH.maximum), run)

    def _decode_jobs(self, signal: int, tokens: Tokens, plan: list[Window]) -> Iterator[Job]:
        """The features of a signal's windows; those of missing tokens are -1 (SPEC section 3.2)."""
        spans = token_windows(tokens.shape[1], self.config.stack)
        for (start, stop), window in zip(spans, plan, strict=True):
            known = np.concatenate([self.embed(row[None, start:stop]) for row in tokens])
            feature = np.full((len(tokens), self.config.tokens, known.shape[-1]), -1.0, np.float32)
            feature[:, : stop - start] = known
            for row in range(len(tokens)):
                yield Job(signal, row, window, feature[row])

    def _join(self, results: Iterable[tuple[Window, Float | None]], signal: Tokens, plan: list[Window]) -> Iterator[Float]:
        """Cross-fade the windows, and cut what the tokens do not reach (SPEC section 3.7): blocks [batch, samples]."""
        left = decoded_samples(signal.shape[1], self.config.stack)
        for block in join_windows(stack_channels(results, len(signal)), plan[-1].stop, ramp=inclusive_ramp):
            yield block[:, :left]
            left = max(left - block.shape[1], 0)


def decode_windows(tokens: int, stack: int) -> list[Window]:
    """The windows that so many tokens decode to, in samples of the result; the last one ends where nothing more is kept."""
    starts = [index * WINDOW_HOP for index in range(len(token_windows(tokens, stack)))]
    rest = min(max(decoded_samples(tokens, stack) - starts[-1], FADE), WINDOW_SAMPLES)
    stops = [*(start + FADE for start in starts[1:]), starts[-1] + rest]
    return [Window(start, stop, fade=FADE if start else 0) for start, stop in zip(starts, stops, strict=True)]


def _count_rows(source: AudioSource, channels: Channels) -> int:
    if channels not in ("first", "each"):
        raise InputError(f"got channels {channels!r}, expected 'first' or 'each'")
    if source.samples < 1:
        raise InputError(f"{source.name} holds no samples; expected at least one")
    return source.channels if channels == "each" else 1


def _make_noise(seed: int | None, noise: Noise | Arrays | None) -> Noise:
    if noise is None:
        return SeededNoise(seed)
    if seed is not None:
        raise InputError("got a seed and noise, expected one of the two")
    if isinstance(noise, Sequence | np.ndarray):
        return InjectedNoise(noise)
    if not callable(getattr(noise, "at", None)):
        raise InputError(f"got noise of type {type(noise).__name__}, expected a list of arrays [rows, 8, 256, 16]")
    return noise
