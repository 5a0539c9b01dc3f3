"""SemantiCodec's networks: the official keys, the recorded stages of the official code, and the two ways to run the U-Net."""

from __future__ import annotations

import functools
import json
import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

import numpy as np
import pytest
from safetensors.numpy import load_file

from musicrt.runtime.models.semanticodec.config import LATENT_SHAPE, POSITION_CHANNELS, Config
from tests.reference.case import Case, load_case
from tests.reference.fill import Layout, write_files
from tests.reference.runner import DATA
from tests.reference.signals import Array, normal

torch = pytest.importorskip("torch")

from torch import Tensor, nn  # noqa: E402 - needs what was asked for above

from musicrt.runtime.models.semanticodec.network.audiomae import AudioMae, stack_patches  # noqa: E402
from musicrt.runtime.models.semanticodec.network.residual import AcousticCodebook, ResidualEncoder, SemanticCodebook, search  # noqa: E402
from musicrt.runtime.models.semanticodec.network.unet import UNet, embed_timestep  # noqa: E402
from musicrt.runtime.models.semanticodec.network.vae import VaeDecoder  # noqa: E402
from musicrt.runtime.models.semanticodec.network.vocoder import Vocoder  # noqa: E402

FOLDER = DATA / "semanticodec"
VARIANTS = ("tiny", "tiny-25", "tiny-100")
PREFIXES: dict[type[nn.Module], str] = {
    AudioMae: "audiomae.model.",
    SemanticCodebook: "",
    ResidualEncoder: "",
    AcousticCodebook: "quantizer._codebook.",
    UNet: "model.diffusion_model.",
    VaeDecoder: "",
    Vocoder: "first_stage_model.vocoder.",
}
UNUSED = re.compile(
    r"(audiomae\.model\.(mask_token|decoder_)|quantizer\._codebook\.(initted|cluster_size|embed_avg)$|model_ema\.|logvar$|betas$"
    r"|\w*alphas_cumprod\w*$|posterior_\w+$|first_stage_model\.(encoder|quant_conv)\.)"
)
Kind = TypeVar("Kind", bound=nn.Module)
Outputs = dict[str, Array]


class Networks:
    """The networks of one checkpoint, each loaded when it is asked for."""

    def __init__(self, layout: Layout, folder: Path) -> None:
        self.config = Config.from_mapping(layout["config"])
        encoder, decoder, codebook = (folder / file for file in layout["files"])
        self.tensors: dict[str, Tensor] = {
            **torch.load(encoder, weights_only=True, mmap=True),
            **torch.load(decoder, weights_only=True, mmap=True),
            "array": torch.from_numpy(np.load(codebook)),
        }

    def load(self, kind: Callable[[Config], Kind]) -> Kind:
        with torch.device("meta"):
            network = kind(self.config)
        keys = {key: PREFIXES[type(network)] + key for key in network.state_dict()}
        network.load_state_dict({key: self.tensors[official] for key, official in keys.items()}, assign=True)
        return network.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def networks(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Networks]:
    """Gives the networks of a variant's written checkpoint."""

    @functools.cache
    def write(variant: str) -> Networks:
        layout, folder = read_layout(variant), tmp_path_factory.mktemp("checkpoint") / variant
        write_files(layout, load_file(FOLDER / f"given-{variant}.safetensors"), "", folder)
        return Networks(layout, folder)

    return write


def read_layout(variant: str) -> Layout:
    layout: Layout = json.loads((FOLDER / f"layout-{variant}.json").read_text())
    return layout


def recorded(name: str) -> Case:
    return load_case(FOLDER / "cases" / f"{name}.safetensors")


def assert_recorded(case: Case, outputs: Mapping[str, Array], *names: str) -> None:
    verdicts = {verdict.output: verdict for verdict in case.compare(outputs)}
    assert {name: verdict.detail for name, verdict in verdicts.items() if not verdict.ok} == {}
    assert set(verdicts) == set(names)


def tensors_of(case: Case) -> dict[str, Tensor]:
    return {name: torch.from_numpy(array) for name, array in case.inputs.items()}


