"""Sizes that engines are made for."""

from __future__ import annotations

import pytest

from musicrt.engines.profiles import BUCKETS, axis_range, find_buckets, stage_profiles, tensor_range
from musicrt.runtime.cuda.engine import fitting_profile
from musicrt.runtime.errors import InputError
from musicrt.runtime.precision import Tolerance
from musicrt.runtime.registry import build_spec, find_system, system_names
from musicrt.runtime.spec import StageSpec
from musicrt.runtime.tensors import Axis, TensorSpec
from tests.conftest import refused

BATCH, LENGTH, GUIDANCE = Axis("batch", 1, 1, 64), Axis("length", 3, 100, 1 << 20), Axis("guidance", 1, 2, 2)


def test_axes_go_as_far_as_the_bucket_says() -> None:
    latency, throughput, edge = find_buckets(["latency", "throughput", "edge"])
    assert [axis_range(BATCH, bucket) for bucket in (latency, throughput, edge)] == [(1, 1, 2), (1, 8, 16), (1, 1, 2)]
    assert [axis_range(LENGTH, bucket) for bucket in (latency, throughput, edge)] == [(3, 100, 200), (3, 100, 100), (3, 100, 100)]
    assert [axis_range(GUIDANCE, bucket) for bucket in (latency, edge)] == [(1, 2, 2)] * 2


def test_no_range_leaves_what_the_spec_accepts() -> None:
    few, short = Axis("batch", 2, 2, 3), Axis("length", 5, 100, 150)
    assert axis_range(few, BUCKETS["throughput"]) == (2, 3, 3)
    assert axis_range(few, BUCKETS["latency"]) == (2, 2, 2)
    assert axis_range(short, BUCKETS["latency"]) == (5, 100, 150)


def test_dimensions_follow_their_axes() -> None:
    wave = TensorSpec("wave", "float32", (BATCH, LENGTH * 512 + 1536))
    cache = TensorSpec("cache", "float16", (BATCH * 2, 4, LENGTH, 8))
    stage = StageSpec("small", "", (wave,), (), Tolerance(1e-5), states=(cache,))
    (profile,) = stage_profiles(stage, find_buckets(["latency"]))
    assert tensor_range(wave, profile) == ((1, 3072), (1, 52736), (2, 103936))
    assert tensor_range(cache, profile) == ((2, 4, 3, 8), (2, 4, 100, 8), (4, 4, 200, 8))


def test_buckets_that_come_to_the_same_are_one_profile() -> None:
    steps = StageSpec("steps", "", (TensorSpec("t", "float32", (Axis("steps", 1, 50, 1000),)),), (), Tolerance(1e-5))
    assert [profile.bucket for profile in stage_profiles(steps, find_buckets(["edge", "latency"]))] == ["edge"]
    wide = StageSpec("wide", "", (TensorSpec("x", "float32", (BATCH, LENGTH)),), (), Tolerance(1e-5))
    assert [profile.bucket for profile in stage_profiles(wide, find_buckets(["edge", "latency"]))] == ["edge", "latency"]


@pytest.mark.parametrize("names", [["fast"], [], ["edge", "edge"], ["latency", "Edge"]])
def test_unknown_buckets_are_refused(names: list[str]) -> None:
    with refused(InputError, *BUCKETS):
        find_buckets(names)


@pytest.mark.parametrize("system", system_names())
def test_every_stage_has_profiles_within_its_spec(system: str) -> None:
    variants = find_system(system).variants
    for stage in build_spec(system, next(iter(variants.values())), next(iter(variants))).stages:
        for profile in stage_profiles(stage, tuple(BUCKETS.values())):
            for axis in stage.axes:
                least, best, most = profile.axes[axis.name]
                smallest = axis.optimum if axis.fixed else axis.minimum
                assert smallest == least <= best <= most <= axis.maximum


def test_call_takes_the_profile_that_is_tuned_for_the_nearest_sizes() -> None:
    stage = StageSpec("wide", "", (TensorSpec("x", "float32", (BATCH, LENGTH)),), (), Tolerance(1e-5))
    profiles = stage_profiles(stage, find_buckets(["latency", "throughput"]))
    assert fitting_profile(profiles, {"batch": 1, "length": 100}) == 0
    assert fitting_profile(profiles, {"batch": 2, "length": 200}) == 0
    assert fitting_profile(profiles, {"batch": 8, "length": 90}) == 1
    assert fitting_profile(profiles, {"batch": 16, "length": 101}) is None
    assert fitting_profile(profiles, {"batch": 1, "length": 2}) is None
