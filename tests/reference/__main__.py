"""Run a folder of recorded cases and print how each compares: `python -m tests.reference DIR`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from tests.reference.runner import Row, find_cases, run_cases

BACKENDS = ["torch-cpu", "onnxruntime-cpu"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status: 0 if all cases passed, 1 if any failed, 2 if there was nothing to run."""
    options = _parser().parse_args(arguments)
    cases = find_cases(options.folder, options.case)
    if not cases:
        print(_nothing(options.folder, options.case), file=sys.stderr)
        return 2
    names = {path: _name(path, options.folder) for path in cases}
    widths = [max(map(len, names.values())), 21, max(map(len, [*options.backend, "backend"])), 8, 9]
    _print(["case", "stage", "backend", "error", "tolerance", "verdict"], widths)
    passed = failed = 0
    for row in run_cases(cases, options.backend, options.slack):
        passed, failed = passed + row.passed, failed + (not row.passed)
        _print([names[row.path], row.stage, row.backend, f"{row.error:.1e}", f"{row.tolerance:.1e}", _verdict(row)], widths)
    print(f"{passed} passed, {failed} failed")
    return 1 if failed else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.reference", description="Run recorded cases of the official implementations.")
    parser.add_argument("folder", metavar="DIR", type=Path, help="holds cases/*.safetensors, or one such folder per system")
    parser.add_argument("--backend", metavar="NAME", nargs="+", default=BACKENDS, help=f"backends to run (default: {' '.join(BACKENDS)})")
    parser.add_argument("--case", metavar="GLOB", default="*", help="only cases whose name matches")
    parser.add_argument("--slack", metavar="X", type=float, default=1.0, help="multiply the float tolerances by this (default: 1)")
    return parser


def _nothing(folder: Path, pattern: str) -> str:
    if find_cases(folder):
        return f"no case in {folder} is called {pattern}; look into its cases/ for the names there are"
    return f"no cases in {folder}; expected a folder with cases/*.safetensors, such as tests/reference/data/music2latent"


def _name(path: Path, folder: Path) -> str:
    system = path.parent.parent
    return path.stem if system == folder else f"{system.name}/{path.stem}"


def _verdict(row: Row) -> str:
    return "passed" if row.passed else f"FAILED  {row.detail}"


def _print(cells: Sequence[str], widths: Sequence[int]) -> None:
    """One line of the table, at once: full-size runs take long."""
    print("  ".join([*(cell.ljust(width) for cell, width in zip(cells, widths, strict=False)), cells[-1]]), flush=True)


if __name__ == "__main__":
    sys.exit(main())
