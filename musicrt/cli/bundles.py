"""The commands that make bundles, change them, and say what they hold."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.markup import escape
from rich.table import Table

from musicrt.cli.arguments import (
    BackendOption,
    BundleArgument,
    JsonOption,
    PrecisionOption,
    ThreadsOption,
    TrustedKeyOption,
    bundle_path,
    needing,
    split_names,
)
from musicrt.cli.engines import print_built, print_engines
from musicrt.cli.output import console, errors, print_bundle, print_calibration, print_facts, print_file, print_json, progress, say
from musicrt.runtime.bundle import Bundle
from musicrt.runtime.errors import BundleError, VerificationError
from musicrt.runtime.manifest_file import MANIFEST
from musicrt.runtime.precision import Precision
from musicrt.runtime.registry import find_system, system_names
from musicrt.runtime.signature import sign_manifest


def systems(as_json: JsonOption = False) -> None:
    """List the systems that this version knows."""
    known = [find_system(name) for name in system_names()]
    if as_json:
        keys = ("name", "title", "task", "paper")
        print_json([{key: getattr(s, key) for key in keys} | {"variants": list(s.variants), "weights": s.licences.weights} for s in known])
        return
    for system in known:
        facts = {
            "task": system.task,
            "variants": ", ".join(system.variants),
            "paper": system.paper,
            "licence of the weights": system.licences.weights,
        }
        console.print(f"[bold]{system.name}[/bold]")
        print_facts({f"  {name}": fact for name, fact in facts.items()})


def export(
    system: Annotated[str, typer.Argument(help="One of `musicrt systems`.")],
    out: Annotated[Path, typer.Option(help="The bundle folder to make; must not exist yet.")],
    checkpoint: Annotated[
        str | None, typer.Option(help="Official checkpoint: folder, file or hub id. Default: the official hub id.")
    ] = None,
    variant: Annotated[
        str | None,
        typer.Option(
            help="Hyper-parameters by name, see `musicrt systems`; a file has to agree. Default: those of a file, else the first."
        ),
    ] = None,
    config: Annotated[
        Path | None, typer.Option(help="Hyper-parameters from a JSON file. Default: config.json beside the checkpoint, if there is one.")
    ] = None,
    description: Annotated[str, typer.Option(help="Said of the weights by `inspect`.")] = "",
    weights_licence: Annotated[str | None, typer.Option(help="Licence of weights that are not the official ones.")] = None,
    flavour: Annotated[
        list[str] | None,
        typer.Option(help="Graphs beside those for ONNX Runtime: trt, in half precision for TensorRT. Takes as long again."),
    ] = None,
) -> None:
    """Make a bundle from an official checkpoint (needs the extra `export`)."""
    with needing("export"):
        from musicrt.export.bundle import export_bundle
    with progress("exporting") as report:
        bundle = export_bundle(
            system,
            checkpoint,
            out,
            variant=variant,
            config=config,
            description=description,
            weights_licence=weights_licence,
            flavours=flavour or (),
            on_stage=lambda stage, done, total: report(done, total, f"exporting {stage}"),
        )
    print_bundle(bundle)


def add_flavour(
    bundle: BundleArgument,
    flavour: Annotated[str, typer.Argument(help="trt: graphs in half precision for TensorRT.")],
) -> None:
    """Give a bundle the graphs of one more flavour, made of its own weights (needs the extra `export`)."""
    with needing("export"):
        from musicrt.export.flavours import add_flavour as add
    with progress("exporting") as report:
        changed = add(bundle_path(bundle), flavour, on_stage=lambda stage, done, total: report(done, total, f"exporting {stage}"))
    print_bundle(changed)


def calibrate(
    bundle: BundleArgument,
    target: Annotated[
        str, typer.Option(help="cpu-int8, gpu-int8: 8-bit integers. gpu-fp16: what half precision can't hold (needs torch).")
    ],
    inputs: Annotated[str, typer.Option(help="A folder of audio files that are like yours, or `synthetic`.")] = "synthetic",
    seconds: Annotated[float, typer.Option(help="Of each file, from its beginning.")] = 6.0,
    steps: Annotated[int | None, typer.Option(help="Denoising steps; the system's own number by default.")] = None,
    ranges: Annotated[Literal["minmax", "percentile", "entropy"], typer.Option(help="How the ranges of activations are found.")] = "minmax",
    rounds: Annotated[
        int | None, typer.Option(help="Rounds of un-quantising at most, minutes each for large networks; 0: none. Default: all it takes.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Keep a result that misses a quality gate.")] = False,
    report: Annotated[Path | None, typer.Option(help="A folder for the report: Markdown, JSON and pictures.")] = None,
    threads: ThreadsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Lower a bundle's precision as far as its quality gates allow (needs the extra `calibrate`)."""
    with needing("calibrate"):
        from musicrt.calibration.targets import calibrate_bundle
    with progress("calibrating") as advance:
        found = calibrate_bundle(
            bundle_path(bundle),
            target,
            inputs,
            seconds=seconds,
            steps=steps,
            ranges=ranges,
            rounds=rounds,
            force=force,
            report=report,
            threads=threads,
            on_work=lambda text, done, total: advance(done, total, text),
        )
    print_calibration(target, found, as_json)
    if report is not None:
        errors.print(f"report in {escape(str(report))}", highlight=False, soft_wrap=True)


