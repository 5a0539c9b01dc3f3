"""Recorded runs of the official implementations, and the tooling that holds this project against them."""
