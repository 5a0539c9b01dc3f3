"""Measuring: what is timed and what not, memory and cold start of fresh processes, reports."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from musicrt.runtime.errors import AudioError, BackendError, InputError
from musicrt.runtime.measure import (
    Measurement,
    describe_environment,
    markdown_table,
    measure,
    measure_idle,
    peak_memory_mb,
    run_isolated,
    since_start,
    synthesise_music,
)

_MEGABYTES = 200


def child_allocates(megabytes: int) -> dict[str, Any]:
    np.ones(megabytes * 1_000_000, np.uint8)
    return {"peak": peak_memory_mb()}


def child_starts(seconds: float) -> dict[str, Any]:
    print("what a child prints is not its result")
    time.sleep(seconds)
    return {"seconds": since_start(), "process": os.getpid()}


def child_crashes(text: str) -> None:
    raise RuntimeError(text)


def child_refuses(text: str) -> None:
    raise AudioError(text)


def child_exits(code: int) -> None:
    os._exit(code)


def test_measure_times_the_repeats_and_not_the_warmup() -> None:
    calls: list[float] = []

    def call() -> None:
        time.sleep(0.05 if len(calls) < 2 else 0.01)
        calls.append(time.perf_counter())

    times = measure(call, warmup=2, repeats=3)
    assert len(calls) == 5
    assert len(times) == 3
    assert min(times) >= 0.01
    assert sum(times) <= calls[-1] - calls[1] + 1e-3


@pytest.mark.parametrize(("warmup", "repeats"), [(0, 0), (-1, 1)])
def test_measure_refuses_counts_that_time_nothing(warmup: int, repeats: int) -> None:
    with pytest.raises(InputError, match="expected 0 or more and 1 or more"):
        measure(lambda: None, warmup, repeats)


def test_statistics_follow_from_the_raw_times() -> None:
    measured = Measurement("decode", (0.1, 0.2, 0.3, 0.4, 0.9), 1.5, (100.0, 120.0), (2.0, 1.0, 6.0))
    assert measured.p50 == pytest.approx(0.3)
    assert measured.p95 == pytest.approx(0.8)
    assert measured.p99 == pytest.approx(0.88)
    assert measured.real_time_factor == pytest.approx(0.2)
    assert measured.peak_mb == 120.0
    assert measured.cold_start == 2.0
    bare = Measurement("step", (0.1,))
    assert (bare.real_time_factor, bare.peak_mb, bare.cold_start, bare.idle_cpu) == (None, None, None, None)
    assert Measurement("step", (0.1,), idle=(0.0, 0.5, 0.1)).idle_cpu == 0.1


def test_json_gives_the_measurement_back_and_the_statistics() -> None:
    measured = Measurement("encode", (0.2, 0.4), 2.0, (100.0,), (1.5,), 1e-6, "a note")
    values = json.loads(json.dumps(measured.to_json()))
    assert Measurement.from_json(values) == measured
    assert values["p50"] == pytest.approx(0.3)
    assert values["real_time_factor"] == pytest.approx(0.15)


def test_merge_puts_the_raw_values_of_several_processes_together() -> None:
    parts = [Measurement("a", (1.0,), 2.0, (5.0,), (0.1,), idle=(0.0,)), Measurement("a", (3.0, 4.0), 2.0, (7.0,), (0.2,), idle=(0.5,))]
    assert Measurement.merge(parts) == Measurement("a", (1.0, 3.0, 4.0), 2.0, (5.0, 7.0), (0.1, 0.2), idle=(0.0, 0.5))
    with pytest.raises(InputError, match="measurements of a, b"):
        Measurement.merge([Measurement("a", (1.0,)), Measurement("b", (1.0,))])


def test_peak_memory_is_that_of_the_fresh_process_alone() -> None:
    held = np.ones(2 * _MEGABYTES * 1_000_000, np.uint8)  # of this process: the children must not count it
    small = run_isolated(f"{__name__}:child_allocates", {"megabytes": 1})["peak"]
    large = run_isolated(f"{__name__}:child_allocates", {"megabytes": 1 + _MEGABYTES})["peak"]
    assert peak_memory_mb() > held.nbytes / 1e6
    assert small < held.nbytes / 1e6
    assert large - small == pytest.approx(_MEGABYTES, rel=0.1)


def child_tells(name: str) -> dict[str, Any]:
    return {"value": os.environ.get(name)}


def test_a_child_has_the_variables_that_it_is_given() -> None:
    assert run_isolated(f"{__name__}:child_tells", {"name": "MUSICRT_TEST"}, {"MUSICRT_TEST": "given"}) == {"value": "given"}
    assert "MUSICRT_TEST" not in os.environ


def test_results_from_before_a_measure_was_taken_are_read() -> None:
    old = {"name": "encode", "times": [0.2], "audio_seconds": 2.0, "peaks_mb": [], "cold_starts": [], "error": None, "note": ""}
    assert Measurement.from_json(old) == Measurement("encode", (0.2,), 2.0)


def test_a_process_that_waits_is_idle_and_one_with_a_busy_thread_is_not() -> None:
    assert measure_idle(0.2) < 0.1
    stop = threading.Event()

    def work() -> None:
        while not stop.is_set():
            pass

    busy = threading.Thread(target=work)
    busy.start()
    assert measure_idle(0.3) > 0.03
    stop.set()
    busy.join()


def test_since_start_counts_from_the_start_of_the_process() -> None:
    begin = time.time()
    answer = run_isolated(f"{__name__}:child_starts", {"seconds": 0.3})
    assert 0.3 < answer["seconds"] <= time.time() - begin
    assert answer["process"] != os.getpid()


def test_a_failing_child_is_reported_with_the_end_of_its_stderr() -> None:
    with pytest.raises(
        BackendError, match=r"child_crashes failed in a process of its own \(exit code 1\).*RuntimeError: out of luck"
    ) as caught:
        run_isolated(f"{__name__}:child_crashes", {"text": "out of luck"})
    assert "\n" not in str(caught.value)
    with pytest.raises(BackendError, match=r"exit code 3.*it wrote nothing to stderr"):
        run_isolated(f"{__name__}:child_exits", {"code": 3})


def test_our_own_errors_pass_from_the_child_as_they_are() -> None:
    with pytest.raises(AudioError) as caught:
        run_isolated(f"{__name__}:child_refuses", {"text": "a.wav is empty; use another file"})
    assert str(caught.value) == "a.wav is empty; use another file"


def test_importing_the_harness_loads_no_backend() -> None:
    heavy = ("torch", "onnxruntime", "matplotlib")
    code = f"import sys, musicrt.runtime.bench.suite, musicrt.runtime.bench.files; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_environment_names_the_machine_but_not_its_owner() -> None:
    environment = describe_environment(threads=2)
    assert set(environment) == {"system", "cpu", "cores", "memory_gb", "load_average", "threads", "python", "versions"}
    assert environment["threads"] == 2
    assert environment["cores"] >= 1
    assert environment["versions"]["numpy"] == np.__version__
    assert str(Path.home()) not in json.dumps(environment)


def test_the_signal_is_always_the_same_and_full_of_content() -> None:
    audio = synthesise_music(0.5, 8000, channels=2)
    assert audio.dtype == np.float32
    assert audio.shape == (2, 4000)
    assert np.array_equal(audio, synthesise_music(0.5, 8000, channels=2))
    assert not np.allclose(audio[0], audio[1])
    assert 0.02 < np.sqrt(np.mean(audio**2)) < np.abs(audio).max() < 1.0


def test_markdown_table_aligns_text_left_and_numbers_right() -> None:
    assert markdown_table(("a", "b", "c"), [("x", "y", "1")], text_columns=2) == "| a | b | c |\n| --- | --- | ---: |\n| x | y | 1 |"
