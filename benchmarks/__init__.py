"""Benchmark suites on `musicrt.runtime.measure`, a folder for each system; see README.md."""
