"""How much cutting a signal into windows changes the result: official chunks and seamless windows against one whole run.

All variants see the same noise. A seam is where two chunks meet, or, in the seamless variant, the whole cross-fade; "near"
is within one latent of it. Roughness is the RMS of the second difference, which jumps where a waveform has a kink.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.results import describe_run, launch, say, suite_parser, write_results
from musicrt.runtime.errors import InputError
from musicrt.runtime.measure import markdown_table, synthesise_music
from musicrt.runtime.model import load
from musicrt.runtime.models.music2latent.config import Config
from musicrt.runtime.verify import relative_error
from musicrt.runtime.windows import overlapping_windows

Float = NDArray[np.float32]
Span = tuple[float, float]
"""Begin and end of a seam, in latents."""
_SEED = 11


@dataclass(frozen=True)
class Difference:
    """A variant against the whole run. Relative L2 by the norm of the whole run in the same place; max is absolute.

    kinks: roughness near the seams over roughness elsewhere; `kinks_whole`: the same of the whole run in the same places.
    """

    what: str
    variant: str
    seams: int
    near_share: float
    total: float
    near: float
    away: float
    max_near: float
    max_away: float
    kinks: float | None = None
    kinks_whole: float | None = None


def main(arguments: Sequence[str]) -> None:
    """Run the suite. Raises MusicRTError."""
    description = "Official chunks and seamless windows against one whole run, near the seams and away from them."
    parser = suite_parser("music2latent.seams", description)
    parser.add_argument("--backend", default="auto", help="default: %(default)s")
    parser.add_argument("--seconds", type=float, default=24.0, help="length of the signal (default: %(default)s)")
    parser.add_argument("--window", type=float, default=5.0, help="seconds in a window (default: %(default)s)")
    parser.add_argument("--overlap", type=float, default=1.0, help="seconds that seamless windows share (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=1, help="network evaluations of a decode (default: %(default)s)")
    options = parser.parse_args(arguments)
    settings = {name: getattr(options, name) for name in ("seconds", "window", "overlap", "steps")}
    with load(options.bundle, backend=options.backend, threads=options.threads) as codec:
        content = describe_run("seams", options.bundle, {"backend": codec.backend.name, **settings}, options.threads)
        found = compare_windows(codec, **settings)
    content["differences"] = [asdict(difference) for difference in found]
    write_results(options.out, content, render(found))


def compare_windows(codec: Any, *, seconds: float, window: float, overlap: float, steps: int) -> list[Difference]:
    """Encode and decode whole, in official chunks and in seamless windows. Raises InputError if all fits into one window."""
    config: Config = codec.config
    audio = synthesise_music(seconds, codec.sample_rate)
    samples = round(window * codec.sample_rate)
    size, shared = (round(length * codec.sample_rate / config.samples_per_latent) for length in (window, overlap))
    say("encode …")
    whole = codec.encode(audio, max_waveform_length=audio.shape[1])
    count = whole.shape[-1]
    chunk = samples // config.samples_per_latent  # as the official code rounds it
    if count <= max(size, chunk):
        raise InputError(f"got {seconds} s in windows of {window} s, expected a signal of several windows; use shorter windows")
    chunk_seams: list[Span] = [(float(start), float(start)) for start in range(chunk, count, chunk)]
    windows = overlapping_windows(count, size, min(shared, size // 2))  # as `encode_stream` and `decode_stream` cut
    fades: list[Span] = [(float(after.start), float(before.stop)) for before, after in pairwise(windows)]
    chunked = codec.encode(audio, max_waveform_length=samples)
    streamed = np.concatenate(list(codec.encode_stream(audio, window=window, overlap=overlap)), axis=-1)
    found = [
        compare("encode", "official chunks", whole, chunked, near_positions(count, chunk_seams)),
        compare("encode", "seamless", whole, streamed, near_positions(count, fades)),
    ]
    say("decode …")
    options = {"steps": steps, "seed": _SEED}
    reference = codec.decode(whole, max_waveform_length=audio.shape[1], **options)
    chunked = codec.decode(whole, max_waveform_length=samples, **options)
    streamed = np.concatenate(list(codec.decode_stream(whole, window=window, overlap=overlap, **options)), axis=-1)
    for variant, value, seams in (("official chunks", chunked, chunk_seams), ("seamless", streamed, fades)):
        near = near_positions(reference.shape[-1], seams, config.samples_per_latent, 1.5 * config.hop)
        found.append(compare("decode", variant, reference, value, near, kinks=True))
    return found


def near_positions(count: int, seams: Sequence[Span], scale: int = 1, offset: float = 0.0) -> NDArray[np.bool_]:
    """Which of `count` positions are within one latent of a seam.

    scale: positions for each latent. offset: of the middle between two frames, in positions, from where they begin.
    """
    positions = (np.arange(count) + 0.5 - offset) / scale
    near = np.zeros(count, np.bool_)
    for begin, end in seams:
        near |= (positions >= begin - 1.0) & (positions <= end + 1.0)
    return near


def compare(what: str, variant: str, whole: Float, value: Float, near: NDArray[np.bool_], *, kinks: bool = False) -> Difference:
    """Hold `value` against `whole`, arrays [..., positions]. Raises InputError where nothing is away from the seams."""
    if near.all():
        raise InputError(f"{what}, {variant}: everything is near a seam; use longer windows or less overlap")
    seams = int(np.count_nonzero(np.diff(near.astype(np.int8)) == 1) + near[0])
    return Difference(
        what=what,
        variant=variant,
        seams=seams,
        near_share=float(near.mean()),
        total=_relative(value, whole),
        near=_relative(value[..., near], whole[..., near]),
        away=_relative(value[..., ~near], whole[..., ~near]),
        max_near=float(np.abs(value - whole)[..., near].max()),
        max_away=float(np.abs(value - whole)[..., ~near].max()),
        kinks=roughness_ratio(value, near) if kinks else None,
        kinks_whole=roughness_ratio(whole, near) if kinks else None,
    )


def roughness_ratio(audio: Float, near: NDArray[np.bool_]) -> float:
    """RMS of the second difference where `near`, over that elsewhere."""
    bend = np.diff(audio.astype(np.float64), 2, axis=-1)
    inside = near[1:-1]
    return float(np.sqrt(np.mean(bend[..., inside] ** 2) / np.mean(bend[..., ~inside] ** 2)))


def _relative(value: Float, whole: Float) -> float:
    return relative_error({"": value}, {"": whole})


def render(found: Sequence[Difference]) -> str:
    """A table."""
    places = ("share near", "rel. L2", "near seams", "elsewhere", "max near", "max elsewhere")
    header = ("what", "variant", "seams", *places, "roughness near : elsewhere", "of the whole run")
    rows = [
        [
            d.what,
            d.variant,
            str(d.seams),
            f"{d.near_share:.0%}",
            *(f"{value:.2e}" for value in (d.total, d.near, d.away, d.max_near, d.max_away)),
            *("" if value is None else f"{value:.3f}" for value in (d.kinks, d.kinks_whole)),
        ]
        for d in found
    ]
    return "\n\n".join([markdown_table(header, rows, text_columns=2), " ".join((__doc__ or "").split("\n\n")[1].split())])


if __name__ == "__main__":
    sys.exit(launch(main))
