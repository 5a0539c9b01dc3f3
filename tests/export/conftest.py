"""The weights that tests of reading and exporting look at."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest


@pytest.fixture(scope="session")
def weights(tiny_checkpoint: Path) -> dict[Any, Any]:
    """The tensors of the tiny checkpoint. Tests change copies of the dictionary only."""
    torch = pytest.importorskip("torch")
    state: dict[Any, Any] = torch.load(tiny_checkpoint / "music2latent.pt", weights_only=True)["gen_state_dict"]
    return state
