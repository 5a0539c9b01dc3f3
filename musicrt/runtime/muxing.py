"""A copy of a video with other sound: its pictures are taken over packet by packet, the sound is encoded block by block."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from musicrt.runtime.errors import InputError, VideoError
from musicrt.runtime.files import new_file
from musicrt.runtime.record import Record, add_record
from musicrt.runtime.resampling import resample_blocks
from musicrt.runtime.video import Video
from musicrt.runtime.video_decoder import as_video_error
from musicrt.runtime.waveform import Audio, check_audio, check_rate

if TYPE_CHECKING:
    from av.container import OutputContainer
    from av.video.stream import VideoStream

_CODECS = {".mp4": "aac", ".m4v": "aac", ".mov": "aac", ".mkv": "aac", ".webm": "libopus"}  # of the sound, by suffix
_RATES = {"aac": (96000, 88200, 64000, 48000, 44100, 32000, 24000, 22050, 16000, 12000, 11025, 8000), "libopus": (48000,)}
_BIT_RATE = 128_000  # what FFmpeg takes by itself
_LAYOUTS = {1: "mono", 2: "stereo"}
_OWN_TAGS = {"major_brand", "minor_version", "compatible_brands", "encoder", "DURATION"}  # what every file says of itself


def is_video_target(path: str | Path) -> bool:
    """Whether the suffix is that of a video that can be written."""
    return Path(path).suffix.lower() in _CODECS


def check_mux_target(video: Video | str | Path, target: str | Path, sample_rate: int, channels: int) -> None:
    """Begin a file and drop it, so that a bad target fails before the work. Errors as of `mux_audio`."""
    with contextlib.suppress(_DroppedError):
        _write(_open(video), Path(target), None, sample_rate, channels)


def mux_audio(
    video: Video | str | Path,
    target: str | Path,
    blocks: Iterable[Audio],
    sample_rate: int,
    channels: int,
    record: Record | None = None,
) -> None:
    """Write the pictures of a video, unchanged, with audio in place of its own: float32 [channels, n] blocks, mono or stereo.

    The file ends with the shorter of both. Its suffix decides the container, and that the codec of the audio: AAC, in .webm Opus.
    Rotation and metadata are kept, other streams left out. Blocks are taken as they are needed, and values beyond [-1, 1] clipped.
    record: what the audio was made with, for the last line of the comment.
    The file appears when all went well. Raises VideoError for what the container can't hold, InputError, OutputError.
    """
    _write(_open(video), Path(target), blocks, sample_rate, channels, record)


class _DroppedError(Exception):
    """All is well, but nothing is to be written."""


def _open(video: Video | str | Path) -> Video:
    return video if isinstance(video, Video) else Video(video)


def _write(
    video: Video, target: Path, blocks: Iterable[Audio] | None, sample_rate: int, channels: int, record: Record | None = None
) -> None:
    codec = _CODECS.get(target.suffix.lower())
    if codec is None:
        raise VideoError(f"can't write {target}: got suffix {target.suffix!r}, expected one of {', '.join(_CODECS)}")
    if channels not in _LAYOUTS:
        raise InputError(f"got {channels!r} channels, expected 1 or 2 beside a video")
    if video.start is None:
        raise VideoError(f"can't copy {video.path}: its frames have no times; convert it to .mp4 first")
    if target.exists() and target.samefile(video.path):
        raise VideoError(f"can't write {target}: it is the video itself; name another file")
    sample_rate = check_rate(sample_rate)
    with new_file(target) as temporary, video.open() as (_, stream), _begin(temporary, target) as container:
        if record is not None:
            container.metadata["comment"] = add_record(video.comment, record)
        muxer = _Muxer(container, stream, video, target, codec, sample_rate, channels)
        if blocks is None:
            raise _DroppedError
        muxer.run(blocks)


@contextlib.contextmanager
def _begin(temporary: Path, target: Path) -> Iterator[OutputContainer]:
    """Writes the end of the file only if all went well."""
    import av

    try:
        with av.open(str(temporary), "w") as container:
            yield container
    except av.error.FFmpegError as error:
        if isinstance(error, OSError):  # a full disk, say, for which new_file has the words
            raise
        raise VideoError(_refusal(target, f"this video ({error.strerror})")) from error


class _Muxer:
    """Puts packets of both streams into a file, in turn."""

    def __init__(
        self, container: OutputContainer, source: VideoStream, video: Video, target: Path, codec: str, sample_rate: int, channels: int
    ) -> None:
        self._container, self._source, self._video, self._channels, self._given_rate = container, source, video, channels, sample_rate
        self._rate = min(_RATES[codec], key=lambda rate: (rate < sample_rate, abs(rate - sample_rate)))
        try:
            self._pictures = container.add_stream_from_template(source)
        except ValueError as error:
            name = source.codec_context.name
            raise VideoError(_refusal(target, f"the {name} of {video.path}")) from error
        _copy_tags(source.metadata, self._pictures.metadata)
        _copy_tags(source.container.metadata, container.metadata)
        self._sound: Any = container.add_stream(codec, rate=self._rate, layout=_LAYOUTS[channels], bit_rate=_BIT_RATE)
        container.start_encoding()

    def run(self, blocks: Iterable[Audio]) -> None:
        """Write all. Raises InputError, VideoError."""
        ends = self._video.length
        packets = self._shifted()
        packet = next(packets, None)
        samples = 0
        for block in resample_blocks(map(self._check, blocks), self._channels, self._given_rate, self._rate):
            block = block[:, : max(round(ends * self._rate) - samples, 0)]
            if not block.shape[1]:
                break
            self._container.mux(self._sound.encode(self._frame(block, samples)))
            samples += block.shape[1]
            packet = self._copy(packet, packets, Fraction(samples, self._rate))
        self._container.mux(self._sound.encode(None))

    def _check(self, block: Audio) -> Audio:
        audio = check_audio(block, "block")
        if len(audio) != self._channels:
            raise InputError(f"block: got {len(audio)} channels, expected {self._channels}")
        return audio

    def _copy(self, packet: Any, packets: Iterator[Any], until: Fraction) -> Any:
        """Packets that are decoded before so many seconds; gives the first of the others."""
        while packet is not None and packet.dts * packet.time_base < until:
            packet.stream = self._pictures
            self._container.mux(packet)
            packet = next(packets, None)
        return packet

    def _shifted(self) -> Iterator[Any]:
        """The packets of the video, the first frame displayed at 0 s.

        The first ones may lack the time of decoding, as in .mkv: then it is counted back from the first that has one.
        """
        start, waiting = self._video.start or 0, []
        with as_video_error(self._video.path):
            for packet in self._source.container.demux(self._source):  # type: ignore[attr-defined]
                if not packet.size:
                    continue
                waiting.append(packet)
                if packet.dts is None:
                    continue
                step = max(round(1 / (self._video.rate * packet.time_base)), 1)
                for place, one in enumerate(waiting):
                    one.pts, one.dts = one.pts - start, packet.dts - start - step * (len(waiting) - 1 - place)
                yield from waiting
                waiting = []
        if waiting:
            raise VideoError(f"can't copy {self._video.path}: its packets have no times of decoding; convert it to .mp4 first")

    def _frame(self, block: Audio, start: int) -> Any:
        from av.audio.frame import AudioFrame

        frame = AudioFrame.from_ndarray(np.ascontiguousarray(block.clip(-1, 1)), "fltp", _LAYOUTS[self._channels])
        frame.sample_rate, frame.pts, frame.time_base = self._rate, start, Fraction(1, self._rate)
        return frame


def _copy_tags(tags: dict[str, str], to: dict[str, str]) -> None:
    there = {name.lower() for name in to}
    to.update({name: value for name, value in tags.items() if name not in _OWN_TAGS and name.lower() not in there})


def _refusal(target: Path, what: str) -> str:
    suffix = target.suffix.lower()
    advice = "convert the video to .mp4 with H.264 first" if suffix == ".mkv" else "write .mkv instead"
    return f"can't write {target}: a {suffix} file can't hold {what}; {advice}"
