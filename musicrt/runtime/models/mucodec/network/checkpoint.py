"""From the three official files to the networks (SPEC section 2)."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from musicrt.runtime.checkpoint import Part, load_parts
from musicrt.runtime.errors import CheckpointError
from musicrt.runtime.models.mucodec.config import Config
from musicrt.runtime.models.mucodec.downmix import sinc_kernel
from musicrt.runtime.models.mucodec.mel import hann_window, muq_filters
from musicrt.runtime.models.mucodec.network.estimator import Estimator
from musicrt.runtime.models.mucodec.network.muq import Muq, rotation_rates
from musicrt.runtime.models.mucodec.network.quantizer import Conditioner, NormFeat, ResidualQuantizer
from musicrt.runtime.models.mucodec.network.vae import FirstStage, Scale
from musicrt.runtime.models.mucodec.spec import CHECKPOINT, SYSTEM

_LOG = logging.getLogger("musicrt")

FROZEN_FROM = 100000
"""Latents that the official statistics take in before they stop changing, in inference too."""
_VAE, _MUQ, _MAIN = CHECKPOINT.files
_OVERRIDE = "muencoder."  # before MuQ's keys in a main file
_OWN_MUQ = f"{_MUQ} (or {_OVERRIDE}* of {_MAIN})"


@dataclass(frozen=True)
class Networks:
    """The networks as in the checkpoint."""

    config: Config
    muq: Muq
    quantizer: ResidualQuantizer
    conditioner: Conditioner
    normfeat: NormFeat
    estimator: Estimator
    first_stage: FirstStage
    scale: Scale

    @classmethod
    def build(cls, config: Config) -> Networks:
        """Untrained networks."""
        return cls(
            config,
            Muq(config),
            ResidualQuantizer(config),
            Conditioner(config),
            NormFeat(),
            Estimator(config),
            FirstStage(config),
            Scale(),
        )


def fit_config(files: Mapping[str, Mapping[str, Any]], config: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration, if the checkpoint has as many codebooks. Raises CheckpointError, ConfigError."""
    given = Config.from_mapping(config)
    main = _contents(files)[_MAIN]
    found = len({match[1] for key in main if (match := re.match(r"rvq_muencoder_emb\.quantizers\.(\d+)\.", key))})
    if not found:
        raise CheckpointError(f"{_MAIN} holds no rvq_muencoder_emb.*; use the official main file, or export what it was trained with")
    if found != given.rvq.n_codebooks:
        variants = [name for name, values in SYSTEM.variants.items() if values["rvq"]["n_codebooks"] == found]
        advice = "".join(f"use the variant {name}, or " for name in variants)
        raise CheckpointError(
            f"the checkpoint has {found} codebooks, the configuration says {given.rvq.n_codebooks}; {advice}say so in rvq.n_codebooks"
        )
    return given.to_mapping()


def load_networks(files: Mapping[str, Mapping[str, Any]], config: Mapping[str, Any]) -> Networks:
    """The networks as in the checkpoint. Raises CheckpointError naming what is missing, of another shape or not finite."""
    with torch.device("meta"):
        networks = Networks.build(Config.from_mapping(config))
    contents = _contents(files)
    parts = [
        Part(networks.muq, _OWN_MUQ, "model."),
        Part(networks.quantizer, _MAIN, "rvq_muencoder_emb."),
        Part(networks.conditioner, _MAIN),
        Part(networks.normfeat, _MAIN, "normfeat."),
        Part(networks.estimator, _MAIN, "cfm_wrapper.estimator."),
        Part(networks.first_stage, _VAE, "first_stage_model."),
        Part(networks.scale, _VAE),
    ]
    load_parts(parts, contents, dead=lambda key: is_dead_key(key, networks.config.layers))
    _check_constants(networks.config, {**contents[_OWN_MUQ], **contents[_MAIN]})
    _check_counts(networks.normfeat)
    return networks


def is_dead_key(key: str, layers: int) -> bool:
    """Tensors of training, of layers above the tapped one, of the rest of AudioLDM, or that are computed here (SPEC section 2)."""
    layer = re.match(r"model\.conformer\.layers\.(\d+)\.", key)
    return _DEAD.match(key) is not None or (layer is not None and int(layer[1]) >= layers)


_DEAD = re.compile(
    r"model\.(rvq|quantizer_melspec_2048|linear|recon_proj|preprocessor_melspec_2048)\."
    r"|model\.conformer\.(pos_conv_embed|layer_norm|embed_positions)\.|model\.(cls_token|mask_emb)$"
    r"|normfeat\.sum_target_x2$|(rsp48toclap|rsq48towav2vec|rsq48tomuencoder)\.|.*\.(num_batches_tracked|stale_counter)$"
    r"|model\.diffusion_model\.|model_ema\.|cond_stage_model|clap\.|logvar$|betas$|alphas_cumprod|sqrt_|log_one_minus_|posterior_"
)


def _contents(files: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Tensors by official key: of the VAE, of MuQ (those that the main file has count), and of the main file. Raises CheckpointError."""
    found = {_VAE: files[_VAE].get("state_dict", files[_VAE]), _MUQ: files[_MUQ].get("model", files[_MUQ]), _MAIN: files[_MAIN]}
    for name, tensors in found.items():
        if not isinstance(tensors, Mapping):
            raise CheckpointError(f"{name} holds a {type(tensors).__name__} in the place of its tensors; use the official file")
    vae, muq, main = ({str(key): value for key, value in tensors.items()} for tensors in found.values())
    own = {key.removeprefix(_OVERRIDE): main.pop(key) for key in list(main) if key.startswith(_OVERRIDE)}
    return {_VAE: vae, _OWN_MUQ: muq | own, _MAIN: main}


def _check_constants(config: Config, state: Mapping[str, Any]) -> None:
    """What the files hold of what follows from hyper-parameters has to be that, because it is computed here. Raises CheckpointError."""
    spectrogram = "model.preprocessor_melspec_2048.mel_stft."
    constants = {
        f"{spectrogram}spectrogram.window": torch.from_numpy(hann_window()),
        f"{spectrogram}mel_scale.fb": torch.from_numpy(muq_filters()),
        "model.conformer.embed_positions.inv_freq": rotation_rates(config),
        "rsq48tomuencoder.kernel": torch.from_numpy(sinc_kernel())[None, None],
    }
    for key, expected in constants.items():
        given = state.get(key)
        if given is not None and not (isinstance(given, Tensor) and given.shape == expected.shape and _is_close(given, expected)):
            raise CheckpointError(
                f"{key} of the checkpoint is not what is computed here; use the official file, or check the configuration"
            )


def _is_close(given: Tensor, expected: Tensor) -> bool:
    """Up to 1e-4, or to what the precision resolves in which it is stored."""
    if not given.is_floating_point():
        return False
    return bool(torch.allclose(given.double(), expected.double(), rtol=torch.finfo(given.dtype).eps, atol=1e-4))


def _check_counts(normfeat: NormFeat) -> None:
    if (counts := float(normfeat.counts)) < FROZEN_FROM:
        _LOG.warning(
            "the latents' statistics count %g, where the official code changes them up to %d while it runs; here they stay as they are",
            counts,
            FROZEN_FROM,
            extra={"event": "checkpoint_unfrozen", "counts": counts},
        )
