"""A report on disk: JSON, Markdown and pictures side by side."""

from __future__ import annotations

from pathlib import Path

from musicrt.runtime.bench.charts import charts_obstacle, draw_report
from musicrt.runtime.bench.report import Report
from musicrt.runtime.errors import OutputError
from musicrt.runtime.files import new_file


def write_report(prefix: Path, report: Report) -> list[str]:
    """Write PREFIX.json, pictures and PREFIX.md; what was written, in words, and why something was not.

    Raises OutputError; what was written before stays: the numbers first, and the text only beside all that it shows.
    """
    try:
        prefix.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"can't make the folder {prefix.parent}: {error.strerror}; choose another --out") from error
    numbers, page = (prefix.with_name(prefix.name + suffix) for suffix in (".json", ".md"))
    _write(numbers, report.to_json())
    obstacle = charts_obstacle()
    pictures = [] if obstacle else draw_report(prefix, report)
    text = "\n\n".join([f"# Benchmark: {report.bundle['system']}", report.to_markdown(), *(f"![]({path.name})" for path in pictures)])
    _write(page, text)
    return [*(f"wrote {path}" for path in (numbers, page, *pictures)), *([f"no pictures: {obstacle}"] if obstacle else [])]


def _write(path: Path, text: str) -> None:
    with new_file(path) as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")
