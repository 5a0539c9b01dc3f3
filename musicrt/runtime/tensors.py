"""What goes into a stage and comes out, as data: tensors, and axes that change from call to call. Needs the standard library only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

DType = Literal["float32", "float16", "int8", "int64"]


@dataclass(frozen=True)
class Axis:
    """A dimension that changes from call to call. `minimum` to `maximum` is what a session accepts; `optimum` what is tuned for.

    `fixed`: an engine has one size of it, as TensorRT wants of the room in a cache. `longest`: a size far beyond the optimum that calls
    have as well if nobody asks for another, and that can't be cut without changing the result; engines have a profile of its own for it.
    """

    name: str
    minimum: int
    optimum: int
    maximum: int
    fixed: bool = False
    longest: int = 0

    def __mul__(self, times: int) -> Dim:
        return Dim(self, times)

    def __floordiv__(self, per: int) -> Dim:
        return Dim(self, 1) // per


@dataclass(frozen=True)
class Dim:
    """A dimension that follows an axis: `times * axis + plus`; 8 frames for each latent frame, say.

    Of an output it may be that divided by `per`, rounded down: a latent frame for every 8 whole frames.
    """

    axis: Axis
    times: int
    plus: int = 0
    per: int = 1

    def __add__(self, plus: int) -> Dim:
        return Dim(self.axis, self.times, self.plus + plus * self.per, self.per)

    def __floordiv__(self, per: int) -> Dim:
        return Dim(self.axis, self.times, self.plus, self.per * per)

    def __str__(self) -> str:
        product = self.axis.name if self.times == 1 else f"{self.times}*{self.axis.name}"
        total = f"{product}+{self.plus}" if self.plus else product
        if self.per == 1:
            return total
        return f"({total})//{self.per}" if self.plus else f"{total}//{self.per}"

    def size(self, count: int) -> int:
        """The dimension where the axis has `count` entries."""
        return (self.times * count + self.plus) // self.per

    def count(self, size: int) -> int:
        """The entries of the axis where the dimension is `size`, if there is such a number; `size` of it tells."""
        return (self.per * size - self.plus) // self.times


@dataclass(frozen=True)
class TensorSpec:
    """Name, dtype and shape of an input or output. A shape holds ints, axes and multiples of axes.

    `values`: what test values look like: normal with deviation `scale`, the exponential of that ("positive"), or whole numbers
    from 0 to `codes` - 1 ("codes", for int64).
    """

    name: str
    dtype: DType
    shape: tuple[int | Axis | Dim, ...]
    values: Literal["normal", "positive", "codes"] = "normal"
    scale: float = 1.0
    codes: int = 0

    @property
    def dims(self) -> tuple[int | Dim, ...]:
        """The shape with every bare axis as a `Dim`."""
        return tuple(dim * 1 if isinstance(dim, Axis) else dim for dim in self.shape)

    def describe(self) -> str:
        """`x: float32 [batch, 2, 1024, 8*latents]`."""
        return f"{self.name}: {self.dtype} [{', '.join(str(dim) for dim in self.dims)}]"

    def resolve(self, sizes: Mapping[str, int]) -> tuple[int, ...]:
        """The shape for given sizes of the axes."""
        return tuple(dim.size(sizes[dim.axis.name]) if isinstance(dim, Dim) else dim for dim in self.dims)


def floats(name: str, *shape: int | Axis | Dim, scale: float = 1.0) -> TensorSpec:
    """A float32 tensor whose test values are normal with deviation `scale`."""
    return TensorSpec(name, "float32", shape, scale=scale)
