"""The commands `musicrt batch encode`, `decode` and `generate`: many files, on Ray."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from contextlib import redirect_stdout
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from musicrt.cli.arguments import BackendOption, JsonOption, PrecisionOption, bundle_path, needing
from musicrt.cli.options import OFFERED, OptionsCommand, with_options
from musicrt.cli.output import print_json, progress, say
from musicrt.runtime.errors import InputError

app = typer.Typer(name="batch", no_args_is_help=True, help="Work on many files, on this machine or a cluster (needs the extra `ray`).")


def _command(way: Literal["encode", "decode", "generate"]) -> Callable[..., None]:
    @with_options(OFFERED[way])
    def run(
        bundle: Annotated[Path, typer.Option(help="A bundle folder, or `embedded`; on a cluster one that every node sees.")],
        source: Annotated[
            Path,
            typer.Option("--input", help="A folder, a list of files (a path on each line), or Parquet with `name` and `bytes`, or `path`."),
        ],
        output: Annotated[Path, typer.Option(help="A folder for the results. Started again, the same command goes on where it was.")],
        *,
        form: Annotated[
            Literal["files", "parquet"], typer.Option(help="A file for each, or Parquet files with `name` and `bytes`.")
        ] = "files",
        suffix: Annotated[str | None, typer.Option(help="Of what is made, and so its format; of audio .wav by default.")] = None,
        workers: Annotated[int | None, typer.Option(help="Processes that work; as many as there is room for by default.")] = None,
        threads: Annotated[int, typer.Option(help="CPU threads of a worker.", min=1)] = 1,
        gpus: Annotated[
            float | None, typer.Option(help="GPUs of a worker, such as 0.5; by default 1 where the backend runs on one, else 0.", min=0)
        ] = None,
        lot: Annotated[int, typer.Option(help="Files that a worker is given at once; a Parquet file holds as many.", min=1)] = 16,
        address: Annotated[
            str | None, typer.Option(help="Of a Ray cluster, or `auto`; by default RAY_ADDRESS, else a Ray of its own on this machine.")
        ] = None,
        backend: BackendOption = "auto",
        precision: PrecisionOption = None,
        as_json: JsonOption = False,
        **options: Any,
    ) -> None:
        with needing("ray"):
            from musicrt.bulk.batch import run_job
            from musicrt.bulk.cluster import connected, plan_pool
        from musicrt.bulk.corpus import find_corpus
        from musicrt.bulk.job import plan_job
        from musicrt.bulk.outputs import FAILED, open_outputs

        job = plan_job(way, bundle_path(bundle), options, suffix=suffix, backend=backend, precision=precision, threads=threads)
        corpus, outputs = find_corpus(source, job.suffixes), open_outputs(output, form, job.suffix)
        with redirect_stdout(sys.stderr), connected(address), progress(f"batch {way}") as report:  # Ray prints what befalls its processes
            pool = plan_pool(backend, workers, threads, gpus, lot)
            summary = run_job(job, corpus, outputs, pool, on_progress=report)
        if as_json:
            print_json(asdict(summary))
        else:
            say(f"{output}: {summary.done} made ({summary.seconds:.1f} s), {summary.kept} there before, {len(summary.failed)} failed")
        if summary.failed:
            name, reason = next(iter(summary.failed.items()))
            raise InputError(f"{len(summary.failed)} of {summary.total} files failed, listed in {output / FAILED}; {name}: {reason}")

    return run


_HELP: Mapping[Literal["encode", "decode", "generate"], str] = {
    "encode": "Encode many audio files.",
    "decode": "Decode many files of encoded audio.",
    "generate": "Make music for many videos.",
}
for _way, _help in _HELP.items():
    app.command(name=_way, help=_help, cls=OptionsCommand)(_command(_way))
