"""What the commands print: facts and tables for people, JSON for programs."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import Progress
from rich.table import Table

from musicrt.runtime.bundle import KEPT_IN, Bundle
from musicrt.runtime.encoded import Encoded
from musicrt.runtime.manifest import CalibrationEntry
from musicrt.runtime.record import Record
from musicrt.runtime.registry import bit_rates, system_names
from musicrt.runtime.video import Video

console, errors = Console(), Console(stderr=True)


def print_bundle(bundle: Bundle, as_json: bool = False) -> None:
    """What a bundle holds; with nominal bit rates where its system has tokens. The JSON is the manifest, and these."""
    manifest, rate = bundle.manifest, bundle.spec.bit_rate
    rates = {} if rate is None else bit_rates(manifest.system)
    if as_json:
        more = {} if rate is None else {"bit_rate": rate, "nominal_bit_rates": rates}
        print_json({**manifest.model_dump(mode="json", exclude_unset=True), **more})
        return
    facts = {
        "bundle": str(bundle.path),
        "system": f"{manifest.system}, variant {manifest.variant}, {manifest.sample_rate} Hz",
        "weights": manifest.source.description or ", ".join(manifest.source.files),
        "licence of the weights": " ".join([manifest.licences.weights, manifest.licences.weights_url]).strip(),
        "licence of the code": manifest.licences.code,
        "identity": manifest.identity,
        "size": f"{sum(file.bytes for file in bundle.files) / 1e6:.1f} MB",
        "made with": ", ".join(f"{name} {version}" for name, version in manifest.tools.items()),
    }
    print_facts(facts if rate is None else {**facts, "nominal bit rate": _kbps(rate)})
    table = Table("stage", "flavour", "precision", "error", "what it does")
    for stage in bundle.spec.stages:
        words = [stage.name, stage.summary]
        for flavour, graph in manifest.stages[stage.name].graphs.items():
            table.add_row(words[0], flavour, graph.precision, f"{graph.error:.1e}", words[1])
            words = ["", ""]
    console.print(table)
    for target, calibration in manifest.calibrations.items():
        print_calibration(target, calibration)
    _print_bit_rates(rates, manifest.variant)


def print_calibration(target: str, entry: CalibrationEntry, as_json: bool = False) -> None:
    """What was lowered, what it cost, and whether it had to be forced."""
    if as_json:
        print_json({"target": target, **entry.model_dump(mode="json")})
        return
    say(f"calibrated for {target} with {entry.inputs}" + ("; KEPT BY FORCE although a gate was missed" if entry.forced else ""))
    for name, stage in entry.stages.items():
        kept = f", {len(stage.kept)} kept in {KEPT_IN.get(target, 'float32')}" if stage.kept else ""
        say(f"  {name}: {stage.layers} layers in 8 bits ({stage.method}){kept}, {stage.error:.3f} from float32")
    gates = {gate.measure: gate for gate in entry.gates}
    for name, value in entry.quality.items():
        gate = gates.get(name)
        verdict = f" (wanted {gate.wanted.limits}{'' if gate.holds else ': MISSED'})" if gate else ""
        say(f"  {name}: {value:.3g}{verdict}")
    for name, pins in entry.pins.items():
        say(f"  {name}: float32 because half precision can't hold it: {', '.join(pins)}")


def print_file(path: Path, as_json: bool = False) -> None:
    """What a file holds, and what it was made with. Raises AudioError, VideoError, EncodedError, InputError."""
    from musicrt.runtime.record_reader import open_made, record_of  # libsndfile, which most commands do without

    made = open_made(path)
    if isinstance(made, Encoded):
        _print_encoded(path, made, as_json)
        return
    facts: dict[str, Any]
    if isinstance(made, Video):
        facts = {"seconds": made.duration, "frames": made.frames, "rate": made.rate}
    else:
        facts = {"format": f"{made.format} {made.subtype}", "sample_rate": made.sample_rate, "channels": made.channels}
        facts["seconds"] = made.samples / made.sample_rate
    _print_made(path, facts, record_of(made), as_json)


def _print_made(path: Path, facts: Mapping[str, Any], record: Record | None, as_json: bool) -> None:
    if as_json:
        print_json({**facts, "record": None if record is None else record.model_dump(mode="json")})
        return
    print_facts({"file": str(path), **{name.replace("_", " "): str(fact) for name, fact in facts.items()}})
    _print_record(record)


def _print_record(record: Record | None, title: str = "made") -> None:
    """A line for each thing that it takes to make a file again."""
    if record is None:
        say(f"{title}: the file does not say how")
        return
    where = f"{record.backend} in {record.precision} ({record.runtime})"
    facts = {
        title: f"by {record.way}, musicrt {record.version}, {record.system}, variant {record.variant}",
        "  bundle": record.identity or "none",
        "  backend": f"{where}, loaded with threads={record.threads}",
        "  options": ", ".join(f"{name}={value}" for name, value in record.options.items()) or "none",
        "  of a file with SHA-256": record.input or "unknown",
    }
    print_facts(facts)
    if record.source is not None:
        _print_record(record.source, "which was made")


def _print_encoded(path: Path, encoded: Encoded, as_json: bool) -> None:
    """The values, and the bits they take for each second of the audio."""
    rates = bit_rates(encoded.system) if encoded.system in system_names() else {}
    file_rate = 8 * path.stat().st_size / encoded.seconds if encoded.samples else 0.0
    if as_json:
        keys = ("system", "variant", "kind", "identity", "sample_rate", "source_rate", "samples", "seconds", "bits", "bit_rate")
        record = None if encoded.record is None else encoded.record.model_dump(mode="json")
        more = {"shape": encoded.values.shape, "file_bit_rate": file_rate, "nominal_bit_rates": rates, "record": record}
        print_json({key: getattr(encoded, key) for key in keys} | more)
        return
    facts = {
        "file": str(path),
        "system": f"{encoded.system}, variant {encoded.variant}, {encoded.sample_rate} Hz",
        "values": f"{encoded.kind} {list(encoded.values.shape)}",
        "bits per code": ", ".join(map(str, encoded.bits)) or "none, 32 of each float",
        "audio": f"{encoded.seconds:.2f} s, {encoded.source_rate} Hz before it was encoded",
        "bit rate": f"{_kbps(encoded.bit_rate)}, with the header {_kbps(file_rate)}",
        "identity": encoded.identity,
    }
    print_facts(facts)
    _print_record(encoded.record)
    _print_bit_rates(rates, encoded.variant)


def print_facts(facts: Mapping[str, str]) -> None:
    """One line for each."""
    for name, fact in facts.items():
        say(f"{name}: {fact}")


def print_json(value: Any) -> None:
    """On stdout, and nothing else."""
    sys.stdout.write(json.dumps(value, indent=1) + "\n")


def say(line: str) -> None:
    """Print one line as it is, however narrow the terminal."""
    console.print(escape(line), highlight=False, soft_wrap=True)


@contextmanager
def progress(title: str) -> Iterator[Callable[..., None]]:
    """A bar on a terminal; nothing elsewhere."""
    with Progress(console=errors, transient=True, disable=not errors.is_terminal) as bar:
        task = bar.add_task(title, total=None)

        def report(done: int, total: int, text: str = title) -> None:
            bar.update(task, completed=done, total=total, description=text)

        yield report


def _print_bit_rates(rates: Mapping[str, float], this: str) -> None:
    """What each variant takes, `this` marked; nothing where there is none."""
    table = Table("variant", "nominal, of each row", "")
    for variant, rate in rates.items():
        table.add_row(variant, _kbps(rate), "this one" if variant == this else "")
    if rates:
        console.print(table)


def _kbps(rate: float) -> str:
    return f"{rate / 1000:.4g} kbps"
