"""What is in a plan: from the report beside it anywhere, from the engine itself where there is a GPU."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from musicrt.engines.layers import Layer, Report, count_precisions, undeclared
from musicrt.runtime.bundle import Bundle
from musicrt.runtime.cuda.engine import open_plan
from musicrt.runtime.errors import BundleError, EngineError
from musicrt.runtime.limits import check_limit
from musicrt.runtime.manifest import PlanEntry
from musicrt.runtime.tensorrt_family import find_family
from musicrt.runtime.tensorrt_messages import messages_of


@dataclass(frozen=True)
class Inspected:
    """A plan: where it lies, what the manifest and its report say of it, and the layers in float32 that its spec does not name."""

    folder: str
    stage: str
    entry: PlanEntry
    report: Report
    undeclared: list[Layer]

    @property
    def precisions(self) -> dict[str, Counter[str]]:
        """Layers that compute, by operator and precision."""
        return count_precisions(self.report.layers)

    @property
    def totals(self) -> Counter[str]:
        """Layers that compute, by precision."""
        return sum(self.precisions.values(), Counter())

    @property
    def integers(self) -> int:
        """How many layers have weights of 8 bits, whether or not their other operand has."""
        return sum(layer.int8 != "none" for layer in self.report.layers)

    def islands(self) -> dict[str, int]:
        """How many layers compute in float32, by operator."""
        return {operator: counts["float32"] for operator, counts in self.precisions.items() if counts["float32"]}


def inspect_engines(bundle: Bundle) -> list[Inspected]:
    """Every plan of a bundle, in the order of the manifest. Raises BundleError for a damaged report."""
    found = []
    for folder, plans in bundle.manifest.engines.items():
        for name, entry in plans.items():
            report = read_report(bundle.path / entry.report.path)
            stage = bundle.spec.stage(name).in_flavour(entry.flavour)
            found.append(Inspected(folder, name, entry, report, undeclared(stage, report.layers)))
    return found


def read_report(path: Path) -> Report:
    """The report beside a plan. Raises BundleError."""
    try:
        check_limit("manifest_bytes", path.stat().st_size, f"{path} has {path.stat().st_size} bytes", BundleError)
        return Report.model_validate_json(path.read_bytes())
    except (OSError, ValidationError) as error:
        reason = str(error).splitlines()[0]
        raise BundleError(f"{path} is not the report of an engine ({reason}); build the engines again") from None


def read_engine(path: Path, entry: PlanEntry) -> dict[str, Any]:
    """What TensorRT itself says of a plan: {"Layers": […], …}, after fusion. Needs a GPU that can run it. Raises EngineError."""
    family = find_family(entry.engine)
    if reason := family.run_obstacle():
        raise EngineError(
            f"{path.name} can't be read here: {reason}; what was noted when it was built is in {Path(entry.report.path).name}"
        )
    trt = family.load()
    _, engine = open_plan(trt, path.stem, path, messages_of(trt))
    text = engine.create_engine_inspector().get_engine_information(trt.LayerInformationFormat.JSON)
    read: dict[str, Any] = json.loads(text)
    return read
