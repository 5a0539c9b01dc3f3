"""Bundles, backends, loops, pipelines and files."""
