"""Peak memory of condition, step and codec beside what they cannot do without: the weights in use, keys and caches, and the activations.

Peak: resident memory of a fresh process over its whole life (VmHWM), interpreter, libraries and loading included.
Weights in use: bytes of the initialisers of the graphs of the stages that the task runs, those that graphs share counted once; of a
step also of the stage that makes the keys and values of its condition.
Activations: the most that torch's allocator held at once while the same stages did the same in torch, results included. A condition's
results are keys and values of all layers. Of a step keys, values and caches are added, as large as they are for a whole window. decode
works in blocks of 5 s, whatever the length, and is measured with 30 s.
Heap and mapped: resident memory of the process at its end, by what holds it; mapped are weights and libraries, read from files.
"""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from benchmarks.memory import allocated_mb, measure_uses, render_uses, use_once, weights_mb
from benchmarks.results import describe_run, launch, say, suite_parser, write_results
from benchmarks.vidmuse.contenders import OnBackend
from benchmarks.vidmuse.traffic import Traffic
from benchmarks.vidmuse.workload import Part, Workload, list_parts
from musicrt.runtime.backends.torch import TorchCpu
from musicrt.runtime.bundle import Bundle
from musicrt.runtime.measure import run_isolated

_LANGUAGE = ("cross", "lm")
STAGES = {
    "condition": ("visual", "local", "global", "fuse", "cross"),
    "prefill": _LANGUAGE,
    "step": _LANGUAGE,
    "encode": ("codec-encoder", "quantizer"),
    "decode": ("dequantizer", "recurrence", "synthesis"),
}
"""What the tasks run."""
_SIZES = {"condition": [30.0], "prefill": [26.0], "step": [1502.0], "encode": [30.0], "decode": [30.0, 600.0]}
_DEFAULT = ["condition", "step", "encode", "decode"]
_MEASURED = 30.0
"""Seconds whose decode is measured for activations, at most."""


def main(arguments: Sequence[str]) -> None:
    """Run the suite. Raises MusicRTError."""
    parser = suite_parser("vidmuse.memory", "Peak memory of parts beside weights, caches and activations.")
    parser.add_argument("--backends", nargs="+", default=["onnxruntime-cpu"], help="default: %(default)s")
    parser.add_argument("--parts", nargs="+", choices=list(STAGES), default=_DEFAULT, help="default: %(default)s")
    for kind, sizes in _SIZES.items():
        unit = "COLUMNS" if kind in ("prefill", "step") else "S"
        parser.add_argument(f"--{kind}", type=float, nargs="+", default=sizes, metavar=unit, help="default: %(default)s")
    parser.add_argument("--tokens", type=int, default=3000, help="of the condition of prefill and step (default: %(default)s)")
    parser.add_argument("--no-activations", action="store_true", help="leave out the run in torch")
    options = parser.parse_args(arguments)
    parts = list_parts({kind: getattr(options, kind) for kind in options.parts})
    content = describe_run("memory", options.bundle, {"tokens": options.tokens}, options.threads)
    common = {"bundle": str(options.bundle), "threads": options.threads}
    weights = {kind: weights_mb(options.bundle, STAGES[kind]) for kind in options.parts}
    activations: dict[str, float] = {}
    for part in () if options.no_activations else parts:
        if part.kind == "decode" and part.kind in activations:
            continue
        say(f"activations: {part.name} …")
        asked = {**common, "part": part.name, "tokens": options.tokens}
        name = part.kind if part.kind == "decode" else part.name
        activations[name] = run_isolated(f"{_MODULE}:measure_activations", asked)["mb"]
    tasks = {part.name: {"part": part.name, "tokens": options.tokens} for part in parts}
    uses, idle = measure_uses(_MODULE, options.backends, tasks, common)
    content |= {"weights_mb": weights, "activations_mb": activations, "idle_mb": idle, "uses": [use.to_json() for use in uses]}
    write_results(options.out, content, render_uses(uses, idle, weights, activations, (__doc__ or "").split("\n\n")[1]))


def measure_activations(bundle: str, threads: int | None, part: str, tokens: int) -> dict[str, float]:
    """In a fresh process: what the stages need for a part in torch, in MB of 10**6 bytes, keys and caches included."""
    asked, work = Part.parse(part), build_work(bundle, tokens)
    if asked.kind == "decode":
        asked = Part("decode", min(asked.size, _MEASURED))
    contender = OnBackend(bundle, TorchCpu.name, threads)
    contender.prepare(asked.small, work)()  # what is made once is no activation
    return {"mb": allocated_mb(prepare_task(contender, asked, work)) + held_mb(asked, work)}


def held_mb(part: Part, work: Workload) -> float:
    """Keys and values of the condition, and caches, that a step has before it begins."""
    if part.kind not in ("prefill", "step"):
        return 0.0
    traffic = Traffic.of_step(work.config, work.tokens, work.capacity - 1)
    return (traffic.condition + traffic.caches) / 1e6


def run_task(bundle: str, backend: str, threads: int | None, part: str, tokens: int) -> dict[str, Any]:
    """In a fresh process: a part once, as in the pipeline."""
    asked, work = Part.parse(part), build_work(bundle, tokens)
    return use_once(part, prepare_task(OnBackend(bundle, backend, threads), asked, work), asked.seconds or 0.0)


def prepare_task(contender: OnBackend, part: Part, work: Workload) -> Callable[[], object]:
    """A call that runs the part; a decode keeps no block of what it gives."""
    if part.kind != "decode":
        return contender.prepare(part, work)
    codes = work.codes(part.size)
    return lambda: deque(contender.codec.audio.decode(codes), maxlen=0)


def build_work(bundle: str, tokens: int) -> Workload:
    """A window of so many tokens of condition."""
    return Workload.build(Bundle.open(bundle).spec.config, tokens)


_MODULE = "benchmarks.vidmuse.memory"

if __name__ == "__main__":
    sys.exit(launch(main))
