"""The commands about the machine: what runs on it, how fast, and a page that it serves."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

import musicrt
from musicrt.cli.arguments import BackendOption, BundleArgument, JsonOption, PrecisionOption, ThreadsOption, bundle_path, needing
from musicrt.cli.output import console, print_json, say
from musicrt.runtime.bundle import EMBEDDED


def doctor(as_json: JsonOption = False) -> None:
    """Say what runs on this machine, and why the rest does not."""
    from musicrt.runtime.select import BACKENDS
    from musicrt.runtime.tensorrt_family import FAMILIES

    found = {name: kind.obstacle() for name, kind in BACKENDS.items()}
    precisions = {
        name: [] if found[name] else [one for one in kind.precisions if not kind.precision_obstacle(one)] for name, kind in BACKENDS.items()
    }
    builders = {name: family.build_obstacle() for name, family in FAMILIES.items()}
    if as_json:
        facts = {"version": musicrt.__version__, "python": sys.version.split()[0], "backends": found, "precisions": precisions}
        print_json({**facts, "engines": builders})
        return
    table = Table("backend", "usable", "in", "why not")
    for name, obstacle in found.items():
        table.add_row(name, "no" if obstacle else "yes", ", ".join(precisions[name]), escape(obstacle or ""))
    console.print(table)
    first = next((name for name, obstacle in found.items() if not obstacle), None)
    for name, obstacle in builders.items():
        say(f"engines can{' not' if obstacle else ''} be built here with {name}" + (f": {obstacle}" if obstacle else ""))
    say(f"auto takes {first}" if first else "nothing runs here; install one: pip install 'musicrt[cpu]'")


def web(
    bundles: Annotated[list[Path] | None, typer.Argument(metavar="[BUNDLE]...", help="Bundle folders; by default `embedded`.")] = None,
    host: Annotated[str, typer.Option(help="The address to listen on; 0.0.0.0 lets other machines in.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="The port to listen on.", min=1, max=65535)] = 7860,
    backend: BackendOption = "auto",
    precision: PrecisionOption = None,
    threads: ThreadsOption = None,
) -> None:
    """Serve a page for the browser: drop in audio or a video, hear and see what a bundle makes of it (needs the extra `web`)."""
    with needing("web"):
        from musicrt.web.server import serving, wait_for_interrupt
    from musicrt.web.studio import open_studios

    paths = [bundle_path(bundle) for bundle in bundles or [EMBEDDED]]
    with open_studios(paths, backend, threads, precision) as studios, serving(studios, host, port) as at:
        say(f"listening on {at} for {', '.join(studio.title for studio in studios)}; Ctrl-C ends it")
        wait_for_interrupt()


def bench(
    bundle: BundleArgument,
    seconds: Annotated[float, typer.Option(help="Length of the audio.")] = 1.5,
    repeats: Annotated[int, typer.Option(help="Timed runs of each measurement.")] = 5,
    steps: Annotated[int | None, typer.Option(help="Denoising steps; the system's own number by default.")] = None,
    backend: Annotated[list[str] | None, typer.Option(help="Measure these; all usable ones by default.")] = None,
    precision: Annotated[
        list[str] | None, typer.Option(help="Measure each backend in all of these that it offers; by default in its first.")
    ] = None,
    threads: ThreadsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Measure every stage and both ways through the codec, each backend in a fresh process."""
    from musicrt.runtime.bench import bench_bundle
    from musicrt.runtime.select import check_precisions

    report = bench_bundle(
        bundle_path(bundle),
        backends=backend,
        seconds=seconds,
        repeats=repeats,
        steps=steps,
        threads=threads,
        precisions=check_precisions(precision),
    )
    sys.stdout.write((report.to_json() if as_json else report.to_markdown()) + "\n")