def with_positions(feature: Tensor) -> Tensor:
    """The context of SPEC section 3.2: the feature and, beside it, a code of each row's place."""
    rates = torch.exp(torch.arange(0, POSITION_CHANNELS, 2) * (-math.log(10000.0) / POSITION_CHANNELS))
    angles = torch.arange(feature.shape[1])[:, None] * rates
    code = torch.stack([angles.sin(), angles.cos()], dim=2).flatten(1)
    context: Tensor = torch.cat([feature, code.expand(len(feature), -1, -1)], dim=2)
    return context


def encode(networks: Networks, case: Case) -> Outputs:
    """All traces of a segment's way to its tokens; the padding cut is the recorded one."""
    mel, config = tensors_of(case)["mel"], networks.config
    cut = torch.from_numpy(case.stored["trace/padding_cut"])
    mask = (torch.arange(config.tokens) < torch.ceil(config.tokens * cut)[:, None]).float()
    audiomae, encoder = networks.load(AudioMae), networks.load(ResidualEncoder)
    traces: dict[str, Tensor] = {}

    def keep(_: nn.Module, inputs: tuple[Tensor], outputs: tuple[Tensor, object]) -> None:
        traces["lstm_in"], traces["lstm_out"] = inputs[0], outputs[0]

    encoder.encoder.register_forward_hook(keep)
    traces["audiomae"] = audiomae.features(mel)
    traces["representation"] = audiomae(mel)
    semantic, centroids = networks.load(SemanticCodebook)(traces["representation"])
    traces["residual"] = encoder(traces["representation"], centroids, mask)
    tokens = torch.stack([semantic, networks.load(AcousticCodebook)(traces["residual"])], dim=2)
    return {"tokens": tokens.numpy(), **{f"trace/{name}": trace.numpy() for name, trace in traces.items()}}


def denoise(networks: Networks, case: Case) -> Outputs:
    """Both recorded evaluations of the U-Net, each with all of its work."""
    network, inputs = networks.load(UNet), tensors_of(case)
    contexts = {"cond": inputs["feature"], "uncond": torch.zeros_like(inputs["feature"])}
    return {name: network(inputs["x"], inputs["t"], with_positions(feature)).numpy() for name, feature in contexts.items()}


def denoise_jointly(networks: Networks, case: Case) -> Outputs:
    """The same two as rows of one evaluation, from parts that were computed before."""
    network, inputs = networks.load(UNet), tensors_of(case)
    contexts = [network.project(with_positions(feature)) for feature in (inputs["feature"], torch.zeros_like(inputs["feature"]))]
    keys, values = ([torch.stack([row[side] for row in rows]) for rows in zip(*contexts, strict=True)] for side in (0, 1))
    cond, uncond = network.denoise(inputs["x"], network.shifts(inputs["t"]), keys, values)
    return {"cond": cond.numpy(), "uncond": uncond.numpy()}


# Keys


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_networks_have_the_official_keys_and_no_others(variant: str) -> None:
    layout = read_layout(variant)
    config, shapes = Config.from_mapping(layout["config"]), dict[str, list[int]]()
    with torch.device("meta"):
        for kind, prefix in PREFIXES.items():
            shapes |= {prefix + key: list(tensor.shape) for key, tensor in kind(config).state_dict().items()}
    official = {key: shape for file in layout["files"].values() for key, (shape, _) in file["tensors"].items()}
    official["array"] = official.pop("centroid_npy")
    assert shapes == {key: shape for key, shape in official.items() if not UNUSED.match(key)}


# Recorded stages


@pytest.mark.parametrize("variant", VARIANTS)
def test_encoding_as_recorded(networks: Callable[[str], Networks], variant: str) -> None:
    case = recorded(f"{variant}-encode-stages")
    traces = ("audiomae", "representation", "lstm_in", "lstm_out", "residual")
    assert_recorded(case, encode(networks(variant), case), "tokens", *[f"trace/{name}" for name in traces])


