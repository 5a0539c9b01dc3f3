"""Building TensorRT engines: time, peak memory and plan size of every stage and target, each in a fresh process. Runs without a GPU."""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.results import describe_run, launch, say, suite_parser, write_results
from musicrt.engines.build import FLAVOURS, build_engines
from musicrt.engines.inspect import inspect_engines
from musicrt.runtime.bundle import Bundle
from musicrt.runtime.errors import MusicRTError
from musicrt.runtime.measure import markdown_table, peak_memory_mb, run_isolated
from musicrt.runtime.precision import Precision

_HEADER = (
    "stage",
    "targets",
    "precision",
    "distance",
    "layers",
    "int8",
    "float32",
    "undeclared",
    "seconds",
    "peak MB",
    "plan MB",
    "activations MB",
    "weights MB",
)


def main(arguments: Sequence[str]) -> None:
    """Run the suite; exits with 1 if a stage did not build. Raises MusicRTError."""
    parser = suite_parser("engines", "Time, memory and plan size of building every stage.")
    parser.add_argument("--engine", default="tensorrt-rtx", help="default: %(default)s")
    parser.add_argument("--target", nargs="*", default=["sm_86,sm_89,sm_120"], help="one plan for each; default: %(default)s")
    parser.add_argument("--stages", nargs="*", default=(), help="default: all")
    parser.add_argument("--precision", choices=list(FLAVOURS), default="float16", help="default: %(default)s")
    parser.add_argument("--profile", nargs="+", default=["latency"], help="buckets (default: %(default)s)")
    options = parser.parse_args(arguments)
    settings = {"engine": options.engine, "precision": options.precision, "profile": ", ".join(options.profile)}
    content = describe_run("engines", options.bundle, settings, options.threads)
    names = [stage.name for stage in Bundle.open(options.bundle).spec.stages]
    rows: list[dict[str, Any]] = []
    for stage in [name for name in names if not options.stages or name in options.stages]:
        for target in options.target:
            say(f"{stage}, {target} …")
            case = {"engine": options.engine, "targets": target.split(","), "stage": stage}
            case |= {"profiles": options.profile, "precision": options.precision}
            rows.append(run_isolated(f"{__spec__.name}:build_once", {"bundle": str(options.bundle), **case}))
            say(f"  {rows[-1]}")
    content["stages"] = rows
    write_results(options.out, content, render(rows))
    if any("error" in row for row in rows):
        raise SystemExit(1)


def build_once(bundle: str, engine: str, targets: list[str], stage: str, profiles: list[str], precision: Precision) -> dict[str, Any]:
    """In a fresh process: build one stage in a copy of the bundle whose large files are hard links. Peak memory is that of the process."""
    with tempfile.TemporaryDirectory(prefix="musicrt-engines-", dir=Path(bundle).resolve().parent) as folder:
        copy = Path(folder) / "bundle"
        shutil.copytree(bundle, copy, copy_function=_link, ignore=shutil.ignore_patterns("engines"))
        (copy / "manifest.json").unlink()
        manifest = Bundle.open(bundle).manifest.model_copy(update={"engines": {}})
        (copy / "manifest.json").write_text(manifest.model_dump_json())
        row: dict[str, Any] = {"stage": stage, "targets": targets}
        loaded = peak_memory_mb()
        try:
            (built,) = build_engines(copy, engine, targets=targets, stages=[stage], profiles=profiles, precision=precision)
        except MusicRTError as error:
            return {**row, "error": str(error)}
        (found,) = inspect_engines(Bundle.open(copy))
        return {
            **row,
            "version": built.entry.version,
            "precision": built.entry.precision,
            "distance": Bundle.open(copy).graph(stage, built.entry.flavour)[1].error,
            "int8": found.integers,
            "layers": found.totals.total(),
            "float32": found.islands(),
            "undeclared": [layer.name for layer in found.undeclared],
            "seconds": built.seconds,
            "peak_mb": peak_memory_mb(),
            "before_mb": loaded,
            "plan_bytes": built.entry.file.bytes,
            "activation_bytes": built.entry.activation_bytes,
            "weight_bytes": built.entry.weight_bytes,
            "profiles": [profile.model_dump() for profile in built.entry.profiles],
        }


def render(rows: Sequence[dict[str, Any]]) -> str:
    """The table and what its columns mean."""
    return "\n\n".join(
        [
            markdown_table(_HEADER, [_cells(row) for row in rows], text_columns=3),
            "Distance: of the graph from float32 as the manifest has it, on a CPU. Layers: those that compute, of the network definition "
            "before TensorRT fuses them; int8: how many of them have weights of 8 bits; float32: how many are on islands "
            "of a stage in half precision, or the whole stage; undeclared: float32 layers that the spec names by module or not at all. "
            "Seconds: parsing and building. Peak: resident memory of the process. Activations: scratch memory for the largest sizes of the "
            "profiles, as the builder's log says. Nothing here ran on a GPU.",
        ]
    )


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
    targets = ", ".join(row["targets"])
    if "error" in row:
        return (row["stage"], targets, f"not built: {row['error']}", *[""] * (len(_HEADER) - 3))
    wide = sum(row["float32"].values())
    sizes = (f"{row[name] / 1e6:.1f}" if row[name] is not None else "?" for name in ("plan_bytes", "activation_bytes", "weight_bytes"))
    counts = (f"{row['distance']:.1e}", str(row["layers"]), str(row["int8"]), str(wide), str(len(row["undeclared"])))
    return (row["stage"], targets, row["precision"], *counts, f"{row['seconds']:.1f}", f"{row['peak_mb']:.0f}", *sizes)


def _link(source: str, target: str) -> None:
    """Copies small files; large ones get a second name."""
    if Path(source).stat().st_size < 1 << 20:
        shutil.copy2(source, target)
    else:
        Path(target).hardlink_to(source)


if __name__ == "__main__":
    sys.exit(launch(main))