def build(
    bundle: BundleArgument,
    engine: Annotated[str, typer.Option(help="tensorrt-rtx (builds anywhere) or tensorrt (builds on the machine that runs it).")],
    target: Annotated[str | None, typer.Option(help="GPU architectures for one plan: sm_86,sm_89,sm_120. Default: all usual ones.")] = None,
    stages: Annotated[str | None, typer.Option(help="Some stages only: encoder,decoder.")] = None,
    profile: Annotated[
        str, typer.Option(help="How far sizes may go: latency, throughput, edge; or several in one engine, separated by commas.")
    ] = "latency",
    precision: Annotated[Precision, typer.Option(help="float16; int8 of what `musicrt calibrate --target gpu-int8` made.")] = "float16",
    stripped: Annotated[bool, typer.Option("--stripped", help="Leave the weights out of the plans; needs a GPU to build.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Make TensorRT engines of a bundle's graphs, in half precision or 8-bit integers; what is there and current is left alone."""
    with needing(engine):
        from musicrt.engines.build import build_engines
    stage = ""

    def begin(name: str, done: int, total: int) -> None:
        nonlocal stage
        stage = f"building {name} ({done + 1} of {total})"
        report(0, 1, stage)

    with progress("building") as report:
        built = build_engines(
            bundle_path(bundle),
            engine,
            targets=split_names(target),
            stages=split_names(stages),
            profiles=split_names(profile),
            precision=precision,
            stripped=stripped,
            on_stage=begin,
            on_phase=lambda phase, done, total: report(done, total, f"{stage}: {phase}"),
        )
    print_built(built, as_json)


def sign(
    bundle: Annotated[Path, typer.Argument(help="A bundle folder.")],
    key: Annotated[Path, typer.Option(help="The private key: Ed25519 as PEM, without a password (openssl genpkey -algorithm ed25519).")],
) -> None:
    """Sign a bundle: its manifest, and with that the hash of every file (needs the extra `sign`)."""
    Bundle.open(bundle, check="hashes")  # what is damaged is not to be signed
    say(f"{sign_manifest(bundle / MANIFEST, key)} written; ask for it with: musicrt verify {bundle} --trusted-key PUBLIC_KEY")


def verify(
    bundle: BundleArgument,
    backend: BackendOption = "auto",
    flavour: Annotated[
        str | None, typer.Option(help="The graphs to run; by default those of the backend. trt and trt-int8 run on a CPU too.")
    ] = None,
    precision: PrecisionOption = None,
    threads: ThreadsOption = None,
    trusted_key: TrustedKeyOption = None,
    as_json: JsonOption = False,
) -> None:
    """Check every file's hash and every stage's numbers (error: relative L2; of integers, the share that differs)."""
    from musicrt.runtime.verify import verify_bundle

    checks = verify_bundle(
        bundle_path(bundle), backend=backend, flavour=flavour, threads=threads, precision=precision, trusted_key=trusted_key
    )
    if as_json:
        print_json([{**vars(check), "ok": check.ok} for check in checks])
    else:
        table = Table("stage", "backend", "precision", "against", "error", "tolerance", "")
        for check in checks:
            verdict = "ok" if check.ok else "FAILED"
            table.add_row(
                check.stage, check.backend, check.precision, check.reference, f"{check.error:.1e}", f"{check.tolerance:.0e}", verdict
            )
        console.print(table)
    failed = [check.stage for check in checks if not check.ok]
    if failed:
        raise VerificationError(f"{bundle_path(bundle)}: {', '.join(failed)} differ from the reference; export the bundle again")


def inspect(
    path: Annotated[
        Path,
        typer.Argument(help="A bundle folder, `embedded` for the one inside the package, or a file: encoded audio, audio, a video."),
    ],
    engines: Annotated[bool, typer.Option("--engines", help="Show the engines: profiles, memory, layers and their precision.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Show what a bundle holds, where it comes from, and under which licence; or what a file holds, and what it was made with."""
    if engines:
        print_engines(Bundle.open(bundle_path(path)), as_json)
    elif path.is_file():
        print_file(path, as_json)
    elif bundle_path(path).exists():
        print_bundle(Bundle.open(bundle_path(path)), as_json)
    else:
        raise BundleError(
            f"{path} does not exist; expected a bundle folder (make one with: musicrt export) "
            "or a file of encoded audio (make one with: musicrt encode)"
        )
