"""What `musicrt triton` writes, without a server: folders, configurations, and what is refused."""

from __future__ import annotations

import hashlib
import importlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import musicrt
from musicrt.runtime.bundle import Bundle
from musicrt.runtime.errors import InputError, OutputError
from musicrt.runtime.models.vidmuse.pipeline import Pipeline
from musicrt.triton.config import Settings, to_pbtxt
from musicrt.triton.repository import write_repository
from musicrt.triton.stages import open_stages
from tests.command import call, fails
from tests.conftest import refused
from tests.serving.triton_server import client_packages

NUMBERS = {"TYPE_BOOL": 1, "TYPE_UINT8": 1, "TYPE_INT64": 8, "TYPE_FP32": 4, "TYPE_FP64": 8}


@pytest.fixture(scope="module")
def parse() -> Callable[[str], Any]:
    """Reads a configuration as Triton does."""
    with client_packages():
        messages = pytest.importorskip("tritonclient.grpc.model_config_pb2", reason="no tritonclient: scripts/triton-env DIR")
        text_format = importlib.import_module("google.protobuf.text_format")
    return lambda text: text_format.Parse(text, messages.ModelConfig())


def hashes(folder: Path) -> dict[str, str]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_models_have_all_they_need(tmp_path: Path) -> None:
    assert write_repository(musicrt.EMBEDDED, tmp_path / "repo") == ["music2latent_decode", "music2latent_encode"]
    for name in ("music2latent_encode", "music2latent_decode"):
        model = tmp_path / "repo" / name
        assert sorted(path.name for path in model.iterdir()) == ["1", "bundle", "config.pbtxt", "warmup"]
        assert [path.name for path in (model / "1").iterdir()] == ["model.py"]
        assert hashes(model / "bundle").items() <= hashes(musicrt.EMBEDDED).items()
        Bundle.open(model / "bundle", check="hashes")
    weights = Path("bundle") / "stages" / "weights.safetensors"
    both = [(tmp_path / "repo" / name / weights).stat() for name in ("music2latent_encode", "music2latent_decode")]
    assert both[0].st_ino == both[1].st_ino  # stored once
    assert both[0].st_ino != (musicrt.EMBEDDED / "stages" / "weights.safetensors").stat().st_ino


def test_files_that_the_manifest_does_not_name_stay_behind(tmp_path: Path) -> None:
    bundle = tmp_path / "bundle"
    for path in musicrt.EMBEDDED.rglob("*"):
        if path.is_file():
            (bundle / path.relative_to(musicrt.EMBEDDED)).parent.mkdir(parents=True, exist_ok=True)
            os.link(path, bundle / path.relative_to(musicrt.EMBEDDED))
    (bundle / "notes.txt").write_text("private")
    write_repository(bundle, tmp_path / "repo")
    assert not list((tmp_path / "repo").rglob("notes.txt"))


def test_a_configuration_says_what_a_model_takes(tmp_path: Path, parse: Callable[[str], Any]) -> None:
    settings = Settings(device="cuda", backend="tensorrt", max_batch=4, max_delay=0.02, instances=2, queue=9, max_seconds=30.0)
    write_repository(musicrt.EMBEDDED, tmp_path / "repo", settings, name="nano")
    config = parse((tmp_path / "repo" / "nano_decode" / "config.pbtxt").read_text())
    assert (config.name, config.backend, config.max_batch_size) == ("nano_decode", "python", 4)
    inputs = {one.name: (one.data_type, list(one.dims), one.optional) for one in config.input}
    assert inputs["values"] == (11, [-1, -1, -1], False)  # TYPE_FP32
    assert inputs["steps"] == inputs["seed"] == (9, [1], True)  # TYPE_INT64
    assert "max_batch_size" not in inputs
    assert [(one.name, one.data_type, list(one.dims)) for one in config.output] == [("audio", 11, [-1, -1])]
    assert config.dynamic_batching.max_queue_delay_microseconds == 20_000
    assert config.dynamic_batching.default_queue_policy.max_queue_size == 9
    assert (config.instance_group[0].count, config.instance_group[0].kind) == (2, 1)  # KIND_GPU
    given = {key: value.string_value for key, value in config.parameters.items()}
    assert (given["verb"], given["device"], given["backend"], given["max_seconds"]) == ("decode", "cuda", "tensorrt", "30.0")
    assert config.model_warmup[0].inputs["steps"].input_data_file == "steps"


@pytest.mark.parametrize("system", ["semanticodec", "mucodec", "vidmuse"])
def test_every_system_has_its_verbs(system: str, tiny_bundles: Callable[[str], Path], tmp_path: Path, parse: Callable[[str], Any]) -> None:
    verbs = {"encode", "decode", "generate"} if system == "vidmuse" else {"encode", "decode"}
    assert set(write_repository(tiny_bundles(system), tmp_path / "repo")) == {f"{system}_{verb}" for verb in verbs}
    for verb in verbs:
        model = tmp_path / "repo" / f"{system}_{verb}"
        config = parse((model / "config.pbtxt").read_text())
        names = type(config.input[0]).DESCRIPTOR.fields_by_name["data_type"].enum_type.values_by_number
        given = {one.name: one for one in config.input}
        for name, warm in config.model_warmup[0].inputs.items():
            assert given[name].data_type == warm.data_type
            assert len(given[name].dims) == len(warm.dims)
            size = NUMBERS[names[warm.data_type].name] * int(np.prod(list(warm.dims)))
            assert (model / "warmup" / name).stat().st_size == size
        assert {one.name for one in config.input if not one.optional} <= set(config.model_warmup[0].inputs)
    if system == "vidmuse":
        assert {"temperature", "top_k", "duration", "guidance", "seed"} <= {one.name for one in config.input} or verb != "generate"


