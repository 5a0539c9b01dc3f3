"""The order of calls in the loop over columns on a fake GPU: blocks, windows one after the other and at once, graphs with loops."""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from musicrt.runtime.backends.torch import TorchDevice
from musicrt.runtime.cuda import generation, repetition
from musicrt.runtime.errors import BackendError, Cancelled
from musicrt.runtime.models.vidmuse.noise import SeededNumbers
from musicrt.runtime.models.vidmuse.pipeline import Pipeline
from tests.conftest import refused
from tests.reference.systems.vidmuse_chains import OnHost
from tests.runtime.fake_gpu import FakeGpuSession
from tests.runtime.vidmuse_codecs import LightSession, clip, open_light
from tests.runtime.vidmuse_gpu import COLUMNS, Gpu, names, open_on, write

pytestmark = pytest.mark.usefixtures("short_blocks")


# Nothing of the host between columns


def test_nothing_but_replays_within_a_block() -> None:
    device = Gpu()
    pipeline = open_on(device)
    write(pipeline, seed=0)
    once = ["replay", "run", "choose_float"]
    end = ["download", "download", "wait"]
    calls = names(device.calls)
    first = calls.index("record")
    assert calls[first - 3 : first] == ["upload", "run", "choose_float"]  # the first column warms up and counts
    assert calls[first + 1 :] == [*once * 6, *end, "upload", *once * 4, *end, "upload", *once * 4, *end]


def test_another_window_of_the_same_size_allocates_nothing() -> None:
    device = Gpu()
    pipeline, prompt = open_on(device), np.zeros((1, 4, 3), np.int64)
    first = write(pipeline, seed=0, prompt=prompt)
    device.calls.clear()
    np.testing.assert_array_equal(write(pipeline, seed=0, prompt=prompt), first)
    assert not {"allocate", "record", "clear"} & set(names(device.calls))
    write(pipeline, seed=1, prompt=prompt, temperature=0.7, top_p=0.4, guidance=2.0)
    assert not {"allocate", "record", "clear"} & set(names(device.calls))


def test_memory_is_kept_for_windows_that_it_fits() -> None:
    pipeline = open_on(Gpu())
    language, kept = pipeline.composer.language, list[weakref.ref[generation.TokenLoop]]()
    for batch, timesteps, same in ((1, 36, False), (1, 20, True), (1, 10, False), (1, 12, True), (2, 12, False)):
        before = language._loop
        write(pipeline, batch, timesteps, seed=0)
        assert language._loop is not None
        assert (language._loop is before) == same
        del before
        kept.append(weakref.ref(language._loop))
        assert len({id(loop()) for loop in kept if loop() is not None}) == 1  # what does not fit is gone at once


def test_half_precision() -> None:
    """Keys and caches are float16 there, and of caches there is one size."""
    limits = {"capacity": (40, 40), "columns": (1, 2)}
    pipelines = [open_on(Gpu(), limits, "trt"), open_light(limits=limits, flavour="trt")[0]]
    one, other = [write(pipeline, 2, seed=1, prompt=np.ones((1, 4, 4), np.int64)) for pipeline in pipelines]
    np.testing.assert_array_equal(one, other)


def test_prompts_go_at_once() -> None:
    device = Gpu()
    write(open_on(device), seed=0, prompt=np.zeros((1, 4, 5), np.int64))
    assert names(device.calls).count("run") == names(device.calls).count("choose_float") == COLUMNS - 5


def test_progress_comes_in_blocks_and_ends_with_all() -> None:
    device, seen = Gpu(), list[tuple[int, int]]()
    write(open_on(device), seed=0, on_progress=lambda done, total: seen.append((done, total)))
    assert seen == [(done, COLUMNS) for done in range(1, COLUMNS + 1)]


def test_memory_that_moved_is_recorded_anew(host: Pipeline) -> None:
    """Audio of a stream is decoded between blocks, in the scratch memory of all stages."""
    device = Gpu()

    def move(done: int, total: int) -> None:
        del total
        device.generation += done == 7

    np.testing.assert_array_equal(write(open_on(device), seed=2, on_progress=move), write(host, seed=2))
    assert names(device.calls).count("record") == 2


