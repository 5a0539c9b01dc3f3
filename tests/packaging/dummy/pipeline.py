"""Encode and decode with Dummy: cut audio into frames, run the stages, put frames together."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from musicrt.runtime.encoded import Encoded
from musicrt.runtime.model import Model
from musicrt.runtime.pipeline import Codec
from musicrt.runtime.progress import Progress, ignore_progress
from musicrt.runtime.source import Audio, AudioSource, SampleReader, open_source

Float = NDArray[np.float32]

_WINDOW = 250  # frames that run together: bounds the memory


class Pipeline(Codec):
    """A Dummy codec. Values: float32 [channels, 32, L], 32 for each 32 samples of a channel."""

    def __init__(self, model: Model) -> None:
        super().__init__(model)
        self.hop, self.width = int(model.spec.config["hop"]), int(model.spec.config["width"])

    def encode(self, audio: Audio, *, sample_rate: int | None = None) -> Float:
        """Encode a path, or an array [samples] or [channels, samples]: float32 [channels, 32, L], the end filled up with silence.

        sample_rate: that of an array, if not the model's. Raises AudioError, InputError, BackendError.
        """
        return np.concatenate(list(self._encode_blocks(open_source(audio, self.sample_rate, sample_rate), ignore_progress)), axis=-1)

    def encode_source(self, audio: str | Path, *, on_progress: Progress = ignore_progress) -> Encoded:
        """Encode a file, with what it takes to decode it. Its other keyword-only parameters, of which there are none, are the options."""
        source = self._open_file(audio)
        values = np.concatenate(list(self._encode_blocks(source, on_progress)), axis=-1)
        return self._describe(values, "latents", source.source_rate, source.samples)

    def decode(self, values: NDArray[Any]) -> Float:
        """Decode to float32 [channels, 32 L]. Raises InputError, BackendError."""
        return np.concatenate(list(self.decode_stream(values)), axis=-1)

    def decode_stream(self, values: NDArray[Any], *, on_progress: Progress = ignore_progress) -> Iterator[Float]:
        """Decode in bounded memory: blocks of float32 [channels, samples]. Raises InputError, BackendError."""
        total = values.shape[-1]
        for start in range(0, total, _WINDOW):
            block = np.ascontiguousarray(values[..., start : start + _WINDOW], np.float32)
            frames = self.model.session("decoder").run({"values": block})["samples"]
            on_progress(min(start + _WINDOW, total), total)
            yield frames.transpose(0, 2, 1).reshape(len(frames), -1)

    @property
    def shortest(self) -> Float:
        """See `Codec`."""
        return np.zeros((1, self.width, 1), np.float32)

    def seconds_of(self, values: NDArray[Any]) -> float:
        """See `Codec`."""
        return float(values.shape[-1] * self.hop / self.sample_rate)

    def axis_sizes(self, seconds: float, steps: int | None = None) -> dict[str, int]:
        """Sizes of the stages' axes for one channel of so many seconds. There are no steps here."""
        del steps
        return {"batch": 1, "frames": max(round(seconds * self.sample_rate) // self.hop, 1)}

    def _encode_blocks(self, source: AudioSource, on_progress: Progress) -> Iterator[Float]:
        reader, total = SampleReader(source), max(-(-source.samples // self.hop), 1)
        for start in range(0, total, _WINDOW):
            stop = min(start + _WINDOW, total)
            samples = reader.read(start * self.hop, stop * self.hop)
            frames = np.ascontiguousarray(samples.reshape(len(samples), -1, self.hop).transpose(0, 2, 1))
            yield self.model.session("encoder").run({"samples": frames})["values"]
            on_progress(stop, total)
