"""What runs inside Triton: the class that its Python backend makes of each model's `model.py`."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from musicrt.runtime.registry import system_module
from musicrt.runtime.serving.batching import batch_key, run_together
from musicrt.triton.config import Settings
from musicrt.triton.request import Asked, Row
from musicrt.triton.stages import open_model, open_stages
from musicrt.triton.verbs import verbs_of

BUNDLE = "bundle"
"""The folder of the bundle inside that of the model."""


class TritonPythonModel:
    """One verb of one bundle in one process. Triton calls the three methods, one at a time."""

    def initialize(self, args: dict[str, str]) -> None:
        """Open the bundle. Raises BundleError, BackendError, InputError, which Triton shows when the model is not loaded."""
        logging.basicConfig()  # into the server's log
        config = json.loads(args["model_config"])
        self._settings = Settings.read(config)
        if args["model_instance_kind"] == "GPU":
            _choose_gpu(int(args["model_instance_device_id"]))
        folder = Path(args["model_repository"]) / BUNDLE
        settings, verb = self._settings, config["parameters"]["verb"]["string_value"]
        if settings.stage_models:
            model = open_stages(folder, config["name"].removesuffix(f"_{verb}"), settings)
        else:
            model = open_model(folder, settings)
        self._codec = system_module(model.spec.system, "pipeline").Pipeline(model)
        self._verb = verbs_of(self._codec)[verb]

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """The response to each request. Rows of several that fit together run as one call, up to the largest batch."""
        import triton_python_backend_utils as utils  # the server's own, only there inside it

        asked = [Asked(request, self._verb, self._codec, self._settings) for request in requests]
        size = self._settings.max_batch
        for batch in self._batches([row for one in asked for row in one.rows], size):
            started = [row for row in batch if row.start()]
            if len(started) > 1:
                run_together(self._codec, started, size)
            elif started:
                started[0].run(self._codec)
        return [one.answer(utils) for one in asked]

    def finalize(self) -> None:
        """Close the bundle."""
        self._codec.close()

    def _batches(self, rows: list[Row], size: int) -> Iterator[list[Row]]:
        """Rows that run together, in the order of the first of each."""
        while rows:
            key = batch_key(self._codec, rows[0].call) if size > 1 else None
            fitting = [row for row in rows if batch_key(self._codec, row.call) == key][:size] if key is not None else rows[:1]
            rows = [row for row in rows if row not in fitting]
            yield fitting


def _choose_gpu(number: int) -> None:
    """Make one GPU the only one of this process, before anything looks for them."""
    seen = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    os.environ["CUDA_VISIBLE_DEVICES"] = seen[number] if seen else str(number)
