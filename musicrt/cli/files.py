"""The commands that turn files into others: encode, decode, roundtrip, generate."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from musicrt.cli.arguments import BackendOption, BundleArgument, PrecisionOption, ThreadsOption, open_codec
from musicrt.cli.options import DECODING, ENCODING, OFFERED, check_flags, generators, given_of, with_options
from musicrt.cli.output import progress, say
from musicrt.runtime.errors import InputError


@with_options(OFFERED["encode"])
def encode(
    bundle: BundleArgument,
    audio: Annotated[Path, typer.Argument(help="Any audio file that libsndfile reads.")],
    out: Annotated[Path, typer.Argument(help="The file of encoded audio to write (safetensors).")],
    *,
    backend: BackendOption = "auto",
    precision: PrecisionOption = None,
    threads: ThreadsOption = None,
    **options: Any,
) -> None:
    """Encode an audio file."""
    with open_codec(bundle, backend, precision, threads) as codec, progress("encoding") as report:
        check_flags(codec, "encode", options)
        encoded = codec.encode_file(audio, out, on_progress=report, **options)
    say(f"{out}: {encoded.kind} {list(encoded.values.shape)}, {out.stat().st_size} bytes")


@with_options(OFFERED["decode"])
def decode(
    bundle: BundleArgument,
    encoded: Annotated[Path, typer.Argument(help="A file of encoded audio.")],
    out: Annotated[Path, typer.Argument(help="The audio file to write; the suffix names the format.")],
    *,
    backend: BackendOption = "auto",
    precision: PrecisionOption = None,
    threads: ThreadsOption = None,
    **options: Any,
) -> None:
    """Decode a file of encoded audio."""
    with open_codec(bundle, backend, precision, threads) as codec, progress("decoding") as report:
        check_flags(codec, "decode", options)
        samples = codec.decode_file(encoded, out, on_progress=report, **options)
    say(_describe_audio(out, samples, codec))


@with_options(OFFERED["roundtrip"])
def roundtrip(
    bundle: BundleArgument,
    audio: Annotated[Path, typer.Argument(help="Any audio file that libsndfile reads.")],
    out: Annotated[Path, typer.Argument(help="The audio file to write; the suffix names the format.")],
    *,
    backend: BackendOption = "auto",
    precision: PrecisionOption = None,
    threads: ThreadsOption = None,
    **options: Any,
) -> None:
    """Encode an audio file and decode it again."""
    with open_codec(bundle, backend, precision, threads) as codec, progress("encoding") as report:
        check_flags(codec, "roundtrip", options)
        samples = codec.roundtrip_file(
            audio,
            out,
            {**given_of(ENCODING, options), "on_progress": report},
            {**given_of(DECODING, options), "on_progress": partial(report, text="decoding")},
        )
    say(_describe_audio(out, samples, codec))


@with_options(OFFERED["generate"])
def generate(
    bundle: BundleArgument,
    video: Annotated[Path, typer.Argument(help="Any video file that FFmpeg reads, or a folder of them.")],
    out: Annotated[
        Path,
        typer.Option("--out", "-o", help="The audio file to write, or a copy of the video with the music; for a folder, a folder."),
    ],
    *,
    tokens: Annotated[
        Path | None,
        typer.Option(help="Also a file of encoded audio to write, of which `decode` makes the music, its loudness left alone."),
    ] = None,
    backend: BackendOption = "auto",
    precision: PrecisionOption = None,
    threads: ThreadsOption = None,
    **options: Any,
) -> None:
    """Make music for a video, or for each video of a folder."""
    if tokens is not None and video.is_dir():
        raise InputError(f"got --tokens {tokens} with a folder, expected one video; leave it out, or call it for each video")
    with open_codec(bundle, backend, precision, threads) as codec, progress("generating") as report:
        if not hasattr(codec, "generate_stream"):
            raise InputError(f"{codec.model.spec.system} makes no music for videos; load a bundle of {', '.join(generators())}")
        check_flags(codec, "generate", options)
        if video.is_dir():
            written = codec.generate_folder(video, out, on_progress=report, **options)
            line = f"{out}: music for {len(written)} video{'' if len(written) == 1 else 's'}"
        else:
            samples = codec.generate_file(video, out, tokens, on_progress=report, **options)
            line = _describe_audio(out, samples, codec)
    say(line)


def _describe_audio(out: Path, samples: int, codec: Any) -> str:
    return f"{out}: {samples / codec.sample_rate:.2f} s at {codec.sample_rate} Hz"
