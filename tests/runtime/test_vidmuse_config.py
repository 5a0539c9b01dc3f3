"""VidMuse's hyper-parameters: the scales, training configurations, and what is refused."""

from __future__ import annotations

import json
from typing import Any

import pytest

from musicrt.runtime.errors import CheckpointError, ConfigError
from musicrt.runtime.models.vidmuse.audiocraft import FRAME_RATE, as_encodec, parse_training_config, pick
from musicrt.runtime.models.vidmuse.config import HOP, SAMPLE_RATE, Config
from musicrt.runtime.models.vidmuse.language_config import LanguageConfig
from musicrt.runtime.models.vidmuse.spec import HUB_FILE, SYSTEM, build_spec, cache_names, cross_names, null_names
from tests.conftest import refused, tiny_layout
from tests.reference.runner import DATA

LAYOUT = tiny_layout("vidmuse")["config"]
TRAINING = tiny_layout("vidmuse")["files"]["state_dict.bin"]["extra"]["xp.cfg"]
CODEC = json.loads((DATA / "vidmuse" / "layout-codec-tiny.json").read_text())["config"]["codec"]


def with_value(name: str, value: Any) -> dict[str, Any]:
    """{"a": {"b": value}} for "a.b"."""
    for part in reversed(name.split(".")):
        value = {part: value}
    result: dict[str, Any] = value
    return result


def read_training(text: str) -> LanguageConfig:
    values = parse_training_config(text, "state_dict.bin")
    return LanguageConfig.read("vidmuse", pick(LanguageConfig, values, values))


# Scales


def test_variants_are_the_official_scales() -> None:
    assert list(SYSTEM.variants) == ["small", "xsmall", "medium", "large"]
    configs = {name: Config.from_mapping(values) for name, values in SYSTEM.variants.items()}
    sizes = {name: (config.width, config.layers, config.heads, config.head_width) for name, config in configs.items()}
    assert sizes == {"small": (1024, 24, 16, 64), "xsmall": (64, 2, 2, 32), "medium": (1536, 48, 24, 64), "large": (2048, 48, 32, 64)}
    assert Config() == configs["small"] == Config.from_mapping({})


def test_released_sizes() -> None:
    config = Config()
    assert (config.codebooks, config.card, config.special, config.delays) == (4, 2048, 2048, (0, 1, 2, 3))
    assert (config.sample_rate, config.hop, config.frame_rate, config.window_seconds) == (32000, 640, 50, 30.0)
    assert SAMPLE_RATE == HOP * FRAME_RATE
    assert (config.latent_channels, config.recurrent_channels, config.recurrent_layers, config.pad_mode) == (128, 1024, 2, "reflect")
    language = config.lm.transformer_lm
    assert (language.depth, language.dim_head, language.hidden_scale) == (2, 64, 4)
    spec = build_spec({}, "small")
    assert spec.checkpoint.files == ("state_dict.bin", "compression_state_dict.bin")
    assert dict(spec.checkpoint.companions) == {HUB_FILE: "facebook/encodec_32khz"}
    assert spec.defaults["top_k"] == 250


def test_language_model_has_the_tensors_of_every_layer() -> None:
    config = Config.from_mapping(LAYOUT)
    stage = build_spec(LAYOUT, "tiny").stage("lm")
    assert (config.width, config.layers, config.heads, config.head_width) == (64, 2, 4, 16)
    sizes = {"batch": 2, "columns": 1, "tokens": 100, "null_tokens": 50, "capacity": 64}
    shapes = {tensor.name: tensor.resolve(sizes) for tensor in stage.feeds}
    assert list(shapes)[:6] == ["tokens", "length", "cross_key_0", "cross_value_0", "null_key_0", "null_value_0"]
    assert list(shapes)[-4:] == cache_names(2) == ["key_0", "value_0", "key_1", "value_1"]
    assert set(shapes) == {"tokens", "length", *cross_names(2), *null_names(2), *cache_names(2)}
    assert (shapes["cross_value_1"], shapes["null_key_1"], shapes["value_0"]) == ((2, 4, 100, 16), (1, 4, 50, 16), (4, 4, 64, 16))
    assert stage.outputs[0].resolve(sizes) == (2, 2, 4, 1, 2048)
    assert [tensor.name for tensor in build_spec(LAYOUT, "tiny").stage("cross").outputs] == cross_names(2)


