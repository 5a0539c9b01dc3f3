"""Benchmark suites on `musicrt.runtime.measure`; see README.md."""
