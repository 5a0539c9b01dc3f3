"""What all contenders work on: the same arrays in every process."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from benchmarks.rounds import Outputs
from musicrt.runtime.errors import InputError
from musicrt.runtime.measure import synthesise_music
from musicrt.runtime.models.semanticodec.config import LATENT_SHAPE, SAMPLE_RATE, Config
from musicrt.runtime.models.semanticodec.lengths import SEGMENT, decoded_samples, encoded_tokens, token_windows
from musicrt.runtime.models.semanticodec.spec import build_spec
from musicrt.runtime.spec import ModelSpec
from musicrt.runtime.verify import probe_inputs

Float = NDArray[np.float32]
Tokens = NDArray[np.int64]

STAGES = ("front-end", "audiomae", "semantic", "residual", "acoustic", "noise", "conditioning", "evaluation", "vae", "vocoder")
"""All of one segment or window. residual: the LSTM and its projection. noise: one draw. conditioning: keys and values of both rows of
guidance. evaluation: the U-Net for both rows, with all that the contender does in every step."""
GUIDANCE = 2.0
TIMESTEP = 981
"""Of the evaluation that is timed: the first one of 50 steps."""


@dataclass(frozen=True)
class Workload:
    """Audio and tokens of `seconds`, and the inputs of the stages, which are random and look like real ones."""

    spec: ModelSpec
    config: Config
    seconds: float

    @classmethod
    def build(cls, config: Mapping[str, Any], seconds: float) -> Workload:
        """`config`: official hyper-parameters. Raises ConfigError, and InputError for no audio at all."""
        if not seconds * SAMPLE_RATE >= 1:
            raise InputError(f"got {seconds} s, expected at least one sample")
        return cls(build_spec(config, "benchmark"), Config.from_mapping(config), seconds)

    def audio(self, seconds: float | None = None) -> Float:
        """float32 [1, n] at 16 kHz, of another length if `seconds` is given."""
        return synthesise_music(self.seconds if seconds is None else seconds, SAMPLE_RATE)

    @property
    def segment(self) -> Float:
        """The samples of one segment, float32 [1, 163840]."""
        return synthesise_music(SEGMENT / SAMPLE_RATE, SAMPLE_RATE)

    @property
    def tokens(self) -> Tokens:
        """As many as encode makes of the audio, random: int64 [1, n, 2]."""
        generator, count = np.random.default_rng(1), encoded_tokens(round(self.seconds * SAMPLE_RATE), self.config.stack)
        return np.stack([generator.integers(0, size, (1, count)) for size in self.config.codebook_sizes], axis=-1)

    @property
    def decoded_seconds(self) -> float:
        """Length of what the tokens decode to."""
        return decoded_samples(self.tokens.shape[1], self.config.stack) / SAMPLE_RATE

    def noise(self, draws: int) -> list[Float]:
        """So many arrays for each window of the tokens, in the official order: float32 [1, 8, 256, 16]."""
        generator, windows = np.random.default_rng(2), len(token_windows(self.tokens.shape[1], self.config.stack))
        return [generator.standard_normal((1, *LATENT_SHAPE), np.float32) for _ in range(draws * windows)]

    def feeds(self, stage: str, batch: int = 1) -> dict[str, NDArray[Any]]:
        """Inputs of a stage of the spec: a whole segment or window of each of the batch, all of it active."""
        sizes = {"batch": batch, "frames": 1024, "tokens": self.config.tokens, "guidance": 2, "steps": 1}
        feeds = probe_inputs(self.spec.stage(stage), sizes, 3)
        return {name: np.ones_like(array) if name == "mask" else array for name, array in feeds.items()}


class Contender(Protocol):
    """One way of running the model. `noise`: arrays as from `Workload.noise`; None: the contender's own generator."""

    def encode(self, audio: Float) -> Tokens: ...

    def decode(self, tokens: Tokens, steps: int, noise: Sequence[Float] | None = None) -> Float: ...

    def stages(self, work: Workload) -> dict[str, Callable[[], Outputs]]:
        """Calls by names of STAGES, as many as it has; with outputs of one name and meaning for all contenders."""
        ...
