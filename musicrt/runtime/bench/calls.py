"""What is timed of one contender, each function in a fresh process: encode, decode and generate as a whole, and every stage."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from musicrt.runtime.bench.contenders import Contender
from musicrt.runtime.bench.settings import SEED
from musicrt.runtime.bundle import Bundle
from musicrt.runtime.measure import Measurement, measure, measure_task, synthesise_music
from musicrt.runtime.pipeline import options_in
from musicrt.runtime.session import Session
from musicrt.runtime.verify import probe_error, probe_inputs, relative_error, typed_inputs

ENCODED, DECODED = "encoded.npy", "decoded.npy"


def leave_results(
    bundle: str, contender: Mapping[str, Any], folder: str, seconds: float, steps: int | None, threads: int | None, decoded: bool
) -> dict[str, Any]:
    """In a fresh process: keep what a contender makes of the audio, encoded and, if it is wanted, decoded, for the others."""
    with Contender(**contender).open(bundle, threads) as codec:
        values = codec.encode(synthesise_music(seconds, codec.sample_rate))
        np.save(Path(folder) / ENCODED, values)
        if decoded:
            np.save(Path(folder) / DECODED, codec.decode(values, **decoding_options(codec, steps)))
    return {}


def size_stages(
    bundle: str, contender: Mapping[str, Any], seconds: float, steps: int | None, threads: int | None, sizes: Mapping[str, int]
) -> dict[str, Any]:
    """In a fresh process: the sizes of the axes of every stage for so many seconds, but for those in `sizes`. Raises InputError."""
    with Contender(**contender).open(bundle, threads) as codec:
        known = {**codec.axis_sizes(seconds, steps), **sizes}
        return {stage.name: {axis.name: known[axis.name] for axis in stage.axes} for stage in codec.model.spec.stages}


def time_part(
    bundle: str,
    contender: Mapping[str, Any],
    folder: str,
    part: str,
    repeats: int,
    seconds: float,
    steps: int | None,
    threads: int | None,
    stages: Mapping[str, Mapping[str, int]],
    resized: bool,
    reference: Mapping[str, Any],
) -> dict[str, Any]:
    """In a fresh process: one of `PARTS`. folder: with what `leave_results` kept. stages: the sizes of the axes of each that is timed.

    resized: the sizes are not those of so many seconds. reference: who made what lies in the folder.
    """
    one = Contender(**contender)
    with one.open(bundle, threads) as codec:
        if part == "stages":
            window = None if resized else codec.window_seconds(seconds)
            return {"measurements": [m.to_json() for m in time_stages(codec, Bundle.open(bundle), stages, window, repeats)]}
        measured = _WHOLE[part](codec, Path(folder), seconds, steps, repeats)
        if one.key == Contender(**reference).key:  # from itself it has no distance
            measured = replace(measured, error=None)
        return {"measurements": [measured.to_json()]}


def time_encode(codec: Any, folder: Path, seconds: float, steps: int | None, repeats: int) -> Measurement:
    """`encode` as a whole."""
    del steps
    audio = synthesise_music(seconds, codec.sample_rate)
    measured, values = measure_task("encode", lambda: codec.encode(audio), repeats, seconds)
    return replace(measured, error=_distance(values, folder / ENCODED))


def time_decode(codec: Any, folder: Path, seconds: float, steps: int | None, repeats: int) -> Measurement:
    """`decode` as a whole, of what the reference has encoded."""
    values, options = np.load(folder / ENCODED, allow_pickle=False), decoding_options(codec, steps)
    ran = codec.axis_sizes(seconds, steps).get("steps")
    name = "decode" if ran is None else f"decode, {ran} step{'s' if ran > 1 else ''}"
    measured, audio = measure_task(name, lambda: codec.decode(values, **options), repeats)
    return replace(measured, audio_seconds=audio.shape[-1] / codec.sample_rate, error=_distance(audio, folder / DECODED))


def time_generate(codec: Any, folder: Path, seconds: float, steps: int | None, repeats: int) -> Measurement:
    """Music for a video that is made up."""
    del folder, steps
    measured, _ = measure_task("generate", lambda: codec.rehearse(seconds, SEED), repeats, seconds)
    return measured


_WHOLE: Mapping[str, Callable[[Any, Path, float, int | None, int], Measurement]] = {
    "encode": time_encode,
    "decode": time_decode,
    "generate": time_generate,
}


def time_stages(
    codec: Any, bundle: Bundle, sizes: Mapping[str, Mapping[str, int]], window: float | None, repeats: int
) -> list[Measurement]:
    """Stages by themselves, one item each: what so many seconds or a window has. Errors: from the run recorded in the bundle."""
    measured = []
    for name, axes in sizes.items():
        session = codec.model.session(name)
        feeds = typed_inputs(session.stage, axes, SEED)
        times = measure(partial(session.run, feeds), 1, repeats)
        note = "graph; the pipeline uses an FFT instead" if session.stage.host else ""
        measured.append(Measurement(name, times, window, error=_recorded_error(session, bundle), note=note))
    return measured


def decoding_options(codec: Any, steps: int | None) -> dict[str, Any]:
    """Raises InputError for steps of a system that takes none."""
    options = {} if steps is None else {"steps": steps}
    codec.check_options(options_in(codec, "decode"), options)
    return {**options, "seed": SEED} if "seed" in options_in(codec, "decode") else options


def _recorded_error(session: Session, bundle: Bundle) -> float | None:
    """The distance from float32 as it was recorded at export; None for a stage with other tensors than there."""
    if session.stage.has_integer_values or session.stage.feeds != bundle.spec.stage(session.stage.name).feeds:
        return None
    probe = bundle.manifest.stages[session.stage.name].probe
    return probe_error(probe, session.run(probe_inputs(session.stage, probe.sizes, probe.seed)))


def _distance(values: Any, kept: Path) -> float | None:
    return relative_error({"": values}, {"": np.load(kept, allow_pickle=False)}) if kept.is_file() else None
