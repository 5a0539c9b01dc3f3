"""Encode and decode with Music2Latent: windows, batches, noise, and the stages in between (SPEC sections 9 and 10)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, Unpack

import numpy as np
from numpy.typing import NDArray

from musicrt.runtime.batches import Done, check_batch, run_batches, run_data, split_signals, stack_channels
from musicrt.runtime.encoded import Encoded
from musicrt.runtime.errors import InputError
from musicrt.runtime.model import Model
from musicrt.runtime.models.music2latent.config import Config
from musicrt.runtime.models.music2latent.decoder import WindowDecoder
from musicrt.runtime.models.music2latent.encoder import WindowEncoder
from musicrt.runtime.models.music2latent.noise import Noise, choose_noise
from musicrt.runtime.models.music2latent.options import DecodeOptions, EncodeOptions, Tail
from musicrt.runtime.models.music2latent.sampler import Sample, Sampler
from musicrt.runtime.models.music2latent.spec import BATCH
from musicrt.runtime.models.music2latent.spectrum import Spectrum
from musicrt.runtime.models.music2latent.windows import (
    GUARD,
    OVERLAP,
    WINDOW,
    Chunking,
    chunk_size,
    count_kept,
    is_official,
    seamless_windows,
)
from musicrt.runtime.pipeline import Codec, with_record
from musicrt.runtime.progress import Progress, Tally, ignore_progress
from musicrt.runtime.source import Audio, AudioSource, open_source
from musicrt.runtime.windows import Window, chunk_windows, join_windows

Float = NDArray[np.float32]


class Pipeline(Codec):
    """A Music2Latent codec. Latents: float32 [channels, 64, L], 64 values for each 4096 samples of a channel."""

    batched = frozenset({"encode", "decode"})

    def __init__(self, model: Model) -> None:
        super().__init__(model)
        self.config = Config.from_mapping(model.spec.config)
        self.spectrum = Spectrum(self.config)
        self.encoder = WindowEncoder(model, self.config, self.spectrum)
        self.sampler = Sampler(model, self.config)
        self.decoder = WindowDecoder(self.config, self.spectrum)

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
        chunk = chunk_size(self.config, max_waveform_length, self.config.max_waveform_length_encode)
        lengths = [self.latent_length(source.samples, tail, source.name) for source in sources]
        plans = [chunk_windows(length, chunk) for length in lengths]
        size = self.config.max_batch_size_encode if max_batch_size is None else max_batch_size
        results = self._encode_windows(sources, lengths, plans, size, on_progress, features=extract_features)
        windows = split_signals(results, [source.channels for source in sources])
        return [np.concatenate(list(join_windows(one, length)), axis=-1) for one, length in zip(windows, lengths, strict=True)]

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
        plan = seamless_windows(self.config, length, window, overlap)
        results = self._encode_windows([source], [length], [plan], 1, on_progress, features=extract_features)
        return join_windows(stack_channels(results, source.channels), length, guard=GUARD)

    @with_record
    def encode_source(
        self,
        audio: str | Path,
        *,
        chunking: Chunking = "seamless",
        extract_features: bool = False,
        tail: Tail = "pad",
        window: float = WINDOW,
        overlap: float = OVERLAP,
        on_progress: Progress = ignore_progress,
    ) -> Encoded:
        """Encode a file, with what it takes to decode it: "seamless" as `encode_stream` does, "official" as `encode`.

        Arguments as theirs; `window` and `overlap` are of "seamless" only. Raises AudioError, InputError, BackendError.
        """
        official = is_official(chunking)
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
        signals = [self.decoder.check(one) for one in latents]
        chunk = chunk_size(self.config, max_waveform_length, self.config.max_waveform_length_decode)
        plans = [chunk_windows(signal.shape[-1], chunk) for signal in signals]
        chosen, sample = choose_noise(seed, noise), self.sampler.prepare(steps)
        size = self.config.max_batch_size_decode if max_batch_size is None else max_batch_size
        results = self._decode_windows(signals, plans, sample, chosen, size, on_progress)
        windows = split_signals(results, [len(signal) for signal in signals])
        return [
            np.concatenate(list(self.decoder.join(one, signal.shape[-1])), axis=-1) for one, signal in zip(windows, signals, strict=True)
        ]

    def decode_stream(
        self,
        values: NDArray[Any],
        *,
        steps: int = 1,
        seed: int | None = None,
        chunking: Chunking = "seamless",
        window: float = WINDOW,
        overlap: float = OVERLAP,
        on_progress: Progress = ignore_progress,
    ) -> Iterator[Float]:
        """Decode latents of any length in bounded memory. Arguments as in `decode_batch`.

        chunking: "seamless" cross-fades windows of `window` seconds that share `overlap` seconds; "official" gives the result
            of `decode`, 60 s at a time. Latents of one window give exactly what `decode` gives.
        Yields float32 [channels, samples]; together as long as `decode`'s result. Raises InputError, BackendError.
        """
        signal = self.decoder.check(values)
        if is_official(chunking):
            plan = chunk_windows(signal.shape[-1], chunk_size(self.config, None, self.config.max_waveform_length_decode))
        else:
            plan = seamless_windows(self.config, signal.shape[-1], window, overlap)
        noise, sample = choose_noise(seed, None), self.sampler.prepare(steps)
        results = self._decode_windows([signal], [plan], sample, noise, 1, on_progress)
        return self.decoder.join(stack_channels(results, len(signal)), signal.shape[-1])

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

    def _encode_windows(
        self,
        sources: Sequence[AudioSource],
        lengths: Sequence[int],
        plans: Sequence[list[Window]],
        size: int,
        on_progress: Progress,
        *,
        features: bool,
    ) -> Iterator[Done]:
        """Every channel of every window with its latents or features."""
        tally = Tally(count_kept([source.channels for source in sources], plans), on_progress)
        encode = self.encoder.prepare(features=features)
        jobs = chain.from_iterable(self.encoder.plan(i, *job) for i, job in enumerate(zip(sources, lengths, plans, strict=True)))
        return run_data(jobs, check_batch(size, BATCH.maximum), encode, tally)

    def _decode_windows(
        self, signals: Sequence[Float], plans: Sequence[list[Window]], sample: Sample, noise: Noise, size: int, on_progress: Progress
    ) -> Iterator[Done]:
        """Every channel of every window with its spectrum; None where nothing of the window is kept."""
        tally = Tally(sample.steps * count_kept([len(signal) for signal in signals], plans), on_progress)
        jobs = chain.from_iterable(self.decoder.plan(i, *job) for i, job in enumerate(zip(signals, plans, strict=True)))
        return run_batches(jobs, check_batch(size, BATCH.maximum), lambda batch: self.decoder.decode(batch, sample, noise, tally))
