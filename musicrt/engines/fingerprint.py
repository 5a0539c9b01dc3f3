"""The fingerprint of a plan: a key that changes with everything that it is made from, and with nothing else."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence

from musicrt.runtime.bundle import Bundle
from musicrt.runtime.manifest import ProfileEntry

FORMAT = 1
"""Raised when the way of building changes, so that older plans are not taken for current ones."""


def fingerprint(
    bundle: Bundle,
    stage: str,
    flavour: str,
    *,
    engine: str,
    version: str,
    targets: Sequence[str],
    profiles: Sequence[ProfileEntry],
    options: Sequence[str],
) -> str:
    """Hex SHA-256 of graph, weights, precision, profiles, package and version, targets and builder options.

    Of a profile only its sizes count, not its name. Graph and weights are known by the hashes in the manifest. Raises BundleError where
    the bundle has no such graph.
    """
    _, graph = bundle.graph(stage, flavour)
    parts = {
        "format": FORMAT,
        "graph": graph.file.sha256,
        "weights": [entry.sha256 for entry in bundle.weight_files(flavour)],
        "precision": graph.precision,
        "engine": engine,
        "version": version,
        "targets": sorted(targets),
        "profiles": [profile.axes for profile in profiles],
        "options": sorted(options),
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
