"""The share of each saving: what is computed once, shared, folded or batched, with it and without it, on ONNX Runtime.

Of a decode, each saving is undone on its own, on the same graphs where that is possible: a batch of two that share nothing, and
two calls, instead of the rows of guidance; keys and values, and the time embedding, in every step; the VAE exported with its
upsampling as it is. The calls of a comparison run in turn in one process. Of an encode, the LSTM is timed alone, and batches of
segments in a process each.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.contenders import open_contender
from benchmarks.graphs import export_like_stage, open_like_stage
from benchmarks.results import describe_run, launch, say, suite_parser, write_results
from benchmarks.rounds import time_in_turn
from benchmarks.semanticodec.savings_tables import Batch, render
from benchmarks.semanticodec.workload import Contender, Float, Workload
from musicrt.runtime.backends.onnxruntime import OnnxCpu
from musicrt.runtime.bundle import Bundle
from musicrt.runtime.measure import measure, peak_memory_mb, run_isolated
from musicrt.runtime.model import Model, load
from musicrt.runtime.models.semanticodec.config import HOP, SAMPLE_RATE, SEGMENT_FRAMES
from musicrt.runtime.models.semanticodec.lengths import SEGMENT

_LSTMS = ("eager", "torch-cpu", "onnxruntime-cpu")
_MARGIN = 32  # frames that the vocoder gets beyond the end of a clip, as in the pipeline


def main(arguments: Sequence[str]) -> None:
    """Run the suite. Raises MusicRTError."""
    parser = suite_parser("semanticodec.savings", "With and without each saving, and the encoder by the size of its batches.")
    parser.add_argument("--checkpoint", type=Path, required=True, help="the official checkpoint that the bundle was made from")
    parser.add_argument("--steps", type=int, default=50, help="sampling steps of the decode that is put together (default: %(default)s)")
    parser.add_argument("--clip", type=float, default=2.0, help="seconds of the clip that the vocoder stops at (default: %(default)s)")
    parser.add_argument("--batches", type=int, nargs="*", default=[1, 4, 8, 16, 30], help="segments in a batch (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=7, help="timed calls of the parts of a decode (default: %(default)s)")
    parser.add_argument("--encode-repeats", type=int, default=3, help="of the LSTM and of each batch (default: %(default)s)")
    options = parser.parse_args(arguments)
    settings = {name: getattr(options, name) for name in ("steps", "clip", "repeats", "encode_repeats")}
    content = describe_run("savings", options.bundle, settings, options.threads)
    common = {"bundle": str(options.bundle), "threads": options.threads}
    decode, encode = {**common, "repeats": options.repeats}, {**common, "repeats": options.encode_repeats}
    say("evaluations …")
    times = run_isolated(f"{_MODULE}:time_evaluations", {**decode, "steps": options.steps})
    say("VAE and vocoder …")
    times |= run_isolated(f"{_MODULE}:time_synthesis", {**decode, "checkpoint": str(options.checkpoint), "clip": options.clip})
    lstms: dict[str, list[float]] = {}
    for name in _LSTMS:
        say(f"LSTM: {name} …")
        lstms |= run_isolated(f"{_MODULE}:time_lstm", {**encode, "checkpoint": str(options.checkpoint), "name": name})
    batches = []
    for size in options.batches:
        say(f"{size} segments …")
        batches.append(Batch(**run_isolated(f"{_MODULE}:time_batch", {**encode, "size": size})))
    content |= {"decode": times, "lstm": lstms, "batches": [asdict(batch) for batch in batches]}
    write_results(options.out, content, render(times, lstms, batches, options.steps, options.clip))


def time_evaluations(bundle: str, threads: int | None, repeats: int, steps: int) -> dict[str, list[float]]:
    """In a fresh process: seconds of an evaluation for both rows of guidance, and of what would be done with it in every step."""
    with Model.open(bundle, backend=OnnxCpu.name, threads=threads) as model:
        work = Workload.build(model.spec.config, 10.0)
        both = work.feeds("denoiser")
        context = {name: array for name, array in both.items() if name not in ("x", "shift")}

        def bind(rows: slice, batch: int) -> Callable[[], None]:
            """An evaluation of rows of guidance as rows of a batch, which share nothing."""
            feeds = {name: np.ascontiguousarray(array[rows].reshape(1, batch, *array.shape[2:])) for name, array in context.items()}
            feeds |= {name: np.repeat(both[name], batch, axis=0) for name in ("x", "shift")}
            return model.session("denoiser").bind(feeds, {"v": np.empty((1, *feeds["x"].shape), np.float32)})

        first, second = bind(slice(0, 1), 1), bind(slice(1, 2), 1)

        def one_by_one() -> None:
            first()
            second()

        conditioning, one, two = model.session("conditioning"), work.feeds("conditioning"), work.feeds("conditioning", batch=2)
        timesteps, schedule = model.session("timesteps"), np.arange(steps)
        calls: dict[str, Callable[[], object]] = {
            "evaluation": model.session("denoiser").bind(both, {"v": np.empty((2, *both["x"].shape), np.float32)}),
            "evaluation, nothing shared": bind(slice(0, 2), 2),
            "evaluation, one row after the other": one_by_one,
            "conditioning of a window": lambda: conditioning.run(one),
            "conditioning of both rows": lambda: conditioning.run(two),
            "all timesteps": lambda: timesteps.run({"timestep": schedule}),
            "one timestep": lambda: timesteps.run({"timestep": schedule[:1]}),
        }
        return time_in_turn(calls, repeats)


def time_synthesis(bundle: str, checkpoint: str, threads: int | None, repeats: int, clip: float) -> dict[str, list[float]]:
    """In a fresh process: seconds of the VAE with and without folded upsampling, of the vocoder for a whole window and for a clip."""
    with (
        Model.open(bundle, backend=OnnxCpu.name, threads=threads) as model,
        tempfile.TemporaryDirectory(prefix="musicrt-savings-") as folder,
    ):
        work = Workload.build(model.spec.config, clip)
        latent, mel = work.feeds("vae"), work.feeds("vocoder")["mel"]
        frames = min(round(clip * SAMPLE_RATE / HOP) + _MARGIN, SEGMENT_FRAMES)
        trimmed: Float = np.ascontiguousarray(mel[:, :frames])
        vocoder = model.session("vocoder")
        plain = open_like_stage(model.spec.stage("vae"), export_vae(bundle, checkpoint, Path(folder)), threads)
        calls: dict[str, Callable[[], object]] = {
            "VAE": lambda: model.session("vae").run(latent),
            "VAE, upsampling not folded": lambda: plain.run(latent),
            "vocoder": lambda: vocoder.run({"mel": mel}),
            "vocoder of the clip": lambda: vocoder.run({"mel": trimmed}),
        }
        return time_in_turn(calls, repeats)


def export_vae(bundle: str, checkpoint: str, folder: Path) -> Path:
    """The VAE of a checkpoint as it is, exported like the stages of a bundle."""
    from benchmarks.semanticodec.baselines import read_networks

    spec = Bundle.open(bundle).spec
    return export_like_stage(spec.stage("vae"), read_networks(Path(checkpoint), spec.config).vae, folder)


def time_lstm(name: str, bundle: str, checkpoint: str, threads: int | None, repeats: int) -> dict[str, list[float]]:
    """In a fresh process: seconds of the LSTM and its projection for one segment."""
    config: Mapping[str, Any] = Bundle.open(bundle).spec.config
    contender: Contender = open_contender(
        "semanticodec", name, bundle=bundle, checkpoint=checkpoint, plain="", config=config, threads=threads
    )
    stages = contender.stages(Workload.build(config, 10.0))
    return {name: list(measure(stages["residual"], 1, repeats))}


def time_batch(bundle: str, threads: int | None, repeats: int, size: int) -> dict[str, Any]:
    """In a fresh process: an encode of `size` segments as one batch, and the LSTM of it alone."""
    with load(bundle, backend=OnnxCpu.name, threads=threads) as codec:
        work = Workload.build(codec.model.spec.config, (size * SEGMENT - 2560) / SAMPLE_RATE)  # a multiple would have one segment more
        audio = work.audio()
        encode = measure(lambda: codec.encode(audio, max_batch_size=size), 1, repeats)
        peak = peak_memory_mb()
        feeds, session = work.feeds("residual", size), codec.model.session("residual")
        return {"size": size, "encode": list(encode), "lstm": list(measure(lambda: session.run(feeds), 0, repeats)), "peak_mb": peak}


_MODULE = "benchmarks.semanticodec.savings"

if __name__ == "__main__":
    sys.exit(launch(main))
