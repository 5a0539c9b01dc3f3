"""The command `musicrt`: parses, calls, prints. Exit codes are those of `musicrt.runtime.errors` (2: wrong usage, 130: interrupted)."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn

import typer
from rich.logging import RichHandler
from rich.markup import escape
from rich.progress import Progress
from rich.table import Table

import musicrt
from musicrt.cli_engines import print_built, print_engines
from musicrt.cli_options import DECODING, ENCODING, FEATURES, GENERATION, OptionsCommand, check_flags, generators, given_of, with_options
from musicrt.cli_output import console, errors, print_bundle, print_calibration, print_encoded, print_facts, print_json, say
from musicrt.runtime.bundle import EMBEDDED, Bundle
from musicrt.runtime.errors import BundleError, InputError, MusicRTError, VerificationError
from musicrt.runtime.registry import find_system, system_names
from musicrt.runtime.spec import Precision

app = typer.Typer(name="musicrt", no_args_is_help=True, add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)

BundleArgument = Annotated[Path, typer.Argument(help="A bundle folder, or `embedded` for the small one inside the package.")]
BackendOption = Annotated[str, typer.Option(help="auto, or a backend that `musicrt doctor` lists.")]
PrecisionOption = Annotated[
    Precision | None,
    typer.Option(help="What networks are computed in, see `musicrt doctor`; by default what the backend takes: float32 on a CPU."),
]
ThreadsOption = Annotated[int | None, typer.Option(help="CPU threads inside an operator; all by default.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]


def main() -> None:
    """Entry point: an error of this package becomes one line and its exit code."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", handlers=[RichHandler(console=errors, show_time=False, show_path=False)])
    try:
        app()
    except MusicRTError as error:
        _fail(str(error), error.exit_code)
    except MemoryError:
        _fail("not enough memory; use shorter audio, or, where the system has them, --chunking seamless or a smaller --max-batch-size", 1)


