"""How far fit="length" is from the official windows, and what it saves.

The official code repeats every sound up to 40.96 s before MuQ hears it, and its codes up to as many for the transformer; fit="length"
stops at the next 2.56 s. Codes are compared one by one. Distances are relative L2, of the latents and waves that are kept, from the same
codes, those of the official windows, and the same initial noise. Another seed gives another result, as good as the first: that distance
is the natural spread.

With stand-in weights, as in the committed results, nothing is like audio, and what a network makes of another surrounding is a matter of
its training: these distances say that the two are not the same, and nothing of how either sounds. Times depend on shapes only.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from benchmarks.results import describe_run, launch, say, suite_parser, write_results
from musicrt.runtime.errors import InputError
from musicrt.runtime.measure import markdown_table, synthesise_music
from musicrt.runtime.model import load
from musicrt.runtime.models.mucodec.config import LATENT_BINS, LATENT_CHANNELS
from musicrt.runtime.models.mucodec.lengths import Fit, decoded_samples, decoder_windows
from musicrt.runtime.models.mucodec.noise import SeededNoise
from musicrt.runtime.verify import relative_error

Float = NDArray[np.float32]
Codes = NDArray[np.int64]
_Result = TypeVar("_Result")
_SEED = 5
_LONGEST = 40.9
"""Seconds that make one window."""


@dataclass(frozen=True)
class Times:
    """Seconds that one fit takes."""

    encode: float
    sample: float
    render: float


@dataclass(frozen=True)
class Comparison:
    """The two fits on one length. codes: the share that differs; latents, wave: distances; spread: those of another seed."""

    seconds: float
    codes: float
    latents: float
    wave: float
    spread_latents: float
    spread_wave: float
    window: Times
    length: Times


def main(arguments: Sequence[str]) -> None:
    """Run the suite. Raises MusicRTError."""
    parser = suite_parser("mucodec.fit", 'Distances of fit="length" from the official windows.')
    parser.add_argument("--backend", default="onnxruntime-cpu", help="default: %(default)s")
    parser.add_argument("--seconds", type=float, nargs="+", default=[2.0, 10.0, 30.0], help="lengths of audio (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=20, help="default: %(default)s")
    options = parser.parse_args(arguments)
    settings = {"seconds": options.seconds, "steps": options.steps}
    with load(options.bundle, backend=options.backend, threads=options.threads) as codec:
        content = describe_run("fit", options.bundle, {"backend": codec.backend.name, **settings}, options.threads)
        found = [compare_fits(codec, seconds, options.steps) for seconds in options.seconds]
    content["comparisons"] = [asdict(one) for one in found]
    write_results(options.out, content, render(found))


def compare_fits(codec: Any, seconds: float, steps: int) -> Comparison:
    """Encode and decode so much audio both ways. Raises InputError unless it is one window."""
    if not 0 < seconds <= _LONGEST:
        raise InputError(f"got {seconds} s, expected up to {_LONGEST}, which is one window")
    say(f"{seconds} s …")
    audio = synthesise_music(seconds, codec.sample_rate)
    codes, encode = _timed(lambda: codec.encode(audio))
    other_codes, encode_short = _timed(lambda: codec.encode(audio, fit="length"))
    latents, sample = _timed(lambda: _sample(codec, codes, "window", steps, _SEED))
    other, sample_short = _timed(lambda: _sample(codec, codes, "length", steps, _SEED))
    another = _sample(codec, codes, "window", steps, _SEED + 1)
    kept, samples = -(-codes.shape[2] // 2), decoded_samples(codes.shape[2])
    (wave, draw), (wave_short, draw_short), (wave_another, _) = (
        _timed(partial(codec.synthesis.render, one, samples)) for one in (latents, other, another)
    )
    return Comparison(
        seconds,
        relative_error({"": other_codes}, {"": codes}),
        relative_error({"": other[:, :, :kept]}, {"": latents[:, :, :kept]}),
        relative_error({"": wave_short}, {"": wave}),
        relative_error({"": another[:, :, :kept]}, {"": latents[:, :, :kept]}),
        relative_error({"": wave_another}, {"": wave}),
        Times(encode, sample, draw),
        Times(encode_short, sample_short, draw_short),
    )


def _sample(codec: Any, codes: Codes, fit: Fit, steps: int, seed: int) -> Float:
    """The latents of the one window, float32 [1, 32, T, 32]."""
    (span,) = decoder_windows(codes.shape[2], 0, fit)
    looped = np.take(codes, range(span.codes.stop), axis=2, mode="wrap")
    nothing = np.zeros((1, LATENT_CHANNELS, 0, LATENT_BINS), np.float32)
    sample = codec.sampler.prepare(steps, codec.model.spec.defaults["guidance"])
    latents: Float = sample.run(codec.sampler.condition(looped), nothing, SeededNoise(seed).initial(0, span.frames), lambda: None)
    return latents


def _timed(work: Callable[[], _Result]) -> tuple[_Result, float]:
    start = time.perf_counter()
    return work(), time.perf_counter() - start


def render(found: Sequence[Comparison]) -> str:
    """Two tables, and what they mean."""
    distances = [
        [
            f"{one.seconds:g}",
            f"{one.codes:.1%}",
            f"{one.latents:.3f}",
            f"{one.spread_latents:.3f}",
            f"{one.wave:.3f}",
            f"{one.spread_wave:.3f}",
        ]
        for one in found
    ]
    header = ("s of audio", "codes that differ", "latents", "latents, another seed", "wave", "wave, another seed")
    times = [[f"{one.seconds:g}", *_pairs(one.window, one.length)] for one in found]
    parts = [
        markdown_table(header, distances),
        'Seconds, with whole windows and with fit="length":',
        markdown_table(("s of audio", "encode", "sample", "VAE and vocoder"), times),
        *(" ".join(part.split()) for part in (__doc__ or "").split("\n\n")[1:]),
    ]
    return "\n\n".join(parts)


def _pairs(window: Times, length: Times) -> list[str]:
    return [f"{asdict(window)[name]:.2f} → {value:.2f}" for name, value in asdict(length).items()]


if __name__ == "__main__":
    sys.exit(launch(main))
