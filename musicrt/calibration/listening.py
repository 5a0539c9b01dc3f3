"""Running a float32 pipeline on representative inputs while what goes into its stages is recorded."""

from __future__ import annotations

import importlib.metadata
from typing import Any

from musicrt.calibration.capture import Recorder
from musicrt.calibration.generation import GENERATE, generate
from musicrt.calibration.inputs import Inputs
from musicrt.calibration.quality import Run, decode_options, run_pieces
from musicrt.runtime.spec import ModelSpec


def listen(codec: Any, inputs: Inputs, recorder: Recorder, spec: ModelSpec, steps: int | None) -> list[Run]:
    """Run all pieces in float32 and record what goes into the stages; the runs of those that judge, which are not recorded.

    Stages that no call of the default way reaches may be those of a decode in more steps: such a one is recorded too.
    """

    def note(doing: str) -> None:
        recorder.doing = doing

    runs = run_pieces(codec, inputs.calibrating, steps, doing=note)
    options = decode_options(codec, 2)
    if "steps" in options and any((stage.int8 or stage.half) and not recorder.feeds(stage.name) for stage in spec.stages):
        note("decode in steps")
        for run in runs:
            codec.decode(run.values, **options)
    note(GENERATE)
    generate(codec, inputs.seconds, "calibrating")
    recorder.recording = False
    return run_pieces(codec, inputs.judging, steps, doing=note)


def tool_versions(*more: str) -> dict[str, str]:
    """What a calibration depends on."""
    return {name: importlib.metadata.version(name) for name in ("musicrt", "onnx", "onnxruntime", "numpy", *more)}
