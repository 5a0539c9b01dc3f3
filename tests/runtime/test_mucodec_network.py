"""MuCodec's networks and stages: the official keys, and what `split` moved elsewhere gives the same as where it came from."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from musicrt.runtime.models.mucodec.config import Config
from tests.reference.fill import Layout, write_files
from tests.reference.runner import DATA
from tests.reference.signals import audio

torch = pytest.importorskip("torch")

import torch.nn.functional as F  # noqa: E402 - needs what was asked for above
from torch import Tensor, nn  # noqa: E402

from musicrt.runtime.checkpoint import read_checkpoint  # noqa: E402
from musicrt.runtime.models.mucodec import stages  # noqa: E402
from musicrt.runtime.models.mucodec.mel import MuqMel, PromptMel  # noqa: E402
from musicrt.runtime.models.mucodec.network.checkpoint import Networks, is_dead_key, load_networks  # noqa: E402
from musicrt.runtime.models.mucodec.network.estimator import Estimator, normalise, position_rates, unpatch  # noqa: E402
from musicrt.runtime.models.mucodec.network.muq import BatchNorm  # noqa: E402
from musicrt.runtime.models.mucodec.network.quantizer import NormFeat, ResidualQuantizer  # noqa: E402
from musicrt.runtime.models.mucodec.network.velocity import Context, Timesteps, Velocity  # noqa: E402
from musicrt.runtime.models.mucodec.spec import CHECKPOINT  # noqa: E402
from tests.runtime.torch_tensors import assert_close, draw  # noqa: E402

FOLDER = DATA / "mucodec"
PREFIXES = {"muq": "model.", "quantizer": "rvq_muencoder_emb.", "conditioner": "", "normfeat": "normfeat."}
PREFIXES |= {"estimator": "cfm_wrapper.estimator.", "first_stage": "first_stage_model.", "scale": ""}


def read_layout(variant: str) -> Layout:
    layout: Layout = json.loads((FOLDER / f"layout-{variant}.json").read_text())
    return layout


@pytest.fixture(autouse=True)
def without_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


@pytest.fixture(scope="module")
def load(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Networks]:
    """Gives the networks of a variant's checkpoint, made anew each time: stages take them apart."""

    @functools.cache
    def write(variant: str) -> Path:
        folder = tmp_path_factory.mktemp("checkpoint") / variant
        write_files(read_layout(variant), load_file(FOLDER / f"given-{variant}.safetensors"), "", folder)
        return folder

    return lambda variant: load_networks(read_checkpoint(CHECKPOINT, write(variant)), read_layout(variant)["config"])


# Keys


@pytest.mark.parametrize("variant", ["tiny", "tiny4"])
def test_the_networks_have_the_official_keys_and_no_others(variant: str) -> None:
    layout = read_layout(variant)
    with torch.device("meta"):
        networks = Networks.build(Config.from_mapping(layout["config"]))
    shapes = {
        prefix + key: list(tensor.shape)
        for name, prefix in PREFIXES.items()
        for key, tensor in getattr(networks, name).state_dict().items()
    }
    official = {key: shape for file in layout["files"].values() for key, (shape, _) in file["tensors"].items()}
    official = {key: shape for key, shape in official.items() if not key.startswith("muencoder.")}
    assert {key for key in shapes if key not in official} == set()
    assert shapes == {key: shape for key, shape in official.items() if key in shapes}
    assert [key for key in official if key not in shapes and not is_dead_key(key, 6)] == []


# MuQ


@pytest.mark.parametrize("layer", [nn.Conv2d(3, 5, 3), nn.Conv1d(3, 5, 3, bias=False)], ids=["2d", "1d without bias"])
def test_batch_norms_fold_into_convolutions(layer: nn.Conv1d | nn.Conv2d) -> None:
    norm, x = BatchNorm(5), draw("x", *(2, 3, 9, 9)[: layer.weight.ndim])
    for name, parameter in norm.named_parameters():
        parameter.data = draw(name, 5).abs() + 0.1
    expected = F.batch_norm(layer(x), norm.running_mean.data, norm.running_var.data, norm.weight, norm.bias, eps=1e-5)
    norm.fold_into(layer)
    assert_close(layer(x), expected)


def test_only_layers_that_are_read_are_there(load: Callable[[str], Networks]) -> None:
    assert len(load("tiny").muq.conformer.layers) == 6
    assert read_layout("tiny")["config"]["muq"]["encoder_depth"] == 7


