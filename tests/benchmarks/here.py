"""Suites without their fresh processes, which take longer to start than tiny networks to run."""

from __future__ import annotations

import importlib
import json
from collections.abc import Mapping
from types import ModuleType
from typing import Any

import pytest


def call_here(monkeypatch: pytest.MonkeyPatch, *modules: ModuleType) -> None:
    """Run what modules would run in fresh processes in this one."""

    def call(target: str, arguments: Mapping[str, Any]) -> Any:
        module, _, function = target.partition(":")
        return json.loads(json.dumps(getattr(importlib.import_module(module), function)(**arguments)))

    for module in modules:
        monkeypatch.setattr(module, "run_isolated", call)
