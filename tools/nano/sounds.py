"""What is not music: noises, sweeps, clicks, and a voice that says nothing; mono at 44.1 kHz."""

from __future__ import annotations

import numpy as np
from scipy.signal import butter, lfilter, sosfilt

from tools.nano.tones import RATE, Audio, normalise

VOWELS = ((730, 1090, 2440), (270, 2290, 3010), (300, 870, 2240), (530, 1840, 2480), (570, 840, 2410), (440, 1020, 2240))
"""The first three formants, in Hz."""


def make_noise(seed: int, seconds: float) -> Audio:
    """Bursts of coloured noise, sweeps and clicks: float32 [seconds * RATE]."""
    rng = np.random.default_rng((10, seed))
    audio = np.zeros(round(seconds * RATE))
    at = 0
    while at < len(audio):
        size = min(int(rng.uniform(0.1, 1.2) * RATE), len(audio) - at)
        time = np.arange(size) / RATE
        match int(rng.integers(5)):
            case 0:
                sound = lfilter([1.0], [1.0, -rng.uniform(0.0, 0.98)], rng.standard_normal(size))
            case 1:
                low = np.exp(rng.uniform(np.log(100), np.log(8000)))
                sound = sosfilt(butter(2, (low, min(low * 1.6, 20000)), "bandpass", fs=RATE, output="sos"), rng.standard_normal(size))
            case 2:
                start, end = np.exp(rng.uniform(np.log(80), np.log(6000), 2))
                sound = np.sin(2 * np.pi * np.cumsum(start * (end / start) ** (time / max(time[-1], 1e-3))) / RATE)
            case 3:
                sound = (rng.random(size) < 0.0004) * rng.standard_normal(size)
            case _:
                sound = np.zeros(size)
        fade = np.minimum(1.0, np.minimum(time, time[::-1]) / 0.005) * np.exp(-rng.uniform(0, 4) * time)
        audio[at : at + size] = rng.uniform(0.1, 1.0) * sound / (np.abs(sound).max() + 1e-9) * fade
        at += size + int(rng.uniform(0, 0.2) * RATE)
    return normalise(audio.astype(np.float32))


def speak(seed: int, seconds: float) -> Audio:
    """Pulses through formants that change, with hisses and pauses between: float32 [seconds * RATE]."""
    rng = np.random.default_rng((11, seed))
    audio = np.zeros(round(seconds * RATE))
    pitch, at = rng.uniform(90, 240), 0
    while at < len(audio):
        size = min(int(rng.uniform(0.08, 0.3) * RATE), len(audio) - at)
        time = np.arange(size) / RATE
        kind = rng.random()
        if kind < 0.65:
            glide = pitch * (1 + rng.uniform(-0.15, 0.15) + rng.uniform(-0.5, 0.5) * time)
            phase = np.cumsum(glide) / RATE
            sound = np.diff(np.floor(phase), prepend=0.0) + 0.01 * rng.standard_normal(size)
            sound = lfilter([1.0], [1.0, -0.95], sound)
            for formant in VOWELS[rng.integers(len(VOWELS))]:
                radius, angle = np.exp(-np.pi * 90 / RATE), 2 * np.pi * formant / RATE
                resonance = [1.0, -2 * radius * np.cos(angle), radius**2]
                sound = 0.5 * sound + lfilter([sum(resonance)], resonance, sound)
        elif kind < 0.85:
            band = butter(2, (rng.uniform(1500, 4000), rng.uniform(5000, 12000)), "bandpass", fs=RATE, output="sos")
            sound = 0.3 * sosfilt(band, rng.standard_normal(size))
        else:
            sound = np.zeros(size)
        fade = np.minimum(1.0, np.minimum(time, time[::-1]) / 0.015)
        audio[at : at + size] = sound / max(np.abs(sound).max(), 1e-9) * fade * (1.0 if kind < 0.65 else 0.25)
        at += size
    return normalise(audio.astype(np.float32))
