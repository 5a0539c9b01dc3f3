"""Suites that measure VidMuse."""
