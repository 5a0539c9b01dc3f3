"""Every registered system describes itself completely and consistently."""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import json
import re
from collections.abc import Mapping
from pathlib import PurePosixPath

import numpy as np
import pytest

from musicrt.runtime.bundle import Bundle
from musicrt.runtime.errors import ConfigError
from musicrt.runtime.pipeline import options_of
from musicrt.runtime.precision import Tolerance
from musicrt.runtime.registry import bit_rates, build_spec, find_system, fit_spec, system_module, system_names
from musicrt.runtime.spec import ModelSpec, StageSpec
from musicrt.runtime.tensors import Axis, Dim, TensorSpec
from tests.conftest import ForSystem, refused, tiny_layout

SYSTEMS = system_names()
SPECS = {system: build_spec(system, tiny_layout(system)["config"], "tiny") for system in SYSTEMS}
STAGES = [pytest.param(stage, id=f"{system}-{stage.name}") for system, spec in SPECS.items() for stage in spec.stages]


@pytest.mark.parametrize("system", SYSTEMS)
def test_system_names_its_origin(system: str) -> None:
    found = find_system(system)
    assert found.name == system
    assert found.title
    assert found.task
    assert re.match(r"arXiv:\d{4}\.\d{5}$", found.paper)
    assert found.licences.code
    assert found.licences.weights
    assert found.licences.weights_url.startswith("https://")
    assert found.variants


@pytest.mark.parametrize("system", SYSTEMS)
def test_every_variant_gives_a_spec(system: str) -> None:
    for variant, config in find_system(system).variants.items():
        spec = build_spec(system, config, variant)
        assert (spec.system, spec.variant) == (system, variant)
        assert spec.sample_rate > 0
        assert spec.bit_rate is None or spec.bit_rate > 0
        assert spec.checkpoint.files
        assert set(spec.checkpoint.with_objects) <= set(spec.checkpoint.files)
        assert len({PurePosixPath(file).name for file in spec.checkpoint.files}) == len(spec.checkpoint.files)
        assert re.fullmatch(r"[\w.-]+/[\w.-]+", spec.checkpoint.hub_repository)
        assert spec.checkpoint.url == f"https://huggingface.co/{spec.checkpoint.hub_repository}"


@pytest.mark.parametrize("system", SYSTEMS)
def test_bit_rates_are_those_of_the_variants(system: str) -> None:
    specs = {variant: build_spec(system, config, variant) for variant, config in find_system(system).variants.items()}
    assert bit_rates(system) == {variant: spec.bit_rate for variant, spec in specs.items() if spec.bit_rate is not None}


@pytest.mark.parametrize("system", SYSTEMS)
def test_codec_takes_options_by_name_and_reports_progress(system: str) -> None:
    codec = system_module(system, "pipeline").Pipeline
    for method in (codec.encode_source, codec.decode_stream):
        parameters = list(inspect.signature(method).parameters.values())
        assert parameters[-1].name == "on_progress"
        assert {one.kind for one in parameters[:2]} == {inspect.Parameter.POSITIONAL_OR_KEYWORD}
        assert {one.kind for one in parameters[2:]} == {inspect.Parameter.KEYWORD_ONLY}
        assert [one.name for one in parameters[2:-1]] == options_of(method)


@pytest.mark.parametrize("system", SYSTEMS)
def test_spec_survives_its_own_config_as_json(system: str) -> None:
    spec = SPECS[system]
    again = build_spec(system, json.loads(json.dumps(spec.config)), spec.variant)
    assert again == spec
    assert json.loads(json.dumps(spec.defaults)) == spec.defaults


@pytest.mark.parametrize("system", SYSTEMS)
def test_stages_are_found_by_unique_file_safe_names(system: str) -> None:
    spec = SPECS[system]
    names = [stage.name for stage in spec.stages]
    assert len(set(names)) == len(names)
    for stage in spec.stages:
        assert re.fullmatch(r"[a-z][a-z0-9-]*", stage.name)
        assert spec.stage(stage.name) is stage
    with pytest.raises(KeyError, match="no such stage"):
        spec.stage("no such stage")


@pytest.mark.parametrize("stage", STAGES)
def test_stage_is_consistent(stage: StageSpec) -> None:
    tensors = [*stage.feeds, *stage.outputs]
    assert stage.inputs
    assert stage.outputs
    assert len({tensor.name for tensor in tensors}) == len(tensors)
    whole = {tensor.name for tensor in tensors if tensor.dtype == "int64"}
    assert whole == {tensor.name for tensor in tensors if tensor.values == "codes" and tensor.codes > 0}
    loosest = 1e-2 if any(tensor.name in whole for tensor in stage.outputs) else 1e-3  # the former is a share of codes
    assert 0 < stage.tolerance.rel_l2 <= loosest
    known = {axis.name: axis for axis in stage.axes}
    assert known, "a stage without an axis could not be batched"
    for axis in known.values():
        assert 1 <= axis.minimum <= axis.optimum <= axis.maximum
    for dim in (dim for tensor in tensors for dim in tensor.dims):
        assert known[dim.axis.name] == dim.axis if isinstance(dim, Dim) else dim >= 1


@pytest.mark.parametrize("stage", STAGES)
def test_spec_is_frozen(stage: StageSpec) -> None:
    for part in (stage, stage.inputs[0], stage.axes[0], stage.tolerance):
        field = dataclasses.fields(part)[0].name
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(part, field, None)


