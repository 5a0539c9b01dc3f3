"""Opens sessions of all stages on all backends that are usable here."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from musicrt.runtime.backend import Backend
from musicrt.runtime.bundle import Bundle
from musicrt.runtime.select import BACKENDS
from musicrt.runtime.session import Session
from tests.conftest import ForSystem
from tests.contracts.stages import ENGINE, SPECS, OpenStage, engine_session, fake_session


@pytest.fixture(scope="module")
def open_stage(tiny_bundles: ForSystem) -> OpenStage:
    """Opens a new session of (backend, system, stage)."""
    bundles: dict[str, Bundle] = {}
    backends: dict[str, Backend] = {}

    def open_it(kind: str, system: str, stage: str) -> Session:
        if kind == "fake":
            return fake_session(SPECS[system].stage(stage))
        if kind == ENGINE:
            return engine_session(SPECS[system].stage(stage).in_flavour("trt"))
        if system not in bundles:
            bundles[system] = Bundle.open(tiny_bundles(system))
        if kind not in backends:
            backends[kind] = BACKENDS[kind](threads=1)
        return backends[kind].open_session(bundles[system], stage)

    return open_it


@pytest.fixture
def session(request: pytest.FixtureRequest, open_stage: OpenStage) -> Iterator[Session]:
    with open_stage(*request.param) as opened:
        yield opened
