"""Make music for videos with VidMuse, and encode and decode audio with its codec (SPEC sections 3 to 10)."""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Unpack

import numpy as np
from numpy.typing import NDArray

from musicrt.runtime.encoded import Encoded
from musicrt.runtime.errors import InputError
from musicrt.runtime.generator import Generator, Music
from musicrt.runtime.loops.delays import Tokens
from musicrt.runtime.model import Model
from musicrt.runtime.models.vidmuse.codec import BLOCK, AudioCodec
from musicrt.runtime.models.vidmuse.composer import Composer
from musicrt.runtime.models.vidmuse.config import HOP, IMAGE, TOKENS_PER_FRAME, VIDEO_RATE, WINDOW_SECONDS, Config
from musicrt.runtime.models.vidmuse.frames import GLOBAL_FRAMES, Clip
from musicrt.runtime.models.vidmuse.loudness import Meter, apply_gain
from musicrt.runtime.models.vidmuse.noise import Numbers, Uniforms
from musicrt.runtime.models.vidmuse.options import GenerateOptions, Prompt, Video, check_settings
from musicrt.runtime.models.vidmuse.plan import Plan, make_plan, read_prompts
from musicrt.runtime.models.vidmuse.spec import BATCH, CAPACITY
from musicrt.runtime.packing import bits_of
from musicrt.runtime.progress import Progress, ignore_progress
from musicrt.runtime.source import Audio, open_source

Float = NDArray[np.float32]

VIDEOS = 2
"""Videos that are worked on together: each more takes over a gigabyte with the small network, and the weights are read once for all."""
_SHORTEST = 0.4
"""Seconds of music that have a loudness."""
_SQUARES = 7
"""In a row of a picture that is made up."""


