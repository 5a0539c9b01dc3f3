"""From the official files to the networks (SPEC section 1)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from musicrt.runtime.checkpoint import Part, load_parts
from musicrt.runtime.errors import CheckpointError
from musicrt.runtime.models.semanticodec.config import Config
from musicrt.runtime.models.semanticodec.network.audiomae import AudioMae
from musicrt.runtime.models.semanticodec.network.residual import AcousticCodebook, ResidualEncoder, SemanticCodebook
from musicrt.runtime.models.semanticodec.network.unet import UNet
from musicrt.runtime.models.semanticodec.network.vae import VaeDecoder
from musicrt.runtime.models.semanticodec.network.vocoder import Vocoder
from musicrt.runtime.models.semanticodec.spec import find_checkpoint


@dataclass(frozen=True)
class Networks:
    """The networks as in the checkpoint."""

    config: Config
    audiomae: AudioMae
    semantic: SemanticCodebook
    residual: ResidualEncoder
    acoustic: AcousticCodebook
    unet: UNet
    vae: VaeDecoder
    vocoder: Vocoder

    @classmethod
    def build(cls, config: Config) -> Networks:
        """Untrained networks."""
        return cls(
            config,
            AudioMae(config),
            SemanticCodebook(config),
            ResidualEncoder(config),
            AcousticCodebook(config),
            UNet(config),
            VaeDecoder(config),
            Vocoder(config),
        )


def fit_config(files: Mapping[str, Mapping[str, Any]], config: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration with the size of the semantic codebook, which only its file tells. Raises CheckpointError: another than given."""
    given = Config.from_mapping(config)
    *_, codebook = _contents(files, given).values()
    array, expected = codebook["array"], given.semantic_codebook_rows
    if array.ndim != 2 or array.shape[1] != given.feature_dim or not len(array):
        raise CheckpointError(
            f"the semantic codebook has shape {list(array.shape)}, expected [rows, {given.feature_dim}]; use the codebook of that setting"
        )
    found = len(array)
    if expected not in (None, found):
        raise CheckpointError(
            f"the semantic codebook has {found} rows, the configuration says {expected}; use the codebook of that setting"
        )
    return {**given.to_mapping(), "semantic_codebook_rows": found}


def load_networks(files: Mapping[str, Mapping[str, Any]], config: Mapping[str, Any]) -> Networks:
    """The networks as in the checkpoint. Raises CheckpointError naming what is missing or of another shape."""
    with torch.device("meta"):
        networks = Networks.build(Config.from_mapping(config))
    contents = _contents(files, networks.config)
    encoder, decoder, codebook = contents
    parts = [
        Part(networks.audiomae, encoder, "audiomae.model."),
        Part(networks.residual, encoder),
        Part(networks.acoustic, encoder, "quantizer._codebook."),
        Part(networks.semantic, codebook),
        Part(networks.unet, decoder, "model.diffusion_model."),
        Part(networks.vae, decoder),
        Part(networks.vocoder, decoder, "first_stage_model.vocoder."),
    ]
    load_parts(parts, contents, dead=is_dead_key)
    return networks


def is_dead_key(key: str) -> bool:
    """Tensors that the official files carry for training, or for the other half of an autoencoder (SPEC section 1)."""
    return key.startswith(_DEAD)


_DEAD = (
    "audiomae.model.mask_token",
    "audiomae.model.decoder_",
    "quantizer._codebook.initted",
    "quantizer._codebook.cluster_size",
    "quantizer._codebook.embed_avg",
    "model_ema.",
    "first_stage_model.encoder.",
    "first_stage_model.quant_conv.",
    "logvar",
    "betas",
    "alphas_cumprod",
    "sqrt_",
    "log_one_minus_alphas_cumprod",
    "posterior_",
)


def _contents(files: Mapping[str, Mapping[str, Any]], config: Config) -> dict[str, Mapping[str, Any]]:
    """What is in encoder.ckpt, decoder.ckpt and the codebook, by their official names."""
    return {name: {str(key): value for key, value in files[name].items()} for name in find_checkpoint(config).files}
