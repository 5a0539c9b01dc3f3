"""Peak memory of encode and decode beside what they cannot do without: the weights in use and the activations of one window.

Peak: resident memory of a fresh process over its whole life (VmHWM), interpreter, libraries and loading included.
Weights in use: bytes of the initialisers of the graphs of the stages that the task runs, those that graphs share counted once.
Activations: the most that torch's allocator held at once, beyond weights and inputs, while the networks as officially run took one
segment (encode) or one evaluation, VAE and vocoder of a whole window (decode); so what a straightforward implementation needs.
Heap and mapped: resident memory of the process at its end, by what holds it; mapped are weights and libraries, read from files.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.memory import Use, allocated_mb, measure_uses, render_uses, use_once, weights_mb
from benchmarks.results import describe_run, launch, say, suite_parser, write_results
from benchmarks.semanticodec.workload import GUIDANCE, Workload
from musicrt.runtime.bundle import Bundle
from musicrt.runtime.measure import markdown_table, run_isolated
from musicrt.runtime.model import load

STAGES = {
    "encode": ("audiomae", "semantic", "residual", "acoustic"),
    "decode": ("embedding", "conditioning", "timesteps", "denoiser", "vae", "vocoder"),
}
"""What the two tasks run."""
_PARTS = {"encode": STAGES["encode"], "decode": ("embedding", "unet", "vae", "vocoder")}


def main(arguments: Sequence[str]) -> None:
    """Run the suite. Raises MusicRTError."""
    parser = suite_parser("semanticodec.memory", "Peak memory of encode and decode beside weights and activations.")
    parser.add_argument("--checkpoint", type=Path, required=True, help="the official checkpoint that the bundle was made from")
    parser.add_argument("--backends", nargs="+", default=["onnxruntime-cpu", "torch-cpu"], help="default: %(default)s")
    parser.add_argument("--seconds", type=float, nargs="+", default=[10.0, 60.0], help="lengths of the audio (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=2, help="sampling steps, on which memory does not depend (default: %(default)s)")
    options = parser.parse_args(arguments)
    settings = {"seconds": options.seconds, "steps": options.steps, "guidance": GUIDANCE}
    content = describe_run("memory", options.bundle, settings, options.threads)
    common = {"bundle": str(options.bundle), "threads": options.threads}
    weights = {way: weights_mb(options.bundle, stages) for way, stages in STAGES.items()}
    say("activations …")
    activations = run_isolated(f"{_MODULE}:measure_activations", {**common, "checkpoint": str(options.checkpoint)})
    tasks = {
        f"{way}, {seconds:g} s": {"way": way, "seconds": seconds, "steps": options.steps} for way in STAGES for seconds in options.seconds
    }
    uses, idle = measure_uses(_MODULE, options.backends, tasks, common)
    content |= {"weights_mb": weights, "activations_mb": activations, "idle_mb": idle, "uses": [use.to_json() for use in uses]}
    write_results(options.out, content, render(uses, idle, weights, activations))


def measure_activations(bundle: str, checkpoint: str, threads: int | None) -> dict[str, float]:
    """In a fresh process: the activations of each of the official networks for one segment or window, in MB."""
    import torch

    from benchmarks.semanticodec.baselines import Eager
    from benchmarks.semanticodec.official import example_inputs

    config = Bundle.open(bundle).spec.config
    eager, work = Eager(Path(checkpoint), config, threads), Workload.build(config, 10.0)
    onednn: Any = torch.backends.mkldnn
    found = {}
    for part in dict.fromkeys(part for parts in _PARTS.values() for part in parts):
        call = partial(eager.run, part, *example_inputs(part, work))
        onednn.enabled = part != "residual"  # whose LSTM it would run after reordering the weights, in every call
        call()  # what is made once is no activation
        found[part] = allocated_mb(call)
    return found


def run_task(bundle: str, backend: str, threads: int | None, way: str, seconds: float, steps: int) -> dict[str, Any]:
    """In a fresh process: one encode or decode, as a user calls it."""
    codec = load(bundle, backend=backend, threads=threads)
    work = Workload.build(codec.model.spec.config, seconds)

    def call() -> None:
        if way == "encode":
            codec.encode(work.audio())
        else:
            for _ in codec.decode_stream(work.tokens, steps=steps, guidance=GUIDANCE, seed=0):
                pass

    return use_once(way, call, seconds)


def render(uses: Sequence[Use], idle: Mapping[str, float], weights: Mapping[str, float], activations: Mapping[str, float]) -> str:
    """Tables, and what their columns mean."""
    most = {way: max(activations[part] for part in parts) for way, parts in _PARTS.items()}
    parts = markdown_table(("network", "activations, MB"), [[part, f"{value:.1f}"] for part, value in activations.items()])
    sections = [render_uses(uses, idle, weights, most, (__doc__ or "").split("\n\n")[1])]
    return "\n\n".join([*sections, "## Activations of one segment or window", parts])


_MODULE = "benchmarks.semanticodec.memory"

if __name__ == "__main__":
    sys.exit(launch(main))
