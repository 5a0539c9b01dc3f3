"""What sizes an engine is made for: the axes of a spec, and buckets that say how far each of them goes.

A spec accepts what the network can do; an engine has kernels for the sizes of a profile and is tuned for its optimum. So a bucket takes a
part of every axis. Dimensions that follow an axis follow it here as well, because shapes come from the tensors of the spec. What pipelines
ask for if nobody says otherwise fits into every bucket (`tests/engines/test_pipelines.py`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from musicrt.runtime.errors import InputError
from musicrt.runtime.manifest import ProfileEntry
from musicrt.runtime.spec import StageSpec
from musicrt.runtime.tensors import Axis, TensorSpec

Range = tuple[int, int, int]
"""Minimum, optimum, maximum."""

BATCH = "batch"
LONGEST = "longest"
"""The profile of stages that have calls far beyond the usual length (`Axis.longest`): one of these at a time."""
WHOLE = ("guidance", "codebooks", "steps")
"""Axes that cost next to nothing: a profile takes all that the spec accepts."""


@dataclass(frozen=True)
class Bucket:
    """How far axes go in a profile. batch: its optimum and maximum. longest: the maximum of every other axis, in optima of the spec."""

    name: str
    batch: tuple[int, int]
    longest: float
    summary: str


BUCKETS: Mapping[str, Bucket] = {
    one.name: one
    for one in (
        Bucket("latency", (1, 2), 2.0, "one request: both channels of audio of up to twice the usual length"),
        Bucket("throughput", (8, 16), 1.0, "many requests at a time: up to 16 windows of the usual length"),
        Bucket("edge", (1, 2), 1.0, "little memory: both channels of one window of the usual length"),
    )
}


_ONE = Bucket(LONGEST, (1, 1), 1.0, "one window or one chunk")


def find_buckets(names: Sequence[str]) -> tuple[Bucket, ...]:
    """Buckets by name, in this order. Raises InputError for an unknown name, one named twice, and none at all."""
    unknown = [name for name in names if name not in BUCKETS]
    if unknown or not names or len(set(names)) < len(names):
        raise InputError(f"got the profiles {', '.join(names) or 'none'}, expected some of {', '.join(BUCKETS)}, each once")
    return tuple(BUCKETS[name] for name in names)


def axis_range(axis: Axis, bucket: Bucket) -> Range:
    """What a profile accepts of an axis. One that engines can't change has its optimum in every bucket."""
    if axis.fixed:
        return (axis.optimum,) * 3
    if axis.name in WHOLE:
        return axis.minimum, axis.optimum, axis.maximum
    optimum, most = bucket.batch if axis.name == BATCH else (axis.optimum, round(axis.optimum * bucket.longest))
    maximum = min(max(most, axis.minimum), axis.maximum)
    return axis.minimum, min(max(optimum, axis.minimum), maximum), maximum


def stage_profiles(stage: StageSpec, buckets: Sequence[Bucket]) -> list[ProfileEntry]:
    """The profiles of a stage's engine, those of two buckets that come to the same once only; that of the longest calls is the last."""
    profiles: list[ProfileEntry] = []
    for bucket in buckets:
        axes = {axis.name: axis_range(axis, bucket) for axis in stage.axes}
        if all(known.axes != axes for known in profiles):
            profiles.append(ProfileEntry(bucket=bucket.name, axes=axes))
    if any(axis.longest > max(profile.axes[axis.name][2] for profile in profiles) for axis in stage.axes):
        profiles.append(ProfileEntry(bucket=LONGEST, axes={axis.name: _longest_range(axis) for axis in stage.axes}))
    return profiles


def _longest_range(axis: Axis) -> Range:
    """What the profile of the longest calls accepts of an axis."""
    if axis.longest:
        return axis.minimum, axis.longest, axis.longest
    return axis_range(axis, _ONE)


def tensor_range(tensor: TensorSpec, profile: ProfileEntry) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
    """The smallest, best and largest shape of an input or state in a profile."""
    smallest, best, largest = (tensor.resolve({name: sizes[i] for name, sizes in profile.axes.items()}) for i in range(3))
    return smallest, best, largest
