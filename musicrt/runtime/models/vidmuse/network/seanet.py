"""Encoder and decoder of EnCodec under the keys of the hub, weight norms folded (SPEC section 9)."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor, nn

from musicrt.runtime.layers import Lstm, PhaseTranspose
from musicrt.runtime.models.vidmuse.config import CodecConfig
from musicrt.runtime.models.vidmuse.network.padding import EndPadding


class PaddedConv(nn.Module):
    """A convolution of which every step of the signal gives a value."""

    def __init__(self, inputs: int, outputs: int, kernel: int, mode: str, stride: int = 1) -> None:
        super().__init__()
        self.padding = EndPadding(kernel, stride, mode)
        self.conv = nn.Conv1d(inputs, outputs, kernel, stride=stride)

    def forward(self, x: Tensor) -> Tensor:
        """x: float32 [B, C, n] -> [B, C', ceil(n / stride)]."""
        return self.conv(self.padding(x))


class Upsampling(nn.Module):
    """A transposed convolution whose ends are cut, so that each value gives `rate`."""

    def __init__(self, inputs: int, outputs: int, rate: int) -> None:
        super().__init__()
        self.rate = rate
        self.conv: nn.Module = nn.ConvTranspose1d(inputs, outputs, 2 * rate, stride=rate)

    def forward(self, x: Tensor) -> Tensor:
        """x: float32 [B, C, n] -> [B, C', n * rate]."""
        y = self.conv(x)
        cut = self._cut()
        return y if isinstance(self.conv, PhaseTranspose) else y[:, :, cut[0] : y.shape[2] - cut[1]]

    def fold(self) -> None:
        """Make a plain convolution of the transposed one."""
        if isinstance(self.conv, nn.ConvTranspose1d):
            self.conv = PhaseTranspose(self.conv, self._cut())

    def _cut(self) -> tuple[int, int]:
        return self.rate - self.rate // 2, self.rate // 2


class ResidualBlock(nn.Module):
    """A convolution to half the channels and back, around which the signal goes."""

    def __init__(self, channels: int, mode: str) -> None:
        super().__init__()
        hidden = channels // 2
        self.block = nn.ModuleList([nn.ELU(), PaddedConv(channels, hidden, 3, mode), nn.ELU(), PaddedConv(hidden, channels, 1, mode)])

    def forward(self, x: Tensor) -> Tensor:
        """x: float32 [B, C, n] -> the same shape."""
        return x + run_layers(self.block, x)


class Recurrence(nn.Module):
    """LSTM layers around which the signal goes."""

    def __init__(self, channels: int, count: int) -> None:
        super().__init__()
        self.lstm = nn.LSTM(channels, channels, count)

    def folded(self) -> list[Lstm]:
        """The layers as they are exported."""
        return [Lstm.from_torch(self.lstm, index) for index in range(self.lstm.num_layers)]


class Encoder(nn.Module):
    """Waveform -> embeddings, one layer after the other."""

    def __init__(self, config: CodecConfig) -> None:
        super().__init__()
        mode, width = config.pad_mode, config.num_filters
        layers: list[nn.Module] = [PaddedConv(1, width, config.kernel_size, mode)]
        for rate in reversed(config.upsampling_ratios):
            layers += [ResidualBlock(width, mode), nn.ELU(), PaddedConv(width, 2 * width, 2 * rate, mode, stride=rate)]
            width *= 2
        layers += [Recurrence(width, config.num_lstm_layers), nn.ELU()]
        self.layers = nn.ModuleList([*layers, PaddedConv(width, config.hidden_size, config.last_kernel_size, mode)])

    def parts(self) -> tuple[list[nn.Module], Recurrence, list[nn.Module]]:
        """The layers before the LSTM, that, and those behind it."""
        return _cut(self.layers)


class Decoder(nn.Module):
    """Latents -> waveform, one layer after the other."""

    def __init__(self, config: CodecConfig) -> None:
        super().__init__()
        mode, width = config.pad_mode, config.num_filters << len(config.upsampling_ratios)
        layers: list[nn.Module] = [
            PaddedConv(config.hidden_size, width, config.kernel_size, mode),
            Recurrence(width, config.num_lstm_layers),
        ]
        for rate in config.upsampling_ratios:
            width //= 2
            layers += [nn.ELU(), Upsampling(2 * width, width, rate), ResidualBlock(width, mode)]
        layers += [nn.ELU(), PaddedConv(width, 1, config.last_kernel_size, mode)]
        self.layers = nn.ModuleList(layers)

    def parts(self) -> tuple[list[nn.Module], Recurrence, list[nn.Module]]:
        """The layers before the LSTM, that, and those behind it."""
        return _cut(self.layers)

    def fold(self) -> None:
        """Make plain convolutions of the transposed ones."""
        for layer in self.layers:
            if isinstance(layer, Upsampling):
                layer.fold()


def _cut(layers: Iterable[nn.Module]) -> tuple[list[nn.Module], Recurrence, list[nn.Module]]:
    listed = list(layers)
    place, recurrence = next((index, layer) for index, layer in enumerate(listed) if isinstance(layer, Recurrence))
    return listed[:place], recurrence, listed[place + 1 :]


def run_layers(layers: Iterable[nn.Module], x: Tensor) -> Tensor:
    """One layer after the other."""
    for layer in layers:
        x = layer(x)
    return x