# Quantizer


def test_codes_are_those_of_the_nearest_directions(load: Callable[[str], Networks]) -> None:
    network = load("tiny4").quantizer
    hidden = draw("hidden", 2, 9, 64)
    residual, expected = hidden.double(), []
    for book in network.books:
        projected = residual @ book.in_proj.weight().double().T + book.in_proj.bias.double()
        entries = book.entries.double()
        distances = torch.cdist(F.normalize(projected, dim=2), F.normalize(entries, dim=1).expand(2, -1, -1))
        expected.append(distances.argmin(-1))
        residual = residual - (entries[expected[-1]] @ book.out_proj.weight().double().T + book.out_proj.bias.double())
    codes = stages.Quantizer(network)(hidden)
    assert codes.dtype == torch.int64
    assert torch.equal(codes, torch.stack(expected, dim=1))


def test_first_of_equal_entries_is_taken(load: Callable[[str], Networks]) -> None:
    network = load("tiny").quantizer
    hidden = draw("hidden", 1, 30, 64)
    codes = stages.Quantizer(network)(hidden)
    book = network.books[0]
    half = book.codebook.weight.data[: len(book.codebook.weight) // 2]
    book.codebook.weight.data = torch.cat([half, 2.0 * half])  # longer, in the same directions
    assert int(codes.max()) >= len(half)
    assert int(stages.Quantizer(network)(hidden).max()) < len(half)


def test_weight_norm_is_that_of_torch(load: Callable[[str], Networks]) -> None:
    projection = load("tiny").quantizer.books[0].out_proj
    expected = torch._weight_norm(projection.weight_v, projection.weight_g, 0)[..., 0]
    assert_close(projection.weight(), expected, 1e-6)


def test_codes_of_the_first_codebooks_alone_are_taken(load: Callable[[str], Networks]) -> None:
    network: ResidualQuantizer = load("tiny4").quantizer
    codes = torch.from_numpy(np.random.default_rng(0).integers(0, 512, (2, 4, 7)))
    dequantizer = stages.Dequantizer(network)
    parts = [
        F.embedding(codes[:, index], book.codebook.weight) @ book.out_proj.weight().T + book.out_proj.bias
        for index, book in enumerate(network.books)
    ]
    for count in (1, 3, 4):
        assert_close(dequantizer(codes[:, :count]), sum(parts[:count], torch.zeros(())).transpose(1, 2))


def test_condition_places_pairs_of_codes(load: Callable[[str], Networks]) -> None:
    """Channel 16 * parity + a and bin f take feature 32 a + f of a code; frames that are not known take the embedding of nothing."""
    network = load("tiny").conditioner
    quantised, known = draw("quantised", 1, 64, 6), torch.tensor([[1.0, 0.0, 1.0]])
    condition = stages.Condition(network)(quantised, known)
    features = network.cond_muencoder_emb(quantised.transpose(1, 2))
    for channel, frame, place in ((0, 0, 0), (5, 2, 31), (16, 2, 3), (31, 0, 17)):
        parity, a = divmod(channel, 16)
        assert float(condition[0, channel, frame, place]) == pytest.approx(float(features[0, 2 * frame + parity, 32 * a + place]), abs=1e-6)
    assert torch.equal(condition[0, :, 1], network.zero_cond_embedding1.reshape(32, 32))


def test_latents_come_back_from_where_they_are_projected_to(load: Callable[[str], Networks]) -> None:
    stage = stages.Normalisation(load("tiny").normfeat)
    latents = draw("latents", 2, 32, 5, 32)
    projected, _ = stage(latents)
    assert_close(stage(projected)[1], latents)
    assert not torch.allclose(projected, latents, atol=0.01)


def test_bins_that_never_change_are_not_divided_by_zero() -> None:
    network = NormFeat()
    network.sum_x.data = draw("sum", 32, 32)
    network.sum_x2.data = network.sum_x.data**2
    projected, returned = stages.Normalisation(network)(network.sum_x.data[:, None].expand(1, -1, 3, -1))
    assert torch.equal(projected, torch.zeros(1, 32, 3, 32))
    assert torch.equal(returned[0, :, 0], network.sum_x.data)


# Estimator


def whole_estimator(network: Estimator, sample: Tensor, timestep: Tensor) -> Tensor:
    """All in one call as officially: 96 channels, positions from a grid in float64."""
    tokens = network.pos_embed.proj(sample).permute(0, 2, 3, 1)
    rows, columns, width = tokens.shape[1:]
    omega = 10000.0 ** (-np.arange(width // 4) / (width // 4))

    def wave(places: list[float]) -> Tensor:
        angles = np.outer(places, omega)
        waves: Tensor = torch.from_numpy(np.concatenate([np.sin(angles), np.cos(angles)], axis=1)).float()
        return waves

    column = wave([j / (columns / 192) / 6 for j in range(columns)]).expand(rows, -1, -1)
    row = wave([i / (rows / 192) / 6 for i in range(rows)])[:, None].expand(-1, columns, -1)
    x = (tokens + torch.cat([column, row], dim=2)).flatten(1, 2)
    angles = 1000.0 * timestep[:, None] * torch.exp(-np.log(10000.0) * torch.arange(256) / 256)
    modulation, embedding = network.adaln_single(torch.cat([angles.cos(), angles.sin()], dim=1))
    for block in network.transformer_blocks:
        x = block(x, modulation.reshape(-1, 6, width))
    shift, scale = (network.scale_shift_table + embedding[:, None]).unbind(1)
    velocity: Tensor = unpatch(network.proj_out(normalise(x, 1e-6) * (1 + scale[:, None]) + shift[:, None]))
    return velocity


@pytest.mark.parametrize("frames", [20, 32])
def test_estimator_in_parts_gives_the_same(load: Callable[[str], Networks], frames: int) -> None:
    network = load("tiny").estimator
    x, incontext, known = (draw(name, 2, 32, frames, 32) for name in ("x", "incontext", "condition"))
    timestep = torch.tensor([0.1, 0.8])
    conditions = [known, torch.zeros_like(known)]
    context, velocity = Context(network), Velocity(network)
    rows = torch.stack([context(incontext, condition) for condition in conditions])
    got = velocity(rows, x, *Timesteps(network)(timestep))
    for row, condition in zip(got, conditions, strict=True):
        assert_close(row, whole_estimator(network, torch.cat([x, incontext, condition], dim=1), timestep), 2e-5)


def test_patches_go_back_to_where_they_were() -> None:
    image = draw("image", 2, 32, 6, 32)
    squares = image.reshape(2, 32, 3, 2, 16, 2)  # channel, row, p, column, q
    tokens = squares.permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)
    assert torch.equal(unpatch(tokens), image)


def test_rates_go_from_one_to_nearly_a_ten_thousandth() -> None:
    rates = position_rates(1584)
    assert len(rates) == 396
    assert float(rates[0]) == 1.0
    np.testing.assert_allclose(rates.numpy(), 10000.0 ** (-np.arange(396) / 396), rtol=1e-6)


# Mel spectrograms and VAE


def test_graphs_of_the_spectrograms_give_what_the_host_does(load: Callable[[str], Networks]) -> None:
    modules = stages.split(load("tiny"))
    statistics = Config().muq_stat
    low, high = audio("low", 0.2, 24000, 2), 1.3 * audio("high", 0.1, 48000, 2)
    host = MuqMel(statistics.melspec_2048_mean, statistics.melspec_2048_std).analyse(low)
    assert_close(modules["frontend"](torch.from_numpy(low)), torch.from_numpy(host), 2e-5)
    assert_close(modules["prompt-frontend"](torch.from_numpy(high)), torch.from_numpy(PromptMel().analyse(high)), 2e-5)
    assert modules["frontend"].analysis is modules["prompt-frontend"].analysis  # 17 MB, stored once


def test_scale_is_in_both_halves_of_the_vae(load: Callable[[str], Networks]) -> None:
    networks = load("tiny")
    first, scale = networks.first_stage, float(networks.scale.scale_factor)
    assert scale == 0.5
    latents, mel = draw("latents", 1, 16, 3, 32), draw("mel", 1, 17, 256)
    expected = first.decoder(first.post_quant_conv(latents / scale))[:, 0]
    mean, logvar = first.quant_conv(first.encoder(mel[:, None])).chunk(2, dim=1)
    assert mean.shape == (1, 16, 2, 32)
    assert_close(stages.VaeDecoder(first, networks.scale.scale_factor)(latents), expected)
    scaled, deviation = stages.VaeEncoder(first, networks.scale.scale_factor)(mel)
    assert_close(scaled, mean * scale)
    assert_close(deviation, (0.5 * logvar).exp() * scale)
