"""From the official file to the network."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from musicrt.runtime.checkpoint import load_weights
from musicrt.runtime.models.music2latent.config import Config
from musicrt.runtime.models.music2latent.network.unet import UNet


def load_network(files: Mapping[str, Mapping[str, Any]], config: Mapping[str, Any]) -> UNet:
    """The network as in the checkpoint. Raises CheckpointError naming what is missing, unexpected or of another shape."""
    content = files["music2latent.pt"]
    state = content.get("gen_state_dict", content)  # the official file nests the weights; a bare state dict is taken too
    network = UNet(Config.from_mapping(config))
    load_weights(network, state, dead=is_dead_key)
    return network.eval()


def is_dead_key(key: str) -> bool:
    """Weights that the official file carries and never uses: 526336 values in the full network (SPEC section 6)."""
    return key.startswith("decoder.bottleneck_layers.") and ".proj_emb." in key
