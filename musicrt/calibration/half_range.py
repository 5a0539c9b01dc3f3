"""Hunts for overflows: what of the float32 graphs can't be in half precision, on music, and is pinned to float32 in the flavour `trt`."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx_ir as ir
from torch import nn

from musicrt.calibration.capture import Feeds, Recorder
from musicrt.calibration.graphs import StageGraph
from musicrt.calibration.inputs import gather_inputs
from musicrt.calibration.listening import listen, tool_versions
from musicrt.calibration.quality import make_pipeline
from musicrt.export.graphs import trace_float
from musicrt.export.half import choose_kinds
from musicrt.export.stages import SEED
from musicrt.export.types import tensors_of
from musicrt.runtime.backends.onnxruntime import OnnxCpu
from musicrt.runtime.backends.torch import load_bundle_stages
from musicrt.runtime.bundle import GPU_FP16, Bundle
from musicrt.runtime.errors import BundleError
from musicrt.runtime.files import changing
from musicrt.runtime.manifest import CalibrationEntry
from musicrt.runtime.manifest_file import write_manifest
from musicrt.runtime.precision import TRT, pin_name
from musicrt.runtime.registry import build_spec
from musicrt.runtime.session import Array
from musicrt.runtime.spec import StageSpec
from musicrt.runtime.verify import probe_inputs, probe_sizes

LARGEST = 65504.0
_COARSE = 4e-3
"""Relative L2 distance of a value from what half precision makes of it; 2e-4 is what rounding costs, more comes of numbers below 6e-5."""
_AT_ONCE = 32  # values that are held of a run
_SCOPE = re.compile(r"'stage\.([^']+)'")


@dataclass(frozen=True)
class Found:
    """What a hunt found in a stage. pins: nodes in the words of `Half.modules`; largest: the magnitude of what stays half."""

    pins: tuple[str, ...]
    largest: float


def calibrate_half(
    path: str | Path,
    source: str | Path = "synthetic",
    *,
    seconds: float = 6.0,
    steps: int | None = None,
    threads: int | None = None,
    on_work: Callable[[str, int, int], None] = lambda _text, _done, _total: None,
) -> CalibrationEntry:
    """Find what of a bundle has to stay float32 in half precision, and note it in the manifest: `add_flavour` then keeps to it.

    Arguments as of `calibrate_int8`. Needs torch. Raises BundleError where the bundle has graphs in half precision without these pins;
    InputError, BackendError, ConfigError, OutputError.
    """
    with changing(Bundle.open(path).path):
        bundle = Bundle.open(path, check="hashes")
        inputs = gather_inputs(source, bundle.spec.sample_rate, seconds=seconds)
        backend, recorder = OnnxCpu(threads=threads), Recorder(most=4)
        on_work("listening", 0, 1)
        with make_pipeline(bundle, recorder.wrap(lambda name: backend.open_session(bundle, name))) as codec:
            listen(codec, inputs, recorder, bundle.spec, steps)
        spec = build_spec(bundle.manifest.system, bundle.manifest.config, bundle.manifest.variant)  # without pins of an earlier time
        modules = load_bundle_stages(bundle)
        found: dict[str, Found] = {}
        for done, stage in enumerate(spec.stages):
            on_work(f"hunting in {stage.name}", done, len(spec.stages))
            if stage.half is not None and recorder.feeds(stage.name):
                found[stage.name] = hunt(stage, modules[stage.name], recorder.feeds(stage.name), threads)
        pins = {name: list(one.pins) for name, one in found.items() if one.pins}
        known = bundle.manifest.calibrations.get(GPU_FP16)
        if TRT in bundle.flavours and pins != (known.pins if known else {}):
            raise BundleError(
                f"{bundle.path} has {TRT} graphs with other nodes in float32 than the {sum(map(len, pins.values()))} found now; "
                "export it anew without that flavour, calibrate, then add it"
            )
        entry = CalibrationEntry(
            inputs=inputs.words,
            inputs_sha256=inputs.sha256,
            tools=tool_versions("torch", "onnxscript"),
            quality={f"{name} largest half": one.largest for name, one in found.items()},
            pins=pins,
        )
        calibrations = {**bundle.manifest.calibrations, GPU_FP16: entry}
        write_manifest(bundle.path, bundle.manifest.model_copy(update={"calibrations": calibrations}))
    return entry


def hunt(stage: StageSpec, module: nn.Module, feeds: Sequence[Feeds], threads: int | None = None) -> Found:
    """Run the float32 graph that the flavour `trt` is made from, and look at every value that would be half precision.

    A node is pinned if what it gives, or is given, leaves the range or is told apart too coarsely: who takes such a value from a pinned
    node would have to round it. Raises ConfigError, BackendError.
    """
    if stage.half is None:
        return Found((), 0.0)
    model = trace_float(stage, module, probe_inputs(stage, probe_sizes(stage, 2), SEED), TRT)
    kinds = choose_kinds(stage, stage.half, model)
    nodes = [node for node, kind in kinds.items() if kind == "half"]
    names = [str(value.name) for node in nodes for value in tensors_of(node) if _is_float(value)]
    largest, bad = _inspect(stage, model, list(dict.fromkeys(names)), feeds, threads)
    pins, kept = [], 0.0
    for node in nodes:
        values = {str(value.name) for value in tensors_of(node)}
        if values & bad:
            pins.append(pin_name(_module_of(node), str(node.name)))
        else:
            kept = max([kept, *(largest[name] for name in values if name in largest)])
    return Found(tuple(pins), kept)


def _inspect(
    stage: StageSpec, model: ir.Model, names: Sequence[str], feeds: Sequence[Feeds], threads: int | None
) -> tuple[dict[str, float], set[str]]:
    """The largest magnitude of every value, and the values that half precision can't hold."""
    largest: dict[str, float] = {}
    bad: set[str] = set()
    with tempfile.TemporaryDirectory(prefix="musicrt-hunt-") as folder:
        path = Path(folder) / "stage.onnx"
        ir.save(model, path, external_data="stage.data")
        graph = StageGraph(replace(stage, half=None), path)
        for start in range(0, len(names), _AT_ONCE):
            probe = graph.probe(names[start : start + _AT_ONCE], threads)
            for feed in feeds:
                for name, value in probe(feed).items():
                    largest[name] = max(largest.get(name, 0.0), float(np.abs(value).max(initial=0.0)))
                    if not fits(value):
                        bad.add(name)
    return largest, bad


def fits(value: Array) -> bool:
    """Whether half precision holds a value: in range, and about as near as rounding to 11 bits is."""
    wanted = value.astype(np.float64)
    if not np.abs(wanted).max(initial=0.0) <= LARGEST:
        return False
    lost = float(np.linalg.norm(wanted.astype(np.float16) - wanted))
    return lost <= _COARSE * float(np.linalg.norm(wanted))


def _is_float(value: ir.Value) -> bool:
    return value.dtype == ir.DataType.FLOAT and not value.is_initializer()


def _module_of(node: ir.Node) -> str:
    """The innermost module of the stage that a node comes from; "" for the stage itself."""
    scopes = _SCOPE.findall(node.metadata_props.get("pkg.torch.onnx.name_scopes", ""))
    return str(scopes[-1]) if scopes else ""
