"""VidMuse's networks and stages: the official keys, and what `split` moved elsewhere gives the same as where it came from."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from musicrt.runtime.models.vidmuse.config import Config
from musicrt.runtime.models.vidmuse.spec import cache_names, cross_names
from tests.conftest import ForSystem, tiny_layout
from tests.reference.runner import DATA

torch = pytest.importorskip("torch")

import torch.nn.functional as F  # noqa: E402 - needs what was asked for above
from torch import Tensor, nn  # noqa: E402

from musicrt.runtime.checkpoint import read_checkpoint  # noqa: E402
from musicrt.runtime.models.vidmuse.network.checkpoint import Networks, fold_weight_norms, is_dead_key, load_networks  # noqa: E402
from musicrt.runtime.models.vidmuse.network.codec import Codec  # noqa: E402
from musicrt.runtime.models.vidmuse.network.padding import EndPadding  # noqa: E402
from musicrt.runtime.models.vidmuse.network.seanet import PaddedConv, Upsampling, run_layers  # noqa: E402
from musicrt.runtime.models.vidmuse.network.transformer import embed_positions, position_periods  # noqa: E402
from musicrt.runtime.models.vidmuse.spec import CHECKPOINT, HUB_FILE  # noqa: E402
from musicrt.runtime.models.vidmuse.stages import Quantizer, load_stages  # noqa: E402
from tests.runtime.torch_tensors import assert_close, draw  # noqa: E402

CONFIG = Config.from_mapping(tiny_layout("vidmuse")["config"])
Stages = dict[str, nn.Module]


@pytest.fixture(autouse=True)
def without_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


@pytest.fixture(scope="module")
def files(tiny_checkpoints: ForSystem) -> dict[str, dict[str, Any]]:
    return read_checkpoint(CHECKPOINT, tiny_checkpoints("vidmuse"))


@pytest.fixture(scope="module")
def stages(files: dict[str, dict[str, Any]]) -> Stages:
    return load_stages(files, CONFIG.to_mapping())


@pytest.fixture
def networks(files: dict[str, dict[str, Any]]) -> Networks:
    return load_networks(files, CONFIG.to_mapping())


# Keys


@pytest.mark.parametrize("layout", [DATA / "vidmuse" / "layout-tiny.json"], ids=["tiny"])
def test_networks_have_the_official_keys(layout: Path) -> None:
    content = json.loads(layout.read_text())
    shapes = {file: {key: shape for key, (shape, _) in spec["tensors"].items()} for file, spec in content["files"].items()}
    with torch.device("meta"):
        networks = Networks.build(Config.from_mapping(content["config"]))
    main = {key: list(tensor.shape) for key, tensor in networks.muse.state_dict().items()}
    assert main == {key: shape for key, shape in shapes["state_dict.bin"].items() if not is_dead_key(key)}
    hub = {key: torch.ones(shape) for key, shape in shapes[HUB_FILE].items() if not is_dead_key(key)}
    folded = {key: list(tensor.shape) for key, tensor in fold_weight_norms(hub, HUB_FILE).items()}
    assert {key: list(tensor.shape) for key, tensor in networks.codec.state_dict().items()} == folded


def test_weight_norm_is_over_all_axes_but_the_first() -> None:
    for layer in (nn.Conv1d(3, 5, 7), nn.ConvTranspose1d(6, 4, 8)):
        normed = torch.nn.utils.parametrizations.weight_norm(layer)
        normed.parametrizations.weight.original0.mul_(torch.rand(layer.weight.shape[0], 1, 1) + 0.5)
        state = {f"x.{key}": value for key, value in normed.state_dict().items()}
        folded = fold_weight_norms(state, "x")
        assert set(folded) == {"x.bias", "x.weight"}
        torch.testing.assert_close(folded["x.weight"], normed.weight)


# Padding


def pad_officially(x: Tensor, kernel: int, stride: int, mode: str) -> Tensor:
    """As SPEC section 9 says it."""
    length, total = x.shape[2], kernel - stride
    frames = -(-(length - kernel + total) // stride) + 1
    extra = (frames - 1) * stride + (kernel - total) - length
    left, right = total - total // 2, total // 2 + extra
    if mode == "constant":
        return F.pad(x, (left, right))
    missing = max(max(left, right) - length + 1, 0)
    padded = F.pad(F.pad(x, (0, missing)), (left, right), mode="reflect")
    return padded[:, :, : padded.shape[2] - missing]


@pytest.mark.parametrize("mode", ["reflect", "constant"])
@pytest.mark.parametrize(("kernel", "stride"), [(7, 1), (3, 1), (1, 1), (8, 4), (10, 5), (16, 8), (4, 2), (6, 3)])
def test_ends_are_those_of_the_specification(kernel: int, stride: int, mode: str) -> None:
    padding = EndPadding(kernel, stride, mode)
    for length in range(1, 30):
        x = draw(f"x{length}", 2, 3, length)
        expected = pad_officially(x, kernel, stride, mode)
        got = padding(x)
        assert got.shape[2] == length + kernel - 1
        torch.testing.assert_close(got[:, :, : expected.shape[2]], expected, rtol=0, atol=0)


@pytest.mark.parametrize("mode", ["reflect", "constant"])
def test_convolution_gives_a_value_for_every_step_that_is_begun(mode: str) -> None:
    for rate in (4, 5, 8):
        layer = PaddedConv(2, 3, 2 * rate, mode, stride=rate)
        for length in range(1, 21):
            x = draw("x", 1, 2, length)
            y = layer(x)
            assert y.shape[2] == -(-length // rate)
            torch.testing.assert_close(y, layer.conv(pad_officially(x, 2 * rate, rate, mode)), rtol=0, atol=0)


@pytest.mark.parametrize("rate", [8, 5, 4])
def test_transposed_convolution_is_a_plain_one(rate: int) -> None:
    layer = Upsampling(6, 4, rate)
    for frames in (1, 2, 7):
        x = draw("x", 2, 6, frames)
        whole = F.conv_transpose1d(x, layer.conv.weight, layer.conv.bias, stride=rate)  # type: ignore[arg-type]
        expected = whole[:, :, rate - rate // 2 : whole.shape[2] - rate // 2]
        unfolded = layer(x)
        layer.fold()
        assert_close(layer(x), expected)
        assert_close(unfolded, expected, 0.1)  # which torch gets wrong on some CPUs
        layer = Upsampling(6, 4, rate)


# Codec


def test_encoder_is_its_layers(networks: Networks, stages: Stages) -> None:
    audio = 0.1 * draw("audio", 2, 1, 1111)
    expected = audio
    for layer in networks.codec.encoder.layers:
        if lstm := getattr(layer, "lstm", None):
            expected = expected + lstm(expected.permute(2, 0, 1))[0].permute(1, 2, 0)
        else:
            expected = layer(expected)
    assert expected.shape == (2, 32, 2)
    assert_close(stages["codec-encoder"](audio), expected)


def test_recurrence_goes_on_where_it_left_off(networks: Networks, stages: Stages) -> None:
    latent, zero = draw("latent", 2, 32, 17), torch.zeros(2, 2, 64)
    padded = F.pad(latent, (3, 3), mode="reflect")
    recurrence = stages["recurrence"]
    whole, h, c = recurrence(padded, zero, zero)
    before = networks.codec.decoder.parts()[0]
    plain = run_layers(before, latent)
    states, (last_h, last_c) = networks.codec.decoder.parts()[1].lstm(plain.permute(2, 0, 1))
    assert_close(whole, plain + states.permute(1, 2, 0))
    assert_close(h, last_h)
    assert_close(c, last_c)
    parts, state = [], (zero, zero)
    for start, stop in ((0, 1), (1, 9), (9, 17)):
        part, *rest = recurrence(padded[:, :, start : stop + 6], *state)
        state = (rest[0], rest[1])
        parts.append(part)
    assert_close(torch.cat(parts, dim=2), whole, 1e-6)
    assert_close(state[1], c, 1e-6)


def test_pieces_with_two_more_frames_have_exact_middles(stages: Stages) -> None:
    features = draw("features", 1, 64, 12)
    whole = stages["synthesis"](features)
    piece = stages["synthesis"](features[:, :, 3:10])
    assert whole.shape == (1, 1, 7680)
    assert_close(piece[:, :, 2 * 640 : -2 * 640], whole[:, :, 5 * 640 : 8 * 640], 1e-6)
    assert float((piece[:, :, :640] - whole[:, :, 3 * 640 : 4 * 640]).abs().max()) > 1e-4


def test_code_is_the_nearest_entry_of_what_is_left(networks: Networks, stages: Stages) -> None:
    embedding = 0.5 * draw("embedding", 2, 32, 5)
    left, expected = embedding.transpose(1, 2).double(), []
    for book in networks.codec.quantizer.books():
        expected.append(torch.cdist(left, book.double().expand(2, -1, -1)).argmin(-1))
        left = left - book.double()[expected[-1]]
    codes = stages["quantizer"](embedding)
    torch.testing.assert_close(codes, torch.stack(expected, dim=1))
    assert_close(stages["dequantizer"](codes).double(), embedding.double() - left.transpose(1, 2))


def test_first_of_equal_entries_is_taken() -> None:
    codec = Codec(CONFIG.encodec)
    for index, book in enumerate(codec.quantizer.books()):
        book[:] = 100.0
        book[7 + index], book[1900] = 1.0, 1.0
    codes = Quantizer(codec)(torch.ones(1, 32, 3))
    assert codes[0, 0].tolist() == [7, 7, 7]


# Condition


def test_temporal_transformers_look_at_one_frame_at_a_time(stages: Stages) -> None:
    hidden = draw("hidden", 3, 50, 768)
    for name in ("local", "global"):
        together = stages[name](hidden)
        assert_close(together[1:2], stages[name](hidden[1:2]), 1e-6)
    assert float((stages["local"](hidden) - stages["global"](hidden)).norm()) > 1.0


def test_order_of_frames_moves_tokens_only(stages: Stages) -> None:
    local, whole = draw("local", 1, 100, 768), draw("whole", 1, 150, 768)
    straight = stages["fuse"](local, whole)
    assert_close(stages["fuse"](local.roll(50, 1), whole.roll(50, 1)), straight.roll(50, 1))
    assert_close(stages["fuse"](local, whole.repeat(1, 4, 1)), straight)  # attention over copies


# Language model


def make_keys(stages: Stages, name: str, batch: int, tokens: int) -> list[Tensor]:
    keys: tuple[Tensor, ...] = stages["cross"](draw(name, batch, tokens, 64))
    assert len(keys) == len(cross_names(CONFIG.layers))
    return list(keys)


def interleave(keys: list[Tensor], null_keys: list[Tensor]) -> list[Tensor]:
    """As the stage takes them."""
    return [tensor for layer in range(0, len(keys), 2) for tensor in (*keys[layer : layer + 2], *null_keys[layer : layer + 2])]


def feed(stages: Stages, sequence: Tensor, conditions: list[Tensor], chunks: list[int]) -> Tensor:
    """Logits [2, B, K, S, card], block by block."""
    caches = [torch.full((2 * len(sequence), 4, 20, 16), float("nan")) for _ in cache_names(CONFIG.layers)]
    given, length, logits = list(caches), 0, list[Tensor]()
    for count in chunks:
        block = sequence[:, :, length : length + count]
        made, *caches = stages["lm"](block, torch.tensor([length]), *conditions, *caches)
        logits.append(made)
        length += count
    assert all(one is other for one, other in zip(caches, given, strict=True))  # in place
    assert not any(bool(cache[:, :, :length].isnan().any()) or not bool(cache[:, :, length:].isnan().all()) for cache in caches)
    together: Tensor = torch.cat(logits, dim=3)
    return together


def compute_officially(networks: Networks, sequence: Tensor, video_emb: Tensor) -> Tensor:
    """The whole sequence without any cache, in float64: [B, K, S, card] (SPEC section 6)."""
    muse = networks.muse.double()
    x: Any = sum(table(sequence[:, index]) for index, table in enumerate(muse.emb))
    half = 32
    phase = torch.arange(sequence.shape[2])[:, None] / 10000.0 ** (torch.arange(half).double() / (half - 1))
    x = x + torch.cat([phase.cos(), phase.sin()], dim=1)

    def attend(weights: Any, x: Tensor, context: Tensor, causal: bool) -> Tensor:
        parts = weights.in_proj_weight.chunk(3)
        sources = zip((x, context, context), parts, strict=True)
        query, key, value = ((y @ part.T).reshape(*y.shape[:2], 4, 16).transpose(1, 2) for y, part in sources)
        scores = query @ key.transpose(2, 3) / 4.0
        if causal:
            scores = scores.masked_fill(torch.ones_like(scores, dtype=torch.bool).triu(1), -torch.inf)
        result: Tensor = weights.out_proj((scores.softmax(-1) @ value).transpose(1, 2).flatten(2))
        return result

    for layer in muse.transformer:
        y = layer.norm1(x)
        x = x + attend(layer.self_attn, y, y, causal=True)
        x = x + attend(layer.cross_attention, layer.norm_cross(x), video_emb.double(), causal=False)
        x = x + layer.linear2(F.gelu(layer.linear1(layer.norm2(x))))
    logits: Tensor = torch.stack([head(muse.out_norm(x)) for head in muse.linears], dim=1)
    return logits


def test_language_model_is_the_plain_one(networks: Networks, stages: Stages) -> None:
    """With both halves in one pass, caches, and keys that were made before."""
    sequence = torch.from_numpy(np.arange(2 * 4 * 9).reshape(2, 4, 9) * 577 % 2049)
    conditions = interleave(make_keys(stages, "condition", 2, 30), make_keys(stages, "null", 1, 10))
    logits = feed(stages, sequence, conditions, [4, 1, 1, 1, 1, 1]).double()
    assert_close(logits[0], compute_officially(networks, sequence, draw("condition", 2, 30, 64)), 2e-6)
    assert_close(logits[1], compute_officially(networks, sequence, draw("null", 1, 10, 64).expand(2, -1, -1)), 2e-6)


@pytest.mark.parametrize("chunks", [[9], [1] * 9, [8, 1]])
def test_blocks_give_the_same_as_the_whole(stages: Stages, chunks: list[int]) -> None:
    sequence = torch.from_numpy(np.arange(4 * 9).reshape(1, 4, 9) * 577 % 2049)
    conditions = interleave(make_keys(stages, "condition", 1, 30), make_keys(stages, "null", 1, 10))
    assert_close(feed(stages, sequence, conditions, chunks), feed(stages, sequence, conditions, [5, 1, 1, 1, 1]), 2e-6)


def test_one_black_frame_stands_for_any_number(stages: Stages) -> None:
    sequence = torch.full((1, 4, 3), CONFIG.special)
    keys, null_keys = make_keys(stages, "condition", 1, 30), make_keys(stages, "null", 1, 10)
    copies = [tensor.repeat(1, 1, 7, 1) for tensor in null_keys]
    assert_close(feed(stages, sequence, interleave(keys, copies), [3]), feed(stages, sequence, interleave(keys, null_keys), [3]), 2e-6)
    halves = feed(stages, sequence, interleave(null_keys, null_keys), [3])
    torch.testing.assert_close(halves[0], halves[1])


def test_positions_stay_exact_far_out() -> None:
    places, half = torch.arange(0.0, 3000.0), 512
    got = embed_positions(places, position_periods(2 * half)).double()
    phases = places.double()[:, None] / 10000.0 ** (torch.arange(half).double() / (half - 1))
    assert float((got - torch.cat([phases.cos(), phases.sin()], dim=1)).abs().max()) < 1e-3
    assert got[0].tolist() == [1.0] * half + [0.0] * half
