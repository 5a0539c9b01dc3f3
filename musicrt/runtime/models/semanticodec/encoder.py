"""From audio to tokens, segment by segment: mel spectrograms, and the stages that make codes of them (SPEC section 2)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from musicrt.runtime.batches import Job
from musicrt.runtime.model import Model
from musicrt.runtime.models.semanticodec.config import HOP, Config
from musicrt.runtime.models.semanticodec.fbank import FRAME, FilterBank
from musicrt.runtime.models.semanticodec.lengths import SEGMENT, padding_cut, segment_count
from musicrt.runtime.source import AudioSource, SampleReader
from musicrt.runtime.windows import Window

Float = NDArray[np.float32]
Tokens = NDArray[np.int64]


class SegmentEncoder:
    """Encodes segments of 10.24 s, which know nothing of each other."""

    def __init__(self, model: Model, config: Config) -> None:
        self.model, self.config = model, config
        self.filter_bank = FilterBank()

    def analyse(self, source: AudioSource, rows: int, count: int) -> Iterator[Float]:
        """The mel spectrograms of a source's first segments: `count` times float32 [rows, 1024, 128], of its first channels."""
        reader, last = SampleReader(source), segment_count(source.samples) - 1
        for index in range(count):
            start, stop = index * SEGMENT, (index + 1) * SEGMENT
            samples = reader.read(start, stop if index == last else stop + FRAME - HOP)
            yield self.filter_bank.analyse_segment(samples[:rows])

    def plan(self, signal: int, source: AudioSource, rows: int, tokens: int) -> Iterator[Job]:
        """The mel spectrograms of a source as jobs, as many segments as so many tokens lie in."""
        for index, mel in enumerate(self.analyse(source, rows, -(-tokens // self.config.tokens))):
            window = Window(index * SEGMENT, (index + 1) * SEGMENT)
            for row in range(rows):
                yield Job(signal, row, window, mel[row])

    def encode(self, mel: Sequence[Float]) -> list[Tokens]:
        """Mel spectrograms [1024, 128], 64 at most -> tokens [T, 2] of each. Raises InputError, BackendError."""
        model = self.model
        # One by one up to the LSTM: these stages are bound by arithmetic, and a batch would only take memory.
        representations = [model.session("audiomae").run({"mel": one[None]})["representation"] for one in mel]
        found = [model.session("semantic").run({"representation": one}) for one in representations]
        mask = np.stack([self.mask(one) for one in mel])
        centroids = np.concatenate([one["centroids"] for one in found])
        feeds = {"representation": np.concatenate(representations), "centroids": centroids, "mask": mask}
        most = model.session("residual").limits["batch"][1]  # an engine may be made for fewer
        parts = [{name: value[start : start + most] for name, value in feeds.items()} for start in range(0, len(mel), most)]
        residual = np.concatenate([model.session("residual").run(part)["residual"] for part in parts])
        acoustic = [model.session("acoustic").run({"residual": one[None]})["acoustic"][0] for one in residual]
        return [np.stack([one["semantic"][0], codes], axis=-1) for one, codes in zip(found, acoustic, strict=True)]

    def mask(self, mel: Float) -> Float:
        """1 for the tokens that the LSTM sees, 0 for those after the active part: float32 [T]."""
        active = math.ceil(self.config.tokens * padding_cut(mel))
        return (np.arange(self.config.tokens) < active).astype(np.float32)
