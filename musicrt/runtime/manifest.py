"""The manifest of a bundle: typed, versioned, validated when a bundle is opened."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from typing import Annotated, Any, Literal, NoReturn

from pydantic import BaseModel, ConfigDict, Field

from musicrt.runtime.precision import Gate

FORMAT = "musicrt-bundle"
VERSION = 1

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


class _Entry(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class FileEntry(_Entry):
    """A file of the bundle; `path` is relative to its folder."""

    path: str
    bytes: int = Field(ge=0)
    sha256: Sha256


class OutputProbe(_Entry):
    """Every `stride`-th element of an output that the network gave at export."""

    shape: list[int]
    stride: int = Field(ge=1)
    values: list[float]


class Probe(_Entry):
    """A run recorded at export, so that a bundle can be checked where torch is not installed. Inputs: `probe_inputs`."""

    sizes: dict[str, int]
    seed: int = Field(ge=0, lt=1 << 64)
    outputs: dict[str, OutputProbe]


class GraphEntry(_Entry):
    """One ONNX graph of a stage. `error`: distance from the torch network, measured at export; see `verify.relative_error`.

    Of a graph in 8-bit integers, it is that from the float32 graph on the music of its calibration; `probe` is what it makes of the inputs
    of the stage's recorded run, which are noise and go beyond the ranges that music has.
    """

    file: FileEntry
    opset: int
    precision: Literal["float32", "float16", "int8"]
    error: float
    tolerance: float
    probe: Probe | None = None


class StageEntry(_Entry):
    """What the bundle holds of a stage: graphs by flavour, and its tensors in words."""

    inputs: list[str]
    outputs: list[str]
    states: list[str] = []
    graphs: dict[str, GraphEntry]
    probe: Probe


class ProfileEntry(_Entry):
    """What one optimisation profile of an engine accepts: minimum, optimum and maximum of every axis."""

    bucket: str
    axes: dict[str, tuple[int, int, int]]


class PlanEntry(_Entry):
    """An engine of one stage, serialised. `key`: fingerprint of all that it was made from; see `engines.fingerprint`.

    report: its layers (`engines.inspect`). activation_bytes, weight_bytes: what the builder said of the largest profile, if it did.
    targets: GPU architectures. stripped: the weights are put in when it is opened.
    """

    file: FileEntry
    report: FileEntry
    key: Sha256
    engine: str
    version: str
    targets: list[str]
    precision: Literal["float32", "float16", "int8"]
    flavour: str
    stripped: bool
    profiles: list[ProfileEntry]
    activation_bytes: int | None = None
    weight_bytes: int | None = None


class LoweredEntry(_Entry):
    """What became of one stage. method: as in `spec.Int8`. kept: layers that stayed float32, by name.

    error: relative L2 distance from the float32 stage, of the worst output on music. outputs: the same by output, as signal to noise in dB;
    of whole numbers the share that is equal.
    """

    method: str
    error: float
    layers: int = Field(ge=0)
    kept: list[str]
    outputs: dict[str, float]


class GateEntry(_Entry):
    """A gate of the system, and what was measured; None: it could not be."""

    measure: str
    least: float | None
    most: float | None
    value: float | None
    holds: bool

    @property
    def wanted(self) -> Gate:
        """The gate as a spec has it."""
        return Gate(self.measure, self.least, self.most)


class CalibrationEntry(_Entry):
    """How a bundle was calibrated for one target. inputs: in words, with the hash of what was heard.

    quality: measures by name. forced: a gate was missed, and the result kept because it was asked for. pins: by stage, modules and nodes
    that have to stay float32 in half precision.
    """

    inputs: str
    inputs_sha256: Sha256
    tools: dict[str, str]
    stages: dict[str, LoweredEntry] = {}
    quality: dict[str, float] = {}
    gates: list[GateEntry] = []
    forced: bool = False
    pins: dict[str, list[str]] = {}


class LicenceEntry(_Entry):
    """Licences of the code and of the weights in the bundle."""

    code: str
    weights: str
    weights_url: str


class SourceEntry(_Entry):
    """The checkpoint behind the weights: a description, the hash of every file, and of all tensors together."""

    description: str
    files: dict[str, Sha256]
    tensors_sha256: Sha256


class Manifest(_Entry):
    """manifest.json. `more_weights`: by flavour, what its graphs need beside `weights`."""

    format: Literal["musicrt-bundle"] = "musicrt-bundle"
    version: Literal[1] = 1
    system: str
    variant: str
    config: dict[str, Any]
    defaults: dict[str, Any]
    sample_rate: int
    licences: LicenceEntry
    source: SourceEntry
    identity: Sha256
    weights: FileEntry
    more_weights: dict[str, FileEntry] = {}
    stages: dict[str, StageEntry]
    tools: dict[str, str]
    calibrations: dict[str, CalibrationEntry] = {}
    """By target: cpu-int8, gpu-fp16, gpu-int8."""
    engines: dict[str, dict[str, PlanEntry]] = {}
    """Plans by the name of their folder, and by stage."""


def parse_json(text: bytes) -> Any:
    """JSON in which every name comes once, every number is finite, and no text steers a terminal. Raises ValueError, RecursionError."""
    content = json.loads(text, object_pairs_hook=_unique, parse_constant=_refuse_number, parse_float=_finite)
    _check_texts(content)
    return content


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Readers differ in which of two values they take."""
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = Counter(name for name, _ in pairs).most_common(1)[0][0]
        raise ValueError(f"the name {twice[:80]!a} comes twice")
    return found


def _check_texts(content: Any) -> None:
    """Some are shown by `musicrt inspect`, and all may be part of an error."""
    if isinstance(content, str) and _CONTROL.search(content):
        raise ValueError(f"the text {content[:80]!a} has control characters")
    for part in (*content.keys(), *content.values()) if isinstance(content, dict) else content if isinstance(content, list) else ():
        _check_texts(part)


def _refuse_number(text: str) -> NoReturn:
    raise ValueError(f"{text[:80]} is no finite number")


def _finite(text: str) -> float:
    number = float(text)
    return number if math.isfinite(number) else _refuse_number(text)
