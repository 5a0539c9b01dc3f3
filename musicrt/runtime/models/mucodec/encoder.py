"""From audio to codes, window by window: what is read, what MuQ hears of it, and the stages that make codes of that (SPEC section 3)."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from musicrt.runtime.batches import Job
from musicrt.runtime.errors import AudioError, InputError
from musicrt.runtime.model import Model
from musicrt.runtime.models.mucodec.config import CODE_SAMPLES, Config
from musicrt.runtime.models.mucodec.downmix import JOINT_PEAK, limit, mix_down
from musicrt.runtime.models.mucodec.lengths import OVERHANG, SPAN, Fit, encoded_codes, encoder_windows
from musicrt.runtime.models.mucodec.mel import MuqMel
from musicrt.runtime.source import AudioSource, SampleReader
from musicrt.runtime.windows import Window

Float = NDArray[np.float32]
Codes = NDArray[np.int64]


class WindowEncoder:
    """Encodes windows, which know nothing of each other."""

    def __init__(self, model: Model, config: Config) -> None:
        statistics = config.muq_stat
        self._model, self._mel = model, MuqMel(statistics.melspec_2048_mean, statistics.melspec_2048_std)

    def plan(self, signal: int, source: AudioSource, fit: Fit) -> Iterator[Job]:
        """The mel spectrograms of a source's windows as jobs. Raises AudioError."""
        reader, peak = SampleReader(loop_source(source)), find_peak(source)
        for index, codes in enumerate(encoder_windows(encoded_codes(source.samples), fit)):
            window = Window(index * SPAN, index * SPAN + codes * CODE_SAMPLES + OVERHANG)
            samples = limit(reader.read(window.start, window.stop), peak, JOINT_PEAK)
            yield Job(signal, 0, window, self.analyse(samples[None])[0])

    def analyse(self, audio: Float) -> Float:
        """Windows [batch, channels, samples] at 48 kHz -> mel spectrograms [batch, 128, 4 C] of their C full codes."""
        return self._mel.analyse(mix_down(audio))

    def features(self, mel: Float) -> Float:
        """Mel spectrograms [batch, 128, 4 C] -> MuQ's hidden state [batch, C, D]. Raises BackendError."""
        return self._model.session("muq").run({"mel": mel})["hidden"]

    def encode(self, mel: Sequence[Float]) -> list[Codes]:
        """Mel spectrograms [128, 4 C] of one length -> codes [codebooks, C] of each. Raises BackendError."""
        return list(self._model.session("quantizer").run({"hidden": self.features(np.stack(mel))})["codes"])


def check_source(source: AudioSource) -> AudioSource:
    """Raises InputError for more than two channels, and for no samples."""
    if source.channels > 2:
        raise InputError(f"{source.name} has {source.channels} channels, expected one or two; mix them down first")
    if source.samples < 1:
        raise InputError(f"{source.name} holds no samples; expected at least one")
    return source


def find_peak(source: AudioSource) -> Float:
    """The largest magnitude of all channels: float32 [1, 1]. Raises AudioError for a file that ends early."""
    peak, held = np.zeros((1, 1), np.float32), 0
    for block in source.open():
        peak, held = np.maximum(peak, np.abs(block).max(initial=0, keepdims=True)), held + block.shape[1]
    if held < source.samples:
        raise AudioError(f"{source.name} ends after {held} of {source.samples} samples; get the whole file")
    return peak


def loop_source(source: AudioSource) -> AudioSource:
    """The same again and again. What is shorter than a window is held in memory, anything else read anew."""

    def read() -> Iterator[Float]:
        if source.samples < SPAN:
            audio = SampleReader(source).read(0, source.samples)
            whole = np.tile(audio, -(-SPAN // source.samples))
            while True:
                yield whole
        while True:
            left = source.samples
            for block in source.open():
                yield block[:, :left]
                left = max(left - block.shape[1], 0)

    return replace(source, samples=sys.maxsize, open=read)
