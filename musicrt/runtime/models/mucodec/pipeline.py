"""Encode and decode with MuCodec: windows, prompts, and the stages in between (SPEC sections 3 and 4)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, Unpack

import numpy as np
from numpy.typing import NDArray

from musicrt.runtime.batches import check_batch, run_data, split_signals
from musicrt.runtime.codes import check_range, read_codes
from musicrt.runtime.encoded import Encoded
from musicrt.runtime.errors import InputError
from musicrt.runtime.loops.diffusion import OnStep
from musicrt.runtime.model import Model
from musicrt.runtime.models.mucodec.config import CODE_SAMPLES, LATENT_BINS, LATENT_CHANNELS, Config
from musicrt.runtime.models.mucodec.encoder import WindowEncoder, check_source
from musicrt.runtime.models.mucodec.lengths import (
    SHARED,
    WINDOW,
    Fit,
    check_fit,
    decoded_samples,
    encoded_codes,
    encoder_windows,
)
from musicrt.runtime.models.mucodec.noise import Arrays, Noise
from musicrt.runtime.models.mucodec.options import DecodeOptions, EncodeOptions
from musicrt.runtime.models.mucodec.plan import Plan, make_plan
from musicrt.runtime.models.mucodec.prompt import PromptEncoder
from musicrt.runtime.models.mucodec.sampler import Sampler
from musicrt.runtime.models.mucodec.spec import BATCH
from musicrt.runtime.models.mucodec.synthesis import Synthesis
from musicrt.runtime.pipeline import Codec
from musicrt.runtime.progress import Progress, Tally, ignore_progress
from musicrt.runtime.source import Audio, open_source
from musicrt.runtime.windows import Window, inclusive_ramp, join_windows

Float = NDArray[np.float32]
Codes = NDArray[np.int64]

WINDOWS = 1
"""Windows that are encoded together: one fills a CPU, and its features take hundreds of megabytes."""


class Pipeline(Codec):
    """A MuCodec codec. Codes: int64 [1, codebooks, n], 25 per second; sound: stereo at 48 kHz."""

    row_channels = 2
    batched = frozenset({"encode"})

    def __init__(self, model: Model) -> None:
        super().__init__(model)
        self.config = Config.from_mapping(model.spec.config)
        self.windows = WindowEncoder(model, self.config)
        self.sampler = Sampler(model)
        self.prompts = PromptEncoder(model)
        self.synthesis = Synthesis(model, self.config)

    def encode(self, audio: Audio, **options: Unpack[EncodeOptions]) -> Codes:
        """Encode one signal: int64 [1, codebooks, n]. Arguments and errors as in `encode_batch`."""
        return self.encode_batch([audio], **options)[0]

    def encode_batch(
        self,
        audio: Sequence[Audio],
        *,
        sample_rate: int | None = None,
        fit: Fit = "window",
        max_batch_size: int = WINDOWS,
        on_progress: Progress = ignore_progress,
    ) -> list[Codes]:
        """Encode several signals; windows are independent, and are batched across signals.

        audio: each a path, or an array [samples], [1, samples] or [2, samples] in [-1, 1]; mono is both channels.
        sample_rate: that of arrays, if not 48000; files know theirs.
        fit: "window" repeats a signal up to whole windows of 40.96 s, as officially; "length" only up to the next 2.56 s, which
            costs a short clip a fraction and gives somewhat other codes.
        max_batch_size: windows that run together. on_progress: called after each batch.
        Returns an int64 [1, codebooks, n] for each, n a code for each full 1920 samples and one more. A file is read twice or more
        often, and held only if it is shorter than a window. Raises AudioError, InputError, BackendError.
        """
        sources = [check_source(open_source(one, self.sample_rate, sample_rate, kernel="sinc")) for one in audio]
        counts = [encoded_codes(source.samples) for source in sources]
        tally = Tally(sum(len(encoder_windows(count, check_fit(fit))) for count in counts), on_progress)
        jobs = chain.from_iterable(self.windows.plan(i, source, fit) for i, source in enumerate(sources))
        computed = run_data(jobs, check_batch(max_batch_size, BATCH.maximum), self.windows.encode, tally)
        results = split_signals(computed, [1] * len(sources))
        ordered = [sorted(result, key=lambda one: one[0].start) for result in results]
        return [np.concatenate([codes for _, codes in one], axis=2)[:, :, :count] for one, count in zip(ordered, counts, strict=True)]

    def encode_source(
        self, audio: str | Path, *, fit: Fit = "window", max_batch_size: int = WINDOWS, on_progress: Progress = ignore_progress
    ) -> Encoded:
        """Encode a file, with what it takes to decode it; its `values` are codes [1, n, codebooks]. Errors as in `encode_batch`."""
        source = self._open_file(audio, kernel="sinc")
        codes = self.encode(source, fit=fit, max_batch_size=max_batch_size, on_progress=on_progress)
        return self._describe(
            np.ascontiguousarray(codes.transpose(0, 2, 1)), "tokens", source.source_rate, source.samples, self.config.bits
        )

    def decode(self, codes: NDArray[Any], **options: Unpack[DecodeOptions]) -> Float:
        """Decode codes [1, codebooks, n] or [codebooks, n]: float32 [2, samples], 1920 samples for each code.

        Arguments and errors as in `decode_stream`.
        """
        return np.concatenate(list(self.decode_stream(codes, **options)), axis=1)

    def decode_batch(self, codes: Sequence[NDArray[Any]], **options: Unpack[DecodeOptions]) -> list[Float]:
        """Decode several code arrays, one after the other: a float32 [2, samples] of each, as `decode` gives with the same seed.

        Everything is checked before the first is decoded. noise: of a single array only. Other arguments and errors as in `decode_stream`.
        """
        self.check_options(self.decode_stream, options)
        if options.get("noise") is not None and len(codes) != 1:
            raise InputError(f"got noise for {len(codes)} code arrays, expected one; decode them one by one, or pass a seed")
        plans = [self._plan(one, **options) for one in codes]
        tally = Tally(sum(plan.evaluations for plan in plans), options.get("on_progress", ignore_progress))
        return [np.concatenate(list(self._decode(plan, tally.add)), axis=1) for plan in plans]

    def decode_stream(
        self,
        values: NDArray[Any],
        *,
        steps: int | None = None,
        guidance: float | None = None,
        prompt: Audio | None = None,
        seed: int | None = None,
        noise: Noise | Arrays | None = None,
        fit: Fit = "window",
        on_progress: Progress = ignore_progress,
    ) -> Iterator[Float]:
        """Decode codes [1, codebooks, n] or [codebooks, n] of any length in bounded memory, window after window.

        Of fewer codebooks than there are, the first ones are meant.
        steps: evaluations of the network for each window, 20 by default, 1 to 1000. guidance: how far the codes are followed, 1.5 by
            default; up to 1.0 there is none, and a step costs half.
        prompt: sound that comes before, and is not part of the result: a path, or an array [samples] or [channels, samples] at 48 kHz.
        seed: the same seed gives the same result. noise: instead, arrays as `Arrays` says, or a `Noise`.
        fit: "window" makes whole windows of 40.96 s, as officially; "length" ends the last one at the next 2.56 s, which costs a short
            clip a fraction and gives other sound. on_progress: called after each evaluation.
        Yields float32 [2, samples]; together what `decode` gives. Raises AudioError, InputError, BackendError.
        """
        plan = self._plan(values, steps=steps, guidance=guidance, prompt=prompt, seed=seed, noise=noise, fit=fit)
        return self._decode(plan, Tally(plan.evaluations, on_progress).add)

    def roundtrip(self, audio: Audio, *, sample_rate: int | None = None, **options: Unpack[DecodeOptions]) -> Float:
        """Encode and decode one signal: float32 [2, samples], up to 40 ms longer than it.

        50 steps by default, as the official `sound2sound`. Arguments and errors as of the two ways; `fit` is of both, `on_progress` of
        decoding.
        """
        if options.get("steps") is None:
            options["steps"] = self._roundtrip_steps
        self.check_options(self.decode_stream, options)
        self.check_decoding(**options)
        return self.decode(self.encode(audio, sample_rate=sample_rate, fit=options.get("fit", "window")), **options)

    def roundtrip_file(
        self, audio: str | Path, target: str | Path, encode_options: Mapping[str, Any], decode_options: Mapping[str, Any]
    ) -> int:
        """As for every codec, with 50 steps by default, as the official command-line script."""
        return super().roundtrip_file(audio, target, encode_options, {"steps": self._roundtrip_steps, **decode_options})

    def check_codes(self, codes: NDArray[Any]) -> Codes:
        """Codes as int64 [1, codebooks, n]. Raises InputError."""
        rvq = self.config.rvq
        expected = f"[1, codebooks, n] with up to {rvq.n_codebooks} codebooks"
        array = read_codes(codes, expected, "pass them to decode_batch")
        if array.ndim != 3 or array.size == 0:
            raise InputError(f"got codes of shape {list(np.shape(codes))}, expected {expected}")
        if len(array) != 1:
            raise InputError(f"got codes of {len(array)} signals, expected {expected}; pass them to decode_batch one by one")
        if array.shape[1] > rvq.n_codebooks:
            raise InputError(f"got codes of {array.shape[1]} codebooks, expected {expected}; load the bundle they were made with")
        check_range(array, rvq.codebook_size)
        return array.astype(np.int64)

    def output_channels(self, channels: int, /, **_options: Any) -> int:
        """Two, whatever went in."""
        del channels
        return self.row_channels

    @property
    def shortest(self) -> NDArray[Any]:
        """See `Codec`."""
        return np.zeros((1, 1, 1), np.int64)

    def seconds_of(self, values: NDArray[Any]) -> float:
        """See `Codec`."""
        return float(values.shape[-1] * CODE_SAMPLES / self.sample_rate)

    def window_seconds(self, seconds: float) -> float:
        """40.96, whatever the audio."""
        del seconds
        return WINDOW * CODE_SAMPLES / self.sample_rate

    def axis_sizes(self, seconds: float, steps: int | None = None) -> dict[str, int]:
        """Sizes of the stages' axes: always a whole window, decoded with guidance. Raises InputError for bad `seconds`."""
        if not 0 < seconds < math.inf:
            raise InputError(f"got {seconds!r} s of audio, expected a positive number")
        sizes = {"batch": 1, "codes": WINDOW, "codebooks": self.config.rvq.n_codebooks, "frames": WINDOW // 2, "rows": WINDOW // 4}
        return {**sizes, "mel_frames": 1025, "hops": 1024, "guidance": 2, "steps": self.model.spec.given("steps", steps)}

    @property
    def _roundtrip_steps(self) -> int:
        return self.config.chain.num_steps_sound2sound

    def _plan(self, values: NDArray[Any], **options: Unpack[DecodeOptions]) -> Plan:
        return make_plan(self.check_codes(values), self.model.spec, self.sampler, options)

    def _decode(self, plan: Plan, on_step: OnStep) -> Iterator[Float]:
        """The sound of the windows, cross-faded, and cut where the codes end (SPEC section 4.1)."""
        codes, length = plan.codes, decoded_samples(plan.codes.shape[2])

        def windows() -> Iterator[tuple[Window, Float]]:
            looped, known = codes, np.zeros((1, LATENT_CHANNELS, 0, LATENT_BINS), np.float32)
            if plan.prompt:
                known = self.prompts.latents(plan.prompt, plan.noise)
                ahead = self.encode(plan.prompt.audio, fit=plan.fit)[:, : codes.shape[1], : plan.prompt.codes]
                looped = np.concatenate([ahead, codes], axis=2)
            for index, span in enumerate(plan.spans):
                part = np.take(looped, range(span.codes.start, span.codes.stop), axis=2, mode="wrap")
                latents = plan.sample.run(self.sampler.condition(part), known, plan.noise.initial(index, span.frames), on_step)
                known = latents[:, :, -SHARED // 2 :]
                wanted = min(span.samples.stop, length) - span.samples.start
                yield span.samples, self.synthesis.render(latents[:, :, span.dropped :], wanted)

        return join_windows(windows(), length, ramp=inclusive_ramp)

    def _values_of(self, encoded: Encoded) -> NDArray[Any]:
        return encoded.values.transpose(0, 2, 1)
