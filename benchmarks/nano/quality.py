"""What the nano codec keeps of held-out pieces, against codecs of the same number of 8-bit values a second and against nothing at all.

`--data` is what `python -m tools.nano.dataset` wrote: pieces that training never heard, by instruments that it heard and by some that it
did not. Melodies alone are what pitch is measured on; `chroma` and `onsets` are for all music.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.nano.baselines import eight_bits, mel_codec, narrow_band
from benchmarks.results import describe_run, launch, say, suite_parser, write_results
from musicrt.calibration.metrics import compare
from musicrt.calibration.pictures import draw_spectrograms, pictures_obstacle
from musicrt.runtime.errors import InputError
from musicrt.runtime.measure import markdown_table
from musicrt.runtime.model import load

Audio = NDArray[np.float32]
Codec = Callable[[Audio], Audio]
SEED = 3
HEAD = ("log-mel dB", "STFT", "SNR dB", "pitch", "chroma", "onsets")
_DRAWN = ("pieces.0", "melodies.1")


def main(arguments: Sequence[str]) -> None:
    """Run the suite. Raises MusicRTError."""
    parser = suite_parser("nano.quality", "What the nano codec keeps of held-out pieces, against simple codecs of equal rate.")
    parser.add_argument("--data", type=Path, required=True, help="what tools.nano.dataset wrote")
    parser.add_argument("--each", type=int, default=6, help="sounds of each kind (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=10.0, help="of each sound, from its beginning (default: %(default)s)")
    options = parser.parse_args(arguments)
    sounds = read_sounds(options.data / "held-out", options.each, round(44100 * options.seconds))
    with load(options.bundle, threads=options.threads) as codec:
        rate, width = codec.sample_rate, codec.config.bottleneck_channels
        hop = codec.config.samples_per_latent
        values = width * rate / hop

        def nano(audio: Audio, *, coarse: bool) -> Audio:
            latents = codec.encode(audio, tail="pad")
            if coarse:
                end = 1.0 / codec.config.sigma_rescale  # of tanh, as latents are given out
                latents = eight_bits(latents, -end, end).astype(np.float32)
            decoded: Audio = codec.decode(latents, seed=SEED)[0, : len(audio)]
            return decoded

        codecs: dict[str, Codec] = {
            "nano": lambda audio: nano(audio, coarse=False),
            "nano, 8 bits": lambda audio: nano(audio, coarse=True),
            "narrow band": lambda audio: narrow_band(audio, rate, values),
            "mel, Griffin-Lim": lambda audio: mel_codec(audio, rate, width, hop),
            "silence": np.zeros_like,
        }
        rows: list[dict[str, Any]] = []
        for name, audio in sounds.items():
            say(name)
            made = {codec_name: run(audio) for codec_name, run in codecs.items()}
            # Against a chance agreement: another sound of the same kind.
            others = [other for key, other in sounds.items() if key != name and _kind(key) == _kind(name)]
            made["another piece"] = others[0] if others else np.zeros_like(audio)
            rows += [{"sound": name, "codec": key, **compare(audio, guess, rate)} for key, guess in made.items()]
            if name in _DRAWN and (obstacle := pictures_obstacle()):
                say(f"{name} was not drawn: {obstacle}")
            elif name in _DRAWN:
                place = options.out.with_name(f"{options.out.name}-{_kind(name)}.png")
                place.parent.mkdir(parents=True, exist_ok=True)
                drawn = {"input": audio, **{key: made[key] for key in ("nano", "mel, Griffin-Lim", "narrow band")}}
                draw_spectrograms(place, drawn, rate, f"{name}, {values:.0f} values a second")
    settings = {"values a second": round(values), "kbps at 8 bits": round(8 * values / 1000, 1), "seed": SEED}
    settings |= {"sounds": len(sounds), "seconds of each": options.seconds}
    content = describe_run("nano.quality", options.bundle, settings, options.threads)
    write_results(options.out, {**content, "sounds": rows}, tables(rows))


def read_sounds(folder: Path, each: int, samples: int) -> dict[str, Audio]:
    """The beginnings of held-out sounds by name, the first `each` of every kind. Raises InputError."""
    try:
        audio, sizes = np.load(folder / "audio.npy", mmap_mode="r"), json.loads((folder / "names.json").read_text())
    except OSError as error:
        raise InputError(f"{folder} can't be read ({error.strerror}); make it with python -m tools.nano.dataset") from None
    ends = np.cumsum(list(sizes.values()))
    return {
        name: (audio[end - sizes[name] : end][:samples] / np.float32(32767)).astype(np.float32)
        for name, end in zip(sizes, ends, strict=True)
        if int(name.rpartition(".")[2]) < each
    }


def _kind(name: str) -> str:
    return name.partition(".")[0]


def tables(rows: Sequence[Mapping[str, Any]]) -> str:
    """Means over the sounds of each kind, and over all."""
    parts = []
    music = [row for row in rows if _kind(row["sound"]) not in ("noise", "voice")]
    groups = {"All music": music} | {
        _TITLES[kind]: [row for row in rows if _kind(row["sound"]) == kind] for kind in dict.fromkeys(_kind(row["sound"]) for row in rows)
    }
    for title, group in groups.items():
        names = dict.fromkeys(row["codec"] for row in group)
        body = [[name, *(f"{fmean(row[key] for row in group if row['codec'] == name):.2f}" for key in HEAD)] for name in names]
        parts += [f"## {title} ({len(group) // len(names)} sounds)", markdown_table(("codec", *HEAD), body)]
    return "\n\n".join([*parts, _NOTES])


_TITLES = {
    "pieces": "Unseen pieces, instruments that training heard",
    "instruments": "Unseen pieces, instruments that training never heard",
    "melodies": "Melodies alone, instruments that training never heard",
    "own-pieces": "Unseen pieces, a synthetic timbre that training never heard",
    "own-melodies": "Melodies alone, a synthetic timbre that training never heard",
    "noise": "Noise",
    "voice": "A synthetic voice",
}
_NOTES = """log-mel: mean distance of the levels of 80 mel bands. STFT: spectral convergence plus distance of logarithms, three windows.
SNR: of waveforms; a codec that makes up phases has none to speak of. pitch: share of the frames with a pitch (YIN) in which it is the same
within half a semitone, octaves aside; it means most of melodies alone. chroma: correlation of the twelve pitch classes. onsets: F-measure
within 50 ms, found in input and output by the same detector. All but `nano` hold 8 bits a value. `another piece` is what chance gives."""


if __name__ == "__main__":
    raise SystemExit(launch(main))
