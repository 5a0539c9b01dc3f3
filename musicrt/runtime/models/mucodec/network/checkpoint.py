"""From the three official files to the networks (SPEC section 2)."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from musicrt.runtime.checkpoint import load_weights
from musicrt.runtime.errors import CheckpointError
from musicrt.runtime.models.mucodec.config import Config
from musicrt.runtime.models.mucodec.downmix import sinc_kernel
from musicrt.runtime.models.mucodec.mel import hann_window, muq_filters
from musicrt.runtime.models.mucodec.network.estimator import Estimator
from musicrt.runtime.models.mucodec.network.muq import Muq, rotation_rates
from musicrt.runtime.models.mucodec.network.quantizer import Conditioner, NormFeat, ResidualQuantizer
from musicrt.runtime.models.mucodec.network.vae import FirstStage, Scale
from musicrt.runtime.models.mucodec.spec import CHECKPOINT

_LOG = logging.getLogger("musicrt")

FROZEN_FROM = 100000
"""Latents that the official statistics take in before they stop changing, in inference too."""
_OVERRIDE = "muencoder."  # before MuQ's keys in a main file


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
    found = len({match[1] for key in _merge(files) if (match := re.match(r"rvq_muencoder_emb\.quantizers\.(\d+)\.", key))})
    if found != given.rvq.n_codebooks:
        raise CheckpointError(
            f"the checkpoint has {found} codebooks, the configuration says {given.rvq.n_codebooks}; use the variant codebooks{found}, "
            "or say so in rvq.n_codebooks"
        )
    return given.to_mapping()


def load_networks(files: Mapping[str, Mapping[str, Any]], config: Mapping[str, Any]) -> Networks:
    """The networks as in the checkpoint. Raises CheckpointError naming what is missing, of another shape or not finite."""
    with torch.device("meta"):
        networks = Networks.build(Config.from_mapping(config))
    state, used = _merge(files), set[str]()
    parts: list[tuple[nn.Module, str]] = [
        (networks.muq, "model."),
        (networks.quantizer, "rvq_muencoder_emb."),
        (networks.conditioner, ""),
        (networks.normfeat, "normfeat."),
        (networks.estimator, "cfm_wrapper.estimator."),
        (networks.first_stage, "first_stage_model."),
        (networks.scale, ""),
    ]
    for network, prefix in parts:
        known = {key: prefix + key for key in network.state_dict() if prefix + key in state}
        load_weights(network, {key: state[name] for key, name in known.items()}, dead=lambda _: False)
        network.eval().requires_grad_(False)
        used.update(known.values())
    _check_constants(networks.config, state)
    _check_counts(networks.normfeat)
    unknown = [key for key in state if key not in used and not is_dead_key(key, networks.config.layers)]
    if unknown:
        _LOG.warning("the checkpoint has %d tensors that no stage uses, such as %s; they are ignored", len(unknown), unknown[0])
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


def _merge(files: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """All tensors by official key: those of the VAE, of MuQ, and of the main file, which may hold MuQ's instead. Raises CheckpointError."""
    vae, muq, main = (files[name] for name in CHECKPOINT.files)
    state: dict[str, Any] = {}
    for name, tensors in zip(CHECKPOINT.files, (vae.get("state_dict", vae), muq.get("model", muq), main), strict=True):
        if not isinstance(tensors, Mapping):
            raise CheckpointError(f"{name} holds a {type(tensors).__name__} in the place of its tensors; use the official file")
        state |= {str(key).removeprefix(_OVERRIDE): value for key, value in tensors.items()}
    return state


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
        )
