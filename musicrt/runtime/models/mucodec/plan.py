"""What a decode is to do, made of codes and options before any work, so that what is wrong is said at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from musicrt.runtime.models.mucodec.lengths import Fit, Span, check_fit, decoder_windows
from musicrt.runtime.models.mucodec.noise import Noise, choose_noise
from musicrt.runtime.models.mucodec.options import DecodeOptions
from musicrt.runtime.models.mucodec.prompt import Prompt
from musicrt.runtime.models.mucodec.sampler import Sample, Sampler
from musicrt.runtime.spec import ModelSpec

Codes = NDArray[np.int64]


@dataclass(frozen=True)
class Plan:
    """A decode that is about to begin."""

    codes: Codes
    prompt: Prompt | None
    sample: Sample
    spans: Sequence[Span]
    noise: Noise
    fit: Fit

    @property
    def evaluations(self) -> int:
        """Of the estimator."""
        return self.sample.steps * len(self.spans)


def make_plan(codes: Codes, spec: ModelSpec, sampler: Sampler, options: DecodeOptions) -> Plan:
    """Plan the decode of codes [1, codebooks, n]. Raises AudioError, InputError, BackendError."""
    fit, given = check_fit(options.get("fit", "window")), options.get("prompt")
    prompt = None if given is None else Prompt.read(given)
    steps, guidance = (spec.given(name, options.get(name)) for name in ("steps", "guidance"))
    sample = sampler.prepare(steps, guidance)
    spans = decoder_windows(codes.shape[2], prompt.frames if prompt else 0, fit)
    return Plan(codes, prompt, sample, spans, choose_noise(options.get("seed"), options.get("noise"), spans), fit)
