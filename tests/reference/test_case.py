"""The reader of recorded cases: recipes, selected parts, comparison, and agreement with the original reader."""

from __future__ import annotations

import importlib.util
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from musicrt.runtime.errors import InputError
from tests.reference import runner
from tests.reference.case import Case, build, load_case, parse_index, select
from tests.reference.signals import Array

SYSTEMS = ["music2latent", "semanticodec", "mucodec", "vidmuse"]


def f32(values: Any) -> Array:
    return np.array(values, np.float32)


def ramp(*shape: int) -> dict[str, Array]:
    """Stored arrays for recipes: `x` counts up from 0, float32."""
    return {"x": np.arange(math.prod(shape), dtype=np.float32).reshape(shape)}


@pytest.mark.parametrize(
    ("op", "expected"),
    [
        (["times", 0.1], f32([[0, 0.1, 0.2], [0.3, 0.4, 0.5]])),
        (["plus", 1], f32([[1, 2, 3], [4, 5, 6]])),
        (["slice", "1, ::2"], f32([3, 5])),
        (["reshape", [3, -1]], f32([[0, 1], [2, 3], [4, 5]])),
        (["transpose", [1, 0]], f32([[0, 3], [1, 4], [2, 5]])),
        (["astype", "int64"], np.array([[0, 1, 2], [3, 4, 5]], np.int64)),
        (["mean", 0, True], f32([[1.5, 2.5, 3.5]])),
        (["mean", 1, False], f32([1, 4])),
        (["repeat", 0, 2], f32([[0, 1, 2], [0, 1, 2], [3, 4, 5], [3, 4, 5]])),
        (["tile", [1, 2]], f32([[0, 1, 2, 0, 1, 2], [3, 4, 5, 3, 4, 5]])),
        (["pad", [[0, 0], [1, 0]]], f32([[0, 0, 1, 2], [0, 3, 4, 5]])),
        (["pad", [[0, 1], [0, 0]], -1], f32([[0, 1, 2], [3, 4, 5], [-1, -1, -1]])),
        (["concat", 1, [{"generator": "ones", "args": [[2, 1]]}]], f32([[0, 1, 2, 1], [3, 4, 5, 1]])),
        (["stack", 0, [{"generator": "zeros", "args": [[2, 3]]}]], f32([[[0, 1, 2], [3, 4, 5]], [[0, 0, 0], [0, 0, 0]]])),
        (["set", "0, 1:", 9], f32([[0, 9, 9], [3, 4, 5]])),
        (["clip", 1, 3], f32([[1, 1, 2], [3, 3, 3]])),
    ],
)
def test_ops(op: list[Any], expected: Array) -> None:
    stored = ramp(2, 3)
    got = build({"generator": "stored", "args": ["x"], "ops": [op]}, stored)
    np.testing.assert_allclose(got, expected, rtol=1e-7, strict=True)
    assert got.flags.c_contiguous
    np.testing.assert_array_equal(stored["x"], ramp(2, 3)["x"])


@pytest.mark.parametrize(
    ("values", "op", "expected"),
    [
        ([-1.0, -0.5, 0.0, 0.5, 1.0], ["codes", 4], np.array([0, 1, 2, 3, 3], np.int64)),
        ([-2.0, 0.5 / 32768, 1.5 / 32768, 1.0], ["pcm16"], f32([-1, 0, 2 / 32768, 32767 / 32768])),
    ],
)
def test_ops_that_quantise(values: list[float], op: list[Any], expected: Array) -> None:
    np.testing.assert_array_equal(build({"generator": "value", "args": [values], "ops": [op]}, {}), expected, strict=True)


