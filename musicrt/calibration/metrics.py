"""Distances of audio, and whether melody and rhythm are the same; in NumPy, mono float arrays at one rate."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.signal import find_peaks, stft

Audio = NDArray[Any]
MELS = 80
TOLERANCE = 0.05
"""Seconds within which two onsets are one."""


def magnitudes(audio: Audio, size: int, hop: int) -> NDArray[np.float32]:
    """Magnitudes under a Hann window, [size / 2 + 1, frames]; a full-scale sine has a peak of about 1."""
    _, _, spectrum = stft(audio, nperseg=size, noverlap=size - hop, boundary="even", padded=True)
    magnitude: NDArray[np.float32] = (2.0 * np.abs(spectrum)).astype(np.float32)
    return magnitude


def mel_filters(rate: int, size: int, bands: int, low: float = 30.0, high: float | None = None) -> NDArray[np.float64]:
    """Triangles on the mel scale, each of area one: [bands, size / 2 + 1]."""
    edges = 700.0 * (10 ** (np.linspace(_mel(low), _mel(high or rate / 2), bands + 2) / 2595.0) - 1.0)
    bins = np.arange(size // 2 + 1) * rate / size
    rise = (bins - edges[:-2, None]) / np.diff(edges)[:-1, None]
    fall = (edges[2:, None] - bins) / np.diff(edges)[1:, None]
    filters: NDArray[np.float64] = np.maximum(0.0, np.minimum(rise, fall))
    # Bands narrower than a bin take the bin nearest to their middle.
    empty = filters.sum(1) < 1e-3
    filters[empty, np.round(edges[1:-1][empty] * size / rate).astype(int)] = 1.0
    filters /= filters.sum(1, keepdims=True)
    return filters


def _mel(frequency: float) -> float:
    return float(2595.0 * np.log10(1.0 + frequency / 700.0))


def log_mel(audio: Audio, rate: int) -> NDArray[np.float64]:
    """Levels of mel bands in dB of full scale, not below -80: [MELS, frames]."""
    power = mel_filters(rate, 2048, MELS) @ magnitudes(audio, 2048, 512) ** 2
    levels: NDArray[np.float64] = 10.0 * np.log10(np.maximum(power, 1e-8))
    return levels


def mel_distance(truth: Audio, guess: Audio, rate: int) -> float:
    """Mean distance of the levels in dB."""
    return float(np.abs(log_mel(truth, rate) - log_mel(guess, rate)).mean())


def stft_distance(truth: Audio, guess: Audio) -> float:
    """Spectral convergence plus the mean distance of natural logarithms (not below -80 dB), over windows of 512, 1024 and 2048."""
    total = 0.0
    for size in (512, 1024, 2048):
        theirs, ours = magnitudes(truth, size, size // 4), magnitudes(guess, size, size // 4)
        convergence = np.linalg.norm(theirs - ours) / max(float(np.linalg.norm(theirs)), 1e-6)
        total += float(convergence + np.abs(np.log(np.maximum(theirs, 1e-4)) - np.log(np.maximum(ours, 1e-4))).mean())
    return total / 3.0


def signal_to_noise(truth: Audio, guess: Audio) -> float:
    """Of waveforms, in dB: 0 is what silence has."""
    noise = float(((truth - guess) ** 2).sum())
    return float(10.0 * np.log10(max(float((truth**2).sum()), 1e-12) / max(noise, 1e-12)))


def pitches(audio: Audio, rate: int, *, low: float = 60.0, high: float = 1200.0) -> NDArray[np.float64]:
    """Pitch in semitones of every frame of 10 ms, by YIN's normalised difference; NaN where there is none."""
    hop, size, longest = rate // 100, round(0.046 * rate), int(rate / low)
    frames = np.lib.stride_tricks.sliding_window_view(np.pad(audio, (0, size + longest)), size + longest)[: len(audio) : hop]
    length = 1 << (size + longest + size - 1).bit_length()
    energy = np.cumsum(np.pad(frames.astype(np.float64) ** 2, ((0, 0), (1, 0))), axis=1)
    heads = np.fft.rfft(frames[:, :size], length)
    products = np.fft.irfft(np.fft.rfft(frames, length) * heads.conj(), length)[:, :longest]
    lags = np.arange(longest)
    difference = np.maximum(energy[:, size : size + 1] + energy[:, size + lags] - energy[:, lags] - 2 * products, 0.0)
    mean = np.cumsum(difference[:, 1:], axis=1) / lags[1:]
    normal = np.concatenate([np.ones((len(frames), 1)), difference[:, 1:] / np.maximum(mean, 1e-12)], axis=1)
    found = np.full(len(frames), np.nan)
    loud = energy[:, size] / size
    shortest = int(rate / high)
    for index in np.flatnonzero(loud > max(1e-6, 1e-3 * loud.max())):
        dips, _ = find_peaks(-normal[index, shortest - 1 :])
        dips = dips[normal[index, shortest - 1 + dips] < 0.25]
        if len(dips):
            found[index] = 69.0 + 12.0 * np.log2(rate / _vertex(normal[index], shortest - 1 + int(dips[0])) / 440.0)
    return found


