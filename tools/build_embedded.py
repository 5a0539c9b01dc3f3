"""Make the bundle that is part of the package, from the trained nano checkpoint: `python -m tools.build_embedded`.

Run it again when the weights, the stages or the bundle format change, and commit what it writes.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from musicrt.export.bundle import export_bundle
from musicrt.runtime.bundle import EMBEDDED
from tools.nano.keep import CHECKPOINT

CARD = Path(__file__).parent / "nano" / "MODEL_CARD.md"
DESCRIPTION = "nano: a small network of this architecture, trained from scratch on music that this project synthesises; a demonstration"


def main() -> None:
    shutil.rmtree(EMBEDDED, ignore_errors=True)
    export_bundle("music2latent", CHECKPOINT, EMBEDDED, description=DESCRIPTION, weights_licence="MIT", half_weights=True)
    shutil.copyfile(CARD, EMBEDDED / "README.md")


if __name__ == "__main__":
    main()
