"""Latency of MusicRT against the networks as officially run, part by part, and of a whole generation.

Every contender runs every part in a fresh process; the rounds go over the contenders in turn. Parts are warmed up by a smaller one of
the same kind, but `first` and a short `generate`, whose first call tells the cold start. What is timed last is also what is compared. A
whole generation officially takes seconds for each of 50 steps a second, so `generate` makes little music, for a video of two seconds;
the parts of `--alone` are measured with the bundle only.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.contenders import open_contender
from benchmarks.results import describe_run, launch, suite_parser, write_results
from benchmarks.rounds import Results, add_contest_options, compare_kept, keep_outputs, prepare_opening, run_contest
from benchmarks.tables import render_contest
from benchmarks.vidmuse.workload import GUIDANCE, KINDS, VIDEO, Contender, Part, Workload, list_parts
from musicrt.runtime.bench.rounds import split_repeats
from musicrt.runtime.measure import Measurement, markdown_table, measure, peak_memory_mb, since_start
from musicrt.runtime.models.vidmuse.audiocraft import FRAME_RATE

_CONTENDERS = ["eager", "torch-cpu", "onnxruntime-cpu"]
_SIZES: dict[str, list[float]] = {
    "condition": [30],
    "prefill": [26],
    "step": [],
    "encode": [10],
    "decode": [30],
    "generate": [1],
    "first": [30],
}
_QUICK = 5
"""Seconds of music that are generated once more for the cold start."""
NOTE = (
    "condition: a video whose frames are all different, 2 a second and 32 of the whole, from pixels on; eager does the same with as many "
    "black frames, MusicRT has done that once for the model, with one frame, before, and goes on to keys and values of all layers. "
    "prefill, step: with a condition of {tokens} tokens, that of black frames as long in eager. encode, decode: the whole signal in one "
    "call, with torch's LSTM, in eager; decode in blocks in MusicRT. generate: tokens and audio for a video of {video} s; seconds of audio "
    "are those that are made. first: from the frames of a video of so many seconds to a first block of audio. Transposed convolutions are "
    "torch's own in eager, which are wrong on some CPUs. Peak memory is that of a process that does nothing else; cold starts are told of "
    "first and of a short generate, whose distance is that of tokens or audio, whichever is larger; all have the same uniform numbers."
)


def main(arguments: Sequence[str]) -> None:
    """Run the suite. Raises MusicRTError."""
    parser = suite_parser("vidmuse.latency", "Latency of parts, and of a whole generation.")
    add_contest_options(parser, repeats=2, rounds=2)
    parser.set_defaults(contenders=_CONTENDERS)
    for kind, unit in KINDS.items():
        parser.add_argument(f"--{kind}", type=float, nargs="*", default=_SIZES[kind], metavar=unit.upper(), help="default: %(default)s")
    parser.add_argument("--parts", nargs="+", choices=list(KINDS), default=list(KINDS), help="which of them are measured; default: all")
    parser.add_argument("--alone", nargs="*", choices=list(KINDS), default=["first"], help="not with eager (default: %(default)s)")
    parser.add_argument("--tokens", type=int, default=3000, help="of the condition of prefill and step (default: %(default)s)")
    options = parser.parse_args(arguments)
    parts = list_parts({kind: getattr(options, kind) for kind in options.parts})
    settings = {"guidance": GUIDANCE, "tokens": options.tokens, "repeats": options.repeats, "rounds": options.rounds}
    content = describe_run("latency", options.bundle, settings, options.threads)
    opening = prepare_opening(options, "benchmarks.vidmuse.baselines")
    results: Results = {}
    rounds = split_repeats(options.repeats, options.rounds)
    with tempfile.TemporaryDirectory(prefix="musicrt-outputs-") as folder:
        asked = {"opening": opening, "work": {"outputs": folder, "tokens": options.tokens}}
        for alone in (False, True):
            tasks = [part.name for part in parts if (part.kind in options.alone) == alone]
            contenders = [name for name in options.contenders if not (alone and name == "eager")]
            if tasks and contenders:
                for name, rows in run_contest(_MODULE, contenders, tasks, rounds, asked).items():
                    results.setdefault(name, {}).update(rows)
    content["measurements"] = {name: [m.to_json() for m in rows.values()] for name, rows in results.items()}
    note = NOTE.format(tokens=options.tokens, video=VIDEO)
    tables = render_contest(results, [part.name for part in parts], (), note)
    write_results(options.out, content, f"{tables}\n\n{render_speed(results)}".strip())


def render_speed(results: Results) -> str:
    """Timesteps that are generated in a second, everything included."""
    names = list(results)
    parts = dict.fromkeys(row for rows in results.values() for row in rows if Part.parse(row).kind == "generate")
    rows = []
    for part in parts:
        found = [results[name].get(part) for name in names]
        rows.append([part, *("–" if m is None else f"{int(Part.parse(part).size * FRAME_RATE) / m.p50:.2f}" for m in found)])
    return f"## Timesteps for each second, from frames to audio\n\n{markdown_table(('', *names), rows)}" if rows else ""


def time_contender(opening: Mapping[str, Any], work: Mapping[str, Any], task: str, repeats: int) -> dict[str, Any]:
    """See `run_contest`. Keeps what the last call gave in the folder `outputs`."""
    contender: Contender = open_contender(**opening)
    workload, part = Workload.build(opening["config"], work["tokens"]), Part.parse(task)
    call, kept, colds = contender.prepare(part, workload), dict[str, Any](), tuple[float, ...]()
    if part.kind == "first" or (part.kind == "generate" and part.size <= _QUICK):
        kept.update(call())
        colds = (since_start(),)
    else:
        contender.prepare(part.small, workload)()
    times = measure(lambda: kept.update(call()), 0, repeats)
    keep_outputs(opening, work, task, kept)
    return {"measurements": [Measurement(task, times, part.seconds, (peak_memory_mb(),), colds).to_json()]}


compare_contender = compare_kept
_MODULE = "benchmarks.vidmuse.latency"  # not __name__, which is __main__ where this is run

if __name__ == "__main__":
    sys.exit(launch(main))
