"""Runs the recorded cases of VidMuse that need no weights and no network: frames, pixels, loudness, audio of another rate."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from musicrt.runtime.errors import InputError
from musicrt.runtime.models.vidmuse.frames import GLOBAL_FRAMES, Clip
from musicrt.runtime.models.vidmuse.loudness import Meter, apply_gain
from musicrt.runtime.models.vidmuse.pixels import pixel_values, resize
from musicrt.runtime.models.vidmuse.sampling import FRAME_RATE, global_ids, local_ids, pad_ids
from musicrt.runtime.resampling import resample_audio
from tests.reference.case import Case
from tests.reference.signals import Array
from tests.reference.systems.base import Outputs

_BLOCK = 10_000  # samples; the loudness is measured as of a stream


class MediaCases:
    """What a runner of VidMuse offers beside its stages."""

    @property
    def media(self) -> Mapping[str, Callable[[Case], Outputs]]:
        """What computes the cases of each stage, by the names of CASES.md."""
        return {
            "video-read": self.video_read,
            "video-file": self.video_file,
            "clip-preprocess": self.clip_preprocess,
            "convert-audio": self.convert_audio,
            "loudness": self.loudness,
        }

    def video_read(self, case: Case) -> Outputs:
        frames, options = case.inputs["frames"], case.info["options"]
        clip = read_clip(case)
        chosen = local_ids(len(frames), options["avg_fps"], options["duration"], *_beginning_and_rate(options))
        overall = global_ids(len(frames), clip.global_count)
        return {"local_ids": chosen, "global_ids": overall, **_pictures(clip)}

    def video_file(self, case: Case) -> Outputs:
        """A file beside the cases, or wherever the option says."""
        options = case.info["options"]
        _check_reader(options)
        named = Path(options["file"])
        file = next((path for path in (case.path.parent / named, case.path.parent.parent / named) if path.is_file()), named)
        clip = Clip.open(file, seconds=options.get("duration") or None, **_clip_options(options))
        pictures = _pictures(clip)
        means = {f"{name}_means": values.mean(axis=(2, 3), dtype=np.float64) for name, values in pictures.items()}
        return {**pictures, **means}

    def clip_preprocess(self, case: Case) -> Outputs:
        return {"pixel_values": pixel_values(np.ascontiguousarray(case.inputs["frames"].astype(np.uint8).transpose(1, 0, 2, 3)))}

    def convert_audio(self, case: Case) -> Outputs:
        options = case.info["options"]
        if options["to_channels"] != 1:
            raise InputError(f"got a case of {options['to_channels']} channels, expected mono")
        resampled = [resample_audio(audio, options["from_rate"], options["to_rate"], "julius") for audio in case.inputs["audio"]]
        return {"audio": np.stack([audio.mean(axis=0, keepdims=True) for audio in resampled])}

    def loudness(self, case: Case) -> Outputs:
        audio, options = case.inputs["audio"], case.info["options"]
        if options["strategy"] != "loudness" or not options["loudness_compressor"]:
            raise InputError(f"got a case of {options['strategy']}, expected loudness with its compressor")
        meter = Meter(options["sample_rate"], len(audio))
        for start in range(0, audio.shape[1], _BLOCK):
            meter.add(audio[:, start : start + _BLOCK])
        gain = meter.gain(-float(options["loudness_headroom_db"]))
        return {"audio": apply_gain(audio, gain), "trace/lkfs": np.array([meter.lkfs()], np.float32)}


def read_clip(case: Case) -> Clip:
    """The clip of a case that holds all frames of a video, [frames, 3, height, width]. Raises InputError."""
    frames, options = case.inputs["frames"], case.info["options"]
    start, rate = _beginning_and_rate(options)
    if (start, rate) == (0, FRAME_RATE):
        return Clip.from_frames(frames, options["avg_fps"], seconds=options["duration"], **_clip_options(options))
    # What no option of ours asks for: another part of the video, or more frames a second.
    given = _clip_options(options)
    chosen = pad_ids(local_ids(len(frames), options["avg_fps"], options["duration"], start, rate), rate * options["duration"])
    both = (resize(frames[ids], given["antialias"]) for ids in (chosen, global_ids(len(frames), given["global_frames"])))
    return Clip.from_tensors(*(pictures.transpose(1, 0, 2, 3) for pictures in both))


def _clip_options(options: Mapping[str, Any]) -> dict[str, Any]:
    return {"global_frames": options.get("global_num_frames") or GLOBAL_FRAMES, "antialias": bool(options.get("antialias"))}


def _beginning_and_rate(options: Mapping[str, Any]) -> tuple[float, int]:
    """From how many seconds on the reader was to read, and how many frames a second."""
    return options.get("seek_time") or 0, options.get("target_fps") or FRAME_RATE


def _check_reader(options: Mapping[str, Any]) -> None:
    """Raises InputError: other than from the beginning of the video, two frames a second."""
    start, rate = _beginning_and_rate(options)
    if start != 0 or rate != FRAME_RATE:
        raise InputError(f"got a case from {start} s on at {rate} frames a second, expected 0 s and {FRAME_RATE}")


def _pictures(clip: Clip) -> dict[str, Array]:
    return {"local": clip.local_frames(), "global": clip.global_frames()}
