"""What the commands print about engines."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rich.table import Table

from musicrt.cli.output import console, print_facts, print_json, say
from musicrt.runtime.errors import BundleError

if TYPE_CHECKING:
    from musicrt.engines.build import Built
    from musicrt.engines.inspect import Inspected
    from musicrt.runtime.bundle import Bundle


def print_built(built: Sequence[Built], as_json: bool = False) -> None:
    """Every stage's plan: its size, and how long it took."""
    if as_json:
        print_json(
            [{"stage": one.stage, "folder": one.folder, "seconds": one.seconds, **one.entry.model_dump(mode="json")} for one in built]
        )
        return
    table = Table("stage", "precision", "MB", "activations, MB", "seconds")
    for one in built:
        seconds = "was there" if one.seconds is None else f"{one.seconds:.1f}"
        table.add_row(one.stage, one.entry.precision, _mb(one.entry.file.bytes), _mb(one.entry.activation_bytes), seconds)
    console.print(table)
    for folder in dict.fromkeys(one.folder for one in built):
        say(f"in engines/{folder}")


def print_engines(bundle: Bundle, as_json: bool = False) -> None:
    """What is known of every plan of a bundle; which layers compute in float32, by ONNX operator, and how many have weights of 8 bits.

    Raises BundleError if there is none.
    """
    from musicrt.engines.inspect import inspect_engines

    found = inspect_engines(bundle)
    if as_json:
        print_json([_to_json(one) for one in found])
        return
    if not found:
        raise BundleError(f"{bundle.path} has no engines; make some with: musicrt build {bundle.path} --engine tensorrt-rtx")
    for folder in dict.fromkeys(one.folder for one in found):
        own = [one for one in found if one.folder == folder]
        print_facts(
            {
                "engines": folder,
                "made with": ", ".join(sorted({f"{one.entry.engine} {one.entry.version}" for one in own})),
                "layers": f"from the {own[0].report.source}",
            }
        )
        table = Table("stage", "MB", "activations, MB", "layers", "int8", "float32", "which", "profiles")
        for one in own:
            profiles = "\n".join(
                f"{profile.bucket}: " + ", ".join(f"{name} {least}-{best}-{most}" for name, (least, best, most) in profile.axes.items())
                for profile in one.entry.profiles
            )
            islands = ", ".join(f"{operator} {count}" for operator, count in sorted(one.islands().items()))
            counts = [str(count) for count in (one.totals.total(), one.integers, one.totals["float32"])]
            if one.entry.precision == "float32":
                islands = "the whole stage"
            table.add_row(one.stage, _mb(one.entry.file.bytes), _mb(one.entry.activation_bytes), *counts, islands, profiles)
        console.print(table)


def _to_json(one: Inspected) -> dict[str, Any]:
    return {
        "folder": one.folder,
        "stage": one.stage,
        **one.entry.model_dump(mode="json"),
        "precisions": {operator: dict(counts) for operator, counts in one.precisions.items()},
        "undeclared": [layer.name for layer in one.undeclared],
        "source": one.report.source,
        "layers": [{**layer.model_dump(), "precision": layer.precision} for layer in one.report.layers],
    }


def _mb(size: int | None) -> str:
    return "?" if size is None else f"{size / 1e6:.1f}"
