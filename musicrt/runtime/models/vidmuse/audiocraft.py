"""Training configurations as the official files hold them: YAML with references, of which the parts that say what the networks are count.

They are complete: what is not known here is for training, and is left out.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field

from musicrt.runtime.errors import CheckpointError, ConfigError
from musicrt.runtime.hyperparameters import Count, Depth, Group, Width
from musicrt.runtime.packing import bits_of

FRAME_RATE = 50
"""Codes a second, of each codebook."""

_LARGEST = 1 << 18  # characters
_DEEPEST = 32
_REFERENCE = re.compile(r"\$\{([\w.]+)\}")
_HOPS = 16


def parse_training_config(text: object, source: str) -> dict[str, Any]:
    """The sections of an `xp.cfg`. `source`: the file's name for messages. Raises CheckpointError."""
    try:
        import yaml
    except ImportError:
        raise CheckpointError(f"xp.cfg of {source} is YAML, which needs: pip install 'musicrt[torch]'") from None
    if not isinstance(text, str) or len(text) > _LARGEST:
        what = f"{len(text)} characters" if isinstance(text, str) else f"a {type(text).__name__}"
        raise CheckpointError(f"xp.cfg of {source} is {what}, expected a configuration as YAML; use the official file")
    try:
        level = 0
        for event in yaml.parse(text, Loader=yaml.SafeLoader):
            level += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            # A few lines with aliases stand for any number of values, and deep lists take for ever; the official writer makes none.
            if isinstance(event, yaml.AliasEvent) or level > _DEEPEST:
                raise ValueError("it has aliases" if level <= _DEEPEST else f"it has more than {_DEEPEST} levels")
        values = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, TypeError, KeyError, AttributeError, IndexError, RecursionError) as error:
        reason = " ".join(str(error).split())[:160]
        raise CheckpointError(f"xp.cfg of {source} can't be read as YAML ({reason}); use the official file") from None
    if not isinstance(values, dict):
        raise CheckpointError(f"xp.cfg of {source} holds a {type(values).__name__}, expected sections by name; use the official file")
    return {str(name): value for name, value in values.items()}


def pick(group: type[Group], values: Mapping[str, Any], root: Mapping[str, Any]) -> dict[str, Any]:
    """What a group knows of a complete configuration, all other names left out, references to `root` followed."""
    picked: dict[str, Any] = {}
    for name, field in group.model_fields.items():
        if name not in values:
            continue
        value, kind = _follow(values[name], root), field.annotation
        if isinstance(kind, type) and issubclass(kind, Group) and isinstance(value, Mapping):
            picked[name] = pick(kind, value, root)
        else:
            picked[name] = [_follow(one, root) for one in value] if isinstance(value, list) else value
    return picked


def _follow(value: Any, root: Mapping[str, Any]) -> Any:
    """What a reference such as ${encodec.causal} stands for; itself where that is not there."""
    for _ in range(_HOPS):
        match = _REFERENCE.fullmatch(value) if isinstance(value, str) else None
        if match is None:
            return value
        found: Any = root
        for part in match[1].split("."):
            if not (isinstance(found, Mapping) and part in found):
                return value
            found = found[part]
        value = found
    return value


class ActivationConfig(Group):
    """Of the ELU."""

    alpha: Annotated[float, Field(ge=1, le=1)] = 1.0


class SeanetDecoderConfig(Group):
    """What the decoder has that the encoder has not."""

    final_activation: None = None


class SeanetConfig(Group):
    """Encoder and decoder."""

    channels: Literal[1] = 1
    dimension: Width = 128
    causal: Literal[False] = False
    n_filters: Width = 32
    n_residual_layers: Literal[1] = 1
    ratios: Annotated[tuple[Annotated[int, Field(strict=True, ge=2)], ...], Field(min_length=1)] = (8, 5, 4, 2)
    activation: Literal["ELU"] = "ELU"
    activation_params: ActivationConfig = ActivationConfig()
    norm: Literal["weight_norm"]
    kernel_size: Literal[7] = 7
    residual_kernel_size: Literal[3] = 3
    last_kernel_size: Literal[7] = 7
    dilation_base: Depth = 2
    pad_mode: Literal["reflect", "constant"] = "reflect"
    true_skip: Literal[True]
    compress: Literal[2] = 2
    lstm: Annotated[Depth, Field(le=8)]
    disable_norm_outer_blocks: Literal[0] = 0
    decoder: SeanetDecoderConfig = SeanetDecoderConfig()


class EncodecConfig(Group):
    """How encoder, quantizer and decoder are put together."""

    autoencoder: Literal["seanet"] = "seanet"
    quantizer: Literal["rvq"] = "rvq"
    sample_rate: Literal[32000] = 32000
    channels: Literal[1] = 1
    causal: Literal[False] = False
    renormalize: Literal[False] = False


class QuantizerConfig(Group):
    """The residual quantizer."""

    n_q: Annotated[Depth, Field(le=16)] = 8
    bins: Count = 1024


class TrainedCodecConfig(Group):
    """A codec's own training configuration (SPEC section 9)."""

    compression_model: Literal["encodec"] = "encodec"
    sample_rate: Literal[32000] = 32000
    channels: Literal[1] = 1
    encodec: EncodecConfig = EncodecConfig()
    seanet: SeanetConfig
    rvq: QuantizerConfig = QuantizerConfig()


def as_encodec(values: object) -> dict[str, Any]:
    """A codec's training configuration in the names of the hub (`CodecConfig`). Raises ConfigError for a codec that is not built here."""
    root = {str(name): value for name, value in values.items()} if isinstance(values, Mapping) else {}
    codec = TrainedCodecConfig.read("vidmuse: codec", pick(TrainedCodecConfig, root, root))
    _check_overrides(root)
    seanet, rvq = codec.seanet, codec.rvq
    return {
        "sampling_rate": codec.sample_rate,
        "audio_channels": codec.channels,
        "target_bandwidths": [rvq.n_q * bits_of(rvq.bins) * FRAME_RATE / 1000],
        "hidden_size": seanet.dimension,
        "num_filters": seanet.n_filters,
        "num_residual_layers": seanet.n_residual_layers,
        "upsampling_ratios": list(seanet.ratios),
        "dilation_growth_rate": seanet.dilation_base,
        "pad_mode": seanet.pad_mode,
        "num_lstm_layers": seanet.lstm,
        "codebook_size": rvq.bins,
        "codebook_dim": seanet.dimension,
    }


def _check_overrides(root: Mapping[str, Any]) -> None:
    """Encoder and decoder may have values of their own; here they have the same. Raises ConfigError."""
    seanet = root["seanet"]
    for part in ("encoder", "decoder"):
        own = _follow(seanet.get(part), root)
        for name, value in own.items() if isinstance(own, Mapping) else ():
            if name in seanet and _follow(value, root) != _follow(seanet[name], root):
                raise ConfigError(
                    f"vidmuse: codec: seanet.{part}.{name} is {repr(value)[:80]}, expected what seanet.{name} is; "
                    "codecs with unlike halves are not built here"
                )
