"""What generation sounds like to calibration: the ranges of what is kept from step to step, and whether a lowered network chooses alike."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from musicrt.calibration.capture import WatchedSession
from musicrt.calibration.quality import measure_outputs
from musicrt.runtime.generator import Generator
from musicrt.runtime.session import Array, Session
from musicrt.runtime.spec import ModelSpec

Float = NDArray[np.float32]
GENERATE = "generate"
ROOM = np.float32(1.5)
"""How much larger than all that was seen a key may be. A few seconds of music do not show the largest: what is cut off costs far more (tiny
network, half a second: 26 dB of SNR without room, 36 with it) than the coarser steps.
"""
_SEEDS = {"calibrating": 1, "judging": 2}
Part = Literal["calibrating", "judging"]


def generate(codec: Any, seconds: float, part: Part) -> bool:
    """Have a pipeline make music of a video that is made up, another one for each part; False if it makes none."""
    if not isinstance(codec, Generator):
        return False
    codec.rehearse(seconds, _SEEDS[part])
    return True


class Peaks:
    """The magnitudes that keys and values may have in each channel of each head, by the names of ranges (`Int8.tensors`)."""

    def __init__(self, spec: ModelSpec) -> None:
        self._largest: dict[str, Float] = {}
        self._named = {stage.name: dict(stage.int8.tensors) for stage in spec.stages if stage.int8 is not None and stage.int8.tensors}
        self._held: dict[str, Mapping[str, Array]] = {}

    def wrap(self, open_session: Callable[[str], Session]) -> Callable[[str], Session]:
        """Opens sessions that are listened to."""
        return lambda name: Listener(open_session(name), self) if name in self._named else open_session(name)

    def hold(self, stage: str, arrays: Mapping[str, Array]) -> None:
        """Take note of arrays that a loop writes into; they are looked at when it has others, and in the end."""
        held = self._held.get(stage, {})
        if any(held.get(name) is not arrays[name] for name in self._named[stage].keys() & arrays.keys()):
            self.look()
            self._held[stage] = arrays

    def look(self) -> None:
        """Look at what is held, and let it go."""
        for stage, arrays in self._held.items():
            self.see(stage, arrays)
        self._held.clear()

    def see(self, stage: str, arrays: Mapping[str, Array]) -> None:
        """Take in arrays [rows, heads, n, width]; zeros, as where a cache is not filled, change nothing."""
        for name, source in self._named[stage].items():
            if name in arrays:
                largest = np.maximum(arrays[name].max((0, 2)), -arrays[name].min((0, 2)))
                self._largest[source] = np.maximum(self._largest.get(source, np.float32(0)), largest)

    @property
    def ranges(self) -> dict[str, Float]:
        """float32 [heads, width] of each: what was seen, and `ROOM`."""
        return {name: ROOM * largest for name, largest in self._largest.items()}


class Listener(WatchedSession):
    """Another session, at whose keys and values `Peaks` looks."""

    def __init__(self, inner: Session, peaks: Peaks) -> None:
        super().__init__(inner)
        self._peaks = peaks

    def _run(self, feeds: Mapping[str, Array], names: tuple[str, ...]) -> dict[str, Array]:
        produced = self._inner.run(feeds, names)
        self._peaks.see(self.stage.name, {**feeds, **produced})
        return produced

    def _bind(self, feeds: Mapping[str, Array], results: Mapping[str, Array]) -> Callable[[], None]:
        call = self._inner.bind(feeds, results)

        def heard() -> None:
            call()
            self._peaks.hold(self.stage.name, feeds)

        return heard


class Script:
    """The logits of every step of a generation. While it is written they are kept; after that, a network that goes the same way is held
    against them, and goes on with them, whatever it would have chosen itself. Between `begin` and `end` only.
    """

    def __init__(self, stages: Iterable[str]) -> None:
        self.stages = frozenset(stages)
        self._on = self._written = False
        self._lines: list[Float] = []
        self._found: list[dict[str, float]] = []

    @classmethod
    def of(cls, spec: ModelSpec) -> Script:
        """Of the stages that give logits and may be lowered."""
        return cls(s.name for s in spec.stages if s.int8 is not None and any(tensor.name == "logits" for tensor in s.outputs))

    def wrap(self, open_session: Callable[[str], Session]) -> Callable[[str], Session]:
        """Opens sessions that write it, or follow it."""
        return lambda name: Follower(open_session(name), self) if name in self.stages else open_session(name)

    def play(self, codec: Any, seconds: float) -> dict[str, float]:
        """Write it, or follow it and say what was found, with music that judges. A codec that makes none has an empty script."""
        self.begin()
        generate(codec, seconds, "judging")
        return self.end()

    def begin(self) -> None:
        """From here on, every call is a step."""
        self._on = True

    def take(self, logits: Float) -> None:
        """The logits of a call, which are replaced by those of the script where one is followed."""
        last = logits[..., -1, :]  # of a prompt, the column that is chosen by
        if self._on and not self._written:
            self._lines.append(last.copy())
        elif self._on:
            line = self._lines[len(self._found)]
            self._found.append(measure_outputs({"logits": last}, {"logits": line}))
            last[...] = line

    def end(self) -> dict[str, float]:
        """The mean over all steps: "generate top-1", "generate KL" and "generate SNR dB"; from here on it is followed."""
        found, self._found, self._on, self._written = self._found, [], False, True
        names = {"logits top-1": f"{GENERATE} top-1", "logits KL": f"{GENERATE} KL", "logits": f"{GENERATE} SNR dB"}
        return {new: _mean([one[old] for one in found]) for old, new in names.items()} if found else {}


class Follower(WatchedSession):
    """Another session, whose logits go through a `Script`."""

    def __init__(self, inner: Session, script: Script) -> None:
        super().__init__(inner)
        self._script = script

    def _run(self, feeds: Mapping[str, Array], names: tuple[str, ...]) -> dict[str, Array]:
        produced = {name: np.array(value) for name, value in self._inner.run(feeds, names).items()}
        self._script.take(produced["logits"])
        return produced

    def _bind(self, feeds: Mapping[str, Array], results: Mapping[str, Array]) -> Callable[[], None]:
        call = self._inner.bind(feeds, results)

        def followed() -> None:
            call()
            self._script.take(results["logits"])

        return followed


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values))
