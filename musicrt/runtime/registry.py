"""Finds systems by their folder under `musicrt/runtime/models/`: nothing else lists them.

A system folder holds `spec.py` (`SYSTEM: System`, `build_spec(config, variant) -> ModelSpec`), `pipeline.py` (`Pipeline`)
and `stages.py` (torch: `fit_config(files, config)`, `build_stages(config)`, `load_stages(files, config)`).
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Mapping
from types import ModuleType
from typing import Any

from musicrt.runtime import models
from musicrt.runtime.errors import ConfigError
from musicrt.runtime.spec import ModelSpec, System


def system_names() -> list[str]:
    """Names of all systems, sorted."""
    return sorted(module.name for module in pkgutil.iter_modules(models.__path__) if module.ispkg)


def system_module(system: str, part: str) -> ModuleType:
    """Module `part` ("spec", "pipeline", "stages") of a system. Raises ConfigError for an unknown system."""
    if system not in system_names():
        raise ConfigError(f"unknown system {system!r}; known: {', '.join(system_names())}")
    return importlib.import_module(f"{models.__name__}.{system}.{part}")


def find_system(system: str) -> System:
    """The system's description. Raises ConfigError for an unknown name."""
    found: System = system_module(system, "spec").SYSTEM
    return found


def build_spec(system: str, config: Mapping[str, Any], variant: str) -> ModelSpec:
    """The spec of a system for given hyper-parameters (official names). Raises ConfigError."""
    spec: ModelSpec = system_module(system, "spec").build_spec(config, variant)
    return spec


def fit_spec(spec: ModelSpec, files: Mapping[str, Mapping[str, Any]]) -> ModelSpec:
    """The spec with the hyper-parameters that only the checkpoint's files tell, such as the rows of a codebook (needs torch).

    `files`: what `read_checkpoint` gives. Raises CheckpointError, ConfigError.
    """
    fitted: Mapping[str, Any] = system_module(spec.system, "stages").fit_config(files, spec.config)
    return build_spec(spec.system, fitted, spec.variant)


def bit_rates(system: str) -> dict[str, float]:
    """Nominal bits per second of a system's variants, by name; empty where it has none. Raises ConfigError."""
    specs = (build_spec(system, values, variant) for variant, values in find_system(system).variants.items())
    return {spec.variant: spec.bit_rate for spec in specs if spec.bit_rate is not None}
