"""Whether idle threads of ONNX Runtime ask for work again and again is a switch of the environment."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("onnxruntime")

from musicrt.runtime.backends.onnxruntime import SPINNING, OnnxCpu
from musicrt.runtime.bundle import Bundle
from musicrt.runtime.errors import BackendError
from tests.conftest import refused
from tests.contracts.stages import make_feeds


@pytest.mark.parametrize(("value", "spinning"), [(None, False), ("1", True), ("0", False)])
def test_sessions_are_opened_as_the_environment_says(
    value: str | None, spinning: bool, tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(SPINNING, raising=False)
    if value is not None:
        monkeypatch.setenv(SPINNING, value)
    with OnnxCpu(threads=2).open_session(Bundle.open(tiny_bundle), "conditioning") as session:
        options = session.session.get_session_options()
        if spinning:
            with pytest.raises(RuntimeError):
                options.get_session_config_entry("session.intra_op.allow_spinning")  # left to ONNX Runtime, whose threads spin
        else:
            assert options.get_session_config_entry("session.intra_op.allow_spinning") == "0"
        assert session.run(make_feeds(session.stage))["embedding"].any()


def test_another_value_is_refused(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SPINNING, "no")
    with refused(BackendError, "MUSICRT_SPINNING=no", "expected 1", "or 0"):
        OnnxCpu(threads=1).open_session(Bundle.open(tiny_bundle), "conditioning")
