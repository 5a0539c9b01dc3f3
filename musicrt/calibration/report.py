"""The report of a calibration: report.json for programs, report.md for people, and pictures."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from musicrt.calibration.calibrate import Calibration
from musicrt.calibration.pictures import draw_bars, draw_spectrograms, pictures_obstacle
from musicrt.runtime.bundle import KEPT_IN
from musicrt.runtime.errors import OutputError
from musicrt.runtime.files import new_file
from musicrt.runtime.manifest import GateEntry
from musicrt.runtime.measure import markdown_table

_SHOWN = 20  # layers of a stage in the table


def write_report(folder: Path, found: Calibration) -> list[Path]:
    """Write into a folder, which is made if need be; the files that are there now. Raises OutputError; what was written before stays: the
    numbers first, and the text only beside all that it shows.
    """
    make_folder(folder)
    obstacle = pictures_obstacle()
    _write(folder / "report.json", json.dumps(to_json(found), indent=1))
    pictures = {} if obstacle else _draw(folder, found)
    _write(folder / "report.md", to_markdown(found, pictures, obstacle))
    return [folder / name for name in ("report.json", "report.md", *pictures)]


def make_folder(folder: Path) -> None:
    """Raises OutputError where nothing can be written into it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"can't write into {folder}: {error.strerror}; name a folder") from error
    if not os.access(folder, os.W_OK):
        raise OutputError(f"can't write into {folder}: it is read-only; name another folder")


def to_json(found: Calibration) -> dict[str, Any]:
    """All numbers. Noise is power over that of the signal."""
    rounds = [{"lowered": one.lowered, "kept": list(one.kept), "quality": dict(one.quality)} for one in found.rounds]
    spec = found.bundle.spec
    return {
        "bundle": {"system": spec.system, "variant": spec.variant, "identity": found.bundle.identity},
        "target": found.target,
        "passed": found.passed,
        **found.entry.model_dump(mode="json"),
        "rounds": rounds,
        "noise": {stage: dict(layers) for stage, layers in found.noise.items()},
    }


def to_markdown(found: Calibration, pictures: Mapping[str, str], obstacle: str | None) -> str:
    """Verdict, measures, stages, the search, the most sensitive layers."""
    entry, spec = found.entry, found.bundle.spec
    verdict = "passed" if found.passed else f"missed{', kept by force' if entry.forced else ''}: {found.complaint}"
    gates = {gate.measure: gate for gate in entry.gates}
    parts = [
        f"# {spec.system}, variant {spec.variant}: {found.target}",
        f"Gates: {verdict}.",
        f"Inputs: {entry.inputs} (SHA-256 {entry.inputs_sha256[:12]}). Made with "
        + ", ".join(f"{name} {version}" for name, version in entry.tools.items())
        + ".",
        "## Measures\n\nAgainst the float32 pipeline, on pieces that calibration did not use; both decode what the float32 encoder made, "
        "from the same noise. Distances of stages: relative L2 on what went into them during calibration, the worst output.",
        markdown_table(
            ("measure", "gate", "value"),
            [[name, _limit(gates.get(name)), f"{value:.3g}"] for name, value in entry.quality.items()],
            text_columns=2,
        ),
        "## Stages\n\nSignal to quantisation noise in dB; of whole numbers, and top-1, the share that is equal; KL in nats.",
        markdown_table(
            ("stage", "method", "outputs", "lowered", "kept", "distance"),
            [
                [
                    name,
                    stage.method,
                    ", ".join(f"{output} {value:.3g}" for output, value in stage.outputs.items()),
                    str(stage.layers),
                    str(len(stage.kept)),
                    f"{stage.error:.3f}",
                ]
                for name, stage in entry.stages.items()
            ],
            text_columns=3,
        ),
        *(f"Kept in {KEPT_IN[found.target]} of `{name}`: {', '.join(stage.kept)}." for name, stage in entry.stages.items() if stage.kept),
        "## Search\n\nIn each round, layers of the highest noise behind a missed gate went back.",
        markdown_table(
            ("round", "layers lowered", *found.rounds[0].quality),
            [[str(index), str(one.lowered), *(f"{value:.3g}" for value in one.quality.values())] for index, one in enumerate(found.rounds)],
        ),
        *_sensitivities(found),
        *(f"![{text}]({name})" for name, text in pictures.items()),
    ]
    return "\n\n".join([*parts, f"No pictures: {obstacle}."] if obstacle else parts)


def _write(path: Path, text: str) -> None:
    with new_file(path) as file:
        file.write_text(text + "\n")


def _sensitivities(found: Calibration) -> list[str]:
    parts = []
    for stage, noise in found.noise.items():
        worst = sorted(noise.items(), key=lambda pair: -pair[1])[:_SHOWN]
        kept = found.entry.stages[stage].kept
        rows = [[name, KEPT_IN[found.target] if name in kept else "int8", f"{_decibels(value):.1f}"] for name, value in worst]
        parts.append(f"## Layers of `{stage}`\n\nOutput noise in dB of the signal where the layer alone is lowered; the {len(rows)} worst.")
        parts.append(markdown_table(("layer", "is", "noise"), rows, text_columns=2))
    return parts


def _draw(folder: Path, found: Calibration) -> dict[str, str]:
    """The pictures, and what they show."""
    drawn: dict[str, str] = {}
    rate = found.bundle.spec.sample_rate
    for index, (run, ref) in enumerate(zip(found.result[:2], found.reference, strict=False)):
        name = f"decoded-{index}.png"
        sounds = {"input": run.piece.audio, "float32": _first(ref.audio), "int8": _first(run.audio)}
        draw_spectrograms(folder / name, sounds, rate, run.piece.name)
        drawn[name] = f"{run.piece.name}: input, float32, int8"
    for stage, noise in found.noise.items():
        name = f"layers-{stage}.png"
        levels = {layer: -_decibels(value) for layer, value in noise.items()}
        draw_bars(folder / name, levels, found.entry.stages[stage].kept, "signal to noise, dB", f"{stage}: each layer lowered by itself")
        drawn[name] = f"{stage}: signal to noise with each layer lowered by itself; orange ones stayed {KEPT_IN[found.target]}"
    return drawn


def _first(audio: NDArray[np.float32]) -> NDArray[np.float32]:
    """One channel of audio [..., samples]."""
    channel: NDArray[np.float32] = audio.reshape(-1, audio.shape[-1])[0]
    return channel


def _limit(gate: GateEntry | None) -> str:
    return "" if gate is None else gate.wanted.limits + ("" if gate.holds else ", missed")


def _decibels(noise: float) -> float:
    return 10.0 * math.log10(max(noise, 1e-12))