class Pipeline(Generator):
    """VidMuse. Codes: int64 [batch, 4, n], 50 per second; audio: float32 [channels, samples], mono at 32 kHz."""

    def __init__(self, model: Model) -> None:
        super().__init__(model)
        self.config = Config.from_mapping(model.spec.config)
        self.composer = Composer(model, self.config)
        self.audio = AudioCodec(model, self.config)

    def generate(self, video: Video, **options: Unpack[GenerateOptions]) -> Float:
        """The music of one video, float32 [1, samples], 640 samples for each of 50 timesteps a second. Arguments and errors as in
        `generate_stream`.
        """
        return self.generate_batch([video], **options)[0]

    def generate_batch(self, videos: Sequence[Video], *, max_batch_size: int = VIDEOS, **options: Unpack[GenerateOptions]) -> list[Float]:
        """The music of several videos, in order: a float32 [1, samples] of each, with a seed the same as of that video alone.

        max_batch_size: videos of the same length that run together. prompt: of every video, or codes [videos, codebooks, P].
        noise: for videos that all run together. Other arguments and errors as in `generate_stream`.
        """
        plan = self._plan(videos, max_batch_size, **options)
        return [np.concatenate(list(self.audio.decode(codes)), axis=1) for codes in self.composer.write_all(plan)]

    def generate_tokens(self, video: Video, **options: Unpack[GenerateOptions]) -> Tokens:
        """The same as codes, int64 [1, codebooks, n]: what `decode` makes audio of. Arguments and errors as in `generate_stream`."""
        return self.generate_token_batch([video], **options)[0]

    def generate_token_batch(
        self, videos: Sequence[Video], *, max_batch_size: int = VIDEOS, **options: Unpack[GenerateOptions]
    ) -> list[Tokens]:
        """The codes of several videos, int64 [1, codebooks, n] each. Arguments and errors as in `generate_batch`."""
        return list(self.composer.write_all(self._plan(videos, max_batch_size, **options)))

    def generate_window(self, videos: Sequence[Video], timesteps: int, **options: Unpack[GenerateOptions]) -> list[Tokens]:
        """The codes of several videos, made together in one window of any length, which sees all local frames there are.

        `duration` and `extend_stride` have no effect. Other arguments and errors as in `generate_batch`.
        """
        return list(self.composer.write_all(self._plan(videos, BATCH.maximum, timesteps, **options)))

    def generate_stream(
        self,
        video: Video,
        *,
        duration: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        temperature: float | None = None,
        guidance: float | None = None,
        extend_stride: float | None = None,
        prompt: Prompt | None = None,
        seed: int | None = None,
        noise: Numbers | Uniforms | None = None,
        global_frames: int | None = None,
        antialias: bool = False,
        on_progress: Progress = ignore_progress,
    ) -> Iterator[Float]:
        """The music of one video in blocks float32 [1, n], each as soon as its codes are chosen; together what `generate` gives.

        video: a file, or a `Clip` of frames. duration: seconds of music, up to 100 hours; by default whole seconds of the video.
        top_k: of how many likeliest tokens one is drawn, 250 by default, 0: of all. top_p: instead of those that together have this
            probability; 0, the default: off. temperature: above 1 draws less likely tokens more often; 0: always the likeliest.
        guidance: how closely the video is followed, 3.0 by default. extend_stride: music beyond 30 s is made in windows of 30 s, one
            every so many seconds, 29.5 by default.
        prompt: the beginning of the music, and part of it; see `Prompt`.
        seed: the same seed gives the same music; None: other music each time. noise: instead, uniform numbers as `Uniforms` says.
        global_frames: pictures from all over the video that every window sees, 32 by default. antialias: resize as newer versions of
            torchvision do (both of files, not of a `Clip`).
        on_progress: called after each column of tokens. Raises VideoError, AudioError, InputError, BackendError.
        """
        options: GenerateOptions = {
            "duration": duration,
            "top_k": top_k,
            "top_p": top_p,
            "temperature": temperature,
            "guidance": guidance,
            "extend_stride": extend_stride,
            "prompt": prompt,
            "seed": seed,
            "noise": noise,
            "global_frames": global_frames,
            "antialias": antialias,
            "on_progress": on_progress,
        }
        return self._stream(self._plan([video], 1, **options))

    def clip(self, frames: NDArray[np.uint8], rate: float, *, global_frames: int | None = None, antialias: bool = False) -> Clip:
        """See `Generator`. global_frames: pictures from all over the video that every window sees, 32 by default."""
        return Clip.from_frames(frames, rate, global_frames=GLOBAL_FRAMES if global_frames is None else global_frames, antialias=antialias)

    def rehearse(self, seconds: float, seed: int) -> None:
        """See `Generator`. The pictures are coarse squares of changing colours, no two alike. At most a window of music is made."""
        seconds = min(seconds, WINDOW_SECONDS)
        local = max(math.ceil(seconds * VIDEO_RATE), 1)
        squares = np.random.default_rng(seed).integers(0, 256, (3, local + GLOBAL_FRAMES, _SQUARES, _SQUARES), np.uint8)
        frames = np.repeat(np.repeat(squares, IMAGE // _SQUARES, axis=2), IMAGE // _SQUARES, axis=3)
        self.generate_tokens(Clip.from_tensors(frames[:, :local], frames[:, local:]), duration=seconds, seed=seed)

    def compose(
        self, videos: Sequence[Video], *, loudness: bool = True, max_batch_size: int = VIDEOS, **options: Unpack[GenerateOptions]
    ) -> Iterator[Music]:
        """See `Generator`. loudness: bring the music to -16 LKFS and limit it softly, as the official demo does; False: as it is made.

        Other arguments and errors as in `generate_batch`.
        """
        if not isinstance(loudness, bool):
            raise InputError(f"got loudness {loudness!r}, expected True or False")
        plan = self._plan(videos, max_batch_size, **options)
        shortest = min(task.timesteps for task in plan.tasks)
        if loudness and shortest * HOP < _SHORTEST * self.sample_rate:
            raise InputError(f"got {shortest * HOP / self.sample_rate:.2f} s of music, too little to have a loudness; turn loudness off")
        return (self._finish(codes, loudness) for codes in self.composer.write_all(plan))

    def encode(self, audio: Audio, *, sample_rate: int | None = None, on_progress: Progress = ignore_progress) -> Tokens:
        """Codes int64 [1, codebooks, n] of one signal, one for each 640 samples at 32 kHz that are begun.

        audio: a path, or an array [samples] or [channels, samples] in [-1, 1] of `sample_rate` (32000 by default); channels are averaged.
        on_progress: called at the end. The whole signal is in memory. Raises AudioError, InputError, BackendError.
        """
        signal = self.audio.read(open_source(audio, self.sample_rate, sample_rate, kernel="julius"))
        codes = self.audio.encode(signal)
        on_progress(1, 1)
        return codes

    def encode_source(self, audio: str | Path, *, on_progress: Progress = ignore_progress) -> Encoded:
        """Encode a file, with what it takes to decode it; its `values` are codes [1, n, codebooks]. Errors as in `encode`."""
        source = self._open_file(audio, kernel="julius")
        codes = self.encode(source, on_progress=on_progress)
        return self._describe_codes(codes, source.source_rate, source.samples)

    def decode(self, codes: NDArray[Any], *, on_progress: Progress = ignore_progress) -> Float:
        """Decode codes [batch, codebooks, n] or [codebooks, n]: float32 [batch, 640 n]. Errors as in `decode_stream`."""
        return np.concatenate(list(self.decode_stream(codes, on_progress=on_progress)), axis=1)

    def decode_stream(self, values: NDArray[Any], *, on_progress: Progress = ignore_progress) -> Iterator[Float]:
        """Decode codes of any length in constant memory; blocks float32 [batch, samples], a row for each of the batch.

        on_progress: called after each block. Raises InputError, BackendError.
        """
        return self._decode(self.audio.check(values), on_progress)

    def batch_key(self, method: str, source: Any, options: Mapping[str, Any]) -> Hashable:
        """See `Codec`. Videos of which music of one length is asked for."""
        return options.get("duration") if method == "generate" else super().batch_key(method, source, options)

    def check_settings(self, options: GenerateOptions) -> None:
        """Raises InputError for a value of an option that no video makes right."""
        self.check_options(self.generate_stream, options)
        check_settings(self.config, self.model.spec, options)

    def output_channels(self, channels: int, /, **_options: Any) -> int:
        """One, whatever went in."""
        del channels
        return self.row_channels

    @property
    def shortest(self) -> NDArray[Any]:
        """See `Codec`."""
        return np.zeros((1, self.config.codebooks, 1), np.int64)

    def seconds_of(self, values: NDArray[Any]) -> float:
        """See `Codec`."""
        return float(values.shape[-1] * HOP / self.sample_rate)

    def axis_sizes(self, seconds: float, steps: int | None = None) -> dict[str, int]:
        """Sizes of the stages' axes for so many seconds of video and music, up to a window. Raises InputError for bad `seconds`."""
        del steps
        if not 0 < seconds < math.inf:
            raise InputError(f"got {seconds!r} s, expected a positive number")
        samples, window = math.ceil(seconds * self.sample_rate), min(seconds, self.config.window_seconds)
        codes, local = -(-samples // HOP), max(int(VIDEO_RATE * window), 1)
        columns = math.ceil(window * self.config.frame_rate) + self.composer.pattern.lag
        overall = self.model.spec.defaults["global_frames"]
        sizes = {"batch": 1, "samples": samples, "codes": codes, "frames": local, "local": local, "global": overall}
        tokens = {"tokens": TOKENS_PER_FRAME * local, "null_tokens": TOKENS_PER_FRAME}
        return {**sizes, **tokens, "columns": 1, "capacity": max(columns, CAPACITY.minimum)}

    def _describe_codes(self, codes: Tokens, source_rate: int, samples: int) -> Encoded:
        bits = (bits_of(self.config.card),) * self.config.codebooks
        return self._describe(np.ascontiguousarray(codes.transpose(0, 2, 1)), "tokens", source_rate, samples, bits)

    def _values_of(self, encoded: Encoded) -> NDArray[Any]:
        return encoded.values.transpose(0, 2, 1)

    def _stream(self, plan: Plan) -> Iterator[Float]:
        """The music of the one video of a plan, block by block."""
        decoder = self.audio.open(1)
        for codes in self.composer.write(plan.tasks, plan.settings, plan.numbers[0], plan.on_step):
            yield decoder.push(codes)
        yield decoder.finish()

    def _finish(self, codes: Tokens, loudness: bool) -> Music:
        """Codes are small and decoding is quick: the loudness of the whole is measured in a first pass, and the music never held."""
        encode = partial(self._describe_codes, codes, self.sample_rate, codes.shape[2] * HOP)
        if not loudness:
            return Music(partial(self.audio.decode, codes), encode)
        meter = Meter(self.sample_rate, self.row_channels)
        for block in self.audio.decode(codes):
            meter.add(block)
        gain = meter.gain()
        return Music(lambda: (apply_gain(block, gain) for block in self.audio.decode(codes)), encode)

    def _decode(self, codes: Tokens, on_progress: Progress) -> Iterator[Float]:
        total = -(-codes.shape[2] // BLOCK)
        for done, block in enumerate(self.audio.decode(codes), start=1):
            yield block
            on_progress(min(done, total), total)

    def _plan(self, videos: Sequence[Video], size: int, timesteps: int | None = None, /, **options: Unpack[GenerateOptions]) -> Plan:
        """Everything that can be said before the work begins. timesteps: of a single window. Raises VideoError, AudioError, InputError."""
        self.check_options(self.generate_stream, options)
        prompts = partial(read_prompts, self.audio, options.get("prompt"))
        return make_plan(self.config, self.model.spec, videos, size, prompts, options, timesteps)
