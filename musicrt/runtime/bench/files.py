"""A report on disk: JSON, Markdown and pictures side by side."""

from __future__ import annotations

from pathlib import Path

from musicrt.runtime.bench.charts import charts_obstacle, draw_report
from musicrt.runtime.bench.report import Report
from musicrt.runtime.errors import OutputError
from musicrt.runtime.files import new_file


def write_report(prefix: Path, report: Report) -> list[str]:
    """Write PREFIX.json, PREFIX.md and pictures; what was written, in words, and why something was not. Raises OutputError."""
    try:
        prefix.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"can't make the folder {prefix.parent}: {error.strerror}; choose another --out") from error
    obstacle = charts_obstacle()
    pictures = [] if obstacle else draw_report(prefix, report)
    text = "\n\n".join([f"# Benchmark: {report.bundle['system']}", report.to_markdown(), *(f"![]({path.name})" for path in pictures)])
    written = []
    for suffix, content in ((".json", report.to_json()), (".md", text)):
        written.append(prefix.with_name(prefix.name + suffix))
        with new_file(written[-1]) as temporary:
            temporary.write_text(content + "\n", encoding="utf-8")
    return [*(f"wrote {path}" for path in (*written, *pictures)), *([f"no pictures: {obstacle}"] if obstacle else [])]
