"""A service for requests on Ray Serve: bytes of a file in, bytes of a file out.

    POST /encode?chunking=official       an audio file in, a file of encoded audio out
    POST /decode?steps=10&seed=7         a file of encoded audio in, an audio file out
    POST /generate?duration=10           a video in, an audio file out
    GET  /                               what is served, as JSON

Options are those of the command line, but for such as name a file. A wrong request is answered with 400 and the reason, one that is too
large with 413; where all replicas are busy and as many requests wait as may, Ray Serve answers 503.
"""

from __future__ import annotations

import asyncio
import mimetypes
import threading
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pydantic
from ray import serve
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from musicrt.bulk.job import Job, plan_job, ways_of
from musicrt.cli.options import OPTIONS
from musicrt.runtime.bundle import Bundle
from musicrt.runtime.errors import Cancelled, InputError, MusicRTError
from musicrt.runtime.precision import Precision

LARGEST = 256 * 2**20
"""Bytes of a request."""


def deployment(
    bundle: str | Path,
    *,
    backend: str = "auto",
    precision: Precision | None = None,
    threads: int = 1,
    gpus: float = 0.0,
    replicas: int = 1,
    waiting: int = 16,
    suffix: str = ".wav",
) -> serve.Application:
    """What `ray.serve.run` takes.

    replicas: each holds `threads` cores and `gpus` GPUs, which may be a share of one, and does one request at a time. waiting:
        requests that may wait at each proxy. suffix: of the audio that is made. Raises BundleError, InputError.
    """
    system = Bundle.open(bundle).spec.system
    jobs = {
        way: plan_job(
            way,
            Path(bundle),
            suffix=None if way == "encode" else suffix,
            backend=backend,
            precision=precision,
            threads=threads,
        )
        for way in ways_of(system)
    }
    kind = serve.deployment(
        Service,
        name="musicrt",
        num_replicas=replicas,
        max_ongoing_requests=1,
        max_queued_requests=waiting,
        ray_actor_options={"num_cpus": threads, "num_gpus": gpus},
    )
    return kind.bind(jobs)


class Service:
    """A replica: one pipeline."""

    def __init__(self, jobs: Mapping[str, Job]) -> None:
        """Raises BundleError, BackendError."""
        self._jobs, self._turn = jobs, threading.Lock()
        self._codec = next(iter(jobs.values())).open()

    async def __call__(self, request: Request) -> Response:
        """Answer one request."""
        way = request.url.path.strip("/")
        if not way:
            spec = self._codec.model.spec
            facts = {"system": spec.system, "variant": spec.variant, "identity": self._codec.model.identity}
            return JSONResponse({**facts, "backend": str(self._codec.backend), "ways": list(self._jobs)})
        if way not in self._jobs or request.method != "POST":
            return _refuse(404, f"got {request.method} /{way}, expected POST to {' or '.join(f'/{known}' for known in self._jobs)}")
        body = await request.body()
        if len(body) > LARGEST:
            return _refuse(413, f"got {len(body)} bytes, expected at most {LARGEST}")
        stop = threading.Event()
        try:
            job = self._jobs[way].with_options(read_options(request.query_params))
            made = await asyncio.to_thread(self._work, job, body, stop)
        except InputError as error:
            return _refuse(400, str(error))
        except MusicRTError as error:
            return _refuse(500, str(error))
        finally:
            stop.set()  # where the caller has gone, the work ends between two steps
        return Response(made, media_type=mimetypes.guess_type(f"a{job.suffix}")[0] or "application/octet-stream")

    def _work(self, job: Job, body: bytes, stop: threading.Event) -> bytes:
        def go_on(_done: int, _total: int) -> None:
            if stop.is_set():
                raise Cancelled("the request was given up; send it again")

        with TemporaryDirectory() as folder, self._turn:
            source, target = Path(folder, "input"), Path(folder, f"output{job.suffix}")
            source.write_bytes(body)
            job.run(self._codec, source, target, go_on)
            return target.read_bytes()


def read_options(query: Mapping[str, str]) -> dict[str, Any]:
    """The options in a query, each of its type. Raises InputError; also for one that names a file, which would be one of the server's."""
    read: dict[str, Any] = {}
    for name, text in query.items():
        if name not in OPTIONS or OPTIONS[name].kind is Path:
            raise InputError(
                f"got the option {name!r}, expected one of {', '.join(known for known in OPTIONS if OPTIONS[known].kind is not Path)}"
            )
        try:
            read[name] = pydantic.TypeAdapter(OPTIONS[name].kind).validate_strings(text)
        except pydantic.ValidationError as error:
            raise InputError(f"got {name}={text!r}; {error.errors()[0]['msg']}") from None
    return read


def _refuse(status: int, reason: str) -> Response:
    return JSONResponse({"error": reason}, status)
