"""Tensors out of a pickle that holds other objects, too: those are left out, and nothing that it names is called (needs torch).

Training frameworks write their configuration beside the weights, as objects of classes that need not be installed here and whose
unpickling may run anything. A pickle can only call what `find_class` gives it. Here that is three constructors of tensors and ordered
dictionaries; for any other name it is a class that takes whatever is done to it and keeps nothing. The unpickler is the one in Python:
the one in C makes room for the largest index that a file names.
"""

from __future__ import annotations

import pickle
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import torch


def load_tensors(path: Path) -> tuple[Any, list[str]]:
    """What a zip file of `torch.save` holds, on the disk where it can be, and the names of what was left out, sorted.

    Raises what `torch.load` raises for damaged files.
    """
    left_out: set[str] = set()
    reader = SimpleNamespace(__name__="inert", Unpickler=_make_unpickler(left_out))
    return torch.load(path, map_location="cpu", weights_only=False, pickle_module=reader, mmap=True), sorted(left_out)


def _make_unpickler(left_out: set[str]) -> type[pickle._Unpickler]:
    """Everything that a pickle can get hold of is made anew for each file: what it does to that ends with it."""

    class OrderedDict(dict[Any, Any]):
        """May have attributes, as the dictionaries that `nn.Module.state_dict` gives."""

    class LeftOut:
        """Stands for an object, its class, or a function: may be made, called, filled and given a state."""

        def __new__(cls, *_: object, **__: object) -> LeftOut:
            return object.__new__(cls)

        def __init__(self, *_: object, **__: object) -> None:
            return

        def __call__(self, *_: object, **__: object) -> LeftOut:
            return self

        def __setstate__(self, _: object) -> None:
            return

        def __setitem__(self, _: object, __: object) -> None:
            return

        def append(self, _: object) -> None:
            return

        def extend(self, _: object) -> None:
            return

        def add(self, _: object) -> None:
            return

    def rebuild_tensor(*arguments: Any) -> Any:
        return torch._utils._rebuild_tensor_v2(*arguments)  # type: ignore[no-untyped-call]

    def rebuild_parameter(data: Any, *_: object) -> Any:
        return data

    allowed = {
        "collections.OrderedDict": OrderedDict,
        "torch._utils._rebuild_tensor_v2": rebuild_tensor,
        "torch._utils._rebuild_parameter": rebuild_parameter,
    }

    class Unpickler(pickle._Unpickler):
        # An array of bytes is as large as a file says, before any are read; torch's files are of a protocol that has none.
        dispatch: ClassVar = {code: load for code, load in pickle._Unpickler.dispatch.items() if code != pickle.BYTEARRAY8[0]}

        def find_class(self, module: str, name: str, /) -> Any:
            full = f"{module}.{name}"
            if full in allowed:
                return allowed[full]
            left_out.add(full)
            return LeftOut

    return Unpickler