def test_without_graphs(host: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MUSICRT_CUDA_GRAPHS", "0")
    device = Gpu()
    np.testing.assert_array_equal(write(open_on(device), seed=2), write(host, seed=2))
    assert not {"record", "replay"} & set(names(device.calls))


# Several windows, and those that do not end


def test_streams_may_take_turns(host: Pipeline) -> None:
    pipeline = open_on(Gpu())
    videos = [clip(2), clip(2, first=40)]
    alone = [host.generate(video, duration=0.5, seed=seed) for seed, video in enumerate(videos)]
    streams = [pipeline.generate_stream(video, duration=0.5, seed=seed) for seed, video in enumerate(videos)]
    blocks = [[next(stream)] for stream in streams]
    for stream, parts, expected in zip(streams, blocks, alone, strict=True):
        parts.extend(stream)
        assert len(parts) > 3
        np.testing.assert_allclose(np.concatenate(parts, axis=1), expected, atol=1e-6)


def test_what_is_abandoned_leaves_nothing_behind(host: Pipeline) -> None:
    device = Gpu()
    pipeline = open_on(device)

    def stop(done: int, total: int) -> None:
        del total
        if done == 9:
            raise Cancelled

    with pytest.raises(Cancelled):
        write(pipeline, seed=0, on_progress=stop)
    device.calls.clear()
    np.testing.assert_array_equal(write(pipeline, seed=2), write(host, seed=2))
    assert not {"allocate", "record"} & set(names(device.calls))


class FailingSession(LightSession):
    """Gives, once, logits that are no numbers, behind so many columns."""

    behind = 8

    def _run(self, feeds: Mapping[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
        made = super()._run(feeds, names)
        if feeds["length"][0] == self.behind:
            made["logits"][:, :, 2] = np.nan
            self.behind = -1
        return made


@pytest.mark.parametrize("looping", [False, True])
def test_logits_that_are_no_numbers(host: Pipeline, looping: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(repetition.SWITCH, str(int(looping)))
    device = Gpu()
    pipeline = open_on(device)
    pipeline.model._sessions["lm"] = FakeGpuSession(FailingSession(pipeline.model.spec.stage("lm")), device)
    with refused(BackendError, "got logits that are no numbers at column 9"):
        write(pipeline, seed=0)
    assert names(device.calls).count("run") == (9 if looping else 11)  # the device itself stops early
    np.testing.assert_array_equal(write(pipeline, seed=2), write(host, seed=2))
    assert names(device.calls).count("record") == 2  # memory of a window that failed is not used again


@pytest.mark.parametrize("device", [None, Gpu()], ids=["host", "choice on the host"])
def test_logits_that_are_no_numbers_on_the_host(host: Pipeline, device: Gpu | None) -> None:
    pipeline = open_light()[0] if device is None else open_on(device)
    failing = FailingSession(pipeline.model.spec.stage("lm"))
    pipeline.model._sessions["lm"] = failing if device is None else FakeGpuSession(failing, device)
    with refused(BackendError, "got logits that are no numbers at column 9"):
        write(pipeline, noise=OnHost(SeededNumbers(4, 1)))
    assert not pipeline.composer.language._caches
    assert pipeline.composer.language._loop is None
    np.testing.assert_array_equal(write(pipeline, seed=2), write(host, seed=2))


# Graphs with loops


@pytest.fixture
def loops(monkeypatch: pytest.MonkeyPatch) -> Gpu:
    monkeypatch.setenv(repetition.SWITCH, "1")
    return Gpu()


@pytest.mark.parametrize("known", [0, 5])
def test_a_block_is_one_launch(host: Pipeline, loops: Gpu, known: int) -> None:
    prompt = np.zeros((2, 4, known), np.int64)
    pipeline = open_on(loops)
    for _ in range(2):
        np.testing.assert_array_equal(write(pipeline, 2, seed=6, prompt=prompt), write(host, 2, seed=6, prompt=prompt))
    blocks = -(-(COLUMNS - known - 3) // 4)
    assert names(loops.calls).count("record") == 1
    assert names(loops.calls).count("loop") == 2 * blocks
    assert names(loops.calls).count("choose_float") == 2 * (COLUMNS - known)


def test_memory_that_moved_ends_no_loop(host: Pipeline, loops: Gpu) -> None:
    def move(done: int, total: int) -> None:
        del total
        loops.generation += done == 7

    np.testing.assert_array_equal(write(open_on(loops), seed=2, on_progress=move), write(host, seed=2))
    assert names(loops.calls).count("record") == 2


def test_loops_need_graphs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(repetition.SWITCH, "1")
    with refused(BackendError, "got MUSICRT_CUDA_WHILE=1 where CUDA graphs are off"):
        write(open_on(Gpu(graphs=False)), seed=0)
    monkeypatch.setenv(repetition.SWITCH, "yes")
    with refused(BackendError, "got MUSICRT_CUDA_WHILE=yes, expected 1"):
        write(open_on(Gpu()), seed=0)


def test_loops_need_a_driver_that_has_them(monkeypatch: pytest.MonkeyPatch) -> None:
    driver = pytest.importorskip("cuda.bindings.driver")
    monkeypatch.setattr(driver, "cuDriverGetVersion", lambda: (0, 12030))
    with refused(BackendError, "the driver is of CUDA 12.3, graphs with loops need 12.4"):
        repetition.record_loop(None, lambda _condition: None)


def test_torch_records_no_loops() -> None:
    with refused(BackendError, "torch-cuda records no graphs with loops"):
        TorchDevice.record_loop(Gpu(), lambda _condition: None)  # type: ignore[arg-type]


def test_a_loop_needs_a_gpu(host: Pipeline) -> None:
    with refused(BackendError, "the session of stage 'lm' works on the host's memory"):
        generation.TokenLoop(host.model.session("lm"), {}, host.composer.pattern, {"batch": 1, "capacity": 16})