def test_embedding_has_one_frame_for_640_samples_that_are_begun() -> None:
    embedding = build_spec({}, "small").stage("codec-encoder").outputs[0]
    sizes = [embedding.resolve({"batch": 1, "samples": samples})[2] for samples in (1, 100, 640, 641, 32000, 48333)]
    assert sizes == [1, 1, 1, 2, 50, 76]


def test_mapping_gives_the_same_again() -> None:
    """With what is for training only left out."""
    config = Config.from_mapping(LAYOUT)
    assert Config.from_mapping(json.loads(json.dumps(config.to_mapping()))) == config
    assert "dropout" in LAYOUT["lm"]["transformer_lm"]
    assert "dropout" not in config.to_mapping()["lm"]["transformer_lm"]


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (with_value("lm.transformer_lm.num_heads", 7), ["dim=1024", "num_heads=7"]),
        (with_value("lm.transformer_lm.causal", False), ["transformer_lm.causal", False]),
        (with_value("lm.transformer_lm.norm_first", False), ["norm_first"]),
        (with_value("lm.transformer_lm.qk_layer_norm", True), ["qk_layer_norm"]),
        (with_value("lm.transformer_lm.kv_repeat", 2), ["kv_repeat", 2]),
        (with_value("lm.transformer_lm.xpos", True), ["xpos"]),
        (with_value("lm.transformer_lm.positional_embedding", "rope"), ["positional_embedding", "rope"]),
        (with_value("lm.transformer_lm.layer_scale", 0.1), ["layer_scale", 0.1]),
        (with_value("lm.transformer_lm.bias_attn", True), ["bias_attn"]),
        (with_value("lm.transformer_lm.activation", "relu"), ["activation", "relu"]),
        (with_value("lm.transformer_lm.past_context", 100), ["past_context", 100]),
        (with_value("lm.transformer_lm.num_layers", 10**9), ["num_layers"]),
        (with_value("lm.transformer_lm.no_such", 1), ["no_such", "num_layers"]),
        (with_value("lm.transformer_lm.num_heads", 256), ["num_heads=256", "heads of a multiple of 8"]),
        (with_value("lm.transformer_lm.card", 1024), ["2048 encodec.codebook_size", "expected 1024"]),
        (with_value("lm.transformer_lm.n_q", 8), ["4 delays", "expected 8"]),
        (with_value("lm.codebooks_pattern.modeling", "parallel"), ["modeling", "parallel"]),
        (with_value("lm.codebooks_pattern.delay.flatten_first", 1), ["flatten_first"]),
        (with_value("lm.fuser.prepend", ["description"]), ["fuser.prepend"]),
        (with_value("lm.fuser.cross", []), ["fuser.cross"]),
        (with_value("lm.video.visual_encoder", "videomae"), ["visual_encoder", "videomae"]),
        (with_value("lm.video.add_global.if_add_gobal", False), ["if_add_gobal"]),
        (with_value("lm.interleave_stereo_codebooks.use", True), ["interleave_stereo_codebooks.use"]),
        (with_value("lm.sample_rate", 44100), ["sample_rate", 44100]),
        (with_value("segment_duration", 10), ["segment_duration", 10]),
        (with_value("clip_vision.patch_size", 16), ["patch_size", 16]),
        (with_value("encodec.upsampling_ratios", [8, 5, 4, 2]), ["[8, 5, 4, 2]", "640"]),
        (with_value("encodec.use_causal_conv", True), ["use_causal_conv"]),
        (with_value("encodec.normalize", True), ["normalize"]),
        (with_value("encodec.pad_mode", "replicate"), ["pad_mode", "replicate"]),
        (with_value("encodec.codebook_dim", 64), ["codebook_dim=64", "hidden_size=128"]),
        (with_value("encodec.target_bandwidths", [4.4]), ["8 codebooks", "expected 4"]),
    ],
)
def test_what_is_not_built_is_refused(values: dict[str, Any], words: list[object]) -> None:
    with refused(ConfigError, "vidmuse", *words):
        Config.from_mapping(values)


