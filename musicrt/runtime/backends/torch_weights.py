"""A bundle's weights as a torch network takes them: the file is from elsewhere, and the network says what has to be in it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from musicrt.runtime.errors import BundleError

if TYPE_CHECKING:
    from torch import nn


def put_weights(network: nn.Module, path: Path) -> None:
    """Give a network that was made on the device `meta` its parameters, as float32. Others in the file are constants of graphs.

    Raises BundleError for a file that is damaged or does not fit.
    """
    import torch

    from musicrt.runtime.checkpoint import read_safetensors

    weights = read_safetensors(path, BundleError, "copy the bundle again")
    expected = {name: tensor.shape for name, tensor in network.named_parameters()}
    wrong = [
        name
        for name, shape in expected.items()
        if name not in weights or weights[name].shape != shape or weights[name].dtype not in (torch.float32, torch.float16)
    ]
    if wrong:
        raise BundleError(f"{path} does not fit the network: {len(wrong)} tensors, {wrong[0]} first; export the bundle again")
    # Stages may share layers (a fused stage has those of its parts): each is stored once, under the first name.
    keys = [key for key in network.state_dict(keep_vars=True) if key in expected]
    network.load_state_dict({key: weights[key].float() for key in keys}, strict=False, assign=True)
