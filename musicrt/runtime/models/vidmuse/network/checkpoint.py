"""From the official files to the networks (SPEC sections 1 and 9)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from musicrt.runtime.checkpoint import Part, load_parts
from musicrt.runtime.errors import CheckpointError
from musicrt.runtime.models.vidmuse.audiocraft import as_encodec, parse_training_config, pick
from musicrt.runtime.models.vidmuse.config import Config
from musicrt.runtime.models.vidmuse.language_config import LanguageConfig, TransformerConfig
from musicrt.runtime.models.vidmuse.network.codec import Codec
from musicrt.runtime.models.vidmuse.network.muse import Muse
from musicrt.runtime.models.vidmuse.spec import CHECKPOINT, HUB_CODEC, HUB_FILE, SYSTEM

_MAIN, _CODEC = CHECKPOINT.files
_STATE, _TRAINING, _POINTER = "best_state", "xp.cfg", "pretrained"
_SCALE = ("dim", "num_heads", "num_layers")


@dataclass(frozen=True)
class Networks:
    """The networks as in the checkpoint, weight norms folded."""

    config: Config
    muse: Muse
    codec: Codec

    @classmethod
    def build(cls, config: Config) -> Networks:
        """Untrained networks."""
        return cls(config, Muse(config), Codec(config.encodec))


def fit_config(files: Mapping[str, Mapping[str, Any]], config: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration with what the files say of themselves and what their tensors show.

    Raises CheckpointError, also where the language model is of another scale than was asked for; ConfigError for what is not built here.
    """
    given = Config.from_mapping(config).to_mapping()
    main, codec = _state(files, _MAIN), _codec_state(files)
    if _TRAINING in files[_MAIN]:
        given["lm"] = _read_language(files[_MAIN][_TRAINING], given["lm"])
    given["clip_vision"] |= _show_tower(main)
    if codec.training is not None:
        given["encodec"] = as_encodec(parse_training_config(codec.training, codec.source))
    else:
        given["encodec"] |= _show_codec(codec.tensors, len(given["encodec"]["upsampling_ratios"]))
    return Config.from_mapping(given).to_mapping()


def load_networks(files: Mapping[str, Mapping[str, Any]], config: Mapping[str, Any]) -> Networks:
    """The networks of a checkpoint. Raises CheckpointError naming what is missing, of another shape or not finite."""
    with torch.device("meta"):
        networks = Networks.build(Config.from_mapping(config))
    codec = _codec_state(files)
    contents = {_MAIN: _state(files, _MAIN), codec.source: fold_weight_norms(codec.tensors, codec.source)}
    load_parts([Part(networks.muse, _MAIN), Part(networks.codec, codec.source)], contents, dead=is_dead_key)
    return networks


def is_dead_key(key: str) -> bool:
    """Tensors of training, and those of CLIP and of a text encoder that nothing here looks at (SPEC sections 5 and 9)."""
    return _DEAD.match(key) is not None


_DEAD = re.compile(
    r"condition_provider\.|visual_encoder_model\.(visual_projection\.|vision_model\.(post_layernorm\.|embeddings\.position_ids$))"
    r"|quantizer\.layers\.\d+\.codebook\.(embed_avg|cluster_size|inited)$"
)


def fold_weight_norms(tensors: Mapping[str, Any], source: str) -> dict[str, Any]:
    """Tensors with g * v / |v| in the place of each pair, the norm over all axes but the first, in float32. Raises CheckpointError."""
    folded = {key: value for key, value in tensors.items() if not _NORMED.search(key)}
    for key in tensors:
        if (match := _NORMED.search(key)) is None:
            continue
        start = key[: match.start()]
        g, v = (
            next((tensors[start + name] for name in names if start + name in tensors), None)
            for names in (("weight_g", f"{_NEW}0"), ("weight_v", f"{_NEW}1"))
        )
        if not (isinstance(g, Tensor) and isinstance(v, Tensor) and v.ndim == 3 and g.shape == (v.shape[0], 1, 1)):
            got = " and ".join(str(list(one.shape)) if isinstance(one, Tensor) else "nothing" for one in (g, v))
            where = start.rstrip(".")[:80]
            raise CheckpointError(
                f"{source} has {got} as the weight norm of {where!a}, expected [n, 1, 1] and [n, m, k]; use the official file"
            )
        if f"{start}weight" not in folded:
            whole = v.float()
            folded[f"{start}weight"] = whole * (g.float() / whole.flatten(1).norm(dim=1).reshape(-1, 1, 1))
    return folded


_NEW = "parametrizations.weight.original"
_NORMED = re.compile(r"(?<=\.)(weight_[gv]|parametrizations\.weight\.original[01])$")


@dataclass(frozen=True)
class _CodecState:
    """A codec's tensors under the keys of the hub, the file that has them, and its training configuration if it has one."""

    tensors: dict[str, Any]
    source: str
    training: object = None


