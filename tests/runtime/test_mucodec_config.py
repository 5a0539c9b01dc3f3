"""MuCodec's hyper-parameters: the variants, what is derived from them, and what is refused."""

from __future__ import annotations

import math
from typing import Any

import pytest

from musicrt.runtime.errors import ConfigError
from musicrt.runtime.models.mucodec.config import CODE_SAMPLES, MEL_HOP, MUQ_CODE_SAMPLES, SAMPLE_RATE, Config
from musicrt.runtime.models.mucodec.spec import SYSTEM, build_spec
from musicrt.runtime.registry import bit_rates
from tests.conftest import refused, tiny_layout

LAYOUT = tiny_layout("mucodec")["config"]


def with_value(name: str, value: Any) -> dict[str, Any]:
    """{"a": {"b": value}} for "a.b"."""
    for part in reversed(name.split(".")):
        value = {part: value}
    result: dict[str, Any] = value
    return result


def test_variants_are_numbers_of_codebooks() -> None:
    assert list(SYSTEM.variants) == ["codebooks1", "codebooks2", "codebooks4"]
    assert bit_rates("mucodec") == {"codebooks1": 350.0, "codebooks2": 700.0, "codebooks4": 1400.0}
    assert build_spec(SYSTEM.variants["codebooks1"], "codebooks1").config == build_spec({}, "x").config
    for variant, values in SYSTEM.variants.items():
        spec, count = build_spec(values, variant), values["rvq"]["n_codebooks"]
        assert spec.stage("quantizer").outputs[0].resolve({"batch": 1, "codes": 7}) == (1, count, 7)
        assert spec.stage("dequantizer").axes[1].maximum == count
        assert Config.from_mapping(spec.config).bits == (14,) * count


def test_released_sizes() -> None:
    config = Config()
    assert (config.layers, config.features, config.transformer2D.width) == (6, 1024, 1584)
    assert config.autoencoder.ddconfig.channels == (128, 256, 512, 1024)
    assert SAMPLE_RATE / CODE_SAMPLES == 25
    assert CODE_SAMPLES == 2 * MUQ_CODE_SAMPLES == 4 * MEL_HOP
    spec = build_spec({}, "x")
    assert spec.defaults == {"steps": 20, "guidance": 1.5}
    assert spec.checkpoint.files == ("tools/audioldm_48k.pth", "muq_dev/muq.pt", "ckpt/mucodec.pt")
    sizes = {"guidance": 2, "batch": 1, "rows": 256}
    assert spec.stage("estimator").inputs[0].resolve(sizes) == (2, 1, 4096, 1584)
    assert spec.stage("estimator").outputs[0].resolve(sizes) == (2, 1, 32, 512, 32)


def test_prompts_have_a_latent_frame_for_eight_whole_frames() -> None:
    mean = build_spec({}, "x").stage("vae-encoder").outputs[0]
    assert mean.describe() == "mean: float32 [batch, 16, mel_frames//8, 32]"
    assert [mean.resolve({"batch": 1, "mel_frames": frames})[2] for frames in (16, 1024, 1025, 1031, 1032)] == [2, 128, 128, 128, 129]


def test_mapping_gives_the_same_again() -> None:
    """With what is for training only left out."""
    config = Config.from_mapping(LAYOUT)
    assert (config.features, config.transformer2D.width, config.rvq.codebook_size) == (64, 32, 512)
    assert Config.from_mapping(config.to_mapping()) == config
    assert "dropout" in LAYOUT["transformer2D"]
    assert "dropout" not in config.to_mapping()["transformer2D"]
    assert Config.from_mapping({}) == Config()


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"layer_num": 14}, ["layer_num=14", "expected 2 to 13"]),
        ({"layer_num": 1}, ["layer_num", 2, 1]),
        ({"rvq": {"n_codebooks": 0}}, ["rvq.n_codebooks", 0]),
        ({"rvq": {"n_codebooks": "1"}}, ["rvq.n_codebooks", "'1'", "take the values of the checkpoint or of a variant"]),
        ({"rvq": {"input_dim": 768}}, ["rvq.input_dim=768", "expected 1024 as muq.encoder_dim is"]),
        ({"rvq": {"codebook_size": 10**12}}, ["codebook_size"]),
        ({"muq": {"encoder_dim": 64}}, ["hidden_size=1024", "expected 64"]),
        ({"muq": {"encoder_depth": 7}}, ["num_hidden_layers=12", "expected 7"]),
        ({"muq": {"is_flash": True}}, ["is_flash", True]),
        ({"muq": {"features": ["melspec_512"]}}, ["features", "melspec_512"]),
        ({"muq_w2v2": {"position_embeddings_type": "relative"}}, ["position_embeddings_type", "relative"]),
        ({"muq_w2v2": {"num_attention_heads": 24}}, ["num_attention_heads=24", "hidden_size=1024"]),
        ({"muq_w2v2": {"conv_depthwise_kernel_size": 30}}, ["conv_depthwise_kernel_size=30", "odd"]),
        ({"muq_stat": {"melspec_2048_std": 0}}, ["melspec_2048_std", 0]),
        ({"muq_stat": {"melspec_2048_mean": math.nan}}, ["melspec_2048_mean"]),
        ({"transformer2D": {"norm_type": "layer_norm"}}, ["norm_type", "layer_norm"]),
        ({"transformer2D": {"sample_size": 128}}, ["sample_size", 128]),
        ({"transformer2D": {"num_attention_heads": 3, "attention_head_dim": 3}}, ["9 wide", "multiple of 4"]),
        ({"autoencoder": {"ddconfig": {"ch": 100}}}, ["ddconfig.ch", 32, 100]),
        ({"autoencoder": {"ddconfig": {"ch_mult": [1, 2, 4]}}}, ["ch_mult.3", "required"]),
        ({"vocoder_48k": {"upsample_rates": [6, 5, 4, 2, 1]}}, ["upsample_rates", 1]),
        ({"vocoder_48k": {"resblock_kernel_sizes": [3, 8, 11, 15]}}, ["resblock_kernel_sizes", "odd"]),
        ({"vocoder_48k": {"resblock_kernel_sizes": [3]}}, ["4 resblock_dilation_sizes for 1 resblock_kernel_sizes"]),
        ({"chain": {"window_seconds": 20.48}}, ["window_seconds", 40.96, 20.48]),
        ({"chain": {"peak_joint": 1.0}}, ["peak_joint", 0.8]),
        ({"transformer2d": {}}, ["transformer2d", "transformer2D"]),
        ({"muq": 5}, ["muq", 5]),
    ],
)
def test_wrong_hyper_parameters_are_refused(values: dict[str, Any], words: list[object]) -> None:
    with refused(ConfigError, "mucodec", *words):
        build_spec(values, "custom")


@pytest.mark.parametrize(
    "name",
    ["muq.encoder_depth", "layer_num", "rvq.n_codebooks", "transformer2D.num_layers", "autoencoder.ddconfig.num_res_blocks"],
)
def test_layers_are_not_listed_without_end(name: str) -> None:
    """A manifest may come from anywhere: 65 layers are refused before any tensor is described, whatever the other values."""
    with refused(ConfigError, name, "64", "got 65"):
        Config.from_mapping(with_value(name, 65))


@pytest.mark.parametrize("name", ["muq.conv_dim", "muq_w2v2.intermediate_size", "rvq.codebook_dim", "chain.num_steps_code2sound"])
def test_widths_and_steps_are_bounded(name: str) -> None:
    with refused(ConfigError, name, "65536", 1 << 17):
        Config.from_mapping(with_value(name, 1 << 17))
