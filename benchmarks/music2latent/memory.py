"""Peak memory of long decodes, a fresh process each: streaming should not depend on the length, official chunks do on theirs."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from benchmarks.results import describe_run, launch, say, suite_parser, write_results
from musicrt.runtime.measure import Measurement, markdown_table, peak_memory_mb, run_isolated
from musicrt.runtime.model import load
from musicrt.runtime.models.music2latent.windows import OVERLAP, WINDOW

_LOADED = "one latent"


def main(arguments: Sequence[str]) -> None:
    """Run the suite. Raises MusicRTError."""
    parser = suite_parser("music2latent.memory", "Peak memory of streaming decodes by length, and of official chunks by their length.")
    parser.add_argument("--backend", default="onnxruntime-cpu", help="default: %(default)s")
    parser.add_argument("--steps", type=int, default=1, help="network evaluations (default: %(default)s)")
    parser.add_argument("--durations", type=float, nargs="+", default=[60.0, 600.0], help="seconds to stream (default: %(default)s)")
    parser.add_argument("--window", type=float, default=WINDOW, help="seconds in a streaming window (default: %(default)s)")
    parser.add_argument("--overlap", type=float, default=OVERLAP, help="seconds that windows share (default: %(default)s)")
    parser.add_argument("--chunks", type=float, nargs="*", default=[1.5, 5.0, 10.0], help="seconds in a chunk (default: %(default)s)")
    parser.add_argument("--chunked", type=float, default=20.0, help="seconds decoded in official chunks (default: %(default)s)")
    options = parser.parse_args(arguments)
    settings = {name: getattr(options, name) for name in ("backend", "steps", "window", "overlap", "chunked")}
    content = describe_run("memory", options.bundle, settings, options.threads)
    common = {"bundle": str(options.bundle), "backend": options.backend, "threads": options.threads, "steps": options.steps}
    cases: list[dict[str, Any]] = [{"name": _LOADED, "seconds": 0.0}]
    for seconds in options.durations:
        cases.append({"name": f"stream, {seconds:g} s", "seconds": seconds, "window": options.window, "overlap": options.overlap})
    for chunk in options.chunks:
        cases.append({"name": f"official, chunks of {chunk:g} s", "seconds": max(options.chunked, chunk), "chunk": chunk})
    measured = []
    for case in cases:
        say(f"{case['name']} …")
        measured.append(Measurement.from_json(run_isolated("benchmarks.music2latent.memory:decode_once", {**common, **case})))
    content["measurements"] = [m.to_json() for m in measured]
    write_results(options.out, content, render(measured, [m for m in measured if m.name.startswith("stream")]))


def decode_once(
    bundle: str,
    backend: str,
    threads: int | None,
    steps: int,
    name: str,
    seconds: float,
    *,
    window: float = WINDOW,
    overlap: float = OVERLAP,
    chunk: float | None = None,
) -> dict[str, Any]:
    """In a fresh process: decode so many seconds (one latent at least) of random latents, streaming or in chunks of `chunk` s."""
    codec = load(bundle, backend=backend, threads=threads)
    config = codec.config
    count = max(round(seconds * codec.sample_rate / config.samples_per_latent), 1)
    latents = np.random.default_rng(3).standard_normal((1, config.bottleneck_channels, count), np.float32)
    start = time.perf_counter()
    if chunk is None:
        samples = sum(block.shape[1] for block in codec.decode_stream(latents, steps=steps, seed=0, window=window, overlap=overlap))
    else:
        samples = codec.decode(latents, steps=steps, seed=0, max_waveform_length=round(chunk * codec.sample_rate)).shape[1]
    elapsed = time.perf_counter() - start
    return Measurement(name, (elapsed,), samples / codec.sample_rate, (peak_memory_mb(),)).to_json()


def render(measured: Sequence[Measurement], streams: Sequence[Measurement]) -> str:
    """A table, and how memory grows with the length of a stream."""
    peaks = {m.name: m.peaks_mb[0] for m in measured}
    rows = [
        [
            m.name,
            *(f"{value:.0f}" for value in (peaks[m.name], peaks[m.name] - peaks[_LOADED])),
            f"{m.p50:.1f}",
            f"{m.real_time_factor:.3f}",
        ]
        for m in measured
    ]
    lines = [markdown_table(("decode", "peak MB", f"above {_LOADED}", "time, s", "real-time factor"), rows)]
    if len(streams) > 1:
        short, long = streams[0].name, streams[-1].name
        lines.append(f"Peak of {long} : {short} = {peaks[long] / peaks[short]:.2f}.")
    return "\n\n".join(lines)


if __name__ == "__main__":
    sys.exit(launch(main))