def _state(files: Mapping[str, Mapping[str, Any]], name: str) -> dict[str, Any]:
    """Tensors by name: what is under `best_state`, or where there is no such thing all. Raises CheckpointError."""
    state = files[name].get(_STATE, files[name])
    if not isinstance(state, Mapping):
        raise CheckpointError(f"{_STATE} of {name} is a {type(state).__name__}, expected a dictionary of tensors; use the official file")
    if _STATE in files[name] and _TRAINING not in files[name]:
        raise CheckpointError(f"{name} has no {_TRAINING}, which says what the network is; use the official file")
    return {str(key): value for key, value in state.items()}


def _codec_state(files: Mapping[str, Mapping[str, Any]]) -> _CodecState:
    """The codec of a checkpoint: in the file itself, or of the hub where that points to it. Raises CheckpointError."""
    own = files[_CODEC]
    if _POINTER not in own:
        tensors = {_hub_key(key): value for key, value in _state(files, _CODEC).items()}
        return _CodecState(tensors, _CODEC, own.get(_TRAINING))
    wanted = str(own[_POINTER])
    if wanted.removeprefix("//pretrained/") != HUB_CODEC:
        raise CheckpointError(f"{_CODEC} points to the codec {wanted[:80]!a}, expected {HUB_CODEC}; no other is built here")
    if HUB_FILE not in files:
        name = HUB_FILE.rpartition("/")[2]
        raise CheckpointError(
            f"{_CODEC} points to {HUB_CODEC}, whose weights are not here; download {name} from https://huggingface.co/{HUB_CODEC} "
            f"and put it beside {_CODEC} as {HUB_FILE}"
        )
    return _CodecState({str(key): value for key, value in files[HUB_FILE].items()}, HUB_FILE)


def _hub_key(key: str) -> str:
    """A key of the full form as the hub has it; keys of the hub stay as they are."""
    key = re.sub(r"^(encoder|decoder)\.model\.", r"\1.layers.", key)
    key = re.sub(r"\.(conv\.conv|convtr\.convtr)\.", ".conv.", key)
    return re.sub(r"^quantizer\.vq\.layers\.(\d+)\._codebook\.", r"quantizer.layers.\1.codebook.", key)


def _read_language(text: object, given: Mapping[str, Any]) -> dict[str, Any]:
    """The language model that a training configuration describes. Raises CheckpointError if it is of another scale than the given one."""
    values = parse_training_config(text, _MAIN)
    if "transformer_lm" not in values:
        raise CheckpointError(f"{_TRAINING} of {_MAIN} has no transformer_lm; use the official file of a language model")
    found = LanguageConfig.read(f"vidmuse: {_TRAINING} of {_MAIN}", pick(LanguageConfig, values, values))
    asked = TransformerConfig.model_validate(given["transformer_lm"])
    scale, wanted = ({name: getattr(one, name) for name in _SCALE} for one in (found.transformer_lm, asked))
    if scale != wanted:
        variants = [name for name, values in SYSTEM.variants.items() if values["lm"]["transformer_lm"] == scale]
        advice = "".join(f"use the variant {name}, or " for name in variants)
        raise CheckpointError(
            f"the checkpoint's language model has {_words(scale)}, the configuration says {_words(wanted)}; "
            f"{advice}say so in lm.transformer_lm"
        )
    return found.model_dump(mode="json")


def _words(values: Mapping[str, int]) -> str:
    return ", ".join(f"{name}={value}" for name, value in values.items())


def _show_tower(tensors: Mapping[str, Any]) -> dict[str, Any]:
    """What the image tower's tensors show of it."""
    start = "visual_encoder_model.vision_model.encoder.layers."
    shown = {
        "num_hidden_layers": _count(tensors, re.escape(start) + r"(\d+)\."),
        "intermediate_size": _rows(tensors, f"{start}0.mlp.fc1.bias"),
    }
    return {name: value for name, value in shown.items() if value}


def _show_codec(tensors: Mapping[str, Any], stages: int) -> dict[str, Any]:
    """What a codec's tensors show of it. `stages`: how often it changes the rate."""
    recurrence = 3 * stages + 1
    latent = _rows(tensors, f"encoder.layers.{recurrence + 2}.conv.bias")
    shown = {
        "num_filters": _rows(tensors, "encoder.layers.0.conv.bias"),
        "hidden_size": latent,
        "codebook_dim": latent,
        "num_lstm_layers": _count(tensors, rf"encoder\.layers\.{recurrence}\.lstm\.weight_ih_l(\d+)$"),
        "codebook_size": _rows(tensors, "quantizer.layers.0.codebook.embed"),
    }
    return {name: value for name, value in shown.items() if value}


def _count(tensors: Mapping[str, Any], pattern: str) -> int:
    """How many numbers the keys have at a place."""
    return len({match[1] for key in tensors if (match := re.match(pattern, key))})


def _rows(tensors: Mapping[str, Any], key: str) -> int:
    """The length of a tensor, 0 where there is none."""
    tensor = tensors.get(key)
    return len(tensor) if isinstance(tensor, Tensor) and tensor.ndim else 0
