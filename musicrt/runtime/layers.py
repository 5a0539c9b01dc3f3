"""Layers in the form in which they are exported, for any system (needs torch)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class PhaseUpsample(nn.Module):
    """Nearest-neighbour upsampling + convolution as one small convolution per output phase.

    Output position r*i + a sees the inputs floor((r*i + a + u) / r) for every tap u: two different ones at most, so taps
    that meet the same input are added up beforehand (9 products -> 4, or 5 -> 2).
    """

    def __init__(self, convolution: nn.Conv2d, rates: tuple[int, int]) -> None:
        """`convolution`: the one that follows the upsampling by `rates`, padded to keep the size.

        rates: of the last two axes, two equal ones or the second one 1. Raises ValueError for others.
        """
        super().__init__()
        if rates[1] not in (1, rates[0]):
            raise ValueError(f"got rates {rates}, expected two equal ones or the second one 1")
        self.rates = rates
        self.bias = nn.Parameter(bias_of(convolution))
        self.weights = nn.ParameterList()
        self.padding: list[tuple[int, int, int, int]] = []
        for a in range(rates[0]):
            rows, row_padding = _fold_taps(convolution.weight.data, 2, a, rates[0])
            for b in range(rates[1]):
                taps, column_padding = _fold_taps(rows, 3, b, rates[1])
                self.weights.append(nn.Parameter(taps))
                self.padding.append((*column_padding, *row_padding))

    def forward(self, x: Tensor) -> Tensor:
        """x: float32 [B, C, f, t] -> [B, C', f * rates[0], t * rates[1]]."""
        phases = [F.conv2d(F.pad(x, pad), weight, self.bias) for weight, pad in zip(self.weights, self.padding, strict=True)]
        if self.rates[0] == self.rates[1]:
            join = torch.ops.musicrt.join_phases if torch.compiler.is_exporting() else _interleave
            joined: Tensor = join(phases, self.rates[0])
            return joined
        return torch.stack(phases, 3).flatten(2, 3)


def _interleave(phases: list[Tensor], rate: int) -> Tensor:
    return F.pixel_shuffle(torch.stack(phases, 2).flatten(1, 2), rate)


@torch.library.custom_op("musicrt::join_phases", mutates_args=())
def _join_phases(phases: list[Tensor], rate: int) -> Tensor:
    """An operator of its own: exported, the phases lie one behind the other, each with its channels, as convolutions give them."""
    return _interleave(phases, rate)


@_join_phases.register_fake
def _(phases: list[Tensor], rate: int) -> Tensor:
    first = phases[0]
    return first.new_empty(*first.shape[:2], first.shape[2] * rate, first.shape[3] * rate)


def _fold_taps(weight: Tensor, axis: int, phase: int, rate: int) -> tuple[Tensor, tuple[int, int]]:
    """Add up the taps of one axis that fall on the same input; the zero padding (before, after) that goes with them."""
    size = weight.shape[axis]
    if rate == 1:
        return weight, (size // 2, size // 2)
    offsets = [(phase + tap - size // 2) // rate for tap in range(size)]
    first, last = offsets[0], offsets[-1]
    sums = [
        weight.index_select(axis, torch.tensor([tap for tap in range(size) if offsets[tap] == offset], device=weight.device)).sum(axis)
        for offset in range(first, last + 1)
    ]
    return torch.stack(sums, axis), (-first, last)


class PhaseTranspose(nn.Module):
    """A transposed convolution as one convolution that gives all output phases.

    Position r*i + a of the result, before its ends are cut, sees the inputs i, i - 1, …, one for each r taps of the kernel. Besides,
    torch 2.13 gets transposed convolutions wrong on some CPUs (oneDNN; kernel 10, stride 5, padding 2: up to 5 % off, not always).
    """

    def __init__(self, layer: nn.ConvTranspose1d, cut: tuple[int, int] | None = None) -> None:
        """`layer`: one group, not dilated. `cut`: from the beginning and the end of the whole result; by default the layer's padding."""
        super().__init__()
        self.rate, self.kernel = layer.stride[0], layer.kernel_size[0]
        self.cut = (int(layer.padding[0]), int(layer.padding[0])) if cut is None else cut
        taps = -(-self.kernel // self.rate)
        whole = F.pad(layer.weight.data, (0, taps * self.rate - self.kernel))
        phases = whole.reshape(*whole.shape[:2], taps, self.rate).flip(2).permute(1, 3, 0, 2)
        self.weight = nn.Parameter(phases.flatten(0, 1).contiguous())
        self.bias = nn.Parameter(bias_of(layer).repeat_interleave(self.rate))
        self.padding = taps - 1

    def forward(self, x: Tensor) -> Tensor:
        """x: float32 [B, C, n] -> [B, C', (n - 1) * rate + kernel - what is cut]."""
        phases = F.conv1d(x, self.weight, self.bias, padding=self.padding)
        y = phases.reshape(x.shape[0], -1, self.rate, x.shape[2] + self.padding).transpose(2, 3).flatten(2)
        return y[:, :, self.cut[0] : (x.shape[2] - 1) * self.rate + self.kernel - self.cut[1]]


def bias_of(layer: nn.Conv1d | nn.Conv2d | nn.ConvTranspose1d) -> Tensor:
    """The bias of a layer that has one."""
    if layer.bias is None:
        raise TypeError(f"{layer} has no bias")
    return layer.bias.data


class Lstm(nn.Module):
    """One LSTM layer, its weights in ONNX's order (gates i, o, f, c; forward, then, where it is bidirectional, backward).

    input_weight [D, 4H, I], recurrent_weight [D, 4H, H], bias [D, 8H]: that of the input, then that of the state.
    """

    def __init__(self, inputs: int, hidden: int, directions: int = 2) -> None:
        super().__init__()
        self.input_weight = nn.Parameter(torch.empty(directions, 4 * hidden, inputs))
        self.recurrent_weight = nn.Parameter(torch.empty(directions, 4 * hidden, hidden))
        self.bias = nn.Parameter(torch.empty(directions, 8 * hidden))

    @classmethod
    def from_torch(cls, layer: nn.LSTM, index: int) -> Lstm:
        """Layer `index` of an `nn.LSTM`."""
        names = [f"l{index}{direction}" for direction in ("", "_reverse")[: 1 + layer.bidirectional]]
        inputs = getattr(layer, f"weight_ih_{names[0]}").shape[1]

        def gather(name: str) -> list[Tensor]:
            return [_reorder_gates(getattr(layer, f"{name}_{suffix}").data) for suffix in names]

        with torch.device("meta"):
            made = cls(inputs, layer.hidden_size, len(names))
        made.input_weight = nn.Parameter(torch.stack(gather("weight_ih")))
        made.recurrent_weight = nn.Parameter(torch.stack(gather("weight_hh")))
        made.bias = nn.Parameter(torch.cat([torch.stack(gather("bias_ih")), torch.stack(gather("bias_hh"))], dim=1))
        return made

    def forward(self, x: Tensor) -> Tensor:
        """x: float32 [B, T, I] -> [B, T, D * H], forward states first. The initial state is zero."""
        y: Tensor = torch.ops.musicrt.lstm(x, self.input_weight, self.recurrent_weight, self.bias, None, None)[0]
        return y

    def go_on(self, x: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The same from a state h, c [B, H] of a layer of one direction: -> y [B, T, H], and the state behind it."""
        y, h, c = torch.ops.musicrt.lstm(x, self.input_weight, self.recurrent_weight, self.bias, h[None], c[None])
        return y, h[0], c[0]


def _reorder_gates(weight: Tensor) -> Tensor:
    """Torch's order i, f, g, o -> ONNX's i, o, f, c."""
    i, f, g, o = weight.chunk(4)
    return torch.cat([i, o, f, g])


@torch.library.custom_op("musicrt::lstm", mutates_args=())
def _lstm(
    x: Tensor, input_weight: Tensor, recurrent_weight: Tensor, bias: Tensor, initial_h: Tensor | None, initial_c: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """An operator of its own, because torch's LSTM would be exported with code that reorders gigabytes of weights at each start.

    A step of a large layer is one product with the recurrent weights, which come from memory; the loop around it costs nothing.
    """
    directions, _, hidden = recurrent_weight.shape
    result = x.new_empty(x.shape[0], x.shape[1], directions * hidden)
    last: list[tuple[Tensor, Tensor]] = []
    for direction in range(directions):
        total = F.linear(x, input_weight[direction], bias[direction].view(2, -1).sum(0)).transpose(0, 1).contiguous()
        recurrent = recurrent_weight[direction].t()
        h, c = (x.new_zeros(x.shape[0], hidden) if state is None else state[direction] for state in (initial_h, initial_c))
        steps = range(x.shape[1])
        for step in reversed(steps) if direction else steps:
            i, o, f, candidate = torch.addmm(total[step], h, recurrent).chunk(4, dim=1)
            c = f.sigmoid() * c + i.sigmoid() * candidate.tanh()
            h = o.sigmoid() * c.tanh()
            result[:, step, direction * hidden : (direction + 1) * hidden] = h
        last.append((h.clone(), c.clone()))
    return result, torch.stack([h for h, _ in last]), torch.stack([c for _, c in last])


@_lstm.register_fake
def _(
    x: Tensor, input_weight: Tensor, recurrent_weight: Tensor, bias: Tensor, initial_h: Tensor | None, initial_c: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    del input_weight, bias, initial_h, initial_c
    directions, _, hidden = recurrent_weight.shape
    state = (directions, x.shape[0], hidden)
    return x.new_empty(x.shape[0], x.shape[1], directions * hidden), x.new_empty(state), x.new_empty(state)


def attend_cached(projected: Tensor, keys: Tensor, values: Tensor, last: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Causal self-attention of S new positions behind those in a cache of fixed size: -> result [N, S, H * W], and the caches.

    projected: float32 [N, S, 3 * H * W], queries, keys and values of the new positions. keys, values: [N, H, capacity, W]. last: int32
    [N], the place of the last new position, the same for all; what is new is written up to there, in place. A graph can't do that: in
    export the caches that are given back are new tensors. Not on a CPU, what lies behind has to be finite.
    """
    if torch.compiler.is_exporting():
        y, keys, values = torch.ops.musicrt.cached_attention(projected, keys, values, last)
        return y, keys, values
    if projected.device.type == "cpu":
        return _attend_in_place(projected, keys, values, int(last[0]) + 1), keys, values
    return attend_masked(projected, keys, values, last), keys, values


def attend_masked(projected: Tensor, keys: Tensor, values: Tensor, last: Tensor) -> Tensor:
    """What `attend_cached` does where the host is not to wait for the place: it looks at the whole cache, so a CUDA graph can record it."""
    query, key, value = projected.reshape(*projected.shape[:2], 3, keys.shape[1], keys.shape[3]).permute(2, 0, 3, 1, 4)
    places = torch.arange(1 - projected.shape[1], 1, device=last.device) + last[:1]
    keys.index_copy_(2, places, key)
    values.index_copy_(2, places, value)
    mask = torch.arange(keys.shape[2], device=last.device) <= places[:, None]
    return F.scaled_dot_product_attention(query, keys, values, attn_mask=mask).transpose(1, 2).flatten(2)


def _attend_in_place(projected: Tensor, keys: Tensor, values: Tensor, stop: int) -> Tensor:
    query, key, value = projected.reshape(*projected.shape[:2], 3, keys.shape[1], keys.shape[3]).permute(2, 0, 3, 1, 4)
    start = stop - projected.shape[1]
    keys[:, :, start:stop], values[:, :, start:stop] = key, value
    mask = None if stop - start == 1 else torch.ones(stop - start, stop, dtype=torch.bool, device=query.device).tril(start)
    return F.scaled_dot_product_attention(query, keys[:, :, :stop], values[:, :, :stop], attn_mask=mask).transpose(1, 2).flatten(2)


@torch.library.custom_op("musicrt::cached_attention", mutates_args=())
def _cached_attention(projected: Tensor, keys: Tensor, values: Tensor, last: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    keys, values = keys.clone(), values.clone()
    return _attend_in_place(projected, keys, values, int(last[0]) + 1), keys, values


@_cached_attention.register_fake
def _(projected: Tensor, keys: Tensor, values: Tensor, last: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    del last
    result = projected.new_empty(*projected.shape[:2], keys.shape[1] * keys.shape[3])
    return result, torch.empty_like(keys), torch.empty_like(values)
