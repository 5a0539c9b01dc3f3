"""`musicrt bench`: `suite.bench_bundle` measures, `report.Report` tells. Importing these loads no backend."""