def test_ops_apply_in_order() -> None:
    recipe = {"generator": "full", "args": [[2], 3], "ops": [["plus", 1], ["times", 2], ["astype", "int32"]]}
    np.testing.assert_array_equal(build(recipe, {}), np.array([8, 8], np.int32), strict=True)


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        ({"generator": "noise"}, "unknown generator 'noise'"),
        ({"generator": "zeros", "args": [[2]], "ops": [["flip", 0]]}, r"unknown op \['flip', 0\]"),
    ],
)
def test_unknown_recipes_are_refused(recipe: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        build(recipe, {})


@pytest.mark.parametrize(
    ("part", "expected"),
    [
        ("whole", np.arange(12).reshape(3, 4)),
        ("flat[1::5]", np.array([1, 6, 11])),
        ("[:, ::3]", np.array([[0, 3], [4, 7], [8, 11]])),
        ("[-1, ...]", np.array([8, 9, 10, 11])),
    ],
)
def test_select(part: str, expected: Array) -> None:
    np.testing.assert_array_equal(select(np.arange(12).reshape(3, 4), part), expected, strict=True)


def test_parse_index() -> None:
    assert parse_index("[0, :3, ..., None, -2:8:3]") == (0, slice(None, 3), ..., None, slice(-2, 8, 3))
    with pytest.raises(ValueError, match="__import__"):
        parse_index("__import__('os')")


def float_case(**spec: Any) -> Case:
    want = f32([3, 4, 0, 0])
    output = {"key": "y", "select": "whole", "shape": [4], "dtype": "float32", "atol": 1e-2, "rel_l2": 1e-3, **spec}
    return Case(Path("x"), {"stage": "s", "outputs": {"y": output}}, {"y": want})


def test_float_output_within_both_tolerances_passes() -> None:
    (verdict,) = float_case().compare({"y": np.array([3, 4, 0.004, 0])})
    assert (verdict.output, verdict.ok, verdict.tolerance) == ("y", True, 1e-3)
    assert verdict.error == pytest.approx(0.004 / 5)


@pytest.mark.parametrize(
    ("spec", "output", "detail"),
    [
        ({}, [3, 4, 0.006, 0], "rel l2 1.20e-03"),
        ({"rel_l2": 1.0}, [3, 4, 0.02, 0], "max 2.00e-02"),
        ({}, [3, 4, np.nan, 0], "1 of 4 are NaN or infinite"),
        ({}, [np.inf, 4, 0, -np.inf], "2 of 4 are NaN or infinite"),
        ({}, [[3, 4], [0, 0]], r"shape [2, 2], recorded [4]"),
    ],
)
def test_wrong_float_output_fails(spec: dict[str, float], output: Any, detail: str) -> None:
    (verdict,) = float_case(**spec).compare({"y": np.array(output)})
    assert not verdict.ok
    assert detail in verdict.detail


def test_slack_widens_float_tolerances() -> None:
    output = {"y": np.array([3, 4, 0.015, 0])}
    assert not float_case().compare(output)[0].ok
    (verdict,) = float_case().compare(output, slack=4.0)
    assert (verdict.ok, verdict.tolerance) == (True, 4e-3)


def test_missing_output_fails_unless_it_is_a_trace() -> None:
    case = float_case()
    (verdict,) = case.compare({"z": np.zeros(4)})
    assert (verdict.ok, verdict.error, verdict.detail) == (False, math.inf, "not produced")
    case.info["outputs"] = {"trace/y": case.info["outputs"]["y"]}
    assert case.compare({}) == []
    assert not case.compare({"trace/y": np.zeros(4)})[0].ok


def test_only_the_selected_part_counts() -> None:
    case = float_case(shape=[2, 4], select="[0]")
    output = np.array([[3, 4, 0, 0], [9, 9, 9, 9]])
    assert case.compare({"y": output})[0].ok
    assert not case.compare({"y": output[::-1]})[0].ok


@pytest.mark.parametrize(
    ("output", "spec", "differ"),
    [
        ([5, 6, 7], {}, 0),
        ([5, 9, 7], {}, 1),
        ([5, 9, 7], {"margin": "m", "margin_floor": 1e-5}, 0),  # a tie, any other choice
        ([5, 6, 9], {"margin": "m", "margin_floor": 1e-5}, 1),  # no tie
        ([5, 8, 7], {"margin": "m", "margin_floor": 1e-5, "runner_up": "r"}, 0),  # a tie, its runner-up
        ([5, 9, 7], {"margin": "m", "margin_floor": 1e-5, "runner_up": "r"}, 1),  # a tie, but not its runner-up
        ([8, 8, 8], {"margin": "m", "margin_floor": 1e-5, "runner_up": "r"}, 2),  # the runner-up where there is no tie
    ],
)
def test_exact_outputs_are_excused_only_at_ties(output: list[int], spec: dict[str, Any], differ: int) -> None:
    stored = {"t": np.array([5, 6, 7]), "m": f32([1, 1e-5, 0.1]), "r": np.array([8, 8, 8])}
    outputs = {"t": {"key": "t", "select": "whole", "shape": [3], "dtype": "int64", "exact": True, **spec}}
    (verdict,) = Case(Path("x"), {"outputs": outputs}, stored).compare({"t": np.array(output)}, slack=100.0)
    assert (verdict.ok, verdict.error, verdict.tolerance) == (differ == 0, differ, 0.0)


def test_load_case_refuses_other_files(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    with pytest.raises(InputError, match="expected a recorded case"):
        load_case(path)
    path.write_bytes(b"not safetensors")
    with pytest.raises(InputError, match="expected a recorded case"):
        load_case(path)
    save_file({"x": np.zeros(1)}, path)
    with pytest.raises(InputError, match="case format None, expected 2"):
        load_case(path)


@pytest.fixture(scope="module")
def original() -> Iterator[ModuleType]:
    """The original reader of cases."""
    folder = runner.shared_reference()
    if folder is None or not (folder / "case.py").is_file():
        pytest.skip("the shared reference recordings are not here (set MUSICRT_REFERENCE)")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "dont_write_bytecode", True)
        for name in ("fill", "case"):
            spec = importlib.util.spec_from_file_location(name, folder / f"{name}.py")
            assert spec is not None
            assert spec.loader is not None
            module = importlib.util.module_from_spec(spec)
            patch.setitem(sys.modules, name, module)
            spec.loader.exec_module(module)
        yield module


def cost(recipe: dict[str, Any]) -> float:
    """Elements to compute for a recipe; every note of an audio signal counts."""
    args = recipe.get("args", [])
    match recipe["generator"]:
        case "audio":
            size = args[1] * args[2] * math.prod(args[3:]) * max(4, int(args[1] * 4))
        case "video":
            size = args[1] * 3 * args[2] ** 2
        case "normal" | "unit":
            size = math.prod(args[1])
        case _:
            size = 0
    return float(size) + sum(cost(inner) for op in recipe.get("ops", []) if op[0] in ("concat", "stack") for inner in op[2])


@pytest.mark.parametrize("system", SYSTEMS)
def test_inputs_and_noise_agree_with_the_original_reader(system: str, original: ModuleType) -> None:
    compared = 0
    for path in sorted((Path(original.__file__ or "").parent / system / "cases").glob("*.safetensors")):
        theirs, ours = original.load(path), load_case(path)
        assert ours.info == theirs.info
        if sum(map(cost, ours.info["inputs"].values())) + sum(math.prod(n["shape"]) for n in ours.info["noise"]) > 2e6:
            continue
        compared += 1
        assert list(ours.inputs) == list(theirs.inputs)
        for name, value in theirs.inputs.items():
            np.testing.assert_array_equal(ours.inputs[name], value, strict=True, err_msg=f"{path.name} {name}")
        for got, want in zip(ours.noise, theirs.noise, strict=True):
            np.testing.assert_array_equal(got, want, strict=True, err_msg=path.name)
    assert compared > 40
