"""What networks are computed in, as data: where half precision and 8-bit integers are allowed, and how far they may lead.

Needs the standard library only.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

Precision = Literal["float32", "bfloat16", "float16", "int8"]
"""What the bulk of a network is computed in."""

ORT, TRT, INT8, TRT_INT8 = "ort", "trt", "int8", "trt-int8"
"""The flavours of a stage's graph: float32 for ONNX Runtime, half precision for TensorRT, and 8-bit integers for CPUs and for TensorRT."""
LOWERED: Mapping[str, str] = {INT8: ORT, TRT_INT8: TRT}
"""The flavours of 8-bit integers, and what each is made from: stages that are not lowered have the graphs of that."""


@dataclass(frozen=True)
class Tolerance:
    """Largest accepted distance between two FP32 implementations of a stage: relative L2; of integers, the share that differs."""

    rel_l2: float


FLOAT32_OPERATORS = (
    *("BatchNormalization", "GroupNormalization", "InstanceNormalization", "LayerNormalization", "RMSNormalization"),
    *("Softmax", "LogSoftmax", "Exp", "Log", "Pow", "Sqrt", "Reciprocal", "Sin", "Cos", "CumSum"),
    *("ReduceL2", "ReduceLogSumExp", "ReduceMean", "ReduceProd", "ReduceSum", "ReduceSumSquare"),
)
"""ONNX operators that stay float32 in every stage: they add up many values, or leave the range of float16 (6e-8 to 65504) on the way.

Attention stays half: TensorRT takes no `softmax_precision`, and its fused kernels keep sums in float32 by themselves.
"""


@dataclass(frozen=True)
class Half:
    """What a stage is where it runs in half precision (the flavour `trt`): float16, and float32 on the islands named here.

    operators: ONNX operators that stay float32. modules: torch modules of the stage that do, with all inside them, by their names; single
    nodes as well (`pin_name`), which calibration finds.
    tensors: inputs and outputs that are float16 as well, as states are: what one stage hands to another in every step.
    tolerance: largest accepted distance from the float32 network, as in `Tolerance`. Rounding to 11 bits once costs 2.1e-4 (root mean
    square, at most 4.9e-4), and k roundings one after the other about sqrt(k) times that. Those of the specs are about three times what
    export measures with the tiny stand-in weights; the stages measured at full size (`encoder` and `denoiser` of Music2Latent) are as near.
    """

    tolerance: float = 6e-3
    operators: tuple[str, ...] = FLOAT32_OPERATORS
    modules: tuple[str, ...] = ()
    tensors: tuple[str, ...] = ()


@dataclass(frozen=True)
class Int8:
    """What a stage is where it runs in 8-bit integers (the flavours `int8` and `trt-int8`).

    method: "static": convolutions and linears compute in integers, activations in ranges that calibration finds; "weights": the weights of
    linears are stored in fewer bits, and activations stay as they are, as serves where few rows meet large matrices.
    keep: layers that stay as they are, by the names of their modules (with all inside them) or nodes.
    tolerance: largest accepted distance from the float32 network, on music that calibration heard.

    Of "weights": bits, 8 or 4 (0: weights stay), and how many weights of a row have a scale of their own; for TensorRT it is 8 bits, and
    all of a row. For CPUs only: tensors: keys and values of attention, [rows, heads, n, head width], that are 8-bit integers too, among
    outputs, states, and inputs, which are states of the lowered graph; each with the name of the range that it has, in all stages.
    single: an axis of which the lowered graph takes one entry in a call.
    """

    method: Literal["static", "weights"] = "static"
    keep: tuple[str, ...] = ()
    tolerance: float = 0.3
    bits: int = 8
    block: int = 64
    tensors: Mapping[str, str] = field(default_factory=dict, hash=False)
    single: str = ""


@dataclass(frozen=True)
class Gate:
    """What a lowered system has to keep: a measure of `calibration/quality.py`, and the least or the most that it may be."""

    measure: str
    least: float | None = None
    most: float | None = None

    def holds(self, value: float | None) -> bool:
        """Whether a measured value is good enough; None, which was not measured, and NaN are not."""
        if value is None:
            return False
        return (self.least is None or value >= self.least) and (self.most is None or value <= self.most)

    @property
    def limits(self) -> str:
        """`at least 20`."""
        return " and ".join(f"at {word} {limit:g}" for word, limit in (("least", self.least), ("most", self.most)) if limit is not None)

    def __str__(self) -> str:
        return f"{self.measure} {self.limits}"


def kept_name(module: str, node: str) -> str:
    """What a node of a graph in half precision is called that stays float32 because its module does (`Half.modules`)."""
    return f"float32:{module}/{node}"


def pin_name(module: str, node: str) -> str:
    """What `Half.modules` calls a single node; "" is the stage itself. Exporters number nodes, so that the module makes sure."""
    return f"{module}/{node}"


def is_pin(name: str) -> bool:
    """Whether a name of `Half.modules` is that of a node."""
    return "/" in name
