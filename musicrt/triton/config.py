"""The configuration of a model (`config.pbtxt`), in protobuf's text format, which Triton reads."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Self

from musicrt.runtime.errors import InputError
from musicrt.runtime.precision import Precision
from musicrt.triton.verbs import Array, Tensor, Verb

TYPES = {
    "bool": "TYPE_BOOL",
    "uint8": "TYPE_UINT8",
    "int8": "TYPE_INT8",
    "int64": "TYPE_INT64",
    "float16": "TYPE_FP16",
    "float32": "TYPE_FP32",
    "float64": "TYPE_FP64",
}
"""What Triton calls NumPy's dtypes."""
_PARAMETERS = ("device", "backend", "precision", "threads", "max_seconds", "deadline", "stage_models")
"""The settings that have no other place in a configuration."""


class Word(str):
    """A value of an enumeration: it stands without quotes."""

    __slots__ = ()


@dataclass(frozen=True)
class Settings:
    """How the models of a bundle are served. All of it stands in their configurations, where an operator may change it.

    device: "cpu" or "cuda". backend, precision, threads: as of `musicrt.load`, "" for None and 0 for all threads.
    instances: processes of each model, each with the bundle opened; on a machine with GPUs, so many on each. max_batch: rows that run as
    one call; then results may differ in the last digits from those alone, and rows without a seed share their noise. max_delay: seconds
    for which a request waits for others to run with. queue: requests that may wait for a model. max_seconds: of audio in a row, in or
    out. deadline: seconds at work on one request. stage_models: stages are models of Triton's ONNX Runtime backend.
    """

    device: Literal["cpu", "cuda"] = "cpu"
    backend: str = "auto"
    precision: Precision | Literal[""] = ""
    threads: int = 0
    instances: int = 1
    max_batch: int = 1
    max_delay: float = 0.01
    queue: int = 16
    max_seconds: float = 600.0
    deadline: float = 600.0
    stage_models: bool = False

    def check(self) -> Self:
        """Raises InputError for what makes no sense."""
        if self.device not in ("cpu", "cuda"):
            raise InputError(f"got device {self.device!r}, expected 'cpu' or 'cuda'")
        for name in ("instances", "max_batch", "queue"):
            if getattr(self, name) < 1:
                raise InputError(f"got {name} {getattr(self, name)}, expected a whole number from 1 on")
        for name in ("threads", "max_delay"):
            if getattr(self, name) < 0:
                raise InputError(f"got {name} {getattr(self, name)}, expected 0 or more")
        if self.stage_models and self.precision:
            raise InputError(f"got precision {self.precision!r} with stages as models of their own, which run in float32; leave one out")
        for name in ("max_seconds", "deadline"):
            if not 0 < getattr(self, name) < float("inf"):
                raise InputError(f"got {name} {getattr(self, name)}, expected a number of seconds above 0")
        return self

    @classmethod
    def read(cls, config: Mapping[str, Any]) -> Self:
        """From the configuration of a model, as Triton hands it on. Raises InputError."""
        given = {name: one["string_value"] for name, one in config["parameters"].items()}
        try:
            return cls(
                device=given["device"],
                backend=given["backend"],
                precision=given["precision"],
                threads=int(given["threads"]),
                max_batch=max(int(config["max_batch_size"]), 1),
                max_seconds=float(given["max_seconds"]),
                deadline=float(given["deadline"]),
                stage_models=given["stage_models"] == "True",
            ).check()
        except (KeyError, ValueError) as error:
            raise InputError(f"the parameters of {config.get('name')} are damaged ({error}); write the repository again") from None


def verb_config(name: str, verb: Verb, settings: Settings) -> dict[str, Any]:
    """The configuration of the model that runs a verb in Python."""
    queue = {
        "timeout_action": Word("REJECT"),
        "allow_timeout_override": True,
        "max_queue_size": settings.queue,
    }
    parameters = {"verb": verb.name, **{key: getattr(settings, key) for key in _PARAMETERS}}
    needed = {verb.source.name, *(one.name for one in verb.needed)}
    return {
        "name": name,
        "backend": "python",
        "max_batch_size": settings.max_batch,
        "input": [{**tensor_config(one), **({} if one.name in needed else {"optional": True})} for one in verb.inputs],
        "output": [tensor_config(verb.output)],
        "dynamic_batching": {"max_queue_delay_microseconds": round(settings.max_delay * 1e6), "default_queue_policy": queue}
        if settings.max_batch > 1
        else {"default_queue_policy": queue},
        "instance_group": [instance_group(settings)],
        "parameters": [{"key": key, "value": {"string_value": str(value)}} for key, value in parameters.items()],
        # Without it where stages are models, which may not be there yet.
        "model_warmup": [] if settings.stage_models else [{"name": "short", "batch_size": 1, "inputs": [*map(_warm, verb.warm.items())]}],
    }


def _warm(item: tuple[str, Array]) -> dict[str, Any]:
    name, value = item
    return {"key": name, "value": {"data_type": Word(TYPES[str(value.dtype)]), "dims": list(value.shape), "input_data_file": name}}


def tensor_config(tensor: Tensor) -> dict[str, Any]:
    """An entry of `input` or `output`."""
    return {"name": tensor.name, "data_type": Word(TYPES[tensor.dtype]), "dims": list(tensor.dims)}


def instance_group(settings: Settings) -> dict[str, Any]:
    """How many processes or contexts of a model there are, and where."""
    return {"count": settings.instances, "kind": Word("KIND_GPU" if settings.device == "cuda" else "KIND_CPU")}


def to_pbtxt(config: Mapping[str, Any]) -> str:
    """A configuration as text: mappings are messages, lists of them repeated ones."""
    return "\n".join(_lines(config)) + "\n"


def _lines(message: Mapping[str, Any]) -> Iterator[str]:
    for name, value in message.items():
        for one in value if _is_repeated(value) else [value]:
            if isinstance(one, Mapping):
                yield f"{name} {{"
                yield from (f"  {line}" for line in _lines(one))
                yield "}"
            else:
                yield f"{name}: {_scalar(one)}"


def _is_repeated(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str) and (not value or isinstance(value[0], Mapping))


def _scalar(value: Any) -> str:
    match value:
        case Word():
            return str(value)
        case bool():
            return "true" if value else "false"
        case list():
            return f"[{', '.join(map(_scalar, value))}]"
        case _:
            return json.dumps(value, ensure_ascii=True)
