"""An opened model: its spec, its sessions (opened when first used), and the backend that runs them."""

from __future__ import annotations

import functools
import logging
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

from musicrt.runtime.backend import Backend
from musicrt.runtime.bundle import EMBEDDED, Bundle
from musicrt.runtime.gate import Gate
from musicrt.runtime.hub import Source
from musicrt.runtime.precision import Precision
from musicrt.runtime.registry import build_spec, fit_spec, system_module
from musicrt.runtime.select import Choice, select_backend
from musicrt.runtime.session import Session
from musicrt.runtime.spec import ModelSpec

_LOG = logging.getLogger("musicrt")


class Model:
    """What a pipeline works with, in any number of threads. `identity`: hash of weights and configuration; None where they come from no
    bundle.
    """

    def __init__(
        self,
        spec: ModelSpec,
        open_session: Callable[[str], Session],
        backend: Choice,
        *,
        device: Literal["cpu", "cuda"] = "cpu",
        identity: str | None = None,
        threads: int | None = None,
        check_files: Callable[[], None] = lambda: None,
    ) -> None:
        """threads: CPU threads inside an operator; None: all. check_files: raises BundleError where files in use were written to."""
        self.spec, self.backend, self.device, self.identity, self.threads = spec, backend, device, identity, threads
        self._open_session, self._check_files = open_session, check_files
        self._sessions: dict[str, Session] = {}
        self._gate, self._opening = Gate("this model"), threading.Lock()

    @classmethod
    def open(
        cls,
        path: Path | str,
        *,
        backend: str = "auto",
        device: Literal["cpu", "cuda"] | None = None,
        threads: int | None = None,
        stream: int | None = None,
        graphs: bool = True,
        precision: Precision | None = None,
        trusted_key: Path | str | None = None,
    ) -> Model:
        """Open the bundle at `path`. `device` narrows "auto" down; for the rest see `load`. Raises BundleError, BackendError."""
        bundle = Bundle.open(path, trusted_key=trusted_key)

        def probe(candidate: Backend) -> None:
            candidate.check_bundle(bundle)
            candidate.open_session(bundle, bundle.spec.stages[0].name).close()

        runner, choice = select_backend(
            backend, device=device, threads=threads, stream=stream, graphs=graphs, precision=precision, probe=probe
        )
        if runner.device == "cpu":  # those on a GPU were probed, or are asked when a stage is opened
            runner.check_bundle(bundle)
        fields = {"event": "bundle_opened", "system": bundle.spec.system, "variant": bundle.spec.variant, "identity": bundle.identity}
        more = {"backend": choice.name, "precision": choice.precision, "passed_over": choice.reasons}
        _LOG.info("%s (%s) opened on %s", bundle.spec.system, bundle.identity[:12], choice, extra={**fields, **more})
        return cls(
            bundle.spec,
            lambda stage: runner.open_session(bundle, stage),
            choice,
            device=runner.device,
            identity=bundle.identity,
            threads=threads,
            check_files=functools.partial(bundle.watched.check_in_use, bundle.weight_files(runner.flavour)),
        )

    @classmethod
    def open_checkpoint(
        cls,
        system: str,
        source: Source,
        config: Mapping[str, Any] | Callable[[Mapping[str, Mapping[str, Any]]], Mapping[str, Any]],
        *,
        device: Literal["cpu", "cuda"] = "cpu",
    ) -> Model:
        """Run an official checkpoint in PyTorch, without a bundle. `config`: official hyper-parameters, such as those of a variant, or
        a function that gets them from the files that `read_checkpoint` gives.

        Raises CheckpointError, ConfigError, BackendError.
        """
        backend, choice = select_backend(f"torch-{device}")
        from musicrt.runtime.backends.torch import TorchSession
        from musicrt.runtime.checkpoint import read_checkpoint

        asked = build_spec(system, {} if callable(config) else config, "checkpoint")
        files = read_checkpoint(asked.checkpoint, source)
        if callable(config):
            asked = build_spec(system, config(files), "checkpoint")
        spec = fit_spec(asked, files)
        stages = system_module(system, "stages").load_stages(files, spec.config)
        return cls(spec, lambda stage: TorchSession(spec.stage(stage), stages[stage], backend.device, backend.gpu), choice, device=device)

    def session(self, stage: str) -> Session:
        """The session of a stage. Raises BackendError, BundleError when it can't be opened, or the bundle was written to."""
        self._gate.check()
        self._check_files()
        if (session := self._sessions.get(stage)) is not None:
            return session
        with self._gate, self._opening:  # one at a time, so that none is opened twice
            if stage not in self._sessions:
                started = time.perf_counter()
                session = self._open_session(stage)
                session.backend, session.precision = self.backend.name, self.backend.precision
                seconds = time.perf_counter() - started
                fields = {"event": "stage_opened", "stage": stage, "backend": session.backend, "seconds": seconds}
                _LOG.debug("stage %s opened in %.2f s", stage, seconds, extra=fields)
                self._sessions[stage] = session
            return self._sessions[stage]

    def close(self) -> None:
        """Close every session, once what other threads run in it has ended; closing twice is fine."""
        if self._gate.shut():
            while self._sessions:
                self._sessions.popitem()[1].close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def load(
    path: Path | str = EMBEDDED,
    *,
    backend: str = "auto",
    threads: int | None = None,
    stream: int | None = None,
    graphs: bool = True,
    precision: Precision | None = None,
    trusted_key: Path | str | None = None,
) -> Any:
    """Open a bundle and give the pipeline of its system, ready to encode, decode or generate.

    path: the bundle's folder; by default the small one inside the package: `music2latent-nano`, mono, trained on synthetic music only.
    backend: a name that `musicrt doctor` lists, or "auto": the fastest kind that works here (`pipeline.backend.reasons`
        tells why each other one does not). threads: CPU threads inside an operator; None: all.
    stream: the handle of a CUDA stream of yours (torch.cuda.Stream().cuda_stream, say) that all work on the GPU is enqueued on, so that
        it keeps its order with yours; you keep it alive. It can't be the default one. None: one of the pipeline's own.
    graphs: False, or MUSICRT_CUDA_GRAPHS=0 in the environment: sampling loops on a GPU are launched call by call, not as CUDA graphs.
    precision: what networks are computed in, "float32", "bfloat16", "float16" or "int8"; None: what the backend takes by itself, float32
        on a CPU. "auto" chooses among the backends that offer it here, and `pipeline.backend.precision` says what runs; nothing else is
        run instead. "int8" needs a bundle that `musicrt calibrate` has given such graphs.
    trusted_key: a file with the Ed25519 public key (PEM) that the bundle has to be signed with (`musicrt sign`; needs the extra `sign`);
        a bundle that is not, or was changed since, is refused, and every file's hash is checked.
    Raises BundleError, BackendError; InputError for a key that can't be read.
    """
    model = Model.open(path, backend=backend, threads=threads, stream=stream, graphs=graphs, precision=precision, trusted_key=trusted_key)
    return system_module(model.spec.system, "pipeline").Pipeline(model)
