"""VidMuse's savings and memory: what is undone gives the same, arithmetic on made-up numbers, and the suites once on the tiny network."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from benchmarks import memory as shared
from benchmarks.vidmuse import memory, savings
from benchmarks.vidmuse.contenders import OnBackend
from benchmarks.vidmuse.savings_tables import (
    DISTINCT,
    IN_PLACE,
    NO_NULL,
    ONE_BATCH,
    ONE_KEYS,
    SHORT_NULL,
    VIDEOS,
    Pictures,
    Sizes,
    count_pictures,
    render,
    save_window,
)
from benchmarks.vidmuse.workload import Part, Workload
from musicrt.runtime.verify import relative_error
from tests.benchmarks.here import call_here
from tests.benchmarks.test_vidmuse import TINY
from tests.conftest import ForSystem

SIZES = Sizes(local=3, columns=20, pictures=2)
TIMES = {
    "step": [0.1, 0.1, 9.0],
    "step, black frames as long": [0.125],
    "step, caches written anew": [0.15],
    "keys and values, both halves": [4.0],
    "keys and values, once": [2.0],
    "step, next to that": [0.25],
    "step, one half after the other": [0.5],
    "image tower": [2.0],
    "local transformer": [0.5],
    "global transformer": [1.0],
    "fusion": [3.0],
}


@pytest.fixture(scope="module")
def contender(tiny_bundles: ForSystem) -> Iterator[OnBackend]:
    """The tiny bundle on ONNX Runtime."""
    pytest.importorskip("onnxruntime")
    opened = OnBackend(str(tiny_bundles("vidmuse")), "onnxruntime-cpu", 1)
    yield opened
    opened.codec.close()


def test_every_way_of_a_step_gives_the_same(contender: OnBackend, tiny_bundles: ForSystem) -> None:
    work = savings.build_work(str(tiny_bundles("vidmuse")), SIZES)
    assert (work.tokens, work.capacity) == (150, 21)
    session, feeds = contender.codec.model.session("lm"), contender.step_feeds(20, work)
    ways = [savings.make_logits(work) for _ in range(3)]
    savings.bind_elsewhere(session, feeds, ways[1], work)()
    assert not feeds["key_0"][:, :, 20].any()  # the column that a step in place writes
    long = savings.lengthen_null(feeds, work)
    assert long["null_key_1"].shape == (1, 4, 150, 16)
    session.bind(long, ways[2])()
    assert not feeds["key_0"][:, :, 20].any()
    session.bind(feeds, ways[0])()
    assert feeds["key_0"][:, :, 20].any()
    assert relative_error(ways[1], ways[0]) < 1e-6
    assert relative_error(ways[2], ways[0]) < 1e-5


def test_two_passes_give_what_one_batch_gives(contender: OnBackend, tiny_bundles: ForSystem, tiny_checkpoints: ForSystem) -> None:
    """In torch: exporting the network of a pass takes longer than all else here."""
    pytest.importorskip("torch")
    from benchmarks.vidmuse.passes import build_pass, describe_pass
    from musicrt.runtime.backends.torch import TorchSession

    work = savings.build_work(str(tiny_bundles("vidmuse")), SIZES)
    feeds, whole = contender.step_feeds(20, work), savings.make_logits(work)
    one = TorchSession(describe_pass(work), build_pass(work, tiny_checkpoints("vidmuse")))
    halves = [one.run(half)["logits"] for half in savings.split_halves(feeds, work)]
    contender.codec.model.session("lm").bind(feeds, whole)()
    assert relative_error({"logits": np.concatenate(halves)}, whole) < 1e-5


@pytest.mark.parametrize(
    ("video", "official", "ours"),
    [
        ((750, 25.0, 30), (92, 60, 32), (85, 58, 32)),
        ((30, 1.0, 30), (92, 60, 32), (30, 30, 30)),
        ((1, 1.0, 1), (34, 2, 32), (1, 1, 1)),
        ((990, 30.0, 33), (131, 67, 64), (88, 60, 32)),  # the last window sees an earlier moment again
    ],
)
def test_pictures_are_counted_in_all_windows(video: tuple[int, float, int], official: tuple[int, ...], ours: tuple[int, ...]) -> None:
    counted = count_pictures(*video)
    assert counted[0] == Pictures(*official)
    assert counted[1].local == ours[1]
    assert counted[1].whole == ours[2]
    assert counted[1].tower == ours[0]


def test_a_window_is_put_together_of_what_was_measured() -> None:
    work = Workload.build(TINY)
    now, saved = save_window(TIMES, SIZES, work, VIDEOS[0])
    official, ours = (92 * 2 + 60 * 0.5 + 32) / 2, (85 * 2 + 58 * 0.5 + 32) / 2
    assert now == pytest.approx(ours + 3 + 2 + 150.3)
    assert saved == pytest.approx(
        {
            ONE_KEYS: 1503 * 4 - 2,
            SHORT_NULL: 1503 * 0.025,
            IN_PLACE: 1503 * 0.05,
            ONE_BATCH: 1503 * 0.25,
            NO_NULL: official + 3,
            DISTINCT: official - ours,
        }
    )


def test_the_savings_suite_runs(
    tiny_bundles: ForSystem, tiny_checkpoints: ForSystem, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    call_here(monkeypatch, savings)
    monkeypatch.setattr(savings, "_GROUPS", ("steps", "condition"))  # the third is an export, which the test above has
    monkeypatch.setattr(savings, "render", lambda times, sizes, work: f"{list(times)} {sizes.pictures} {work.tokens}")
    paths = ["--bundle", str(tiny_bundles("vidmuse")), "--checkpoint", str(tiny_checkpoints("vidmuse")), "--threads", "1"]
    savings.main(
        [*paths, "--local", "3", "--columns", "20", "--pictures", "2", "--repeats", "1", "--rest", "0", "--out", str(tmp_path / "s")]
    )
    content = json.loads((tmp_path / "s.json").read_text())
    assert set(content["times"]) == set(TIMES) - {"step, next to that", "step, one half after the other"}
    assert all(len(values) == 1 for values in content["times"].values())
    assert "2 150" in (tmp_path / "s.md").read_text()


def test_the_tables_of_savings_are_whole() -> None:
    text = render(TIMES, SIZES, Workload.build(TINY, 150))
    assert "| 5 minutes, 25 frames/s | 962 | 610 | 352 |" in text
    assert f"| {ONE_KEYS} | 6010.00 |" in text
    assert "| all of them |" in text
    assert "| step | 100.00 | 100.00 |" in text


def test_the_memory_suite_sets_peaks_beside_weights_and_caches(
    tiny_bundles: ForSystem, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("onnx")
    pytest.importorskip("torch")
    call_here(monkeypatch, memory, shared)
    sizes = ["--step", "20", "--decode", "0.2", "0.4", "--tokens", "100", "--parts", "step", "decode"]
    memory.main(["--bundle", str(tiny_bundles("vidmuse")), "--threads", "1", *sizes, "--out", str(tmp_path / "memory")])
    content = json.loads((tmp_path / "memory.json").read_text())
    assert [use["task"] for use in content["uses"]] == ["step, 20 columns", "decode, 0.2 s", "decode, 0.4 s"]
    assert set(content["activations_mb"]) == {"step, 20 columns", "decode"}
    work = memory.build_work(str(tiny_bundles("vidmuse")), 100)
    held = (2 * 2 * 64 * 4 * 150 + 2 * 2 * 2 * 64 * 4 * 1504) / 1e6
    assert memory.held_mb(Part("step", 20), work) == pytest.approx(held)
    assert memory.held_mb(Part("decode", 1), work) == 0
    assert held < content["activations_mb"]["step, 20 columns"] < held + 2
    text = (tmp_path / "memory.md").read_text()
    assert "| decode, 0.4 s | onnxruntime-cpu |" in text
    assert "Weights in use" in text
