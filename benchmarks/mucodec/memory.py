"""Peak memory of encode, of a step, of VAE and vocoder beside what they cannot do without: the weights in use and the activations.

Peak: resident memory of a fresh process over its whole life (VmHWM), interpreter, libraries and loading included.
Weights in use: bytes of the initialisers of the graphs of the stages that the task runs, those that graphs share counted once.
Activations: the most that torch's allocator held at once, beyond weights and inputs, while the networks as officially run did the
same: MuQ one window, the estimator both rows of guidance, the VAE with the matrix of all scores, the vocoder one chunk; of one channel.
Heap and mapped: resident memory of the process at its end, by what holds it; mapped are weights and libraries, read from files.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.memory import allocated_mb, measure_uses, render_uses, use_once, weights_mb
from benchmarks.mucodec.contenders import OnBackend
from benchmarks.mucodec.workload import GUIDANCE, Part, Workload, list_parts
from benchmarks.results import describe_run, launch, say, suite_parser, write_results
from musicrt.runtime.bundle import Bundle
from musicrt.runtime.measure import run_isolated

STAGES = {
    "encode": ("muq", "quantizer"),
    "step": ("normfeat", "context", "timesteps", "estimator"),
    "vae": ("vae",),
    "vocoder": ("vocoder",),
}
"""What the tasks run."""
_SIZES = {"encode": [40.9], "step": [128.0], "vae": [64.0], "vocoder": [128.0]}


def main(arguments: Sequence[str]) -> None:
    """Run the suite. Raises MusicRTError."""
    parser = suite_parser("mucodec.memory", "Peak memory of parts beside weights and activations.")
    parser.add_argument("--checkpoint", type=Path, required=True, help="the official checkpoint that the bundle was made from")
    parser.add_argument("--backends", nargs="+", default=["onnxruntime-cpu", "torch-cpu"], help="default: %(default)s")
    parser.add_argument("--parts", nargs="+", choices=list(STAGES), default=list(STAGES), help="default: all")
    for kind, sizes in _SIZES.items():
        unit = "S" if kind == "encode" else "FRAMES"
        parser.add_argument(f"--{kind}", type=float, nargs="+", default=sizes, metavar=unit, help="default: %(default)s")
    parser.add_argument("--no-activations", action="store_true", help="leave out the networks as officially run")
    options = parser.parse_args(arguments)
    parts = [part.name for part in list_parts({kind: getattr(options, kind) for kind in options.parts}, 1)]
    content = describe_run("memory", options.bundle, {"guidance": GUIDANCE}, options.threads)
    common = {"bundle": str(options.bundle), "threads": options.threads}
    weights = {kind: weights_mb(options.bundle, STAGES[kind]) for kind in options.parts}
    activations: dict[str, float] = {}
    for part in () if options.no_activations else parts:
        say(f"activations: {part} …")
        asked = {**common, "checkpoint": str(options.checkpoint), "part": part}
        activations[part] = run_isolated(f"{_MODULE}:measure_activations", asked)["mb"]
    uses, idle = measure_uses(_MODULE, options.backends, {part: {"part": part} for part in parts}, common)
    content |= {"weights_mb": weights, "activations_mb": activations, "idle_mb": idle, "uses": [use.to_json() for use in uses]}
    write_results(options.out, content, render_uses(uses, idle, weights, activations, (__doc__ or "").split("\n\n")[1]))


def measure_activations(bundle: str, checkpoint: str, threads: int | None, part: str) -> dict[str, float]:
    """In a fresh process: what the official networks need for a part, in MB of 10**6 bytes; of a clip, for one window of it."""
    from benchmarks.mucodec.baselines import Eager

    config = Bundle.open(bundle).spec.config
    eager, work, asked = Eager(Path(checkpoint), config, threads), Workload.build(config), Part.parse(part)
    eager.prepare(asked.small, work)()  # what is made once is no activation
    return {"mb": allocated_mb(eager.prepare(Part("muq", 1024) if asked.kind == "encode" else asked, work))}


def run_task(bundle: str, backend: str, threads: int | None, part: str) -> dict[str, Any]:
    """In a fresh process: a part once, as in the pipeline."""
    contender, asked = OnBackend(bundle, backend, threads), Part.parse(part)
    return use_once(part, contender.prepare(asked, Workload.build(contender.codec.model.spec.config)), asked.seconds)


_MODULE = "benchmarks.mucodec.memory"

if __name__ == "__main__":
    sys.exit(launch(main))
