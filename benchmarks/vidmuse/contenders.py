"""The bundle as the suites run it. Importing this needs no torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from benchmarks.contenders import Opened
from benchmarks.rounds import Outputs
from benchmarks.vidmuse.workload import GUIDANCE, VIDEO, Float, Part, Workload
from musicrt.runtime.bundle import Bundle
from musicrt.runtime.models.vidmuse.conditioner import Scene, rename
from musicrt.runtime.precision import INT8


class OnBackend(Opened):
    """A bundle on one backend, as a user runs it."""

    def __init__(self, bundle: str, backend: str, threads: int | None) -> None:
        super().__init__(bundle, backend, threads)
        self._bundle = bundle
        self._keys: dict[int, Mapping[str, Float]] = {}  # of both halves, by the tokens of the condition

    def prepare(self, part: Part, work: Workload) -> Callable[[], Outputs]:
        """See `Contender`. Black frames are encoded before, once for a model. Steps run on bound buffers, as in the loop."""
        size, conditioner = round(part.size), self.codec.composer.conditioner
        match part.kind:
            case "condition":
                clip = work.clip(size)
                conditioner.null_keys()

                def look() -> Outputs:
                    video_emb = Scene(conditioner, [clip]).condition(range(clip.local_count))
                    conditioner.keys(video_emb)
                    return {"video_emb": video_emb}

                return look
            case "prefill":
                columns, language, keys = work.columns(size), self.codec.composer.language, self.keys(work)

                def prefill() -> Outputs:
                    with language.open(keys, {}, work.capacity) as window:
                        return {"logits": window.feed(columns)}

                return prefill
            case "step":
                return self._prepare_step(size, work)
            case "encode":
                audio = work.audio(part.size)
                return lambda: {"codes": self.codec.audio.encode(audio)}
            case "decode":
                codes = work.codes(part.size)
                return lambda: {"audio": np.concatenate(list(self.codec.audio.decode(codes)), axis=1)}
            case "generate":
                return self._prepare_generation(part.size, work)
            case _:
                clip = work.clip(size)
                return lambda: {"audio": next(self.codec.generate_stream(clip, duration=part.size, guidance=GUIDANCE, seed=1))}

    def keys(self, work: Workload) -> Mapping[str, Float]:
        """Keys and values of both halves, computed once."""
        if work.tokens not in self._keys:
            conditioner = self.codec.composer.conditioner
            self._keys[work.tokens] = {**conditioner.keys(work.condition()), **rename(conditioner.keys(work.null_condition()))}
        return self._keys[work.tokens]

    def step_feeds(self, columns: int, work: Workload) -> dict[str, Any]:
        """What a step behind so many columns is given."""
        feeds: dict[str, Any] = {**self.keys(work), **work.caches(columns), "tokens": work.columns(1), "length": np.full(1, columns)}
        rounded = {state.name for state in self.codec.model.session("lm").states if state.dtype == "int8"} & feeds.keys()
        return feeds | self._round({name: feeds[name] for name in sorted(rounded) if feeds[name].dtype != np.int8})

    def _round(self, arrays: Mapping[str, Any]) -> dict[str, Any]:
        """Keys and caches in 8-bit integers, by the scales that the graph of the language model has."""
        if not arrays:
            return {}
        import onnx_ir as ir

        graph = ir.load(Bundle.open(self._bundle).graph("lm", INT8)[0]).graph
        scales = {name: graph.initializers[f"{name}.scales"].const_value for name in arrays}
        found = {name: scale.numpy() for name, scale in scales.items() if scale is not None}
        return {name: np.clip(np.rint(array / found[name]), -127, 127).astype(np.int8) for name, array in arrays.items()}

    def _prepare_step(self, columns: int, work: Workload) -> Callable[[], Outputs]:
        logits = np.empty((2, 1, work.config.codebooks, 1, work.config.card), np.float32)
        step = self.codec.model.session("lm").bind(self.step_feeds(columns, work), {"logits": logits})

        def call() -> Outputs:
            step()
            return {"logits": logits[:, :, :, 0]}

        return call

    def _prepare_generation(self, seconds: float, work: Workload) -> Callable[[], Outputs]:
        noise = work.noise(seconds)

        def call() -> Outputs:
            codes = self.codec.generate_tokens(work.clip(VIDEO), duration=seconds, guidance=GUIDANCE, noise=noise)
            return {"codes": codes, "audio": np.concatenate(list(self.codec.audio.decode(codes)), axis=1)}

        return call
