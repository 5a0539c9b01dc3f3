"""Samplers: pure step functions on arrays, and one driver each."""
