"""Whole samplers as one graph: their arithmetic on a network of one node, bit for bit, and all systems on their tiny bundles."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from onnx import ModelProto, helper, numpy_helper

from benchmarks.whole_loop import compare
from benchmarks.whole_loop.compose import Sampler, compose, open_model
from benchmarks.whole_loop.denoising import SIGNAL, write_consistency, write_ddim, write_euler
from benchmarks.whole_loop.generation import write_generation
from benchmarks.whole_loop.problems import Size
from musicrt.runtime.errors import InputError
from musicrt.runtime.loops import consistency, ddim, flow
from musicrt.runtime.loops.consistency import ConsistencySchedule
from musicrt.runtime.loops.ddim import DdimSchedule
from musicrt.runtime.loops.diffusion import alphas_cumprod
from musicrt.runtime.loops.flow import EulerSchedule
from musicrt.runtime.loops.sampling import Sampling
from tests.benchmarks.here import call_here
from tests.conftest import ForSystem, refused

Float = NDArray[np.float32]
SHAPE, STEPS = (2, 3, 8, 4), 5
NOISE = np.random.default_rng(1).standard_normal((STEPS + 1, *SHAPE), np.float32)
SHIFTS = np.random.default_rng(2).standard_normal((STEPS, SHAPE[0], 1, 1, 1), np.float32)
FACTORS = np.array([0.3, -0.7], np.float32)


def toy_network(output: str, rows: int) -> ModelProto:
    """A network (x + shift) times a factor for each row of guidance; of one row without that axis."""
    factors = FACTORS.reshape(2, 1, 1, 1, 1) if rows == 2 else FACTORS[0]
    nodes = [helper.make_node("Add", ["x", "shift"], ["moved"]), helper.make_node("Mul", ["moved", "factors"], [output])]
    graph = helper.make_graph(nodes, "toy", [], [], initializer=[numpy_helper.from_array(np.asarray(factors), "factors")])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def run_composed(network: ModelProto, sampler: Sampler, feeds: dict[str, Any]) -> Float:
    model = compose(network, sampler, feeds, {SIGNAL: np.float32}, "inside")
    return np.asarray(open_model(model.SerializeToString(), Path.cwd(), 1)(feeds)[SIGNAL], np.float32)


def evaluate_rows(x: Float, shift: Float, out: Float) -> None:
    for row, factor in zip(out, FACTORS, strict=True):
        row[...] = (x + shift) * factor


def test_consistency_steps_are_those_of_the_host() -> None:
    schedule = ConsistencySchedule.build(STEPS, sigma_min=0.002, sigma_max=80.0, sigma_data=0.5, rho=7.0)

    def evaluate(step: int, x: Float, out: Float) -> None:
        out[...] = (x + SHIFTS[step]) * FACTORS[0]

    expected = consistency.sample(schedule, evaluate, NOISE.__getitem__, lambda: None)
    found = run_composed(toy_network("output", 1), write_consistency(schedule, {"shift": SHIFTS}), {"noise": NOISE})
    assert np.array_equal(found, expected)


def test_ddim_steps_are_those_of_the_host() -> None:
    schedule = DdimSchedule.build(STEPS, 1.0, alphas_cumprod(0.0015, 0.0195, 1000))
    expected = ddim.sample(
        schedule, lambda index, x, out: evaluate_rows(x, SHIFTS[STEPS - 1 - index], out), NOISE.__getitem__, lambda: None, 2.5
    )
    found = run_composed(toy_network("v", 2), write_ddim(schedule, {"shift": SHIFTS}, 2.5), {"noise": NOISE})
    assert np.array_equal(found, expected)


@pytest.mark.parametrize("frames", [0, 3])
def test_euler_steps_are_those_of_the_host(frames: int) -> None:
    schedule, known = EulerSchedule.build(STEPS), NOISE[1][:, :, :frames]
    expected = flow.sample(schedule, lambda i, x, out: evaluate_rows(x, SHIFTS[i], out), NOISE[0], known, lambda: None, 1.5)
    feeds = {"noise": NOISE[:1], **({"known": known} if frames else {})}
    found = run_composed(toy_network("velocity", 2), write_euler(schedule, {"shift": SHIFTS}, 1.5, frames), feeds)
    assert np.array_equal(found, expected)


def test_a_choice_that_is_not_composed_is_refused() -> None:
    with refused(InputError, "top_p 0.9", "expected 0"):
        write_generation(np.zeros((1, 1, 2), np.int64), np.ones((1, 2), np.bool_), 0, Sampling(top_p=0.9), 1.0, [])


@pytest.mark.parametrize(
    ("system", "size", "ways"),
    [
        ("music2latent", Size(0.5, 2, 1.0), [compare.INSIDE]),
        ("semanticodec", Size(1.0, 1, 2.0), [compare.INSIDE]),
        ("mucodec", Size(1.0, 3, 1.5), [compare.INSIDE, compare.OUTSIDE]),
        ("vidmuse", Size(0.5, 20, 3.0), [compare.INSIDE, compare.OUTSIDE]),
        ("vidmuse", Size(0.5, 1000, 3.0, "20"), [compare.INSIDE]),
    ],
)
def test_the_whole_graph_gives_what_the_host_does(
    system: str, size: Size, ways: list[str], tiny_bundles: ForSystem, tmp_path: Path
) -> None:
    asked: dict[str, Any] = {"bundle": str(tiny_bundles(system)), "size": vars(size), "folder": str(tmp_path), "threads": 1}
    steps = compare.prepare_case(**asked)["steps"]
    assert steps == (28 if size.steps == 1000 else size.steps)
    ((name, expected),) = compare.open_way(compare.HOST, **asked)().items()
    for way in ways:
        found = compare.open_way(way, **asked)()
        assert list(found) == [name]
        assert found[name].dtype == expected.dtype
        assert found[name] == pytest.approx(expected, rel=1e-4, abs=1e-4 * float(np.abs(expected).max()))


def test_the_suite_writes_results_side_by_side(tiny_bundles: ForSystem, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    call_here(monkeypatch, compare)
    options = ["--bundle", str(tiny_bundles("vidmuse")), "--seconds", "0.2", "--steps", "4", "--threads", "1", "--rest", "0"]
    compare.main([*options, "--choices", "greedy", "20", "--repeats", "2", "--rounds", "2", "--out", str(tmp_path / "whole")])
    content = json.loads((tmp_path / "whole.json").read_text())
    assert list(content["measurements"]) == ["4 columns, greedy", "4 columns, top 20"]
    found = content["measurements"]["4 columns, greedy"]
    assert list(found) == list(compare.WAYS)
    assert [len(values["times"]) for values in found.values()] == [2, 2, 2]
    assert [len(values["processor"]) for values in found.values()] == [2, 2, 2]
    assert [values["error"] for values in found.values()] == [0.0, 0.0, 0.0]
    assert str(tmp_path) not in (tmp_path / "whole.json").read_text()
    assert "## 4 columns, top 20: 4 steps, 2 runs" in (tmp_path / "whole.md").read_text()
