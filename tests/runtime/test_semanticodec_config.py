"""SemantiCodec's hyper-parameters: the twelve settings, what is derived from them, and what is refused."""

from __future__ import annotations

import math
from typing import Any

import pytest

from musicrt.runtime.errors import ConfigError
from musicrt.runtime.models.semanticodec.config import Config
from musicrt.runtime.models.semanticodec.spec import SYSTEM, build_spec, context_channels, shift_channels
from tests.conftest import refused, tiny_layout

SETTINGS = [
    # rate, K, D, layers, context, tokens, folder, kbps at 4096, 8192, 16384 and 32768 codes (SPEC section 1)
    (100, 1, 768, 4, 1728, 512, "combine_512", (1250, 1300, 1350, 1400)),
    (50, 2, 1536, 3, 3264, 256, "combine_256", (625, 650, 675, 700)),
    (25, 4, 3072, 2, 6336, 128, "combine_128", (312.5, 325, 337.5, 350)),
]
VOCABULARIES = (4096, 8192, 16384, 32768)


@pytest.mark.parametrize(("rate", "stack", "width", "layers", "context", "tokens", "folder", "bit_rates"), SETTINGS)
def test_settings_are_the_official_ones(
    rate: int, stack: int, width: int, layers: int, context: int, tokens: int, folder: str, bit_rates: tuple[float, ...]
) -> None:
    config = Config.from_mapping({"token_rate": rate})
    assert (config.stack, config.feature_dim, config.lstm_layers, config.context_dim, config.tokens) == (
        stack,
        width,
        layers,
        context,
        tokens,
    )
    assert config.pairs_per_second == rate / 2
    for vocabulary, bit_rate in zip(VOCABULARIES, bit_rates, strict=True):
        variant = f"rate{rate}-vocab{vocabulary}"
        assert SYSTEM.variants[variant] == {"token_rate": rate, "semantic_vocab_size": vocabulary}
        spec = build_spec(SYSTEM.variants[variant], variant)
        assert spec.bit_rate == bit_rate
        assert spec.defaults == {"steps": 50, "guidance": 2.0, "eta": 1.0}
        assert spec.checkpoint.files == (
            f"semanticodec_tokenrate_{rate}/encoder.ckpt",
            f"semanticodec_tokenrate_{rate}/decoder.ckpt",
            f"codebook_idx/{folder}_audioset_dominate/codebook_{vocabulary // 2}_0.npy",
        )
    assert len(SYSTEM.variants) == 12


def test_rows_of_the_codebook_count_for_the_bits() -> None:
    """Half the vocabulary, should the files hold that: a bit less for each pair."""
    assert Config().codebook_sizes == (16384, 8192)
    assert Config().bits == (14, 13)
    half = build_spec({"semantic_codebook_rows": 8192}, "half")
    assert half.bit_rate == 650
    assert half.stage("semantic").outputs[0].codes == 8192
    assert Config(semantic_codebook_rows=8193).bits == (14, 13)


def test_layers_of_the_denoiser_are_counted() -> None:
    config = Config()
    assert shift_channels(config) == [
        64,
        64,
        128,
        128,
        192,
        192,
        320,
        320,
        320,
        320,
        320,
        320,
        320,
        192,
        192,
        192,
        128,
        128,
        128,
        64,
        64,
        64,
    ]
    assert context_channels(config) == [128, 128, 192, 192, 320, 320, 320, 320, 320, 320, 192, 192, 192, 128, 128, 128]
    context = build_spec({}, "x").stage("conditioning").outputs
    assert [tensor.name for tensor in context] == [f"{kind}{i}" for kind in ("key", "value") for i in range(16)]
    assert [math.prod(tensor.resolve({"batch": 1})) for tensor in context] == [256 * width for width in context_channels(config) * 2]


def test_mapping_gives_the_same_again() -> None:
    """With what is for training only left out."""
    values = tiny_layout("semanticodec")["config"]
    config = Config.from_mapping(values)
    assert config.feature_dim == 64
    assert config.codebook_sizes == (512, 256)
    assert "scale_by_std" not in config.to_mapping()["decoder"]
    assert Config.from_mapping(config.to_mapping()) == config
    assert Config.from_mapping({}) == Config()


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"token_rate": 51}, ["token_rate", "25, 50 or 100", 51]),
        ({"token_rate": "50"}, ["token_rate", "'50'", "take the values of the checkpoint or of a variant"]),
        ({"semantic_vocab_size": 5000}, ["semantic_vocab_size", 16384, 5000]),
        ({"stack_factor_K": 3}, ["stack_factor_K", 3]),
        ({"stack_factor_K": 1}, ["stack_factor_K=1", "expected 2"]),
        ({"token_rate": 25, "encoder": {"feature_dimension": 1536}}, ["feature_dimension=1536", "expected 3072"]),
        ({"unet_config": {"context_dim": [1728]}}, ["context_dim=(1728,)", "expected (3264,)"]),
        ({"unet_config": {"channel_mult": [1, 2, 3]}}, ["channel_mult.3", "required", [1, 2, 3]]),
        ({"unet_config": {"model_channels": 48}}, ["multiples of 32"]),
        ({"patch_feature_width": 32}, ["patch_feature_width=32", "expected 768"]),
        ({"audiomae": {"num_heads": 5}}, ["num_heads=5"]),
        ({"audiomae": {"contextual_depth": 11}}, ["contextual_depth=11"]),
        ({"semantic_codebook_rows": 0}, ["semantic_codebook_rows", 0]),
        ({"encoder": {"codebook_size": 10**12}}, ["codebook_size"]),
        ({"encoder": {"codebook_size": 2.5}}, ["codebook_size", 2.5]),
        ({"encoder": {"residual_encoder": "transformer"}}, ["residual_encoder", "'transformer'"]),
        ({"encoder": {"residual_encoder": "two\nlines"}}, ["residual_encoder", "'two\\nlines'"]),
        ({"decoder": {"parameterization": "eps"}}, ["parameterization", "eps"]),
        ({"vocoder": {"upsample_rates": [8, 4, 2, 2, 2]}}, ["upsample_rates", 8]),
        ({"tokenrate": 50}, ["tokenrate"]),
        ({"encoder": 5}, ["encoder", 5]),
    ],
)
def test_wrong_hyper_parameters_are_refused(values: dict[str, Any], words: list[object]) -> None:
    with refused(ConfigError, "semanticodec", *words):
        build_spec(values, "custom")


@pytest.mark.parametrize(
    ("group", "name"),
    [
        ("audiomae", "depth"),
        ("audiomae", "contextual_depth"),
        ("audiomae", "mlp_ratio"),
        ("encoder", "lstm_layer"),
        ("unet_config", "num_res_blocks"),
        ("first_stage_config", "ddconfig.num_res_blocks"),
    ],
)
def test_layers_are_not_listed_without_end(group: str, name: str) -> None:
    """A manifest may come from anywhere: 65 layers are refused before any tensor is described, whatever the other values."""
    *inner, last = name.split(".")
    values: dict[str, Any] = {last: 65}
    for part in reversed(inner):
        values = {part: values}
    with refused(ConfigError, f"{group}.{name}", "64", "got 65"):
        Config.from_mapping({group: values})


@pytest.mark.parametrize(
    "values", [{"unet_config": {"model_channels": 1 << 17}}, {"audiomae": {"embed_dim": 1 << 17}}, {"ddim_sample_step": 1 << 17}]
)
def test_widths_and_steps_are_bounded(values: dict[str, Any]) -> None:
    with refused(ConfigError, "65536", 1 << 17):
        Config.from_mapping(values)