# Training configurations


def test_training_configuration_tells_the_language_model() -> None:
    assert read_training(TRAINING) == Config.from_mapping(LAYOUT).lm
    shorter = read_training("transformer_lm: {dim: 1536, num_heads: 24, num_layers: 48}\nsomething_new: {with: [3, null]}\n")
    assert shorter == Config.from_mapping(SYSTEM.variants["medium"]).lm


def test_references_are_followed() -> None:
    text = "rates: {audio: 32000}\nsample_rate: ${rates.audio}\nwide: ${width}\nwidth: 128\nuser: ${oc.env:USER}\n"
    text += "transformer_lm: {dim: '${wide}', num_heads: 2, num_layers: 1, comment: '${no.such}'}\n"
    assert read_training(text).transformer_lm.dim == 128
    with refused(ConfigError, "sample_rate", "${no.such}"):
        read_training("sample_rate: ${no.such}\n")
    with refused(ConfigError, "sample_rate", "${channels}"):
        read_training("sample_rate: ${channels}\nchannels: ${sample_rate}\n")


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("a: [1, 2", "YAML"),
        ("a: !!python/object/apply:os.getcwd []", "YAML"),
        ("a: &a [1]\nb: *a\n", "aliases"),
        ("[" * 100000, "more than 32 levels"),
        ("a: " + "9" * 5000, "YAML"),
        ("a: 2026-13-45", "YAML"),
        ("{[1]: 2}", "YAML"),
        ("- 1", "list"),
        ("", "NoneType"),
        ("a" * (1 << 20), "1048576 characters"),
        (3, "int"),
        (None, "NoneType"),
    ],
)
def test_damaged_training_configuration_is_refused(text: object, word: str) -> None:
    with refused(CheckpointError, "xp.cfg of state_dict.bin", word, "use the official file"):
        parse_training_config(text, "state_dict.bin")


def test_codec_with_a_training_configuration_is_that_of_the_hub() -> None:
    values = {name: part for name, part in LAYOUT.items() if name != "encodec"}
    config = Config.from_mapping({**values, "codec": CODEC})
    assert config == Config.from_mapping(LAYOUT)  # whose codec is as small, and mirrors its ends too
    changed = {**CODEC, "seanet": {**CODEC["seanet"], "pad_mode": "constant", "lstm": 1, "n_filters": 8, "something_new": 3}}
    other = Config.from_mapping({**values, "codec": changed})
    assert (other.pad_mode, other.recurrent_layers, other.recurrent_channels) == ("constant", 1, 128)


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("encodec.causal", True, ["causal"]),
        ("encodec.renormalize", True, ["renormalize"]),
        ("seanet.true_skip", False, ["true_skip"]),
        ("seanet.norm", "time_group_norm", ["seanet.norm", "time_group_norm"]),
        ("seanet.lstm", 0, ["seanet.lstm", 0]),
        ("seanet.activation", "ReLU", ["activation", "ReLU"]),
        ("seanet.pad_mode", "circular", ["pad_mode", "circular"]),
        ("seanet.decoder", {"final_activation": "Tanh"}, ["final_activation", "Tanh"]),
        ("seanet.encoder", {"lstm": 1}, ["seanet.encoder.lstm is 1", "seanet.lstm"]),
        ("seanet", None, ["seanet"]),
        ("rvq.n_q", 9, ["expected 4"]),
    ],
)
def test_codec_that_is_not_built_is_refused(name: str, value: Any, words: list[object]) -> None:
    section, _, key = name.partition(".")
    with refused(ConfigError, "vidmuse", *words):
        Config.from_mapping({"codec": {**CODEC, section: {**CODEC[section], key: value} if key else value}})
    with refused(ConfigError, "vidmuse", "codec"):
        as_encodec(3)
