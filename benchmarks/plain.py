"""Plain exports: what one line of `torch.onnx.export` for each official part gives, made once and run by ONNX Runtime as it comes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from musicrt.runtime.files import new_folder, sha256_of

if TYPE_CHECKING:
    from torch import nn


class PlainGraphs:
    """The graphs of a folder in ONNX Runtime with its default options, each opened when it is first run."""

    def __init__(self, folder: Path, threads: int | None) -> None:
        import onnxruntime as ort

        options = ort.SessionOptions()
        options.log_severity_level = 3
        if threads:
            options.intra_op_num_threads = threads
        self._open: Callable[[str], Any] = lambda part: ort.InferenceSession(
            str(folder / f"{part}.onnx"), options, providers=["CPUExecutionProvider"]
        )
        self._sessions: dict[str, Any] = {}

    def run(self, part: str, feeds: Mapping[str, NDArray[Any]], names: Sequence[str] | None = None) -> dict[str, NDArray[Any]]:
        """Run a part. `names`: the wanted outputs, all by default."""
        if part not in self._sessions:
            self._sessions[part] = self._open(part)
        session = self._sessions[part]
        names = names or [output.name for output in session.get_outputs()]
        return dict(zip(names, session.run(list(names), dict(feeds)), strict=True))


def export_once(cache: Path, files: Sequence[Path], config: Mapping[str, Any], export: Callable[[Path], None]) -> Path:
    """A folder of `cache` that `export` has filled; its name is a hash of checkpoint, configuration and exporter. Raises OutputError."""
    import torch

    known = [[sha256_of(file) for file in files], dict(config), torch.__version__]
    target = cache / hashlib.sha256(json.dumps(known, sort_keys=True).encode()).hexdigest()[:16]
    if not target.exists():
        with new_folder(target) as folder:
            export(folder)
    return target


def export_part(
    path: Path,
    module: nn.Module,
    inputs: tuple[Any, ...],
    input_names: Sequence[str],
    output_names: Sequence[str],
    dynamic: tuple[Any, ...] | None = None,
) -> None:
    """Export with the exporter's defaults: no folding, no merging, no operators of ours. `dynamic`: as `torch.onnx.export` takes it."""
    import torch

    torch.onnx.export(
        module, inputs, path, dynamo=True, dynamic_shapes=dynamic, input_names=list(input_names), output_names=list(output_names)
    )
