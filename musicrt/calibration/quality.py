"""What a lowered pipeline keeps of what the float32 one gives: measures by name, end to end and stage by stage."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import numpy as np
from numpy.typing import NDArray

from musicrt.calibration.inputs import Piece
from musicrt.calibration.metrics import mel_distance, signal_to_noise, stft_distance
from musicrt.runtime.bundle import Bundle
from musicrt.runtime.model import Model
from musicrt.runtime.pipeline import options_of
from musicrt.runtime.precision import Gate
from musicrt.runtime.registry import system_module
from musicrt.runtime.select import Choice
from musicrt.runtime.session import Array, Session

ENCODE, DECODE = "encode", "decode"
_SEED = 7
_MOST_DECIBELS = 120.0
"""What is said of outputs that are equal."""


@dataclass(frozen=True)
class Run:
    """What a pipeline made of a piece: encoded values, and audio float32 [..., samples] decoded from those of the float32 one."""

    piece: Piece
    values: NDArray[Any]
    audio: NDArray[np.float32]


def make_pipeline(bundle: Bundle, open_session: Callable[[str], Session]) -> Any:
    """The system's pipeline on sessions of any kind."""
    model = Model(bundle.spec, open_session, Choice("calibration", "sessions that are recorded or tried"), identity=bundle.identity)
    return system_module(bundle.spec.system, "pipeline").Pipeline(model)


def run_pieces(
    codec: Any, pieces: Sequence[Piece], steps: int | None, given: Sequence[Run] = (), doing: Callable[[str], None] | None = None
) -> list[Run]:
    """Encode every piece, and decode what was encoded; where other runs are given, what those encoded. Raises MusicRTError."""
    options = decode_options(codec, steps)
    runs = []
    for index, piece in enumerate(pieces):
        if doing:
            doing(ENCODE)
        values = codec.encode(piece.audio)
        if doing:
            doing(DECODE)
        runs.append(Run(piece, values, codec.decode(given[index].values if given else values, **options)))
    return runs


def decode_options(codec: Any, steps: int | None) -> dict[str, Any]:
    """The seed, and the steps if they are given, where the system has them."""
    known = options_of(codec.decode_stream)
    wanted = {"seed": _SEED, "steps": steps}
    return {name: value for name, value in wanted.items() if value is not None and name in known}


def measure_runs(runs: Sequence[Run], reference: Sequence[Run], sample_rate: int) -> dict[str, float]:
    """Means over the pieces: of the encoded values, and of audio decoded from the same ones.

    "encode SNR dB" of latents, or "encode agreement" of tokens: the share that is equal; "decode SNR dB", "decode log-mel dB",
    "decode STFT".
    """
    rows = []
    for run, ref in zip(runs, reference, strict=True):
        if np.issubdtype(ref.values.dtype, np.integer):
            row = {f"{ENCODE} agreement": float(np.mean(run.values == ref.values))}
        else:
            row = {f"{ENCODE} SNR dB": decibels(run.values, ref.values)}
        channels = (audio.reshape(-1, audio.shape[-1]) for audio in (ref.audio, run.audio))
        pairs = list(zip(*channels, strict=True))
        row[f"{DECODE} SNR dB"] = decibels(run.audio, ref.audio)
        row[f"{DECODE} log-mel dB"] = fmean(mel_distance(truth, guess, sample_rate) for truth, guess in pairs)
        row[f"{DECODE} STFT"] = fmean(stft_distance(truth, guess) for truth, guess in pairs)
        rows.append(row)
    return {name: fmean(row[name] for row in rows) for name in rows[0]}


def measure_outputs(produced: Mapping[str, Array], expected: Mapping[str, Array]) -> dict[str, float]:
    """Of every output of a stage: signal to noise in dB, of whole numbers the share that is equal.

    Of "logits" besides: how often the likeliest entry is the same ("top-1"), and what the distribution loses ("KL", in nats).
    """
    found: dict[str, float] = {}
    for name, want in expected.items():
        value = produced[name]
        found[name] = float(np.mean(value == want)) if np.issubdtype(want.dtype, np.integer) else decibels(value, want)
        if name == "logits":
            found["logits top-1"] = float(np.mean(value.argmax(-1) == want.argmax(-1)))
            found["logits KL"] = _divergence(want, value)
    return found


def _divergence(want: Array, value: Array) -> float:
    """Mean Kullback-Leibler divergence of softmax distributions over the last axis."""
    ours, theirs = (logits - np.logaddexp.reduce(logits, axis=-1, keepdims=True) for logits in (np.float64(value), np.float64(want)))
    return float((np.exp(theirs) * (theirs - ours)).sum(-1).mean())


def decibels(value: Array, want: Array) -> float:
    """Signal to noise; of broken values as little as can be."""
    if not np.isfinite(value).all():
        return -_MOST_DECIBELS
    return min(signal_to_noise(want.astype(np.float64), value.astype(np.float64)), _MOST_DECIBELS)


def missed(gates: Iterable[Gate], quality: Mapping[str, float]) -> list[Gate]:
    """The gates that the measures do not keep."""
    return [gate for gate in gates if not gate.holds(quality.get(gate.measure))]
