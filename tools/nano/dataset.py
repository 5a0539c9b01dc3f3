"""Everything that is trained and measured on, made once: `python -m tools.nano.dataset FOLDER` (needs fluidsynth, fluid-soundfont-gm)."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np

from musicrt.runtime.files import new_folder
from tools.nano import fluid, sounds, tones
from tools.nano.pieces import HELD_OUT, MELODIC, compose

SECONDS = 10.0
HEARD = tuple(program for program in MELODIC if program not in HELD_OUT)
FLUID_BATCHES, FLUID_PIECES, OWN_PIECES, NOISES, VOICES = 4, 18, 60, 8, 8
EVALUATION = 9000
"""Seeds from here on belong to pieces that training never sees."""
HELD_OUT_PIECES = 6


def training(index: int) -> Iterator[tuple[str, tones.Audio]]:
    """Share `index` of the training sounds, by name; the shares are made by turns so that an unfinished run is a small one of all."""
    rng = np.random.default_rng((12, index))
    pieces = [compose(1000 * index + i, SECONDS, programs=HEARD) for i in range(FLUID_PIECES)]
    room, level = rng.uniform(0.1, 0.9), rng.uniform(0.0, 0.7)
    yield from ((f"fluid{index}.{i}", audio) for i, audio in enumerate(fluid.render(pieces, room=room, level=level)))
    for i in range(OWN_PIECES // FLUID_BATCHES):
        seed = 1000 * index + 500 + i
        yield f"own{seed}", tones.render(compose(seed, SECONDS, programs=HEARD), seed)
    for i in range(NOISES // FLUID_BATCHES):
        yield f"noise{index}.{i}", sounds.make_noise(10 * index + i, SECONDS)
    for i in range(VOICES // FLUID_BATCHES):
        yield f"voice{index}.{i}", sounds.speak(10 * index + i, SECONDS)


def held_out() -> Iterator[tuple[str, tones.Audio]]:
    """The sounds of the evaluation: unseen pieces by heard and by held-out instruments, melodies alone, noise and voice."""
    count, melody = HELD_OUT_PIECES, ("melody",)
    fluid_sets = {
        "pieces": [compose(EVALUATION + i, SECONDS, programs=HEARD) for i in range(count)],
        "instruments": [compose(EVALUATION + 100 + i, SECONDS, programs=HELD_OUT) for i in range(count)],
        "melodies": [compose(EVALUATION + 200 + i, SECONDS, programs=HELD_OUT, roles=melody) for i in range(count)],
    }
    for name, pieces in fluid_sets.items():
        yield from ((f"{name}.{i}", audio) for i, audio in enumerate(fluid.render(pieces, room=0.4, level=0.3)))
    yield from own_held_out(count)
    yield from ((f"noise.{i}", sounds.make_noise(EVALUATION + i, SECONDS)) for i in range(2))
    yield from ((f"voice.{i}", sounds.speak(EVALUATION + i, SECONDS)) for i in range(2))


def own_held_out(count: int, seconds: float = SECONDS) -> Iterator[tuple[str, tones.Audio]]:
    """The part of the held-out sounds that needs no FluidSynth: a timbre that training never hears, the melody alone and with others."""
    kinds = (tones.HELD_OUT_KIND,)
    for i in range(count):
        seed = EVALUATION + 300 + i
        yield f"own-pieces.{i}", tones.render(compose(seed, seconds, programs=HEARD), seed, kinds=kinds)
    for i in range(count):
        seed = EVALUATION + 400 + i
        yield f"own-melodies.{i}", tones.render(compose(seed, seconds, programs=HEARD, roles=("melody",)), seed, kinds=kinds)


def to_integers(audio: tones.Audio) -> np.ndarray:
    return np.round(np.clip(audio, -1, 1) * 32767).astype(np.int16)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    folder.mkdir(parents=True, exist_ok=True)
    shares: dict[str, Callable[[], Iterator[tuple[str, tones.Audio]]]] = {"held-out": held_out}
    shares |= {f"training{i}": partial(training, i) for i in range(FLUID_BATCHES)}
    for name, make in shares.items():
        if not (folder / name).exists():
            made = dict(make())
            with new_folder(folder / name) as target:
                np.save(target / "audio.npy", np.concatenate([to_integers(audio) for audio in made.values()]))
                (target / "names.json").write_text(json.dumps({key: len(audio) for key, audio in made.items()}) + "\n")
            print(f"{name}: {len(made)} sounds, {sum(map(len, made.values())) / tones.RATE / 60:.1f} minutes", flush=True)


if __name__ == "__main__":
    main()
