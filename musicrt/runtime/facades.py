"""What drop-ins for official classes share: devices, bundles in place of checkpoints, torch tensors. torch is imported when it is used."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from musicrt.runtime.backends.torch import TorchCpu, TorchCuda
from musicrt.runtime.errors import BackendError, InputError
from musicrt.runtime.manifest_file import MANIFEST
from musicrt.runtime.model import Model
from musicrt.runtime.pipeline import Codec

if TYPE_CHECKING:
    from torch import Tensor

Device = Literal["cpu", "cuda"]
Float = NDArray[np.float32]


def choose_device(facade: str, device: Any, codec: Codec | None) -> Device:
    """Where the tensors of a class are, and its network runs. None: where `codec` is, else cuda, if that is usable.

    Raises BackendError, which names the class `facade`: no torch, or a device that is not usable here.
    """
    if reason := TorchCpu.obstacle():
        raise BackendError(f"{facade} gives torch tensors, and {reason}; musicrt.load needs no torch")
    if device is None:
        return "cpu" if (codec is not None and codec.model.device == "cpu") or TorchCuda.obstacle() else "cuda"
    chosen = str(device).removesuffix(":0")
    if chosen == "cpu":
        return "cpu"
    if chosen != "cuda":
        raise BackendError(f"got device {device!r}, expected 'cpu' or 'cuda'")
    if reason := TorchCuda.obstacle():
        raise BackendError(f"got device {device!r}, which can't be used here: {reason}; pass device='cpu'")
    return "cuda"


def open_bundle(path: str | Path | None, device: Device) -> Model | None:
    """The bundle in the folder `path`, on the fastest backend of a device; None if that is no bundle. Raises BundleError, BackendError."""
    folder = None if path is None else Path(path).expanduser()
    return None if folder is None or not (folder / MANIFEST).is_file() else Model.open(folder, device=device)


def as_array(values: Any, name: str) -> NDArray[Any]:
    """A tensor of any device, an array or a nested list as an array. Raises InputError, which calls it `name`."""
    import torch

    try:
        return np.asarray(values.detach().cpu() if isinstance(values, torch.Tensor) else values)
    except (ValueError, TypeError, RuntimeError) as error:  # rows of several lengths, a dtype that numpy has not, tensors inside a list
        raise InputError(f"got {name} that make no array ({' '.join(str(error).split())[:100]}), expected a tensor or an array") from None


def as_floats(values: Any, name: str) -> Float:
    """The same as finite float32. Raises InputError."""
    array = as_array(values, name)
    if array.dtype.kind not in "fiu":
        raise InputError(f"got {name} of dtype {array.dtype}, expected finite numbers (float32)")
    with np.errstate(over="ignore"):
        floats = array.astype(np.float32, order="C", copy=False)
    if not np.isfinite(floats).all():
        raise InputError(f"got {name} with {np.count_nonzero(~np.isfinite(floats))} NaN or infinite values, expected finite numbers")
    return floats


def as_tensor(values: NDArray[Any], device: Any) -> Tensor:
    """An array as a tensor on a device."""
    import torch

    return torch.from_numpy(values).to(device)


def draw_normal(shape: tuple[int, ...], device: Any) -> Float:
    """Standard normal noise from torch's generator of a device, as the official code draws it."""
    import torch

    noise: Float = torch.randn(shape, device=device).cpu().numpy()
    return noise
