"""Synthesise a few bars of music, send them through the embedded nano codec, write the result and a picture, say how much was kept."""

from __future__ import annotations

import importlib.util
import time
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

import musicrt
from musicrt.calibration.metrics import compare
from musicrt.calibration.pictures import draw_spectrograms, pictures_obstacle
from musicrt.runtime.audio_writer import write_audio

CHORDS = ((57, 60, 64), (53, 57, 60), (60, 64, 67), (55, 59, 62))
MELODY = (76, 74, 72, 74, 77, 76, 72, 69, 76, 79, 77, 76, 74, 71, 74, 79)
BEAT = 0.4


def main() -> None:
    started = time.perf_counter()
    with musicrt.load() as codec:
        rate = codec.sample_rate
        music = synthesise(rate)
        loaded = time.perf_counter()
        latents = codec.encode(music, tail="pad")
        encoded = time.perf_counter()
        decoded = codec.decode(latents, seed=7)[:, : music.shape[1]]
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
    kept = compare(music.mean(0), decoded.mean(0), rate)
    print(f"melody          the same pitch in {kept['pitch']:.0%} of the time, pitch classes correlate by {kept['chroma']:.2f}")
    print(f"rhythm          onsets agree by {kept['onsets']:.2f} (F-measure within 50 ms)")
    print(f"spectrum        mel bands are {kept['log-mel dB']:.1f} dB apart; signal to noise {kept['SNR dB']:.1f} dB")
    write_audio("input.wav", music, rate)
    write_audio("output.wav", decoded, rate)
    written = [".demo/input.wav", ".demo/output.wav"]
    if pictures_obstacle() is None:
        draw_spectrograms(Path("spectrograms.png"), {"input": music[0], "output of the embedded nano codec": decoded[0]}, rate, "")
        written.append(".demo/spectrograms.png")
    print(f"wrote           {', '.join(written)}")
    print("note            nano is a small network that was trained for 90 minutes on synthesised music: melody and rhythm come through,")
    print("                fidelity does not. Export an official checkpoint to hear what the codec can do (see README.md).")


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


if __name__ == "__main__":
    main()
