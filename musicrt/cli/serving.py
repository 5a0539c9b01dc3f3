"""The commands that hand a bundle to other servers."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from musicrt.cli.arguments import BackendOption, BundleArgument, JsonOption, PrecisionOption, ThreadsOption, bundle_path
from musicrt.cli.output import print_json, say


def triton(
    bundle: BundleArgument,
    out: Annotated[Path, typer.Option(help="The model repository to make; must not exist yet.")],
    name: Annotated[str | None, typer.Option(help="What the models' names begin with; the system's by default.")] = None,
    device: Annotated[Literal["cpu", "cuda"], typer.Option(help="Where the models run.")] = "cpu",
    instances: Annotated[int, typer.Option(help="Processes of each model; on each GPU, where there are some.")] = 1,
    max_batch: Annotated[int, typer.Option(help="Rows that run as one call; results may then differ in the last digits.")] = 1,
    max_delay: Annotated[float, typer.Option(help="Seconds for which a request waits for others to run with.")] = 0.01,
    queue: Annotated[int, typer.Option(help="Requests that may wait for a model; more are refused.")] = 16,
    max_seconds: Annotated[float, typer.Option(help="Of audio in a request; longer ones are refused.")] = 600.0,
    deadline: Annotated[float, typer.Option(help="Seconds at work on one request, after which it is given up.")] = 600.0,
    stage_models: Annotated[bool, typer.Option("--stage-models", help="Stages as models of Triton's ONNX Runtime backend.")] = False,
    backend: BackendOption = "auto",
    precision: PrecisionOption = None,
    threads: ThreadsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Write a model repository for NVIDIA Triton; the server's Python needs musicrt. See docs/serving.md."""
    from musicrt.triton.config import Settings
    from musicrt.triton.repository import write_repository

    settings = Settings(
        device=device,
        backend=backend,
        precision=precision or "",
        threads=threads or 0,
        instances=instances,
        max_batch=max_batch,
        max_delay=max_delay,
        queue=queue,
        max_seconds=max_seconds,
        deadline=deadline,
        stage_models=stage_models,
    )
    models = write_repository(bundle_path(bundle), out, settings, name=name)
    if as_json:
        print_json(models)
        return
    say(f"{out}: {', '.join(models)}")
    say(f"serve it with: tritonserver --model-repository={out}")