def test_stages_may_be_models(tiny_bundles: Callable[[str], Path], tmp_path: Path, parse: Callable[[str], Any]) -> None:
    bundle = Bundle.open(tiny_bundles("vidmuse"))
    models = write_repository(bundle.path, tmp_path / "repo", Settings(stage_models=True, threads=2, device="cuda"), name="v")
    served = {stage.name for stage in bundle.spec.stages if not stage.states and not stage.host}
    assert "lm" not in served  # its caches are changed in place, in the Python process
    assert {name.removeprefix("v_stage_") for name in models if "_stage_" in name} == served
    for name in served:
        model, stage = tmp_path / "repo" / f"v_stage_{name}", bundle.spec.stage(name)
        config = parse((model / "config.pbtxt").read_text())
        assert (config.platform, config.max_batch_size, config.instance_group[0].kind) == ("onnxruntime_onnx", 0, 1)  # KIND_GPU
        assert [one.name for one in config.input] == [tensor.name for tensor in stage.inputs]
        assert [one.name for one in config.output] == [tensor.name for tensor in stage.outputs]
        assert all(one.dims for one in (*config.input, *config.output))
        assert (model / "1" / "model.onnx").read_bytes() == bundle.graph(name, "ort")[0].read_bytes()
        assert (model / "1" / bundle.weights.name).samefile(tmp_path / "repo" / "v_decode" / "bundle" / "stages" / bundle.weights.name)
    assert not parse((tmp_path / "repo" / "v_decode" / "config.pbtxt").read_text()).model_warmup
    with refused(InputError, "int8", "float32"):
        write_repository(bundle.path, tmp_path / "other", Settings(stage_models=True, precision="int8"))


def test_stages_as_models_say_what_runs_them(tiny_bundles: Callable[[str], Path]) -> None:
    pytest.importorskip("onnxruntime")
    settings = Settings(stage_models=True, threads=1, backend="onnxruntime-cpu", device="cuda")
    with open_stages(tiny_bundles("vidmuse"), "v", settings) as model:
        ran = {name: (model.session(name).backend, model.session(name).precision) for name in ("lm", "synthesis")}
        record = Pipeline(model).record("decode")
    assert ran == {"lm": ("onnxruntime-cpu", "float32"), "synthesis": ("onnxruntime-cuda", "float32")}
    assert (record.backend, record.precision, record.threads) == ("onnxruntime-cuda", "float32", 1)
    assert record.runtime == "stages as models of a Triton server, but lm: onnxruntime-cpu in float32"


def test_text_is_that_of_protobuf() -> None:
    text = to_pbtxt({"name": 'a "b"', "flags": [True, False], "sizes": [1, -1], "none": [], "parts": [{"x": 1}, {"x": 2}]})
    assert text == 'name: "a \\"b\\""\nflags: [true, false]\nsizes: [1, -1]\nparts {\n  x: 1\n}\nparts {\n  x: 2\n}\n'


@pytest.mark.parametrize(
    ("settings", "word"),
    [
        (Settings(device="tpu"), "tpu"),  # type: ignore[arg-type]
        (Settings(instances=0), "instances 0"),
        (Settings(max_batch=0), "max_batch 0"),
        (Settings(max_seconds=float("nan")), "max_seconds nan"),
        (Settings(threads=-1), "threads -1"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings: Settings, word: str, tmp_path: Path) -> None:
    with refused(InputError, word, "expected"):
        write_repository(musicrt.EMBEDDED, tmp_path / "repo", settings)
    assert not list(tmp_path.iterdir())


def test_names_and_places_are_checked(tmp_path: Path) -> None:
    with refused(InputError, "../up"):
        write_repository(musicrt.EMBEDDED, tmp_path / "repo", name="../up")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    with refused(OutputError, "exists already"):
        write_repository(musicrt.EMBEDDED, tmp_path / "full")


def test_settings_come_back_from_a_configuration() -> None:
    given = {
        "device": "cpu",
        "backend": "auto",
        "precision": "int8",
        "threads": "2",
        "max_seconds": "30.0",
        "deadline": "5",
        "stage_models": "False",
    }
    config = {"name": "m", "max_batch_size": 4, "parameters": {key: {"string_value": value} for key, value in given.items()}}
    assert Settings.read(config) == Settings(precision="int8", threads=2, max_batch=4, max_seconds=30.0, deadline=5.0)
    config["parameters"]["threads"]["string_value"] = "many"  # type: ignore[index]
    with refused(InputError, "many", "write the repository again"):
        Settings.read(config)


def test_the_command(tmp_path: Path) -> None:
    out = call("triton", "embedded", "--out", tmp_path / "repo", "--name", "nano", "--json").out
    assert json.loads(out) == ["nano_decode", "nano_encode"]
    fails(3, "triton", "embedded", "--out", tmp_path / "other", "--queue", "0", says=("queue 0",))
    fails(8, "triton", "embedded", "--out", tmp_path / "repo", says=("exists already",))
