"""Synthesise a few bars of music, send them through the embedded bundle, write the result and a picture of both."""

from __future__ import annotations

import importlib.util
import time
from pathlib import Path

import matplotlib
import numpy as np
from numpy.typing import NDArray

import musicrt
from musicrt.runtime.audio_writer import write_audio

matplotlib.use("Agg")
from matplotlib import pyplot

CHORDS = ((57, 60, 64), (53, 57, 60), (60, 64, 67), (55, 59, 62))
MELODY = (76, 74, 72, 74, 77, 76, 72, 69, 76, 79, 77, 76, 74, 71, 74, 79)
BEAT = 0.4


def main() -> None:
    started = time.perf_counter()
    with musicrt.load() as codec:
        rate = codec.sample_rate
        music = synthesise(rate)
        loaded = time.perf_counter()
        latents = codec.encode(music)
        encoded = time.perf_counter()
        decoded = codec.decode(latents, seed=7)
        finished = time.perf_counter()
        seconds = music.shape[1] / rate
        print(f"ran on          {codec.backend}")
        for name, reason in codec.backend.reasons.items():
            print(f"  not on        {name}: {reason}")
        print(f"torch           {'installed, not used' if importlib.util.find_spec('torch') else 'not installed, not needed'}")
        print(f"music           {seconds:.1f} s, {music.shape[0]} channels, {rate} Hz")
        print(f"latents         {list(latents.shape)}, {latents.nbytes / music.nbytes:.1%} of the samples' size")
        print(f"load            {loaded - started:.2f} s")
        print(f"encode          {encoded - loaded:.2f} s ({(encoded - loaded) / seconds:.2f} of real time)")
        print(f"decode, 1 step  {finished - encoded:.2f} s ({(finished - encoded) / seconds:.2f} of real time)")
    write_audio("input.wav", music, rate)
    write_audio("output.wav", decoded, rate)
    draw(music, decoded, rate, Path("spectrograms.png"))
    print("wrote           .demo/input.wav, .demo/output.wav, .demo/spectrograms.png")
    print("note            the embedded bundle is small and carries stand-in weights that were never trained: it shows that everything")
    print("                runs, and output.wav is not music. Export an official checkpoint to hear the codec (see README.md).")


def synthesise(rate: int) -> NDArray[np.float32]:
    """Four bars of chords and a melody over them: float32 [2, samples]."""
    beats = len(MELODY)
    audio = np.zeros((2, int(beats * BEAT * rate)))
    for index, pitch in enumerate(MELODY):
        _play(audio, pitch, index * BEAT, 1.5 * BEAT, 0.22, pan=0.35, rate=rate)
    for bar, chord in enumerate(CHORDS):
        for voice, pitch in enumerate((chord[0] - 12, *chord)):
            _play(audio, pitch, bar * 4 * BEAT, 4 * BEAT, 0.12, pan=0.3 + 0.15 * voice, rate=rate)
    return (0.8 * audio / np.abs(audio).max()).astype(np.float32)


def _play(audio: NDArray[np.float64], pitch: int, start: float, length: float, level: float, *, pan: float, rate: int) -> None:
    """Add one plucked note, eight harmonics that decay the faster the higher they are."""
    first = int(start * rate)
    time_axis = np.arange(min(int(length * rate), audio.shape[1] - first)) / rate
    frequency = 440.0 * 2.0 ** ((pitch - 69) / 12.0)
    harmonics = np.arange(1, 9)[:, None]
    note = (np.sin(2 * np.pi * frequency * harmonics * time_axis) * np.exp(-(1.5 + harmonics) * time_axis) / harmonics).sum(0)
    note *= level * np.minimum(time_axis / 0.005, 1.0) * np.minimum((time_axis[-1] - time_axis) / 0.02, 1.0)
    audio[:, first : first + len(note)] += np.outer([1.0 - pan, pan], note)


def draw(before: NDArray[np.float32], after: NDArray[np.float32], rate: int, path: Path) -> None:
    """Spectrograms of input and output, first channel."""
    figure, axes = pyplot.subplots(2, 1, figsize=(9, 6), sharex=True, layout="constrained")
    for axis, audio, title in zip(axes, (before, after), ("input", "output of the embedded bundle (stand-in weights)"), strict=True):
        axis.specgram(audio[0] + 1e-9, NFFT=1024, Fs=rate, noverlap=768, vmin=-140, vmax=-40)
        axis.set(title=title, ylabel="Hz", ylim=(0, 8000))
    axes[-1].set_xlabel("s")
    figure.savefig(path, dpi=100)


if __name__ == "__main__":
    main()
