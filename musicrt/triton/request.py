"""A request to one of the models: its rows as calls of the pipeline, and their results as its answer."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from typing import Any

import numpy as np

from musicrt.runtime.errors import BusyError, Cancelled, InputError, MusicRTError
from musicrt.runtime.pipeline import Codec, options_of
from musicrt.runtime.serving.request import Call, Request
from musicrt.triton.config import Settings
from musicrt.triton.tensors import to_array, to_tensor
from musicrt.triton.verbs import Array, Verb

_LOG = logging.getLogger("musicrt")


class Row(Request):
    """One call. It goes no further once the client has gone away, which it asks between two steps."""

    def __init__(self, number: int, call: Call, deadline: float, is_cancelled: Callable[[], bool]) -> None:
        super().__init__(number, call, deadline, lambda _request, _error: None)
        self._is_cancelled = is_cancelled

    def check(self) -> None:
        """See `Request`."""
        if self._is_cancelled():
            self.abandon()
        super().check()


class Asked:
    """A request as Triton hands it over (`pb_utils.InferenceRequest`). rows: none where it can't be understood."""

    def __init__(self, request: Any, verb: Verb, codec: Codec, settings: Settings) -> None:
        self._verb = verb
        self.rows: list[Row] = []
        self._error: BaseException | None = None
        try:
            feeds = {one.name(): to_array(one) for one in request.inputs()}
            options = _read_options(verb, feeds, request.parameters())
            wanted = [_read_call(verb, codec, settings, feeds, row, options) for row in range(len(feeds[verb.source.name]))]
        except InputError as error:
            self._error = error
            return
        asked = request.timeout() / 1e6  # 0: none
        deadline = min(asked, settings.deadline) if asked else settings.deadline
        self.rows = [Row(number, call, deadline, request.is_cancelled) for number, call in enumerate(wanted)]

    def answer(self, utils: Any) -> Any:
        """The response, once all rows have ended. utils: `triton_python_backend_utils`."""
        errors = [self._error, *(row.exception() for row in self.rows)]
        error = next((one for one in errors if one is not None), None)
        if error is not None:
            return utils.InferenceResponse(error=_to_triton(self._verb, error, utils.TritonError))
        results = [_canonical(row.result(), self._verb) for row in self.rows]
        return utils.InferenceResponse([to_tensor(utils, self._verb.output.name, np.stack(results))])


def _read_options(verb: Verb, feeds: dict[str, Array], parameters: str) -> dict[str, Any]:
    """Those that were given: the numbers are tensors, a value for each row, the words are parameters of the request."""
    options: dict[str, Any] = {}
    for one in verb.numbers:
        if one.name in feeds:
            values = np.unique(feeds[one.name])
            if len(values) != 1:
                raise InputError(f"got {one.name} {values.tolist()} in one request, expected one value for all rows; send several")
            options[one.name] = values.astype(one.dtype)[0].item()  # a bool may come as an integer
    given = json.loads(parameters or "{}")
    for name, value in given.items():
        if name in verb.words:
            if value not in verb.words[name]:
                raise InputError(f"got {name} {value!r}, expected {' or '.join(map(repr, verb.words[name]))}")
            options[name] = value
        elif not name.startswith("triton_"):
            inputs, words = ", ".join(one.name for one in verb.inputs), ", ".join(verb.words) or "none"
            raise InputError(f"{verb.name} has no parameter {name!r}; its parameters: {words}; its inputs: {inputs}")
    return options


def _read_call(verb: Verb, codec: Codec, settings: Settings, feeds: dict[str, Array], row: int, options: dict[str, Any]) -> Call:
    source: Any = feeds[verb.source.name][row]
    if source.size == 0:
        raise InputError(f"got {verb.source.name} of shape {list(source.shape)}, expected something in it")
    match verb.name:
        case "encode":
            seconds = source.shape[-1] / (options.get("sample_rate") or codec.sample_rate)
        case "decode":
            seconds = codec.seconds_of(source)
        case _:
            rate = float(feeds["rate"][row].item())
            seconds = max(len(source) / rate if rate > 0 else 0.0, options.get("duration") or 0.0)
            clip: Any = codec.clip  # type: ignore[attr-defined]  # of a generator
            about = {name: options[name] for name in options_of(clip) if name in options}
            _check_seconds(verb, seconds, settings)
            source = clip(source, rate, **about)
    _check_seconds(verb, seconds, settings)
    return Call(verb.name, (source,), options)


def _check_seconds(verb: Verb, seconds: float, settings: Settings) -> None:
    if not seconds <= settings.max_seconds:  # NaN is not
        raise InputError(
            f"{verb.name} was asked for {seconds:.0f} s of audio, expected at most {settings.max_seconds:g} s; send parts of it"
        )


def _canonical(result: Array, verb: Verb) -> Array:
    """With the axes that the configuration says: audio is [channels, samples], whatever the system."""
    return result.reshape(-1, result.shape[-1]) if verb.output.name == "audio" else result


def _to_triton(verb: Verb, error: BaseException, kind: Any) -> Any:
    """The error in Triton's words: our message where it is one of ours."""
    match error:
        case InputError():
            return kind(str(error), kind.INVALID_ARG)
        case Cancelled():
            return kind(str(error), kind.CANCELLED)
        case BusyError():
            return kind(str(error), kind.UNAVAILABLE)
        case MusicRTError():
            return kind(str(error), kind.INTERNAL)
    _LOG.error("%s failed", verb.name, exc_info=error, extra={"event": "request_crashed", "method": verb.name})
    return kind(f"{verb.name} failed with {type(error).__name__}; the server's log tells more", kind.INTERNAL)