def _vertex(values: NDArray[np.float64], place: int) -> float:
    """The lowest place of the parabola through three neighbours."""
    before, here, after = values[place - 1 : place + 2] if place + 1 < len(values) else (0.0, 0.0, 0.0)
    bend = before - 2 * here + after
    return place + (0.5 * (before - after) / bend if bend > 0 else 0.0)


def pitch_agreement(truth: Audio, guess: Audio, rate: int) -> float:
    """Of the frames in which the truth has a pitch, the share in which the guess has it within half a semitone, octaves aside."""
    ours, theirs = pitches(guess, rate), pitches(truth, rate)
    voiced = ~np.isnan(theirs)
    apart = (ours[voiced] - theirs[voiced] + 6.0) % 12.0 - 6.0
    return float((np.abs(apart) <= 0.5).sum() / max(int(voiced.sum()), 1))


def chroma(audio: Audio, rate: int) -> NDArray[np.float64]:
    """Energy of the twelve pitch classes from 110 Hz to 4 kHz, each frame of length one: [12, frames]."""
    size = 8192
    spectrum = magnitudes(audio, size, 2048)
    bins = np.arange(1, size // 2 + 1) * rate / size
    kept = np.flatnonzero((bins > 110.0) & (bins < 4000.0))
    classes = np.round(69 + 12 * np.log2(bins[kept] / 440.0)).astype(int) % 12
    sums = np.stack([spectrum[1 + kept[classes == one]].sum(0) for one in range(12)]).astype(np.float64)
    sums -= sums.mean(0)
    sums /= np.maximum(np.linalg.norm(sums, axis=0), 1e-9)
    return sums


def chroma_agreement(truth: Audio, guess: Audio, rate: int) -> float:
    """Mean correlation of the pitch classes, frame by frame, where the truth is not silent."""
    ours, theirs = chroma(guess, rate), chroma(truth, rate)
    loud = np.linalg.norm(theirs, axis=0) > 0.5
    return float((ours * theirs).sum(0)[loud].mean()) if loud.any() else 0.0


def onsets(audio: Audio, rate: int) -> NDArray[np.float64]:
    """Seconds at which the level of mel bands jumps up."""
    hop = 441
    levels = np.log(mel_filters(rate, 1024, 40) @ magnitudes(audio, 1024, hop) + 1e-3)
    flux = np.maximum(levels[:, 2:] - levels[:, :-2], 0.0).mean(0)
    flux = np.pad(flux[:-4], (1, 5))  # the end of a sound is no onset
    if flux.max() < 1e-3:
        return np.zeros(0)
    least = max(0.12 * float(flux.max()), 1.5 * float(np.median(flux)))
    peaks, _ = find_peaks(flux, height=least, distance=5, prominence=0.08 * float(flux.max()))
    return np.asarray(peaks * hop / rate, np.float64)


def onset_agreement(truth: Audio, guess: Audio, rate: int) -> float:
    """F-measure of the onsets of the guess against those of the truth."""
    theirs, ours = list(onsets(truth, rate)), list(onsets(guess, rate))
    if not theirs or not ours:
        return float(not theirs and not ours)
    left, hits = list(ours), 0
    for onset in theirs:
        nearest = min(left, key=lambda other: abs(other - onset), default=np.inf)
        if abs(nearest - onset) <= TOLERANCE:
            hits += 1
            left.remove(nearest)
    return 2.0 * hits / (len(theirs) + len(ours))


def compare(truth: Audio, guess: Audio, rate: int) -> dict[str, float]:
    """All of it, by name."""
    return {
        "log-mel dB": mel_distance(truth, guess, rate),
        "STFT": stft_distance(truth, guess),
        "SNR dB": signal_to_noise(truth, guess),
        "pitch": pitch_agreement(truth, guess, rate),
        "chroma": chroma_agreement(truth, guess, rate),
        "onsets": onset_agreement(truth, guess, rate),
    }
