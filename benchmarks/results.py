"""What every suite does: read the command line, say how far it is, and write results side by side."""

from __future__ import annotations

import argparse
import datetime
import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from musicrt.runtime.bundle import Bundle
from musicrt.runtime.errors import MusicRTError, OutputError
from musicrt.runtime.files import new_file
from musicrt.runtime.measure import describe_environment


def suite_parser(suite: str, description: str) -> argparse.ArgumentParser:
    """A parser with the options that all suites share."""
    parser = argparse.ArgumentParser(prog=f"python -m benchmarks.{suite}", description=description)
    parser.add_argument("--bundle", type=Path, required=True, help="bundle folder (made with: musicrt export)")
    parser.add_argument("--threads", type=int, help="CPU threads inside an operator; default: all")
    parser.add_argument("--out", type=Path, required=True, help="results go to OUT.json and OUT.md")
    return parser


def launch(run: Callable[[list[str]], None]) -> int:
    """Run a suite on the arguments of the command line; the exit code. An error of ours is one line."""
    try:
        run(sys.argv[1:])
    except MusicRTError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


def say(text: str) -> None:
    """Progress, on stderr."""
    print(text, file=sys.stderr, flush=True)


def describe_run(suite: str, bundle: Path, settings: Mapping[str, Any], threads: int | None) -> dict[str, Any]:
    """The head of a result file: suite, day, model, settings, machine. Names no paths. Raises BundleError."""
    opened = Bundle.open(bundle)
    model = {"system": opened.spec.system, "variant": opened.spec.variant, "identity": opened.identity}
    return {
        "suite": suite,
        "date": datetime.datetime.now(tz=datetime.UTC).date().isoformat(),
        "model": model,
        "settings": {**settings, "threads": threads},
        "environment": describe_environment(threads),
    }


def write_results(out: Path, content: Mapping[str, Any], tables: str) -> None:
    """Write OUT.json with everything and OUT.md with the tables under a heading. Raises OutputError."""
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"can't make the folder {out.parent}: {error.strerror}; choose another --out") from error
    machine, model = content["environment"], content["model"]
    settings = ", ".join(f"{name} {value}" for name, value in content["settings"].items() if value is not None)
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    head = [
        f"# {content['suite'].capitalize()}: {model['system']}, variant {model['variant']}",
        f"{content['date']}. {settings}.",
        f"{machine['cpu']}, {machine['cores']} cores, {machine['memory_gb']} GB, {machine['system']}, "
        f"Python {machine['python']}, {versions}. Weights: {model['identity'][:12]}. Raw values: `{out.name}.json`.",
    ]
    for suffix, text in ((".json", json.dumps(content, indent=1)), (".md", "\n\n".join([*head, tables]))):
        with new_file(out.with_name(out.name + suffix)) as temporary:
            temporary.write_text(text + "\n", encoding="utf-8")
