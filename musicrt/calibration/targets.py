"""What a bundle can be calibrated for, by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from musicrt.calibration.calibrate import OnWork, calibrate_int8
from musicrt.calibration.report import write_report
from musicrt.calibration.store import CPU_INT8
from musicrt.runtime.errors import InputError
from musicrt.runtime.manifest import CalibrationEntry

TARGETS = (CPU_INT8,)


def calibrate_bundle(
    path: str | Path,
    target: str,
    source: str | Path = "synthetic",
    *,
    report: Path | None = None,
    on_work: OnWork = lambda _text, _done, _total: None,
    **options: Any,
) -> CalibrationEntry:
    """Calibrate for one of `TARGETS`; what the manifest says of it then. report: a folder, written also where a gate is missed.

    Options, and errors besides InputError for an unknown target: as of `calibrate_int8`.
    """
    if target not in TARGETS:
        raise InputError(f"got target {target!r}, expected {' or '.join(TARGETS)}")

    def on_result(found: Any) -> None:
        if report is not None:
            on_work("writing the report", 0, 1)
            write_report(report, found)

    return calibrate_int8(path, source, on_work=on_work, on_result=on_result, **options).entry
