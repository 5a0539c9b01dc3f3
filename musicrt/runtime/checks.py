"""Arrays, on the host or on a GPU, held against what a spec says of them."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from musicrt.runtime.cuda.array import DeviceArray
from musicrt.runtime.errors import InputError
from musicrt.runtime.tensors import Dim, TensorSpec

Array = NDArray[Any]


def check_array(tensor: TensorSpec, array: Array, sizes: dict[str, int], owner: str) -> None:
    """Hold an array against its spec; axis sizes seen are added to `sizes` and must agree. Raises InputError."""
    if not isinstance(array, np.ndarray):
        raise InputError(f"{owner}: {tensor.name} is a {type(array).__name__}, expected a numpy array ({tensor.describe()})")
    check_tensor(tensor, array, sizes, owner)


def check_tensor(tensor: TensorSpec, array: Array | DeviceArray, sizes: dict[str, int], owner: str) -> None:
    """The same for an array anywhere."""
    if array.dtype != tensor.dtype:
        raise InputError(f"{owner}: {tensor.name} is {array.dtype}, expected {tensor.dtype} ({tensor.describe()})")
    wrong = InputError(f"{owner}: {tensor.name} has shape {list(array.shape)}, expected {tensor.describe()}")
    if len(array.shape) != len(tensor.shape):
        raise wrong
    for size, dim in zip(array.shape, tensor.dims, strict=True):
        if not isinstance(dim, Dim):
            if size != dim:
                raise wrong
            continue
        count = sizes.setdefault(dim.axis.name, dim.count(size))
        if dim.size(count) != size:
            raise InputError(f"{wrong}, where {dim.axis.name} is a whole number, the same for all inputs")
        if not dim.axis.minimum <= count <= dim.axis.maximum:
            raise InputError(f"{wrong}, where {dim.axis.name} is from {dim.axis.minimum} to {dim.axis.maximum}")
