"""Weights of 8 or 4 bits for what is bound by memory: products of few rows with large matrices.

A step of a language model reads all of its weights once and computes next to nothing with them, so it takes a quarter of the time if they
are a quarter as large. A block of each row has a scale of its own; activations are rounded to 8 bits on the fly, in blocks as well, so
nothing has to be known of them. What attention keeps from step to step is lowered with them (`attention`).
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from musicrt.calibration.attention import lower_caches, lower_outputs
from musicrt.calibration.graphs import read_array
from musicrt.calibration.surgery import CONTRIB, Surgeon, drop_unused
from musicrt.runtime.errors import ConfigError
from musicrt.runtime.precision import Int8
from musicrt.runtime.spec import StageSpec

Float = NDArray[np.float32]
SMALLEST = 1 << 12
"""Matrices of fewer values stay as they are."""
_INTEGERS = 4
"""The accuracy level at which the operator computes in integers; at others its kernels are slower than those of float32."""


@dataclass(frozen=True)
class Linear:
    """A product with a constant matrix. weight: as the graph has it; `rows`: whether its rows are those of the result."""

    node: ir.Node
    weight: ir.Value
    rows: bool
    bias: ir.Value | None

    @property
    def name(self) -> str:
        """That of its weight."""
        return str(self.weight.name)

    def matrix(self) -> Float:
        """float32 [outputs, inputs]."""
        stored = self.weight.const_value
        if stored is None:
            raise ConfigError(f"{self.name} is no constant")
        if isinstance(stored, ir.ExternalTensor):
            values = read_array(Path(stored.path), stored.offset or 0, stored.dtype.numpy(), stored.shape.numpy())
        else:
            values = stored.numpy()
        array = np.asarray(values, np.float32)
        return array if self.rows else np.ascontiguousarray(array.T)


@dataclass(frozen=True)
class Packed:
    """A matrix as `MatMulNBits` takes it. values: uint8 [outputs, blocks, bytes of a block], scales: float32 [outputs, blocks]."""

    values: NDArray[np.uint8]
    scales: Float

    @classmethod
    def of(cls, matrix: Float, bits: int, block: int) -> Packed:
        """Pack float32 [outputs, inputs], every `block` inputs of a row with a scale of their own. Raises ConfigError."""
        if bits not in (4, 8) or block not in (16, 32, 64, 128, 256):
            raise ConfigError(f"got weights of {bits} bits in blocks of {block}, expected 4 or 8 bits in blocks of 16, 32, 64, 128 or 256")
        from onnxruntime.quantization.matmul_nbits_quantizer import DefaultWeightOnlyQuantConfig, DefaultWeightOnlyQuantizer

        config = DefaultWeightOnlyQuantConfig(block_size=block, is_symmetric=True, bits=bits)
        values, scales, _ = DefaultWeightOnlyQuantizer(config).qbits_block_quant(np.ascontiguousarray(matrix.T))
        return cls(values, scales)

    def unpack(self, bits: int, block: int, inputs: int) -> Float:
        """What the operator computes with: float32 [outputs, inputs]."""
        split = self.values if bits == 8 else np.stack([self.values & 15, self.values >> 4], axis=-1)
        centred = split.reshape(*self.scales.shape, block).astype(np.float32) - (1 << (bits - 1))
        return np.asarray((centred * self.scales[:, :, None]).reshape(len(self.values), -1)[:, :inputs], np.float32)


def lower(model: ir.Model, stage: StageSpec, ranges: Mapping[str, Float], keep: Collection[str] = ()) -> ir.Model:
    """Lower a float32 graph in place as `stage.int8` says, and give it back.

    ranges: by the names that `int8.tensors` gives, the largest magnitude of each channel of each head, float32 [heads, head width].
    keep: linears that stay float32 beside those of the spec, by the names of their weights. Raises ConfigError for a spec or a graph
    that is not of that kind.
    """
    int8 = stage.int8
    if int8 is None or int8.method != "weights":
        raise ConfigError(f"stage {stage.name}: its spec asks for no lowered weights")
    if int8.bits:
        lower_linears(model, int8, keep)
    if int8.tensors:
        lower_caches(model, stage, ranges)
        lower_outputs(model, stage, ranges)
    drop_unused(model)
    return model


def find_linears(model: ir.Model) -> Iterator[Linear]:
    """The products with constant matrices that may be lowered: `Gemm` and `MatMul` of no other factors."""
    for node in model.graph:
        if node.op_type not in ("Gemm", "MatMul") or node.domain or len(node.inputs) < 2:
            continue
        weight, plain = node.inputs[1], True
        if node.op_type == "Gemm":
            factors = {name: node.attributes.get_float(name, 1.0) for name in ("alpha", "beta")}
            plain = set(factors.values()) == {1.0} and not node.attributes.get_int("transA", 0)
        if weight is None or weight.const_value is None or len(weight.const_value.shape) != 2 or not plain:
            continue
        bias = node.inputs[2] if len(node.inputs) > 2 else None
        if weight.const_value.size >= SMALLEST and (bias is None or (bias.const_value is not None and len(bias.const_value.shape) == 1)):
            yield Linear(node, weight, bool(node.attributes.get_int("transB", 0)), bias)


def is_kept(weight: str, keep: Collection[str]) -> bool:
    """Whether a weight is one of these, or of one of these modules."""
    names = {weight, weight.removeprefix("stage.")}
    return any(one == name or one.startswith(f"{name}.") for one in names for name in keep)


def lower_linears(model: ir.Model, int8: Int8, keep: Collection[str] = ()) -> list[str]:
    """Replace the linears of a graph: -> the names of their weights. A matrix that several have is stored once."""
    surgeon, packed = Surgeon(model, "lowered."), dict[str, tuple[ir.Value, ir.Value]]()
    kept = {*int8.keep, *keep}
    for linear in list(find_linears(model)):
        if is_kept(linear.name, kept):
            continue
        matrix = linear.matrix()
        if linear.name not in packed:
            made = Packed.of(matrix, int8.bits, int8.block)
            packed[linear.name] = (
                surgeon.initialise(made.values, f"{linear.name}.int{int8.bits}"),
                surgeon.initialise(made.scales, f"{linear.name}.scales"),
            )
        surgeon.before(linear.node)
        result = surgeon.add(
            "MatMulNBits",
            *(linear.node.inputs[0], *packed[linear.name], *((None, None, linear.bias) if linear.bias else ())),
            domain=CONTRIB,
            **{"K": matrix.shape[1], "N": matrix.shape[0], "bits": int8.bits, "block_size": int8.block, "accuracy_level": _INTEGERS},
        )
        surgeon.replace(linear.node, result)
    drop_unused(model)
    return list(packed)
