"""Encode and decode with Music2Latent: windows, batches, noise, and the stages in between (SPEC sections 9 and 10)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from numbers import Integral, Real
from pathlib import Path
from typing import Any, Literal, Unpack

import numpy as np
from numpy.typing import NDArray

from musicrt.runtime.batches import Job, check_batch, run_batches, stack_channels
from musicrt.runtime.encoded import Encoded
from musicrt.runtime.errors import InputError
from musicrt.runtime.loops.diffusion import Draw
from musicrt.runtime.model import Model
from musicrt.runtime.models.music2latent.config import Config
from musicrt.runtime.models.music2latent.noise import InjectedNoise, Noise, Place, SeededNoise
from musicrt.runtime.models.music2latent.options import DecodeOptions, EncodeOptions, Tail
from musicrt.runtime.models.music2latent.sampler import Sampler
from musicrt.runtime.models.music2latent.spec import BATCH
from musicrt.runtime.models.music2latent.spectrum import Spectrum
from musicrt.runtime.pipeline import Codec, Progress, ignore_progress, with_record
from musicrt.runtime.source import Audio, AudioSource, SampleReader, open_source
from musicrt.runtime.windows import Window, chunk_windows, join_windows, overlapping_windows

Float = NDArray[np.float32]

WINDOW = 5.0
"""Seconds in a window of the streaming calls."""
OVERLAP = 1.0
"""Seconds that neighbouring windows share."""
_GUARD = 2  # latents at a window's edge that saw its zero padding


class Pipeline(Codec):
    """A Music2Latent codec. Latents: float32 [channels, 64, L], 64 values for each 4096 samples of a channel."""

    batched = frozenset({"encode", "decode"})

    def __init__(self, model: Model) -> None:
        super().__init__(model)
        self.config = Config.from_mapping(model.spec.config)
        self.spectrum = Spectrum(self.config)
        self.sampler = Sampler(model, self.config)

    def encode(self, audio: Audio, **options: Unpack[EncodeOptions]) -> Float:
        """Encode one signal in chunks as the official code does (SPEC section 9): float32 [channels, 64, L].

        Arguments and errors as in `encode_batch`.
        """
        return self.encode_batch([audio], **options)[0]

    def encode_batch(
        self,
        audio: Sequence[Audio],
        *,
        sample_rate: int | None = None,
        extract_features: bool = False,
        tail: Tail = "crop",
        max_waveform_length: int | None = None,
        max_batch_size: int | None = None,
        on_progress: Progress = ignore_progress,
    ) -> list[Float]:
        """Encode several signals; chunks of one length are batched across channels and signals.

        audio: each a path, or an array [samples] or [channels, samples] in [-1, 1].
        sample_rate: that of arrays, if not the model's; files know theirs.
        extract_features: the encoder's last feature map [channels, 8192, L] instead of latents.
        tail: "crop" loses up to 4095 samples at the end, as officially; "pad" adds silence instead.
        max_waveform_length: samples in a chunk, 60 s by default; the norms see a whole chunk, so it changes the result.
        max_batch_size: chunks that run together, 1 by default. on_progress: called after each batch.
        Returns a float32 [channels, 64, L] for each. Raises AudioError, InputError, BackendError.
        """
        sources = [open_source(one, self.sample_rate, sample_rate) for one in audio]
        size = self._chunk_latents(max_waveform_length, self.config.max_waveform_length_encode)
        lengths = [self.latent_length(source.samples, tail, source.name) for source in sources]
        plans = [chunk_windows(length, size) for length in lengths]
        jobs = chain.from_iterable(self._encode_jobs(i, *job) for i, job in enumerate(zip(sources, lengths, plans, strict=True)))
        run = self._encoder(extract_features, _count_jobs([source.channels for source in sources], plans), on_progress)
        results: list[list[tuple[Window, Float | None]]] = [[] for _ in sources]
        for job, value in run_batches(jobs, _batch_size(max_batch_size, self.config.max_batch_size_encode), run):
            results[job.signal].append((job.window, value))
        return [
            np.concatenate(list(join_windows(stack_channels(result, source.channels), length)), axis=-1)
            for result, source, length in zip(results, sources, lengths, strict=True)
        ]

    def encode_stream(
        self,
        audio: Audio,
        *,
        sample_rate: int | None = None,
        extract_features: bool = False,
        tail: Tail = "crop",
        window: float = WINDOW,
        overlap: float = OVERLAP,
        on_progress: Progress = ignore_progress,
    ) -> Iterator[Float]:
        """Encode audio of any length in bounded memory: overlapping windows, cross-faded. Arguments as in `encode_batch`.

        window, overlap: seconds. Audio of one window gives exactly what `encode` gives.
        Yields float32 [channels, 64, l]. Raises AudioError, InputError, BackendError before the first block is asked for.
        """
        source = open_source(audio, self.sample_rate, sample_rate)
        length = self.latent_length(source.samples, tail, source.name)
        plan = self._stream_plan(length, window, overlap)
        run = self._encoder(extract_features, source.channels * len(plan), on_progress)
        results = ((job.window, value) for job, value in run_batches(self._encode_jobs(0, source, length, plan), 1, run))
        return join_windows(stack_channels(results, source.channels), length, guard=_GUARD)

    @with_record
    def encode_source(
        self,
        audio: str | Path,
        *,
        chunking: Literal["seamless", "official"] = "seamless",
        extract_features: bool = False,
        tail: Tail = "pad",
        window: float = WINDOW,
        overlap: float = OVERLAP,
        on_progress: Progress = ignore_progress,
    ) -> Encoded:
        """Encode a file, with what it takes to decode it: "seamless" as `encode_stream` does, "official" as `encode`.

        Arguments as theirs; `window` and `overlap` are of "seamless" only. Raises AudioError, InputError, BackendError.
        """
        official = _is_official(chunking)
        source = self._open_file(audio)
        common: dict[str, Any] = {"extract_features": extract_features, "tail": tail, "on_progress": on_progress}
        if official:
            values = self.encode(source, **common)
        else:
            values = np.concatenate(list(self.encode_stream(source, window=window, overlap=overlap, **common)), axis=-1)
        samples = source.samples if tail == "pad" else min(source.samples, self.decoded_length(values.shape[-1]))
        return self._describe(values, "features" if extract_features else "latents", source.source_rate, samples)

    def decode(self, latents: NDArray[Any], **options: Unpack[DecodeOptions]) -> Float:
        """Decode one signal in chunks as the official code does (SPEC section 10): float32 [channels, 4096 L + 1536].

        Arguments and errors as in `decode_batch`.
        """
        return self.decode_batch([latents], **options)[0]

    def decode_batch(
        self,
        latents: Sequence[NDArray[Any]],
        *,
        steps: int = 1,
        seed: int | None = None,
        noise: Noise | Sequence[Float] | None = None,
        max_waveform_length: int | None = None,
        max_batch_size: int | None = None,
        on_progress: Progress = ignore_progress,
    ) -> list[Float]:
        """Decode several signals; chunks of one length are batched across channels and signals.

        latents: each float [channels, 64, L] or [64, L]. steps: network evaluations.
        seed: the same seed gives the same result, whatever the batches.
        noise: instead of a seed, arrays [batch, 2, F, T] in the order of the official draws (the one after the last step included).
        max_waveform_length: samples in a chunk, 60 s by default. max_batch_size: chunks that run together, 1 by default.
        Returns a float32 [channels, 4096 L + 1536] in [-1, 1] for each. Raises InputError, BackendError.
        """
        signals = [self._check_latents(one) for one in latents]
        size = self._chunk_latents(max_waveform_length, self.config.max_waveform_length_decode)
        plans = [chunk_windows(signal.shape[-1], size) for signal in signals]
        jobs = chain.from_iterable(_decode_jobs(i, signal, plan) for i, (signal, plan) in enumerate(zip(signals, plans, strict=True)))
        run = self._decoder(steps, _make_noise(seed, noise), _count_jobs([len(signal) for signal in signals], plans), on_progress)
        results: list[list[tuple[Window, Float | None]]] = [[] for _ in signals]
        for job, value in run_batches(jobs, _batch_size(max_batch_size, self.config.max_batch_size_decode), run):
            results[job.signal].append((job.window, value))
        return [
            np.concatenate(list(self._synthesise(stack_channels(result, signal.shape[0]), signal.shape[-1])), axis=-1)
            for result, signal in zip(results, signals, strict=True)
        ]

    def decode_stream(
        self,
        values: NDArray[Any],
        *,
        steps: int = 1,
        seed: int | None = None,
        chunking: Literal["seamless", "official"] = "seamless",
        window: float = WINDOW,
        overlap: float = OVERLAP,
        on_progress: Progress = ignore_progress,
    ) -> Iterator[Float]:
        """Decode latents of any length in bounded memory. Arguments as in `decode_batch`.

        chunking: "seamless" cross-fades windows of `window` seconds that share `overlap` seconds; "official" gives the result
            of `decode`, 60 s at a time. Latents of one window give exactly what `decode` gives.
        Yields float32 [channels, samples]; together as long as `decode`'s result. Raises InputError, BackendError.
        """
        signal = self._check_latents(values)
        if _is_official(chunking):
            plan = chunk_windows(signal.shape[-1], self._chunk_latents(None, self.config.max_waveform_length_decode))
        else:
            plan = self._stream_plan(signal.shape[-1], window, overlap)
        run = self._decoder(steps, _make_noise(seed, None), _count_jobs([len(signal)], [plan]), on_progress)
        results = ((job.window, value) for job, value in run_batches(_decode_jobs(0, signal, plan), 1, run))
        return self._synthesise(stack_channels(results, signal.shape[0]), signal.shape[-1])

    def check_decoding(self, **options: Any) -> None:
        """Raises InputError for a value that `decode_stream` would refuse, by a stream of one latent that is never read."""
        self.decode_stream(self.shortest, **options)

    @property
    def shortest(self) -> NDArray[Any]:
        """See `Codec`."""
        return np.zeros((1, self.config.bottleneck_channels, 1), np.float32)

    def seconds_of(self, values: NDArray[Any]) -> float:
        """See `Codec`."""
        return float(values.shape[-1] * self.config.samples_per_latent / self.sample_rate)

    def latent_length(self, samples: int, tail: Tail, name: str = "the audio") -> int:
        """L of so many samples (SPEC section 9.2). Raises InputError, calling them `name`, where nothing can be encoded."""
        step, edge = self.config.samples_per_latent, 3 * self.config.hop
        if tail == "pad":
            return max(-(-(samples - edge) // step), 1)
        if tail != "crop":
            raise InputError(f"got tail {tail!r}, expected 'crop' or 'pad'")
        if samples < step + edge:
            raise InputError(
                f"{name} has {samples} samples at {self.sample_rate} Hz, Music2Latent needs at least {step + edge}; "
                "use tail='pad' to fill up with silence"
            )
        return (samples - edge) // step

    def decoded_length(self, latents: int) -> int:
        """Samples that so many latents decode to."""
        return latents * self.config.samples_per_latent + 3 * self.config.hop

    def axis_sizes(self, seconds: float, steps: int | None = None) -> dict[str, int]:
        """Sizes of the stages' axes where one channel of so many seconds is encoded, or decoded in `steps` (1). Raises InputError."""
        latents = self.latent_length(round(seconds * self.sample_rate), "crop", f"audio of {seconds} s")
        return {"batch": 1, "latents": latents, "frames": latents * self.config.frames_per_latent, "steps": 1 if steps is None else steps}

    def _chunk_latents(self, samples: int | None, default: int) -> int:
        """Latents in an official chunk. Raises InputError where not even one fits."""
        count = self.config.chunk_latents(_positive(samples, default, "max_waveform_length"))
        if count < 1:
            raise InputError(f"got max_waveform_length {samples}, expected at least {self.config.samples_per_latent} samples, one latent")
        return count

    def _stream_plan(self, length: int, window: float, overlap: float) -> list[Window]:
        rate = self.sample_rate / self.config.samples_per_latent
        numbers = isinstance(window, Real) and isinstance(overlap, Real)
        if not numbers or not 0.0 <= 2 * overlap <= window < math.inf or window * rate < 1.0:
            raise InputError(
                f"got windows of {window!r} s with an overlap of {overlap!r} s, expected at least {1.0 / rate:.3f} s "
                "and an overlap of at most half a window"
            )
        size = round(window * rate)
        return overlapping_windows(length, size, min(round(overlap * rate), size // 2))

    def _encode_jobs(self, signal: int, source: AudioSource, length: int, plan: list[Window]) -> Iterator[Job]:
        """The spectra of a signal's windows; one that runs past the end goes on with the beginning (SPEC section 9.4)."""
        hop, rate = self.config.hop, self.config.frames_per_latent
        reader, head = SampleReader(source), None
        for window in plan:
            if window.dropped:
                continue
            inside = min(window.stop, length) - window.start
            samples = reader.read(window.start * rate * hop, ((window.start + inside) * rate + 3) * hop)
            spectrum = self.spectrum.analyse(samples)
            head = spectrum if head is None else head
            if inside < window.size:
                spectrum = np.concatenate([spectrum, head[..., : (window.size - inside) * rate]], axis=-1)
            for channel in range(source.channels):
                yield Job(signal, channel, window, spectrum[channel])

    def _encoder(self, features: bool, total: int, on_progress: Progress) -> Callable[[list[Job]], list[Float]]:
        """A batch of spectra -> latents or features."""
        session, name = self.model.session("encoder"), "features" if features else "latents"
        done = 0

        def run(jobs: list[Job]) -> list[Float]:
            nonlocal done
            values = session.run({"representation": np.stack([job.data for job in jobs])}, [name])[name]
            done += len(jobs)
            on_progress(done, total)
            return list(values if features else values / np.float32(self.config.sigma_rescale))

        return run

    def _decoder(self, steps: int, noise: Noise, total: int, on_progress: Progress) -> Callable[[list[Job]], list[Float | None]]:
        """A batch of latents -> spectra; None for dropped windows."""
        config, rate, done = self.config, self.config.frames_per_latent, 0
        sample = self.sampler.prepare(steps)

        def run(jobs: list[Job]) -> list[Float | None]:
            places = [Place(job.channel, job.window.start * rate) for job in jobs]
            kept = np.array([not job.window.dropped for job in jobs])
            shape = (2, config.bins, jobs[0].data.shape[-1] * rate)

            if noise.sequential:
                whole = noise.at(places, shape)
                draw: Draw = whole if kept.all() else lambda index: whole(index)[kept]
            else:
                draw = noise.at([place for place, keep in zip(places, kept, strict=True) if keep], shape)

            def count_step() -> None:
                nonlocal done
                done += int(kept.sum())
                on_progress(done, total * steps)

            spectra: Iterator[Float] = iter(())
            if kept.any():
                latents = np.stack([job.data for job in jobs])[kept] * np.float32(config.sigma_rescale)
                spectra = iter(sample(latents, draw, count_step))
            if noise.sequential:
                for index in range(steps if kept.any() else 0, steps + 1):
                    draw(index)
            return [next(spectra) if keep else None for keep in kept]

        return run

    def _synthesise(self, windows: Iterator[tuple[Window, Float]], length: int) -> Iterator[Float]:
        """Spectra of windows -> audio; overlap-add runs across the borders of windows (SPEC section 10.4)."""
        rate, hop = self.config.frames_per_latent, self.config.hop
        carry: Float | None = None
        for spectrum in join_windows(windows, length, scale=rate, guard=_GUARD):
            audio = self.spectrum.overlap_add(self.spectrum.synthesise_frames(spectrum))
            if carry is not None:
                audio[:, : 3 * hop] += carry
            carry = audio[:, -3 * hop :]
            yield np.clip(audio[:, : -3 * hop], -1.0, 1.0)
        if carry is not None:
            yield np.clip(carry, -1.0, 1.0)

    def _check_latents(self, latents: object) -> Float:
        """latents as float32 [channels, 64, L]. Raises InputError."""
        width = self.config.bottleneck_channels
        expected = f"expected finite float latents [channels, {width}, L] or [{width}, L] with L from 1 on, as `encode` gives"
        if not isinstance(latents, np.ndarray):
            raise InputError(f"got a {type(latents).__name__}, {expected}")
        signal = latents[None] if latents.ndim == 2 else latents
        if signal.ndim != 3 or signal.shape[1] != width or 0 in signal.shape or not np.issubdtype(signal.dtype, np.floating):
            hint = "; features can't be decoded" if signal.ndim == 3 and signal.shape[1] == self.config.feature_channels else ""
            raise InputError(f"got {latents.dtype} {list(latents.shape)}, {expected}{hint}")
        with np.errstate(over="ignore"):
            checked: Float = signal.astype(np.float32, copy=False)
        if not np.isfinite(checked).all():
            raise InputError(f"got {np.count_nonzero(~np.isfinite(checked))} NaN or infinite values, {expected}")
        return checked


def _decode_jobs(index: int, signal: Float, plan: list[Window]) -> Iterator[Job]:
    """The latents of a signal's windows; one that runs past the end goes on with the beginning (SPEC section 10.2)."""
    for window in plan:
        data = np.take(signal, np.arange(window.start, window.stop), axis=-1, mode="wrap")
        for channel in range(signal.shape[0]):
            yield Job(index, channel, window, data[channel])


def _make_noise(seed: int | None, noise: Noise | Sequence[Float] | None) -> Noise:
    if noise is None:
        return SeededNoise(seed)
    if seed is not None:
        raise InputError("got a seed and noise, expected one of them")
    if isinstance(noise, Sequence | np.ndarray):
        return InjectedNoise(noise)
    if not callable(getattr(noise, "at", None)):
        raise InputError(f"got noise of type {type(noise).__name__}, expected a list of arrays [batch, 2, F, T]")
    return noise


def _is_official(chunking: str) -> bool:
    if chunking not in ("seamless", "official"):
        raise InputError(f"got chunking {chunking!r}, expected 'seamless' or 'official'")
    return chunking == "official"


def _count_jobs(channels: list[int], plans: list[list[Window]]) -> int:
    return sum(count * sum(not window.dropped for window in plan) for count, plan in zip(channels, plans, strict=True))


def _batch_size(value: int | None, default: int) -> int:
    return check_batch(default if value is None else value, BATCH.maximum)


def _positive(value: int | None, default: int, name: str) -> int:
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, Integral) or value < 1:
        raise InputError(f"got {name} {value!r}, expected a whole number from 1 on")
    return int(value)
