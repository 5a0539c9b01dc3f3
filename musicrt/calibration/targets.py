"""What a bundle can be calibrated for, by name."""

from __future__ import annotations

from pathlib import Path

from musicrt.calibration.calibrate import Calibration, OnWork, calibrate_int8
from musicrt.calibration.ranges import Method
from musicrt.calibration.report import make_folder, write_report
from musicrt.runtime.bundle import GPU_FP16, TARGET_OF
from musicrt.runtime.errors import InputError
from musicrt.runtime.manifest import CalibrationEntry

FLAVOUR_OF = {target: flavour for flavour, target in TARGET_OF.items()}
TARGETS = (*FLAVOUR_OF, GPU_FP16)


def calibrate_bundle(
    path: str | Path,
    target: str,
    source: str | Path = "synthetic",
    *,
    seconds: float = 6.0,
    steps: int | None = None,
    ranges: Method = "minmax",
    rounds: int | None = None,
    force: bool = False,
    report: Path | None = None,
    threads: int | None = None,
    on_work: OnWork = lambda _text, _done, _total: None,
) -> CalibrationEntry:
    """Calibrate for one of `TARGETS`; what the manifest says of it then. report: a folder, written also where a gate is missed.

    gpu-fp16 needs torch, and has neither ranges, gates, rounds nor a report. Options, and errors besides InputError for an unknown
    target, as of `calibrate_int8` and `calibrate_half`.
    """
    if target in FLAVOUR_OF:
        if report is not None:
            make_folder(report)  # before the work, not after it

        def on_result(found: Calibration) -> None:
            if report is not None:
                on_work("writing the report", 0, 1)
                write_report(report, found)

        return calibrate_int8(
            path,
            source,
            flavour=FLAVOUR_OF[target],
            seconds=seconds,
            steps=steps,
            ranges=ranges,
            rounds=rounds,
            force=force,
            threads=threads,
            on_work=on_work,
            on_result=on_result,
        ).entry
    if target == GPU_FP16:
        if report is not None or force or ranges != "minmax" or rounds is not None:
            raise InputError(f"got a report, ranges, rounds or force, but {GPU_FP16} has no gates and no ranges; leave them out")
        try:
            from musicrt.calibration.half_range import calibrate_half
        except ModuleNotFoundError as error:
            raise InputError(f"{GPU_FP16} needs {error.name}, which is not installed: pip install 'musicrt[export]'") from None
        return calibrate_half(path, source, seconds=seconds, steps=steps, threads=threads, on_work=on_work)
    raise InputError(f"got target {target!r}, expected {', '.join(TARGETS[:-1])} or {TARGETS[-1]}")
