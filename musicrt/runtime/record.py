"""What an output was made with, so that it can be made again: a line of JSON that goes into the files themselves.

It stands in the header of encoded audio, and in the comment of audio files and of copies of videos. Paths, names of files and of machines,
and times are not in it: what was given as a file or an array is there as its SHA-256.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import numpy as np
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from musicrt.runtime.errors import InputError
from musicrt.runtime.files import sha256_of
from musicrt.runtime.manifest import Sha256, parse_json
from musicrt.runtime.precision import Precision

LONGEST = 2000
"""Characters of a line: of the comment of a WAV file libsndfile reads a few more."""
_WORD = 200  # characters
_MARK = '{"format":"musicrt-record '

Way = Literal["encode", "decode", "generate"]


def _check_word(text: str) -> str:
    """What may stand in a line of a terminal."""
    if not text.isprintable():
        raise ValueError("it holds characters that can't be printed")
    return text


Word = Annotated[str, Field(max_length=_WORD), AfterValidator(_check_word)]


class Record(BaseModel):
    """How an output was made. `identity`: of the bundle, None where the model came from none.

    version: of this package. runtime: what ran, in words. threads: that the bundle was loaded with. options: those that were given, and the
    seed; files and arrays among them as "sha256:…". input: SHA-256 of the file that went in. source: the record of that, if it had one.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    format: Literal["musicrt-record 1"] = "musicrt-record 1"
    way: Way
    version: Word
    system: Word
    variant: Word
    identity: Word | None = None
    backend: Word
    precision: Precision
    runtime: Word
    threads: int | None = None
    options: Annotated[dict[Word, bool | int | float | Word], Field(max_length=32)] = {}
    input: Sha256 | None = None
    source: Record | None = None

    @model_validator(mode="after")
    def _check_depth(self) -> Self:
        if self.source is not None and self.source.source is not None:
            raise ValueError("there are more than two records, one in the other")
        return self

    @property
    def line(self) -> str:
        """What stands in a file: ASCII, at most `LONGEST` characters; without the `source` where it were more."""
        text = _line_of(self)
        return text if len(text) <= LONGEST or self.source is None else _line_of(self.model_copy(update={"source": None}))


def find_record(text: str) -> Record | None:
    """The record in a text of several lines; None where there is none, or that of another format. Raises InputError for a damaged one."""
    line = next((line for line in reversed(text.splitlines()) if line.startswith(_MARK)), "")
    if not line.startswith(f'{_MARK}1"'):
        return None
    if len(line) > LONGEST:
        raise InputError(f"got a record of {len(line)} characters, expected at most {LONGEST}; it was not written by this package")
    try:
        return Record.model_validate(parse_json(line.encode()))
    except ValidationError as error:
        first = error.errors()[0]
        where = first["loc"][0] if first["loc"] else "source"
        raise InputError(f"got a damaged record ({where!a}: {first['msg']}); it was changed since this package wrote it") from None
    except (ValueError, RecursionError):
        raise InputError("got a damaged record, expected a line of JSON; it was changed since this package wrote it") from None


def add_record(text: str, record: Record) -> str:
    """A text of several lines with a record in the place of that which it had."""
    return "\n".join([*(line for line in text.splitlines() if not line.startswith(_MARK)), record.line])


def as_word(text: str) -> str:
    """A text as a record can hold it: printable, and not too long."""
    return "".join(letter if letter.isprintable() else "?" for letter in text[:_WORD])


def describe_options(options: Mapping[str, Any], files: Collection[str]) -> dict[str, bool | int | float | str]:
    """Those that are not None as a record has them. files: names of options whose texts name files."""
    return {name: _describe(value, name in files) for name, value in options.items() if value is not None and name != "on_progress"}


def _describe(value: Any, is_file: bool) -> bool | int | float | str:
    if isinstance(value, Path) or (is_file and isinstance(value, str)):
        with contextlib.suppress(OSError):  # what can't be read, the call itself refuses
            return f"sha256:{sha256_of(Path(value))}"
        return "unreadable"
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, str):
        return as_word(value)
    if isinstance(value, bool | int) or (isinstance(value, float) and math.isfinite(value)):
        return value
    if isinstance(value, np.ndarray):
        return f"sha256:{hashlib.sha256(np.ascontiguousarray(value).tobytes()).hexdigest()}"
    return f"given as {type(value).__name__}"


def _line_of(record: Record) -> str:
    content = record.model_dump(mode="json", exclude_none=True)
    return json.dumps(content, separators=(",", ":"))
