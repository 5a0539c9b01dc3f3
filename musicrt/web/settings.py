"""The settings that the page offers for a bundle: those options of the command line that its system has."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from musicrt.cli.options import DECODING, ENCODING, GENERATION, Flag
from musicrt.runtime.errors import InputError
from musicrt.runtime.generator import Generator
from musicrt.runtime.pipeline import WAYS, Codec, options_of
from musicrt.runtime.record import Way


@dataclass(frozen=True)
class Setting:
    """One option of a system. `default`: what holds where nothing is given; None where only the system knows."""

    name: str
    flag: Flag
    default: Any

    @property
    def label(self) -> str:
        return self.name.replace("_", " ")

    def read(self, value: Any) -> Any:
        """What a widget holds as a value of the option, None where it is left alone. Raises InputError."""
        if isinstance(value, str) and self.flag.kind in (int, float):
            value = self._parse(value.strip())
        if value is None or (self.default is not None and value == self.default):
            return None
        if self.flag.kind is int and value == int(value):
            return int(value)
        if self.flag.kind is int:
            raise InputError(f"got {self.label} {value}, expected a whole number")
        return float(value) if self.flag.kind is float else value

    def _parse(self, text: str) -> float | None:
        try:
            value = float(text) if text else None
        except ValueError:
            value = math.nan
        if value is not None and not math.isfinite(value):
            raise InputError(f"got {self.label} {text!r}, expected a number, or nothing")
        return value


def settings_of(codec: Codec) -> list[Setting]:
    """Those of generating, or of encoding and decoding."""
    if isinstance(codec, Generator):
        return _settings(codec, GENERATION, ["generate"])
    return _settings(codec, {**ENCODING, **DECODING}, ["encode", "decode"])


def read_settings(settings: Iterable[Setting], values: Iterable[Any]) -> dict[str, Any]:
    """The options that were given: the values of the widgets, in the order of the settings. Raises InputError."""
    read = {setting.name: setting.read(value) for setting, value in zip(settings, values, strict=True)}
    return {name: value for name, value in read.items() if value is not None}


def own_options(method: Callable[..., Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """Those that a method has."""
    return {name: value for name, value in options.items() if name in options_of(method)}


def _settings(codec: Codec, flags: Mapping[str, Flag], ways: Sequence[Way]) -> list[Setting]:
    methods = [getattr(codec, method) for way in ways for method in WAYS[way]]
    known = [name for method in methods for name in options_of(method)]
    return [Setting(name, flag, _default(codec, name, methods)) for name, flag in flags.items() if name in known]


def _default(codec: Codec, name: str, methods: Iterable[Callable[..., Any]]) -> Any:
    """That of the method, else that of the system."""
    found = [inspect.signature(method).parameters[name].default for method in methods if name in options_of(method)]
    given = next((value for value in found if value is not None), None)
    return codec.model.spec.defaults.get(name) if given is None else given
