"""Arrays into tensors of Triton's Python backend and back, by DLPack: servers made for NumPy 1, as 2.51 is, garble the arrays of NumPy 2
in `Tensor(name, array)` and `as_numpy`, and crash on text.
"""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np

from musicrt.triton.verbs import Array

_set_destructor = ctypes.pythonapi.PyCapsule_SetDestructor
_set_destructor.argtypes = [ctypes.py_object, ctypes.c_void_p]


def to_tensor(utils: Any, name: str, array: Array) -> Any:
    """A tensor of the server's, which frees the memory. utils: `triton_python_backend_utils`."""
    # A copy, because DLPack wants arrays that can be written to. A capsule that the server has used is called otherwise than NumPy expects,
    # which would complain at the end of each; it owns nothing by then, so that there is nothing to do.
    capsule: Any = np.array(array, order="C").__dlpack__()
    _set_destructor(capsule, None)
    return utils.Tensor.from_dlpack(name, capsule)


def to_array(tensor: Any) -> Array:
    """What a tensor of the server's holds, in its memory."""
    return np.from_dlpack(tensor)