@app.callback(invoke_without_command=True)
def start(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    """Neural music codecs in production: official checkpoints to ONNX, and a lean runtime."""
    if version:
        console.print(musicrt.__version__, highlight=False)
        raise typer.Exit


@app.command()
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


@app.command()
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
    with _room("export"):
        from musicrt.export.bundle import export_bundle
    with _progress("exporting") as report:
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


@app.command()
def add_flavour(
    bundle: BundleArgument,
    flavour: Annotated[str, typer.Argument(help="trt: graphs in half precision for TensorRT.")],
) -> None:
    """Give a bundle the graphs of one more flavour, made of its own weights (needs the extra `export`)."""
    with _room("export"):
        from musicrt.export.flavours import add_flavour as add
    with _progress("exporting") as report:
        changed = add(_path(bundle), flavour, on_stage=lambda stage, done, total: report(done, total, f"exporting {stage}"))
    print_bundle(changed)


@app.command()
def calibrate(
    bundle: BundleArgument,
    target: Annotated[
        str, typer.Option(help="cpu-int8, gpu-int8: 8-bit integers. gpu-fp16: what half precision can't hold (needs torch).")
    ],
    inputs: Annotated[str, typer.Option(help="A folder of audio files that are like yours, or `synthetic`.")] = "synthetic",
    seconds: Annotated[float, typer.Option(help="Of each file, from its beginning.")] = 6.0,
    steps: Annotated[int | None, typer.Option(help="Denoising steps; the system's own number by default.")] = None,
    ranges: Annotated[Literal["minmax", "percentile", "entropy"], typer.Option(help="How the ranges of activations are found.")] = "minmax",
    force: Annotated[bool, typer.Option("--force", help="Keep a result that misses a quality gate.")] = False,
    report: Annotated[Path | None, typer.Option(help="A folder for the report: Markdown, JSON and pictures.")] = None,
    threads: ThreadsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Lower a bundle's precision as far as its quality gates allow (needs the extra `calibrate`)."""
    with _room("calibrate"):
        from musicrt.calibration.targets import calibrate_bundle
    with _progress("calibrating") as progress:
        found = calibrate_bundle(
            _path(bundle),
            target,
            inputs,
            seconds=seconds,
            steps=steps,
            ranges=ranges,
            force=force,
            report=report,
            threads=threads,
            on_work=lambda text, done, total: progress(done, total, text),
        )
    print_calibration(target, found, as_json)
    if report is not None:
        errors.print(f"report in {escape(str(report))}", highlight=False, soft_wrap=True)


@app.command()
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
    with _room(engine):
        from musicrt.engines.build import build_engines
    stage = ""

    def begin(name: str, done: int, total: int) -> None:
        nonlocal stage
        stage = f"building {name} ({done + 1} of {total})"
        report(0, 1, stage)

    with _progress("building") as report:
        built = build_engines(
            _path(bundle),
            engine,
            targets=_names(target),
            stages=_names(stages),
            profiles=_names(profile),
            precision=precision,
            stripped=stripped,
            on_stage=begin,
            on_phase=lambda phase, done, total: report(done, total, f"{stage}: {phase}"),
        )
    print_built(built, as_json)


@app.command(cls=OptionsCommand)
@with_options({**ENCODING, **FEATURES})
def encode(
    bundle: BundleArgument,
    audio: Annotated[Path, typer.Argument(help="Any audio file that libsndfile reads.")],
    out: Annotated[Path, typer.Argument(help="The file of encoded audio to write (safetensors).")],
    *,
    backend: BackendOption = "auto",
    precision: PrecisionOption = None,
    threads: ThreadsOption = None,
    **options: Any,
) -> None:
    """Encode an audio file."""
    with _open(bundle, backend, precision, threads) as codec, _progress("encoding") as report:
        check_flags(codec, [codec.encode_source], {**ENCODING, **FEATURES}, options)
        encoded = codec.encode_file(audio, out, on_progress=report, **options)
    say(f"{out}: {encoded.kind} {list(encoded.values.shape)}, {out.stat().st_size} bytes")


@app.command(cls=OptionsCommand)
@with_options(DECODING)
def decode(
    bundle: BundleArgument,
    encoded: Annotated[Path, typer.Argument(help="A file of encoded audio.")],
    out: Annotated[Path, typer.Argument(help="The audio file to write; the suffix names the format.")],
    *,
    backend: BackendOption = "auto",
    precision: PrecisionOption = None,
    threads: ThreadsOption = None,
    **options: Any,
) -> None:
    """Decode a file of encoded audio."""
    with _open(bundle, backend, precision, threads) as codec, _progress("decoding") as report:
        check_flags(codec, [codec.decode_stream], DECODING, options)
        samples = codec.decode_file(encoded, out, on_progress=report, **options)
    say(f"{out}: {samples / codec.sample_rate:.2f} s at {codec.sample_rate} Hz")


@app.command(cls=OptionsCommand)
@with_options({**ENCODING, **DECODING})
def roundtrip(
    bundle: BundleArgument,
    audio: Annotated[Path, typer.Argument(help="Any audio file that libsndfile reads.")],
    out: Annotated[Path, typer.Argument(help="The audio file to write; the suffix names the format.")],
    *,
    backend: BackendOption = "auto",
    precision: PrecisionOption = None,
    threads: ThreadsOption = None,
    **options: Any,
) -> None:
    """Encode an audio file and decode it again."""
    with _open(bundle, backend, precision, threads) as codec, _progress("encoding") as report:
        check_flags(codec, [codec.encode_source, codec.decode_stream], {**ENCODING, **DECODING}, options)
        samples = codec.roundtrip_file(
            audio,
            out,
            {**given_of(ENCODING, options), "on_progress": report},
            {**given_of(DECODING, options), "on_progress": partial(report, text="decoding")},
        )
    say(f"{out}: {samples / codec.sample_rate:.2f} s at {codec.sample_rate} Hz")


@app.command(cls=OptionsCommand)
@with_options(GENERATION)
def generate(
    bundle: BundleArgument,
    video: Annotated[Path, typer.Argument(help="Any video file that FFmpeg reads, or a folder of them.")],
    out: Annotated[
        Path,
        typer.Option("--out", "-o", help="The audio file to write, or a copy of the video with the music; for a folder, a folder."),
    ],
    *,
    backend: BackendOption = "auto",
    precision: PrecisionOption = None,
    threads: ThreadsOption = None,
    **options: Any,
) -> None:
    """Make music for a video, or for each video of a folder."""
    with _open(bundle, backend, precision, threads) as codec, _progress("generating") as report:
        if not hasattr(codec, "generate_stream"):
            raise InputError(f"{codec.model.spec.system} makes no music for videos; load a bundle of {', '.join(generators())}")
        check_flags(codec, [codec.generate_stream, codec.compose], GENERATION, options)
        if video.is_dir():
            written = codec.generate_folder(video, out, on_progress=report, **options)
            line = f"{out}: music for {len(written)} video{'' if len(written) == 1 else 's'}"
        else:
            samples = codec.generate_file(video, out, on_progress=report, **options)
            line = f"{out}: {samples / codec.sample_rate:.2f} s at {codec.sample_rate} Hz"
    say(line)


@app.command()
def verify(
    bundle: BundleArgument,
    backend: BackendOption = "auto",
    flavour: Annotated[str | None, typer.Option(help="The graphs to run; by default those of the backend. trt runs on a CPU too.")] = None,
    precision: PrecisionOption = None,
    threads: ThreadsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Check every file's hash and every stage's numbers (error: relative L2; of integers, the share that differs)."""
    from musicrt.runtime.verify import verify_bundle

    checks = verify_bundle(_path(bundle), backend=backend, flavour=flavour, threads=threads, precision=precision)
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
        raise VerificationError(f"{_path(bundle)}: {', '.join(failed)} differ from the reference; export the bundle again")


@app.command()
def inspect(
    path: Annotated[Path, typer.Argument(help="A bundle folder, `embedded` for the one inside the package, or a file of encoded audio.")],
    engines: Annotated[bool, typer.Option("--engines", help="Show the engines: profiles, memory, layers and their precision.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Show what a bundle holds, where it comes from, and under which licence; or what a file of encoded audio holds."""
    if engines:
        print_engines(Bundle.open(_path(path)), as_json)
    elif path.is_file():
        print_encoded(path, as_json)
    elif _path(path).exists():
        print_bundle(Bundle.open(_path(path)), as_json)
    else:
        raise BundleError(
            f"{path} does not exist; expected a bundle folder (make one with: musicrt export) "
            "or a file of encoded audio (make one with: musicrt encode)"
        )


@app.command()
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


@app.command()
def web(
    bundles: Annotated[list[Path] | None, typer.Argument(metavar="[BUNDLE]...", help="Bundle folders; by default `embedded`.")] = None,
    host: Annotated[str, typer.Option(help="The address to listen on; 0.0.0.0 lets other machines in.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="The port to listen on.", min=1, max=65535)] = 7860,
    backend: BackendOption = "auto",
    precision: PrecisionOption = None,
    threads: ThreadsOption = None,
) -> None:
    """Serve a page for the browser: drop in audio or a video, hear and see what a bundle makes of it (needs the extra `web`)."""
    with _room("web"):
        from musicrt.web.server import serving, wait_for_interrupt
    from musicrt.web.studio import open_studios

    paths = [_path(bundle) for bundle in bundles or [EMBEDDED]]
    with open_studios(paths, backend, threads, precision) as studios, serving(studios, host, port) as at:
        say(f"listening on {at} for {', '.join(studio.title for studio in studios)}; Ctrl-C ends it")
        wait_for_interrupt()


@app.command()
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
        _path(bundle),
        backends=backend,
        seconds=seconds,
        repeats=repeats,
        steps=steps,
        threads=threads,
        precisions=check_precisions(precision),
    )
    sys.stdout.write((report.to_json() if as_json else report.to_markdown()) + "\n")


@contextmanager
def _room(extra: str) -> Iterator[None]:
    """Around the import of what an extra installs."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise InputError(f"{extra} needs {error.name}, which is not installed: pip install 'musicrt[{extra}]'") from None


def _names(text: str | None) -> list[str]:
    """Those in a list with commas."""
    return [name.strip() for name in (text or "").split(",") if name.strip()]


def _path(bundle: Path) -> Path:
    return EMBEDDED if bundle == Path("embedded") else bundle


def _open(bundle: Path, backend: str, precision: Precision | None, threads: int | None) -> Any:
    codec = musicrt.load(_path(bundle), backend=backend, threads=threads, precision=precision)
    errors.print(f"running on {escape(str(codec.backend))}", highlight=False, soft_wrap=True)
    return codec


@contextmanager
def _progress(title: str) -> Iterator[Callable[..., None]]:
    """A bar on a terminal; nothing elsewhere."""
    with Progress(console=errors, transient=True, disable=not errors.is_terminal) as bar:
        task = bar.add_task(title, total=None)

        def report(done: int, total: int, text: str = title) -> None:
            bar.update(task, completed=done, total=total, description=text)

        yield report


def _fail(message: str, code: int) -> NoReturn:
    errors.print(f"[red]error:[/red] {escape(message)}", soft_wrap=True, highlight=False)
    sys.exit(code)


if __name__ == "__main__":
    main()