@pytest.mark.parametrize("system", SYSTEMS)
def test_model_and_system_are_frozen(system: str) -> None:
    for part, field in ((SPECS[system], "variant"), (find_system(system), "name"), (find_system(system).licences, "weights")):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(part, field, "another")


@pytest.mark.parametrize("system", SYSTEMS)
def test_unknown_hyperparameter_is_refused_with_the_legal_ones(system: str) -> None:
    legal = sorted(SPECS[system].config)
    with refused(ConfigError, system, "no_such_parameter", *legal):
        build_spec(system, {"no_such_parameter": 1}, "custom")


@pytest.mark.parametrize("system", SYSTEMS)
def test_hyperparameter_of_another_type_is_refused(system: str) -> None:
    """A group of hyper-parameters that says nothing is right, and None where it stands for what follows from the others."""
    wrong_for_all: list[object] = ["text", {}, [[1]], float("nan"), True]
    defaults = build_spec(system, {}, "defaults").config
    for name, value in SPECS[system].config.items():
        with contextlib.suppress(ConfigError):
            assert build_spec(system, {name: None}, "custom").config == defaults
        right = [repr(defaults[name]), *(["{}"] if isinstance(value, Mapping) else [])]
        for wrong in [*wrong_for_all, [] if isinstance(value, int | float) else 3]:
            if repr(wrong) not in right:
                with refused(ConfigError, name):
                    build_spec(system, {name: wrong}, "custom")


@pytest.mark.parametrize("system", SYSTEMS)
def test_network_has_the_stages_of_the_spec(system: str) -> None:
    torch = pytest.importorskip("torch")
    with torch.device("meta"):
        stages = system_module(system, "stages").build_stages(SPECS[system].config)
    assert list(stages) == [stage.name for stage in SPECS[system].stages]


@pytest.mark.parametrize("system", SYSTEMS)
def test_files_tell_what_the_configuration_leaves_open(system: str, tiny_checkpoints: ForSystem) -> None:
    pytest.importorskip("torch")
    from musicrt.runtime.checkpoint import read_checkpoint

    files = read_checkpoint(SPECS[system].checkpoint, tiny_checkpoints(system))
    fitted = fit_spec(SPECS[system], files)
    assert (fitted.system, fitted.variant) == (system, "tiny")
    assert fit_spec(fitted, files) == fitted
    assert list(fitted.config) == list(SPECS[system].config)


@pytest.mark.parametrize("system", SYSTEMS)
def test_manifest_repeats_the_spec(system: str, tiny_bundles: ForSystem) -> None:
    bundle = Bundle.open(tiny_bundles(system))
    assert list(bundle.manifest.stages) == [stage.name for stage in bundle.spec.stages]
    errors: list[float] = []
    for stage in bundle.spec.stages:
        entry = bundle.manifest.stages[stage.name]
        assert entry.inputs == [tensor.describe() for tensor in stage.inputs]
        assert entry.outputs == [tensor.describe() for tensor in stage.outputs]
        assert entry.states == [tensor.describe() for tensor in stage.states]
        for graph in entry.graphs.values():
            assert 0 <= graph.error <= graph.tolerance == stage.tolerance.rel_l2
            errors.append(graph.error)
    assert np.median(errors) > 0, "a graph was held against itself"
    assert bundle.spec.stages == SPECS[system].stages
    assert bundle.manifest.licences.code == find_system(system).licences.code
    assert bundle.manifest.licences.weights


def test_unknown_system_is_refused_with_the_known_ones() -> None:
    with refused(ConfigError, "no-such-system", *SYSTEMS):
        find_system("no-such-system")


def test_tensor_describes_and_resolves_its_shape() -> None:
    batch, frames = Axis("batch", 1, 2, 4), Axis("frames", 1, 8, 16)
    tensor = TensorSpec("x", "float32", (batch, 3, frames, frames * 8, frames * 64 + 192, frames * 1 + 1))
    assert tensor.describe() == "x: float32 [batch, 3, frames, 8*frames, 64*frames+192, frames+1]"
    assert tensor.resolve({"batch": 2, "frames": 5}) == (2, 3, 5, 40, 512, 6)
    assert (frames * 2 + 1 + 1).size(3) == 8
    assert [(frames // 8).size(n) for n in (16, 23, 24)] == [2, 2, 3]
    assert [(frames // 8 + 1).size(n) for n in (16, 23, 24)] == [3, 3, 4]
    assert [((frames * 1 + 4) // 4 // 2 + 3).size(n) for n in (11, 12)] == [4, 5]
    assert [str(dim) for dim in (frames // 8, frames * 3 // 8, (frames * 3 + 1) // 8)] == ["frames//8", "3*frames//8", "(3*frames+1)//8"]
    stage = StageSpec("s", "", (tensor, TensorSpec("y", "int64", (frames,))), (tensor,), Tolerance(1e-5))
    assert stage.axes == (batch, frames)
    with pytest.raises(KeyError):
        tensor.resolve({"batch": 2})


def test_spec_shows_the_essentials_only() -> None:
    spec: ModelSpec = next(iter(SPECS.values()))
    assert "config" not in repr(spec)
    assert spec.stages[0].name in repr(spec)
