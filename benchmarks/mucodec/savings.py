"""The share of each saving: what is left out, computed once, or batched, with it and without it, on ONNX Runtime.

Each saving is undone on its own, on the graphs of the bundle where that is possible: MuQ exported with all its layers; the rows of
guidance one after the other; context tokens and time embedding in every step; the VAE exported with its upsampling as it is. The
calls of a comparison run in turn in one process. The vocoder is timed by the frame, of a long piece and of the ends of chunks, and
windows by the window; how many are run with and without is counted.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.graphs import export_like_stage, open_like_stage
from benchmarks.mucodec.savings_tables import Sizes, render
from benchmarks.mucodec.workload import GUIDANCE, STEPS, TIME, Workload
from benchmarks.results import describe_run, launch, say, suite_parser, write_results
from benchmarks.rounds import time_in_turn
from musicrt.runtime.backends.onnxruntime import OnnxCpu
from musicrt.runtime.bundle import Bundle
from musicrt.runtime.loops.flow import EulerSchedule
from musicrt.runtime.measure import run_isolated
from musicrt.runtime.model import Model, load
from musicrt.runtime.models.mucodec.config import CODE_RATE
from musicrt.runtime.models.mucodec.lengths import WINDOW

_GROUPS = ("encoder", "estimator", "vae", "vocoder")


def main(arguments: Sequence[str]) -> None:
    """Run the suite. Raises MusicRTError."""
    parser = suite_parser("mucodec.savings", "With and without each saving.")
    parser.add_argument("--checkpoint", type=Path, required=True, help="the official checkpoint that the bundle was made from")
    parser.add_argument("--clip", type=float, default=10.0, help="seconds of the clip whose windows are counted (default: %(default)s)")
    parser.add_argument("--codes", type=int, default=WINDOW, help="of MuQ's window (default: %(default)s)")
    parser.add_argument("--frames", type=int, default=128, help="latent frames of the step (default: %(default)s)")
    parser.add_argument("--vae", type=int, default=64, help="latent frames of the VAE, one channel (default: %(default)s)")
    parser.add_argument("--vocoder", type=int, default=256, help="mel frames of the vocoder, one channel (default: %(default)s)")
    parser.add_argument("--ends", type=int, default=6, help="ends of chunks that run together (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=STEPS, help="of the decode that is put together (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=2, help="timed calls (default: %(default)s)")
    options = parser.parse_args(arguments)
    sizes = Sizes(options.clip, options.codes, options.frames, options.vae, options.vocoder, options.ends, options.steps)
    settings = {**sizes.to_json(), "guidance": GUIDANCE, "repeats": options.repeats}
    content = describe_run("savings", options.bundle, settings, options.threads)
    asked = {"bundle": str(options.bundle), "checkpoint": str(options.checkpoint), "threads": options.threads, "repeats": options.repeats}
    times: dict[str, list[float]] = {}
    for group in _GROUPS:
        say(f"{group} …")
        times |= run_isolated(f"{_MODULE}:time_group", {**asked, "group": group, "sizes": sizes.to_json()})
    content |= {"times": times}
    write_results(options.out, content, render(times, sizes, Workload.build(Bundle.open(options.bundle).spec.config)))


def time_group(
    group: str, bundle: str, checkpoint: str, threads: int | None, repeats: int, sizes: dict[str, Any]
) -> dict[str, list[float]]:
    """In a fresh process: seconds of each repeat of the calls of one of the groups."""
    size = Sizes(**sizes)
    with load(bundle, backend=OnnxCpu.name, threads=threads) as codec, tempfile.TemporaryDirectory(prefix="musicrt-savings-") as folder:
        work = Workload.build(codec.model.spec.config)
        match group:
            case "encoder":
                calls = encoder_calls(codec, work, size, Path(checkpoint), Path(folder), threads)
            case "estimator":
                calls = estimator_calls(codec, work, size)
            case "vae":
                calls = vae_calls(codec.model, work, size, Path(checkpoint), Path(folder), threads)
            case _:
                calls = vocoder_calls(codec, work, size)
        return time_in_turn(calls, repeats)


def encoder_calls(
    codec: Any, work: Workload, size: Sizes, checkpoint: Path, folder: Path, threads: int | None
) -> dict[str, Callable[[], object]]:
    """MuQ with the layers that are read and with all of them, and what makes its input of a window of sound."""
    stage = work.spec.stage("muq")
    whole = open_like_stage(stage, export_muq(work, checkpoint, folder), threads)
    feeds, sound = work.feeds("muq", codes=size.codes), work.audio(size.codes / CODE_RATE)[None]
    return {
        "spectrogram": lambda: codec.windows.analyse(sound),
        "MuQ": lambda: codec.windows.features(feeds["mel"]),
        "MuQ, all layers": lambda: whole.run(feeds),
    }


def export_muq(work: Workload, checkpoint: Path, folder: Path) -> Path:
    """MuQ with all its layers, otherwise as in a bundle; gives the last hidden state."""
    from benchmarks.mucodec.networks import read_networks
    from musicrt.runtime.models.mucodec.stages import TappedMuq

    networks = read_networks(checkpoint, work.config, layers=work.config.muq.encoder_depth)
    return export_like_stage(work.spec.stage("muq"), TappedMuq(networks.muq, networks.config), folder)


def estimator_calls(codec: Any, work: Workload, size: Sizes) -> dict[str, Callable[[], object]]:
    """A step for both rows of guidance and for one after the other, and what would be done with it in every step."""
    model, sampler = codec.model, codec.sampler
    x, condition, known = work.signal(size.frames)
    told = model.session("timesteps").run({"timestep": np.full(1, TIME, np.float32)})
    context = sampler.contexts(condition, known, 2)

    def bind(rows: slice) -> Callable[[], None]:
        feeds = {"context": np.ascontiguousarray(context[rows]), "x": x, **told}
        velocity = np.empty((len(feeds["context"]), *x.shape), np.float32)
        call: Callable[[], None] = model.session("estimator").bind(feeds, {"velocity": velocity})
        return call

    first, second, schedule = bind(slice(0, 1)), bind(slice(1, 2)), EulerSchedule.build(size.steps)

    def one_by_one() -> None:
        first()
        second()

    return {
        "step": bind(slice(0, 2)),
        "step, one row after the other": one_by_one,
        "context of both rows": lambda: sampler.contexts(condition, known, 2),
        "all times": lambda: model.session("timesteps").run({"timestep": schedule.times}),
        "one time": lambda: model.session("timesteps").run({"timestep": schedule.times[:1]}),
    }


def vae_calls(
    model: Model, work: Workload, size: Sizes, checkpoint: Path, folder: Path, threads: int | None
) -> dict[str, Callable[[], object]]:
    """The VAE with and without folded upsampling."""
    feeds = work.feeds("vae", frames=size.vae)
    plain = open_like_stage(work.spec.stage("vae"), export_vae(work, checkpoint, folder), threads)
    return {"VAE": lambda: model.session("vae").run(feeds), "VAE, upsampling not folded": lambda: plain.run(feeds)}


def export_vae(work: Workload, checkpoint: Path, folder: Path) -> Path:
    """The VAE's decoder of a checkpoint as it is, otherwise as in a bundle."""
    from benchmarks.mucodec.networks import OfficialVae, read_networks

    networks = read_networks(checkpoint, work.config, layers=work.config.layers)
    return export_like_stage(work.spec.stage("vae"), OfficialVae(networks.first_stage, networks.scale.scale_factor), folder)


def vocoder_calls(codec: Any, work: Workload, size: Sizes) -> dict[str, Callable[[], object]]:
    """The vocoder on a long piece, and on the ends of chunks as one batch."""
    session = codec.model.session("vocoder")
    piece = work.feeds("vocoder", mel_frames=size.vocoder)
    ends = work.feeds("vocoder", mel_frames=2 * codec.synthesis.reach, batch=size.ends)
    return {"vocoder": lambda: session.run(piece), "vocoder, ends": lambda: session.run(ends)}


_MODULE = "benchmarks.mucodec.savings"

if __name__ == "__main__":
    sys.exit(launch(main))
