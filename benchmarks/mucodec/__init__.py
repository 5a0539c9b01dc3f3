"""Suites that measure MuCodec."""
