"""Layers in their exported form, held against the torch layers that they stand for."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

import torch.nn.functional as F  # noqa: E402 - needs what was asked for above
from torch import Tensor, nn  # noqa: E402

from musicrt.runtime.layers import Lstm, PhaseTranspose, PhaseUpsample, attend_cached, attend_masked, bias_of  # noqa: E402


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def assert_close(got: Tensor, expected: Tensor, tolerance: float = 1e-6) -> None:
    assert got.shape == expected.shape
    assert float((got.detach() - expected.detach()).norm()) <= tolerance * float(expected.detach().norm())


def make_lstm(inputs: int, hidden: int, layers: int) -> nn.LSTM:
    """In float64, because its weights are large enough for the gates to open and close, and rounding to grow from step to step."""
    lstm = nn.LSTM(inputs, hidden, layers, batch_first=True, bidirectional=True, dtype=torch.float64).requires_grad_(False)
    for weight in lstm.parameters():
        weight.uniform_(-1.5, 1.5)
    return lstm


@pytest.mark.parametrize("layers", [1, 2, 4])
@pytest.mark.parametrize(("inputs", "hidden"), [(3, 5), (8, 8), (16, 4), (1, 1)])
@pytest.mark.parametrize(("batch", "steps"), [(1, 1), (1, 40), (3, 7), (16, 2)])
def test_lstm_is_that_of_torch(layers: int, inputs: int, hidden: int, batch: int, steps: int) -> None:
    lstm, x = make_lstm(inputs, hidden, layers), torch.randn(batch, steps, inputs, dtype=torch.float64)
    expected, _ = lstm(x)
    for index in range(layers):
        x = Lstm.from_torch(lstm, index)(x)
    assert x.dtype == torch.float64
    assert_close(x, expected, 1e-10)


def test_lstm_does_not_mix_its_batch() -> None:
    layer, x = Lstm.from_torch(make_lstm(6, 5, 1).float(), 0), torch.randn(4, 9, 6)
    together = layer(x)
    for item in range(4):
        assert_close(together[item : item + 1], layer(x[item : item + 1]))


def test_weights_of_the_lstm_are_in_the_order_of_onnx() -> None:
    """Gates i, o, f, c, where torch has i, f, g, o; both directions; the bias of the input before that of the state."""
    lstm = make_lstm(3, 2, 2)
    layer, weights = Lstm.from_torch(lstm, 1), dict(lstm.named_parameters())
    assert layer.input_weight.shape == (2, 8, 4)
    assert layer.recurrent_weight.shape == (2, 8, 2)
    assert layer.bias.shape == (2, 16)
    order = [0, 1, 6, 7, 2, 3, 4, 5]
    torch.testing.assert_close(layer.recurrent_weight[1].data, weights["weight_hh_l1_reverse"][order], rtol=0, atol=0)
    torch.testing.assert_close(layer.bias[0, :8].data, weights["bias_ih_l1"][order], rtol=0, atol=0)
    torch.testing.assert_close(layer.bias[0, 8:].data, weights["bias_hh_l1"][order], rtol=0, atol=0)


def test_lstm_is_a_sound_operator() -> None:
    """What export relies on: its shapes are known without running it, and it changes no input."""
    layer = Lstm.from_torch(make_lstm(3, 5, 1).float(), 0)
    weights = [weight.detach() for weight in (layer.input_weight, layer.recurrent_weight, layer.bias)]
    for states in ((None, None), (torch.randn(2, 2, 5), torch.randn(2, 2, 5))):
        torch.library.opcheck(torch.ops.musicrt.lstm.default, (torch.randn(2, 4, 3), *weights, *states))


def test_lstm_goes_on_from_a_state() -> None:
    """Cut anywhere, a layer of one direction gives what torch gives for the whole."""
    network = nn.LSTM(3, 5, 2, batch_first=True).double().requires_grad_(False)
    layers = [Lstm.from_torch(network, index) for index in range(2)]
    x = torch.randn(2, 7, 3, dtype=torch.float64)
    expected, (last_h, last_c) = network(x)
    for cut in (1, 4):
        pieces, states = [], [(x.new_zeros(2, 5), x.new_zeros(2, 5))] * 2
        for piece in (x[:, :cut], x[:, cut:]):
            for index, layer in enumerate(layers):
                piece, h, c = layer.go_on(piece, *states[index])
                states[index] = h, c
            pieces.append(piece)
        torch.testing.assert_close(torch.cat(pieces, dim=1), expected)
        for index, (h, c) in enumerate(states):
            torch.testing.assert_close(h, last_h[index])
            torch.testing.assert_close(c, last_c[index])


def make_attention(rows: int, steps: int, capacity: int) -> tuple[Tensor, Tensor, Tensor]:
    """Projections of new positions for two heads of 4, and caches full of NaN: what nothing may read before it is written."""
    keys, values = torch.full((2, rows, 2, capacity, 4), torch.nan)
    return torch.randn(rows, steps, 24), keys, values


def place(last: int, rows: int) -> Tensor:
    places: Tensor = torch.full((rows,), last, dtype=torch.int32)
    return places


def test_cached_attention_is_that_over_the_whole() -> None:
    projected, keys, values = make_attention(3, 9, 12)
    query, key, value = projected.reshape(3, 9, 3, 2, 4).permute(2, 0, 3, 1, 4)
    expected = F.scaled_dot_product_attention(query, key, value, is_causal=True).transpose(1, 2).flatten(2)
    for start, stop in ((0, 4), (4, 5), (5, 9)):
        y, *changed = attend_cached(projected[:, start:stop], keys, values, place(stop - 1, 3))
        torch.testing.assert_close(y, expected[:, start:stop])
        assert all(given is back for given, back in zip((keys, values), changed, strict=True)), "not in place"
    torch.testing.assert_close(keys[:, :, :9], key)
    torch.testing.assert_close(values[:, :, :9], value)
    assert keys[:, :, 9:].isnan().all()


def test_attention_that_masks_the_cache_is_the_same() -> None:
    """What runs on a GPU, where no value may be asked for by the host while a graph is recorded: a meta tensor has none."""
    torch.manual_seed(3)
    projected = torch.randn(3, 9, 24)
    keys, values, *masked = torch.zeros(4, 3, 2, 12, 4)
    for start, stop in ((0, 4), (4, 5), (5, 9)):
        part, last = projected[:, start:stop], place(stop - 1, 3)
        expected, *_ = attend_cached(part, keys, values, last)
        torch.testing.assert_close(attend_masked(part, masked[0], masked[1], last), expected)
        torch.testing.assert_close(masked, [keys, values], rtol=0, atol=0)
    keys[:, :, 9:], values[:, :, 9:] = 7.0, 7.0  # what another sequence left there
    y = attend_masked(projected[:, 8:], keys, values, place(8, 3))
    torch.testing.assert_close(y, expected[:, -1:])
    unread = [tensor.to("meta") for tensor in (projected[:, 8:], keys, values, last)]
    y, keys, values = attend_cached(unread[0], unread[1], unread[2], unread[3])
    assert (y.shape, keys.shape, values.shape) == ((3, 1, 8), (3, 2, 12, 4), (3, 2, 12, 4))


def test_join_phases_is_a_sound_operator() -> None:
    torch.library.opcheck(torch.ops.musicrt.join_phases.default, ([torch.randn(2, 3, 4, 5) for _ in range(4)], 2))


def test_cached_attention_is_a_sound_operator() -> None:
    feeds = (make_attention(2, 3, 8)[0], *torch.zeros(2, 2, 2, 8, 4), place(4, 2))
    torch.library.opcheck(torch.ops.musicrt.cached_attention.default, feeds)
    functional = torch.ops.musicrt.cached_attention(*feeds)
    assert not feeds[1].any(), "changed its input"
    for one, in_place in zip(functional, attend_cached(*feeds), strict=True):
        torch.testing.assert_close(one, in_place)


@pytest.mark.parametrize("rates", [(2, 2), (4, 1), (3, 3), (2, 1), (1, 1)])
@pytest.mark.parametrize("kernel", [(1, 1), (3, 3), (5, 3)])
@pytest.mark.parametrize("shape", [(1, 3, 4, 6), (2, 5, 1, 1)])
def test_upsampling_is_that_of_torch(rates: tuple[int, int], kernel: tuple[int, int], shape: tuple[int, ...]) -> None:
    convolution = nn.Conv2d(shape[1], 7, kernel, padding=(kernel[0] // 2, kernel[1] // 2)).requires_grad_(False)
    x = torch.randn(shape)
    expected = convolution(F.interpolate(x, scale_factor=(float(rates[0]), float(rates[1])), mode="nearest"))
    assert_close(PhaseUpsample(convolution, rates)(x), expected)


def test_upsampling_multiplies_less() -> None:
    """Of nine taps four are left for each output, of three two."""
    for rates, expected in (((2, 2), [(2, 2)] * 4), ((4, 1), [(2, 3), (1, 3), (1, 3), (2, 3)])):
        layer = PhaseUpsample(nn.Conv2d(3, 7, 3, padding=1), rates)
        assert [tuple(weight.shape[2:]) for weight in layer.weights] == expected


def test_layer_without_bias_is_refused() -> None:
    with pytest.raises(TypeError, match="no bias"):
        bias_of(nn.Conv2d(1, 1, 1, bias=False))


@pytest.mark.parametrize(("kernel", "rate", "padding"), [(12, 6, 3), (10, 5, 2), (16, 5, 5), (4, 2, 1), (3, 2, 0), (2, 3, 0)])
@pytest.mark.parametrize("length", [1, 7])
def test_phases_of_a_transposed_convolution(kernel: int, rate: int, padding: int, length: int) -> None:
    layer = nn.ConvTranspose1d(6, 4, kernel, stride=rate, padding=padding)
    x = torch.randn(2, 6, length)
    expected = F.conv_transpose1d(x.double(), layer.weight.double(), bias_of(layer).double(), rate, padding)
    assert_close(PhaseTranspose(layer)(x), expected.float())


def test_transposed_convolution_is_cut_unevenly() -> None:
    layer = nn.ConvTranspose1d(6, 4, 10, stride=5)
    x = torch.randn(2, 6, 7)
    assert_close(PhaseTranspose(layer, cut=(3, 2))(x), layer(x)[:, :, 3:-2])


def test_wide_transposed_convolution_is_right() -> None:
    """As wide as this, torch's own is off by some percent on some CPUs."""
    layer = nn.ConvTranspose1d(768, 384, 10, stride=5, padding=2)
    x = torch.randn(2, 768, 40)
    expected = F.conv_transpose1d(x.double(), layer.weight.double(), bias_of(layer).double(), 5, 2)
    assert_close(PhaseTranspose(layer)(x), expected.float())
