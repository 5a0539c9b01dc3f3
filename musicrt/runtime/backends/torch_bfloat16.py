"""Networks of torch in bfloat16 on a CPU.

Automatic casts, and not weights in bfloat16: of Music2Latent's decoder at full size those are no faster, and stages that share layers may
differ in what they are computed in. Weights of images lie with their channels last, as oneDNN's kernels want them.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from musicrt.runtime.precision import Half, is_pin

if TYPE_CHECKING:
    from torch import Tensor, nn


def prepare_lowering(module: nn.Module, half: Half) -> None:
    """Lay out the weights of a stage for `call_lowered`; what `half` keeps in float32 as a module stays so. Doing it twice is fine.

    Pins are nodes of a graph that torch has not; they are there for the range of float16, which bfloat16 does not leave.
    """
    import torch

    for parameter in module.parameters():
        if parameter.dim() == 4:
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
    for name in half.modules:
        if is_pin(name):
            continue
        kept = module.get_submodule(name)
        if not hasattr(kept.forward, "__wrapped__"):
            kept.forward = _in_float32(kept.forward)


def call_lowered(module: nn.Module, feeds: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """What the stage gives, computed in bfloat16, as float32."""
    import torch

    images = [x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 and x.is_floating_point() else x for x in feeds]
    with torch.autocast("cpu", torch.bfloat16):
        produced = module(*images)
    return tuple(_to_float32(x) for x in (produced if isinstance(produced, tuple) else (produced,)))


def _in_float32(forward: Any) -> Any:
    import torch

    @functools.wraps(forward)
    def call(*inputs: Tensor) -> Any:
        with torch.autocast("cpu", enabled=False):
            return forward(*(_to_float32(x) for x in inputs))

    return call


def _to_float32(x: Tensor) -> Tensor:
    return x.float() if x.is_floating_point() else x
