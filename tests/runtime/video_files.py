"""Small videos for tests: every frame has a brightness of its own, and the upper left quarter is red."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

av = pytest.importorskip("av")

WIDTH, HEIGHT = 64, 48
RED = (200, 30, 60)


def shade(index: int) -> int:
    """The brightness of a frame: neighbours differ, and so do frames some hundred apart."""
    return 20 + index * 37 % 211


def draw(index: int, width: int = WIDTH, height: int = HEIGHT) -> NDArray[np.uint8]:
    """[height, width, 3]"""
    picture = np.full((height, width, 3), shade(index), np.uint8)
    picture[: height // 2, : width // 2] = RED
    return picture


def make_video(
    path: Path,
    frames: int = 50,
    rate: int | Fraction = 25,
    *,
    codec: str = "libx264",
    pixels: str = "yuv420p",
    size: tuple[int, int] = (WIDTH, HEIGHT),
    keys: int = 12,
    rotation: float | None = None,
    times: Sequence[float] | None = None,
    audio: float = 0,
    options: dict[str, str] | None = None,
    streams: int = 1,
    title: str = "",
) -> Path:
    """`keys`: frames from keyframe to keyframe. `times`: when frames are displayed, in seconds. `audio`: seconds of noise.

    Frame n of the second stream is what frame n + 100 of the first is.
    """
    width, height = size
    with av.open(str(path), "w") as container:
        container.metadata["title"] = title
        videos = [_add_video(container, codec, rate, options or {}, width, height, pixels, keys, rotation) for _ in range(streams)]
        sound = container.add_stream("aac", rate=32000, layout="mono") if audio else None
        for number, stream in enumerate(videos):
            for index in range(frames):
                frame = av.VideoFrame.from_ndarray(draw(index + 100 * number, width, height), "rgb24")
                if times is not None:
                    frame.pts, frame.time_base = round(1000 * times[index]), Fraction(1, 1000)
                container.mux(stream.encode(frame))
            container.mux(stream.encode(None))
        if sound:
            encode_noise(container, sound, audio)
    return path


def _add_video(
    container: Any,
    codec: str,
    rate: int | Fraction,
    options: dict[str, str],
    width: int,
    height: int,
    pixels: str,
    keys: int,
    rotation: Any,
) -> Any:
    stream = container.add_stream(codec, rate=rate, options=options)
    stream.width, stream.height, stream.pix_fmt, stream.gop_size = width, height, pixels, keys
    if rotation is not None:
        stream.set_display_rotation(rotation)
    return stream


def encode_noise(container: Any, stream: Any, seconds: float) -> None:
    """Mono at 32 kHz."""
    noise = 0.1 * np.random.default_rng(0).standard_normal((1, round(32000 * seconds)), np.float32)
    frame = av.AudioFrame.from_ndarray(noise, "fltp", "mono")
    frame.sample_rate = 32000
    container.mux(stream.encode(frame))
    container.mux(stream.encode(None))


def make_song(path: Path, cover: bool = True) -> Path:
    """Audio with a picture attached."""
    from av.stream import Disposition

    with av.open(str(path), "w") as container:
        sound = container.add_stream("libmp3lame" if path.suffix == ".mp3" else "aac", rate=32000, layout="mono")
        if cover:
            picture = container.add_stream("mjpeg", rate=1)
            picture.width, picture.height, picture.pix_fmt = WIDTH, HEIGHT, "yuvj420p"
            picture.disposition = Disposition.attached_pic
            frame = av.VideoFrame.from_ndarray(draw(0), "rgb24").reformat(format="yuvj420p")
            packets = [*picture.encode(frame), *picture.encode(None)]
            container.mux(packets)
        encode_noise(container, sound, 2)
    return path


def cut_file(path: Path, share: float) -> Path:
    """A copy that ends early."""
    data = path.read_bytes()
    target = path.with_name(f"cut-{path.name}")
    target.write_bytes(data[: int(share * len(data))])
    return target


def packets_of(path: Path) -> list[tuple[bytes, float]]:
    """Packets of the video, and when they are displayed."""
    with av.open(str(path)) as container:
        return [(bytes(packet), float(packet.pts * packet.time_base)) for packet in container.demux(video=0) if packet.size]
