"""Make the bundle that is part of the package, from rule-filled stand-in weights: `python -m tools.build_embedded`.

Run it again when the stages or the bundle format change, and commit what it writes.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path

from musicrt.export.bundle import export_bundle
from musicrt.runtime.bundle import EMBEDDED
from tests.reference.fill import write_checkpoint

LAYOUTS = Path(__file__).parents[1] / "tests" / "reference" / "data" / "music2latent"


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = Path(folder) / "checkpoint"
        write_checkpoint(LAYOUTS, "layout-tiny.json", None, "", checkpoint)
        config = Path(folder) / "config.json"
        config.write_text(json.dumps(json.loads((LAYOUTS / "layout-tiny.json").read_text())["config"]))
        shutil.rmtree(EMBEDDED, ignore_errors=True)
        description = "rule-filled stand-in weights of reduced size: not trained, what they decode to is not music"
        export_bundle("music2latent", checkpoint, EMBEDDED, config=config, description=description, weights_licence="MIT")


if __name__ == "__main__":
    main()