@pytest.mark.parametrize("evaluate", [denoise, denoise_jointly])
@pytest.mark.parametrize("variant", VARIANTS)
def test_denoising_as_recorded(networks: Callable[[str], Networks], variant: str, evaluate: Callable[[Networks, Case], Outputs]) -> None:
    case = recorded(f"{variant}-unet")
    assert_recorded(case, evaluate(networks(variant), case), "cond", "uncond")


def test_vae_as_recorded(networks: Callable[[str], Networks]) -> None:
    case = recorded("tiny-vae-decode")
    mel = networks("tiny").load(VaeDecoder)(tensors_of(case)["latent"])
    assert_recorded(case, {"mel": mel[:, None].numpy()}, "mel")


@pytest.mark.parametrize("name", ["tiny-vocoder", "tiny-vocoder-short"])
def test_vocoder_as_recorded(networks: Callable[[str], Networks], name: str) -> None:
    case = recorded(name)
    waveform = networks("tiny").load(Vocoder)(tensors_of(case)["mel"][:, 0])
    assert_recorded(case, {"waveform": waveform[:, None].numpy()}, "waveform")


def test_timestep_embedding_as_recorded() -> None:
    case = recorded("frontend-timestep-embedding")
    assert_recorded(case, {"t_emb": embed_timestep(tensors_of(case)["t"], case.info["options"]["dim"]).numpy()}, "t_emb")


# Parts


def test_search_finds_the_nearest_and_the_first_of_equals() -> None:
    codebook, x = normal("codebook", (50, 16)), normal("x", (2, 7, 16))
    distances = np.square(x[:, :, None].astype(np.float64) - codebook).sum(-1)
    codes = search(torch.from_numpy(x), torch.from_numpy(codebook))
    assert codes.dtype == torch.int64
    assert np.array_equal(codes, distances.argmin(-1))
    twice = torch.from_numpy(np.concatenate([codebook, codebook]))
    assert np.array_equal(search(torch.from_numpy(x), twice), codes)


def test_patches_are_stacked_along_frequency_then_time() -> None:
    places = torch.arange(512.0).reshape(1, 512, 1)  # 8 * time + frequency
    assert stack_patches(places, 1)[0, :2].tolist() == [[0.0], [1.0]]
    assert stack_patches(places, 2)[0, 3:5].tolist() == [[6.0, 7.0], [8.0, 9.0]]
    assert stack_patches(places, 4)[0, 3:5].tolist() == [[6.0, 7.0, 14.0, 15.0], [16.0, 17.0, 24.0, 25.0]]


def test_what_precedes_the_first_context_runs_once_for_all_rows(networks: Callable[[str], Networks]) -> None:
    network, rows = networks("tiny").load(UNet), dict[str, int]()

    def count(name: str) -> Callable[[nn.Module, tuple[Tensor], Tensor], None]:
        def keep(_: nn.Module, inputs: tuple[Tensor], __: Tensor) -> None:
            rows[name] = len(inputs[0])

        return keep

    for name, layer in network.named_modules():
        if isinstance(layer, nn.GroupNorm | nn.LayerNorm):
            layer.register_forward_hook(count(name))
    context = network.project(torch.zeros(1, networks("tiny").config.tokens, networks("tiny").config.context_dim))
    keys, values = ([torch.stack([pair[side]] * 2) for pair in context] for side in (0, 1))
    v = network.denoise(torch.zeros(1, *LATENT_SHAPE), network.shifts(torch.tensor([1])), keys, values)
    assert v.shape == (2, 1, *LATENT_SHAPE)
    assert set(rows.values()) == {1, 2}
    block, first = "transformer_blocks.0", "input_blocks.3"
    assert [name for name, count in rows.items() if count == 1] == [
        *(f"input_blocks.{place}.0.{layers}.0" for place in (1, 3) for layers in ("in_layers", "out_layers")),
        *(f"{first}.1.{norm}" for norm in ("norm", f"{block}.norm1", f"{block}.norm2", f"{block}.norm3")),
        *(f"{first}.2.{norm}" for norm in ("norm", f"{block}.norm1")),
    ]
