"""A whole window of 40.96 s put together by measured parts, and how each was brought to its size."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from benchmarks.mucodec.official import chunked_frames
from benchmarks.mucodec.workload import Part, Workload
from benchmarks.rounds import BASELINES, Results
from musicrt.runtime.fake_session import FakeSession
from musicrt.runtime.measure import Measurement, markdown_table
from musicrt.runtime.model import Model
from musicrt.runtime.models.mucodec.config import CODE_RATE, SAMPLE_RATE
from musicrt.runtime.models.mucodec.lengths import WINDOW, encoded_codes, encoder_windows
from musicrt.runtime.models.mucodec.synthesis import Synthesis
from musicrt.runtime.select import Choice

FRAMES = WINDOW // 2
"""Latent frames of a whole window."""
_MEL = 8  # mel frames of a latent frame
_ROWS = {
    "encode": "encode of a clip",
    "prepare": "once per window",
    "step": "{} steps",
    "vae": "VAE, both channels",
    "vocoder": "vocoder, both channels",
}


@dataclass(frozen=True)
class Share:
    """Seconds of one kind of part in a whole window, and what was done with what was measured."""

    seconds: float
    how: str


def assemble(rows: Mapping[str, Measurement], steps: int, frames: Mapping[int, int]) -> dict[str, Share]:
    """The shares of a contender by kind, of those kinds that were measured. `frames`: see `run_frames`, of this contender."""
    measured: dict[str, dict[Part, float]] = {}
    for name, measurement in rows.items():
        part = Part.parse(name)
        measured.setdefault(part.kind, {})[part] = measurement.p50
    shares = {}
    for kind in _ROWS:
        parts = measured.get(kind, {})
        found = {part: seconds for part, seconds in parts.items() if kind != "encode" or _is_one_window(part.size)}
        if not found:
            continue
        largest = max(found, key=lambda part: part.size)
        if kind in ("prepare", "step", "vae"):
            times = steps if kind == "step" else 1
            shares[kind] = extrapolate({part.size: seconds * times * 2 / part.channels for part, seconds in found.items()})
        elif kind == "vocoder":
            factor = frames[FRAMES] / frames[round(largest.size)]
            how = f"{largest.name}, by mel frames that run" if factor != 1 else largest.name
            shares[kind] = Share(found[largest] * factor * 2 / largest.channels, how)
        else:
            shares[kind] = Share(found[largest], largest.name)
    return shares


def extrapolate(measured: Mapping[float, float]) -> Share:
    """Seconds at FRAMES of what takes so many at other sizes, with a share that grows with the length and one with its square."""
    if FRAMES in measured:
        return Share(measured[FRAMES], f"measured at {FRAMES} frames")
    *smaller, size = sorted(measured)
    rate = measured[size] / size
    if not smaller:
        return Share(rate * FRAMES, f"at least: from {size:g} frames by length, without the growth of attention")
    growth = max((rate - measured[smaller[-1]] / smaller[-1]) / (size - smaller[-1]), 0.0)
    return Share(FRAMES * (rate + growth * (FRAMES - size)), f"from {smaller[-1]:g} and {size:g} frames by length and its square")


def run_frames(work: Workload, sizes: Sequence[int], *, official: bool) -> dict[int, int]:
    """Mel frames that the vocoder is run on for one channel of so many latent frames, overlaps and margins included."""
    return {size: chunked_frames(_MEL * size) if official else _own_frames(work, _MEL * size) for size in sizes}


def _own_frames(work: Workload, frames: int) -> int:
    session = FakeSession(work.spec.stage("vocoder"))
    model = Model(work.spec, lambda _: session, Choice("count", "nothing is run"))
    Synthesis(model, work.config).waveform(np.zeros((frames, 256), np.float32))
    return sum(call["mel"].shape[0] * call["mel"].shape[1] for call in session.calls)


def render_window(results: Results, work: Workload, steps: Sequence[int]) -> str:
    """A table for each number of steps, a row for each share and a column for each contender; none without a contender with any."""
    sizes = sorted({FRAMES, *(round(part.size) for rows in results.values() for part in map(Part.parse, rows) if part.kind == "vocoder")})
    frames = {official: run_frames(work, sizes, official=official) for official in (False, True)}
    sections = []
    for count in steps:
        shares = {name: assemble(rows, count, frames[name in BASELINES]) for name, rows in results.items()}
        if any(shares.values()):
            sections += [f"## A whole window of {WINDOW / CODE_RATE:g} s in {count} steps by measured parts, s", _table(shares, count)]
    if sections:
        counts = "; ".join(f"{size} frames: {frames[True][size]} officially, {frames[False][size]} here" for size in sizes)
        sections.append(
            "Whatever was measured at another size was brought to that of a window as the second column says. "
            f"Mel frames that the vocoder runs on for a channel of so many latent frames: {counts}."
        )
    return "\n\n".join(sections)


def _table(shares: Mapping[str, Mapping[str, Share]], steps: int) -> str:
    contenders, kinds = list(shares), [kind for kind in _ROWS if any(kind in found for found in shares.values())]
    rows = []
    for kind in kinds:
        hows = " / ".join(dict.fromkeys(found[kind].how for found in shares.values() if kind in found))
        rows.append([_ROWS[kind].format(steps), hows, *(_number(shares[name].get(kind)) for name in contenders)])
    complete = {name: sum(share.seconds for share in found.values()) for name, found in shares.items() if len(found) == len(_ROWS)}
    if complete:
        rows.append(["total", "", *(f"{complete[name]:.1f}" if name in complete else "–" for name in contenders)])
    if "eager" in complete:
        ratios = (f"{complete['eager'] / complete[name]:.2f}" if name in complete else "–" for name in contenders)
        rows.append(["times as fast as eager", "", *ratios])
    return markdown_table(("part", "from", *contenders), rows, text_columns=2)


def _number(share: Share | None) -> str:
    return "–" if share is None else f"{share.seconds:.2f}"


def _is_one_window(seconds: float) -> bool:
    return len(encoder_windows(encoded_codes(round(seconds * SAMPLE_RATE)), "window")) == 1
