"""The commands about the machine: what runs on it, how fast, and a page that it serves."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from musicrt.cli.arguments import (
    BackendOption,
    BundleArgument,
    JsonOption,
    PrecisionOption,
    ThreadsOption,
    bundle_path,
    needing,
    split_counts,
    split_names,
    split_sizes,
)
from musicrt.cli.output import console, errors, print_facts, print_json, progress, say
from musicrt.runtime.bundle import EMBEDDED


def doctor(as_json: JsonOption = False) -> None:
    """Say what runs on this machine, and why the rest does not."""
    from musicrt.runtime.doctor import examine

    report = examine()
    if as_json:
        print_json(report.model_dump(mode="json"))
        return
    machine = report.machine
    gpus = ", ".join(f"{gpu.name} ({gpu.architecture}, {gpu.memory_gb} GB)" for gpu in machine.gpus)
    facts = {
        "musicrt": f"{report.version}, Python {report.python}, {machine.system}",
        "CPU": f"{machine.cpu}, {machine.cores} cores, {machine.memory_gb or '?'} GB, {' '.join(machine.flags) or 'flags unknown'}",
        "GPU": f"{gpus}, CUDA {machine.cuda}" if gpus else machine.no_gpu or "none",
        **report.environment,
    }
    print_facts(facts)
    table = Table("backend", "usable", "in", "why not")
    for name, state in report.backends.items():
        why = state.obstacle or "; ".join(f"{precision}: {reason}" for precision, reason in state.refused.items())
        table.add_row(name, "no" if state.obstacle else "yes", ", ".join(state.precisions), escape(why))
    console.print(table)
    for name, obstacle in report.engines.items():
        say(f"engines can{' not' if obstacle else ''} be built here with {name}" + (f": {obstacle}" if obstacle else ""))
    say(f"auto takes {report.auto}" if report.auto else "nothing runs here; install one: pip install 'musicrt[cpu]'")


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
    rounds: Annotated[int, typer.Option(help="Fresh processes that share them, of all contenders in turn.")] = 2,
    steps: Annotated[int | None, typer.Option(help="Denoising steps; the system's own number by default.")] = None,
    backend: Annotated[list[str] | None, typer.Option(help="Measure these; all usable ones by default.")] = None,
    precision: Annotated[
        list[str] | None, typer.Option(help="Measure each backend in all of these that it offers; by default in its first.")
    ] = None,
    against: Annotated[
        str | None, typer.Option(help="PyTorch beside them: torch,torch-compile,torch-bf16. Ratios are to the first that runs here.")
    ] = None,
    what: Annotated[
        str | None, typer.Option(help="Some only of encode,decode,generate,stages; by default all that the system has.")
    ] = None,
    stages: Annotated[str | None, typer.Option(help="Some stages only: encoder,decoder.")] = None,
    sizes: Annotated[str | None, typer.Option(help="Axes of the stages: rows=128,batch=2; by default what so many seconds have.")] = None,
    batches: Annotated[str | None, typer.Option(help="Throughput of calls with so many signals: 1,2,4.")] = None,
    concurrency: Annotated[str | None, typer.Option(help="Throughput of so many threads that call at once: 1,2,4.")] = None,
    threads: ThreadsOption = None,
    out: Annotated[
        Path | None, typer.Option(help="Also write OUT.json, OUT.md and, with the extra `bench`, pictures OUT-times.png and others.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Measure every stage and all ways through the system, each backend in fresh processes."""
    from musicrt.runtime.bench.settings import Settings
    from musicrt.runtime.bench.suite import bench_bundle
    from musicrt.runtime.select import check_precisions

    settings = Settings(
        seconds=seconds,
        repeats=repeats,
        rounds=rounds,
        steps=steps,
        threads=threads,
        backends=backend or (),
        precisions=check_precisions(precision) or (),
        against=split_names(against),
        parts=split_names(what),
        stages=split_names(stages),
        sizes=split_sizes(sizes),
        batches=split_counts(batches),
        concurrency=split_counts(concurrency),
    )
    with progress("measuring") as advance:
        report = bench_bundle(bundle_path(bundle), settings, on_work=lambda text, done, total: advance(done, total, text))
    try:
        sys.stdout.write((report.to_json() if as_json else report.to_markdown()) + "\n")
    finally:  # the numbers took minutes: one place is enough to keep them
        if out is not None:
            from musicrt.runtime.bench.files import write_report

            for line in write_report(out, report):
                errors.print(escape(line), highlight=False, soft_wrap=True)
