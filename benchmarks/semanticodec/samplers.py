"""How far samplers with few steps are from the official sampling, and from a deterministic run of many steps.

Distances are relative L2 of latents. All runs decode the same tokens from the same initial noise, but for the row that says
otherwise. DDIM with eta 1, the official way, adds noise in every step: another seed gives another result, and that distance is the
natural spread. Samplers that add none (eta 0, DPM-Solver++) all approach one result when their steps become many, the reference, and
that is another one than the official: between the two lies the noise of the steps, which no number of steps removes.

With stand-in weights, as in the committed results, the network predicts nothing that is like audio. Its field is a smooth function
all the same, so the distances say how well each solver follows such a field; they say nothing of how the results sound, and trained
weights will give other numbers. How many steps are enough has to be judged by ear, with trained weights.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from benchmarks.results import describe_run, launch, say, suite_parser, write_results
from benchmarks.semanticodec.workload import GUIDANCE, Float, Workload
from musicrt.runtime.measure import markdown_table
from musicrt.runtime.model import load
from musicrt.runtime.models.semanticodec.noise import Place, SeededNoise
from musicrt.runtime.models.semanticodec.options import SamplerName
from musicrt.runtime.verify import relative_error

_SEED = 5


@dataclass(frozen=True)
class Run:
    """A sampler's way to a latent. steps: evaluations of the network for both rows of guidance."""

    sampler: str
    asked: int
    steps: int
    seconds: float
    from_official: float
    from_reference: float


def main(arguments: Sequence[str]) -> None:
    """Run the suite. Raises MusicRTError."""
    parser = suite_parser("semanticodec.samplers", "Distances of samplers from the official one and from a run of many steps.")
    parser.add_argument("--backend", default="onnxruntime-cpu", help="default: %(default)s")
    parser.add_argument("--seconds", type=float, default=10.0, help="length of the audio, one window at most (default: %(default)s)")
    parser.add_argument("--steps", type=int, nargs="+", default=[5, 10, 15, 20, 50], help="default: %(default)s")
    parser.add_argument("--official-steps", type=int, default=50, help="of the official sampling (default: %(default)s)")
    parser.add_argument("--reference-steps", type=int, default=500, help="of the reference (default: %(default)s)")
    options = parser.parse_args(arguments)
    settings = {name: getattr(options, name) for name in ("seconds", "steps", "official_steps", "reference_steps")}
    with load(options.bundle, backend=options.backend, threads=options.threads) as codec:
        content = describe_run("samplers", options.bundle, {"backend": codec.backend.name, **settings}, options.threads)
        found = compare_samplers(codec, **settings)
    content["runs"] = [asdict(run) for run in found]
    write_results(options.out, content, render(found, options.official_steps, options.reference_steps))


def compare_samplers(codec: Any, *, seconds: float, steps: Sequence[int], official_steps: int, reference_steps: int) -> list[Run]:
    """Run every sampler with every number of steps."""
    tokens = Workload.build(codec.model.spec.config, seconds).tokens[:, : codec.config.tokens]
    feature = np.full((1, codec.config.tokens, 2 * codec.config.feature_dim), -1.0, np.float32)
    feature[:, : tokens.shape[1]] = codec.decoder.embed(tokens)
    reference = _sample(codec, feature, "ddim", reference_steps, 0.0, _SEED)[0]
    official = _sample(codec, feature, "ddim", official_steps, 1.0, _SEED)[0]

    def run(label: str, sampler: SamplerName, asked: int, eta: float | None, seed: int = _SEED) -> Run:
        latent, taken, elapsed = _sample(codec, feature, sampler, asked, eta, seed)
        return Run(label, asked, taken, elapsed, _distance(latent, official), _distance(latent, reference))

    found = [run("ddim, eta 1, another seed", "ddim", official_steps, 1.0, _SEED + 1)]
    for count in steps:
        found.append(run("ddim, eta 1", "ddim", count, 1.0))
        found.append(run("ddim, eta 0", "ddim", count, 0.0))
        found.append(run("dpm-solver++", "dpm-solver++", count, None))
    return found


def _sample(codec: Any, feature: Float, sampler: SamplerName, steps: int, eta: float | None, seed: int) -> tuple[Float, int, float]:
    """The latent float32 [1, 8, 256, 16], the evaluations it took, and the seconds."""
    prepared = codec.sampler.prepare(sampler, steps, GUIDANCE, eta)
    say(f"{sampler}, eta {eta}: {prepared.steps} steps …")
    draw = SeededNoise(seed).at([Place(0, 0)], prepared.draws)
    start = time.perf_counter()
    latent: Float = prepared.run(feature, draw, lambda: None)
    return latent, prepared.steps, time.perf_counter() - start


def _distance(latent: Float, other: Float) -> float:
    return relative_error({"": latent}, {"": other})


def render(found: Sequence[Run], official_steps: int, reference_steps: int) -> str:
    """A table, and what it means."""
    header = (
        "sampler",
        "steps asked",
        "evaluations",
        f"from ddim, eta 1, {official_steps} steps",
        f"from ddim, eta 0, {reference_steps} steps",
        "s",
    )
    rows = [
        [run.sampler, str(run.asked), str(run.steps), f"{run.from_official:.3f}", f"{run.from_reference:.3f}", f"{run.seconds:.1f}"]
        for run in found
    ]
    return "\n\n".join([markdown_table(header, rows), *(" ".join(part.split()) for part in (__doc__ or "").split("\n\n")[1:])])


if __name__ == "__main__":
    sys.exit(launch(main))
