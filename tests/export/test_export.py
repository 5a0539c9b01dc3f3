"""From a checkpoint to a bundle: hyper-parameters, nothing left behind, everything measured."""

from __future__ import annotations

import dataclasses
import errno
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from musicrt.runtime.bundle import Bundle
from musicrt.runtime.errors import Cancelled, CheckpointError, ConfigError, MusicRTError, OutputError, VerificationError
from musicrt.runtime.registry import build_spec, find_system
from musicrt.runtime.spec import CheckpointSpec, ModelSpec
from tests.conftest import refused, tiny_layout
from tests.runtime.audio_files import disk_of

torch = pytest.importorskip("torch")
ir = pytest.importorskip("onnx_ir")
pytest.importorskip("onnxscript")
ort = pytest.importorskip("onnxruntime")

from musicrt.export import bundle as export_module  # noqa: E402 - needs what was asked for above
from musicrt.export import stages as writing  # noqa: E402
from musicrt.export.bundle import export_bundle  # noqa: E402
from musicrt.export.checkpoints import hash_tensors  # noqa: E402
from musicrt.export.graphs import write_weights  # noqa: E402
from musicrt.runtime.checkpoint import read_checkpoint  # noqa: E402
from musicrt.runtime.model import Model  # noqa: E402
from musicrt.runtime.models.music2latent import stages as stages_module  # noqa: E402
from musicrt.runtime.models.music2latent.spec import CHECKPOINT  # noqa: E402

FILE = "music2latent.pt"
CONFIG = tiny_layout("music2latent")["config"]
State = dict[Any, Any]


# Hyper-parameters


CONFIGS: dict[str, tuple[str, str]] = {
    "unknown": (json.dumps({**CONFIG, "surplus": 1}), "'surplus'"),
    "unsupported": (json.dumps({**CONFIG, "use_fourier": True}), "use_fourier=True"),
    "another type": (json.dumps({**CONFIG, "hop": "64"}), "hop='64'"),
    "inconsistent": (json.dumps({**CONFIG, "layers_list": [1, 1]}), "layers_list has 2 entries, expected 5"),
    "odd": (json.dumps({**CONFIG, "hop": 18}), "hop 18"),
    "no JSON": ("{", "config.json"),
    "nested": ("[" * 100_000, "config.json"),
    "no object": ("[1]", "config.json"),
    "binary": ("\udcff", "config.json"),
}


@pytest.mark.parametrize("given", [False, True], ids=["beside the checkpoint", "as an argument"])
@pytest.mark.parametrize("kind", CONFIGS)
def test_wrong_config_is_refused(tiny_checkpoint: Path, tmp_path: Path, kind: str, given: bool) -> None:
    text, word = CONFIGS[kind]
    (tmp_path / FILE).symlink_to(tiny_checkpoint / FILE)
    (tmp_path / "config.json").write_text(text, errors="surrogateescape")
    with refused(ConfigError, word):
        if given:
            export_bundle("music2latent", tiny_checkpoint, tmp_path / "out", config=tmp_path / "config.json")
        else:
            export_bundle("music2latent", tmp_path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_checkpoint_of_another_configuration_is_refused(tiny_checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")  # the full network's
    with refused(CheckpointError, "does not fit the network", "of another shape", "check the variant or configuration"):
        export_bundle("music2latent", tiny_checkpoint, tmp_path / "out", config=tmp_path / "config.json")


@pytest.fixture
def chosen(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Stops every export when the files are read, and keeps the spec of that moment. The system gets three variants."""
    seen: dict[str, Any] = {}
    found = find_system("music2latent")
    variants = {"small": {**CONFIG, "rho": 6.0}, "tiny": CONFIG, "full": {}}
    monkeypatch.setattr(export_module, "find_system", lambda _: dataclasses.replace(found, variants=variants))

    def stop(spec: ModelSpec, _files: object) -> ModelSpec:
        seen["spec"] = spec
        raise Cancelled("enough")

    monkeypatch.setattr(export_module, "fit_spec", stop)
    return seen


@pytest.mark.parametrize(
    ("variant", "config", "name", "rho"),
    [(None, None, "small", 6.0), ("tiny", None, "tiny", 7.0), (None, CONFIG, "tiny", 7.0), (None, {**CONFIG, "rho": 5.0}, "custom", 5.0)],
)
@pytest.mark.parametrize("given", [False, True], ids=["beside the checkpoint", "as an argument"])
def test_hyperparameters_are_those_of_the_variant_or_file(
    tiny_checkpoint: Path, tmp_path: Path, chosen: dict[str, Any], variant: str | None, config: object, name: str, rho: float, given: bool
) -> None:
    """By default the first variant; a file that says what a variant says is taken for that."""
    (tmp_path / FILE).symlink_to(tiny_checkpoint / FILE)
    file = None if config is None else tmp_path / ("given.json" if given else "config.json")
    if file:
        file.write_text(json.dumps(config))
    with refused(Cancelled, "enough"):
        export_bundle("music2latent", tmp_path, tmp_path / "out", variant=variant, config=file if given else None)
    assert (chosen["spec"].variant, chosen["spec"].config["rho"]) == (name, rho)


@pytest.mark.parametrize("given", [False, True], ids=["beside the checkpoint", "as an argument"])
def test_variant_and_file_have_to_agree(tiny_checkpoint: Path, tmp_path: Path, chosen: dict[str, Any], given: bool) -> None:
    (tmp_path / FILE).symlink_to(tiny_checkpoint / FILE)
    file = tmp_path / ("given.json" if given else "config.json")
    file.write_text(json.dumps({**CONFIG, "rho": 5.0}))
    config = file if given else None
    with refused(ConfigError, "variant 'tiny'", file, "otherwise of rho;", "leave the variant out"):
        export_bundle("music2latent", tmp_path, tmp_path / "out", variant="tiny", config=config)
    assert not chosen
    file.write_text(json.dumps(CONFIG))
    with refused(Cancelled, "enough"):
        export_bundle("music2latent", tmp_path, tmp_path / "out", variant="tiny", config=config)
    assert (chosen["spec"].variant, chosen["spec"].config["rho"]) == ("tiny", 7.0)


def test_file_may_know_what_a_variant_leaves_to_the_weights(tmp_path: Path) -> None:
    system = find_system("semanticodec")
    variant = next(iter(system.variants))
    (tmp_path / "config.json").write_text(json.dumps({**system.variants[variant], "semantic_codebook_rows": 300}))
    spec = export_module._choose_spec(system, variant, tmp_path / "config.json")
    assert (spec.variant, spec.config["semantic_codebook_rows"]) == (variant, 300)


def test_hyperparameters_that_only_the_files_tell_are_asked_for(tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By export as when a checkpoint is run as it is."""

    def fit_config(files: State, config: State) -> State:
        return {**config, "rho": float(len(files[FILE]["gen_state_dict"]))}

    monkeypatch.setattr(stages_module, "fit_config", fit_config)
    expected = float(len(read_checkpoint(CHECKPOINT, tiny_checkpoint)[FILE]["gen_state_dict"]))
    with Model.open_checkpoint("music2latent", tiny_checkpoint, CONFIG) as model:
        assert (model.spec.variant, model.spec.config["rho"]) == ("checkpoint", expected)
    seen: list[ModelSpec] = []
    monkeypatch.setattr(export_module, "new_folder", raise_it(Cancelled("enough")))
    monkeypatch.setattr(stages_module, "load_stages", lambda _files, config: seen.append(build_spec("music2latent", config, "x")))
    with refused(Cancelled, "enough"):
        export_bundle("music2latent", tiny_checkpoint, tiny_checkpoint.parent / "out")
    assert [spec.config["rho"] for spec in seen] == [expected]


def test_files_are_hashed_where_they_were_found(tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = CheckpointSpec((f"weights/{FILE}", "codebooks/extra.npy"), "a/b")
    spec = dataclasses.replace(build_spec("music2latent", CONFIG, "tiny"), checkpoint=checkpoint)
    monkeypatch.setattr(export_module, "build_spec", lambda *_: spec)
    monkeypatch.setattr(export_module, "fit_spec", lambda given, _: given)
    monkeypatch.setattr(stages_module, "load_stages", lambda *_: {})
    hashed: list[Path] = []
    monkeypatch.setattr(export_module, "new_folder", raise_it(Cancelled("enough")))
    monkeypatch.setattr(export_module, "sha256_of", hashed.append)
    (tmp_path / FILE).symlink_to(tiny_checkpoint / FILE)
    (tmp_path / "codebooks").mkdir()
    np.save(tmp_path / "codebooks" / "extra.npy", np.arange(3))
    with refused(Cancelled, "enough"):
        export_bundle("music2latent", tmp_path, tmp_path / "out")
    assert hashed == [tmp_path / FILE, tmp_path / "codebooks" / "extra.npy"]


def test_unknown_names_are_refused_with_the_known_ones(tiny_checkpoint: Path, tmp_path: Path) -> None:
    with refused(ConfigError, "'another'", "music2latent"):
        export_bundle("another", tiny_checkpoint, tmp_path / "out")
    with refused(ConfigError, "'another'", "full"):
        export_bundle("music2latent", tiny_checkpoint, tmp_path / "out", variant="another")
    with refused(ConfigError, tmp_path / "missing.json"):
        export_bundle("music2latent", tiny_checkpoint, tmp_path / "out", config=tmp_path / "missing.json")
    assert list(tmp_path.iterdir()) == []


# Nothing half-written


@pytest.fixture
def empty_graphs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes tracing quick; what it gives is good enough to be written."""
    monkeypatch.setattr(writing, "trace_stage", lambda *_: ir.Model(ir.Graph([], [], nodes=[]), ir_version=10))


def raise_it(error: BaseException) -> Callable[..., Any]:
    def call(*_: object, **__: object) -> None:
        raise error

    return call


FULL_DISK = OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.usefixtures("empty_graphs")
@pytest.mark.parametrize("place", ["trace_stage", "write_weights", "_write_stage", "identity_of"])
@pytest.mark.parametrize("error", [KeyboardInterrupt(), RuntimeError("a fault"), MemoryError()])
def test_interrupted_export_leaves_nothing(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str, error: BaseException
) -> None:
    if place == "identity_of":
        monkeypatch.setattr(writing, "_write_stage", lambda *_: (None, None))
        monkeypatch.setattr(export_module, "_describe", lambda *_: None)
    monkeypatch.setattr(export_module if place == "identity_of" else writing, place, raise_it(error))
    with pytest.raises(type(error)):
        export_bundle("music2latent", tiny_checkpoint, tmp_path / "new" / "out")
    assert list(tmp_path.rglob("*")) in ([], [tmp_path / "new"])


@pytest.mark.usefixtures("empty_graphs")
@pytest.mark.parametrize("place", ["write_weights", "_write_stage"])
def test_full_disk_is_an_output_error(tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str) -> None:
    monkeypatch.setattr(writing, place, raise_it(FULL_DISK))
    with refused(OutputError, tmp_path / "out", "No space left on device", "free space"):
        export_bundle("music2latent", tiny_checkpoint, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("empty_graphs")
def test_disk_that_fills_up_under_the_weights_is_an_output_error(tiny_checkpoint: Path, tmp_path: Path) -> None:
    """safetensors raises errors of its own."""
    with disk_of(1_000_000), refused(OutputError, tmp_path / "out", "free space"):
        export_bundle("music2latent", tiny_checkpoint, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("empty_graphs")
def test_cancelling_leaves_nothing(tiny_checkpoint: Path, tmp_path: Path) -> None:
    seen: list[tuple[str, int, int]] = []

    def on_stage(*stage: Any) -> None:
        seen.append(stage)
        if len(seen) == 3:
            raise Cancelled("enough")

    with refused(Cancelled, "enough"):
        export_bundle("music2latent", tiny_checkpoint, tmp_path / "out", on_stage=on_stage)
    stages = build_spec("music2latent", CONFIG, "tiny").stages
    assert seen == [(stage.name, done, len(stages)) for done, stage in enumerate(stages[:3])]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["description", "weights_licence"])
def test_text_that_no_manifest_may_hold_is_refused_before_the_work(tmp_path: Path, name: str) -> None:
    with refused(ConfigError, r"'ours\nand more'", "expected one line"):
        export_bundle("music2latent", tmp_path / "none.pt", tmp_path / "out", **{name: "ours\nand more"})  # type: ignore[arg-type]


def test_existing_bundle_is_never_overwritten(tiny_checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "precious").write_text("mine")
    (tmp_path / "file").write_text("mine")
    for name in ("out", "file"):
        with refused(OutputError, tmp_path / name, "exists already"):
            export_bundle("music2latent", tiny_checkpoint, tmp_path / name)
    assert (tmp_path / "out" / "precious").read_text() == "mine"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "out"]


def test_graph_that_differs_from_torch_is_refused(tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One small stage is really exported; its tolerance is then one that no float32 graph can keep."""
    spec = build_spec("music2latent", CONFIG, "tiny")
    strict = dataclasses.replace(spec.stage("frontend").tolerance, rel_l2=1e-12)
    stage = dataclasses.replace(spec.stage("frontend"), tolerance=strict)
    monkeypatch.setattr(export_module, "fit_spec", lambda *_: dataclasses.replace(spec, stages=(stage,)))
    with refused(VerificationError, "frontend", "1e-12"):
        export_bundle("music2latent", tiny_checkpoint, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


# What is written


def make_model(name: str, values: Any) -> Any:
    """A graph with one initializer."""
    initializer = ir.Value(name=name, const_value=ir.tensor(values), type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape(values.shape))
    return ir.Model(ir.Graph([], [], nodes=[], initializers=[initializer]), ir_version=10)


def test_weights_are_stored_once_and_readable_by_all(tmp_path: Path) -> None:
    from safetensors.numpy import load_file

    shared, own = np.arange(600, dtype=np.float32), np.ones(600, np.float32)
    models = {"a": make_model("w", shared), "b": make_model("w", shared), "c": make_model("v", own), "d": make_model("small", own[:4])}
    (tmp_path / "probe").touch()
    write_weights(tmp_path / "weights.safetensors", {"layer.weight": torch.from_numpy(shared)}, models)
    stored = load_file(tmp_path / "weights.safetensors")
    assert sorted(stored) == ["graph.c.v", "layer.weight"]
    np.testing.assert_array_equal(stored["graph.c.v"], own)
    content = (tmp_path / "weights.safetensors").read_bytes()
    for stage, expected in (("a", shared), ("b", shared), ("c", own)):
        (value,) = models[stage].graph.initializers.values()
        place = value.const_value
        assert place.location == "weights.safetensors"
        assert content[place.offset : place.offset + place.length] == expected.tobytes()
    assert not isinstance(next(iter(models["d"].graph.initializers.values())).const_value, ir.ExternalTensor)
    assert (tmp_path / "weights.safetensors").stat().st_mode & 0o777 == (tmp_path / "probe").stat().st_mode & 0o777


def test_graphs_have_the_names_and_axes_of_the_spec(tiny_bundle: Path) -> None:
    bundle = Bundle.open(tiny_bundle)
    for stage in bundle.spec.stages:
        session = ort.InferenceSession(bundle.graph(stage.name, "ort")[0], providers=["CPUExecutionProvider"])
        for nodes, tensors in ((session.get_inputs(), stage.feeds), (session.get_outputs(), stage.outputs)):
            assert [node.name for node in nodes] == [tensor.name for tensor in tensors]
            for node, tensor in zip(nodes, tensors, strict=True):
                assert node.shape == [dim if isinstance(dim, int) else str(dim) for dim in tensor.dims]


def test_phases_of_an_upsampling_lie_behind_each_other(tiny_bundle: Path) -> None:
    """Each with its channels together, and not, as PyTorch's pixel shuffle has them, those of each channel."""
    nodes = list(ir.load(tiny_bundle / "stages" / "decoder.onnx").graph)
    shuffles = [node for node in nodes if node.op_type == "DepthToSpace"]
    assert shuffles
    for node in shuffles:
        assert node.attributes["mode"].as_string() == "DCR"
        assert node.inputs[0].producer().op_type == "Concat"


def test_bundle_tells_nothing_of_the_machine_that_made_it(tiny_bundle: Path, tiny_checkpoint: Path) -> None:
    import musicrt

    places = [str(Path(musicrt.__file__).parent), str(Path(torch.__file__).parent), str(tiny_checkpoint), str(Path.home()), "Traceback"]
    for file in tiny_bundle.rglob("*.*"):
        content = file.read_bytes()
        assert [place for place in places if place.encode() in content] == [], file.name


def test_manifest_names_the_source_of_the_weights(tiny_bundle: Path, weights: State) -> None:
    manifest = Bundle.open(tiny_bundle).manifest
    assert manifest.source.tensors_sha256 == hash_tensors({FILE: {"gen_state_dict": weights}})
    assert list(manifest.source.files) == [FILE]
    assert manifest.variant == "custom"
    assert {"torch", "onnx", "onnxscript", "onnxruntime", "numpy"} <= set(manifest.tools)


def test_hash_of_tensors_depends_on_content_only(weights: State) -> None:
    reference = hash_tensors({FILE: weights})
    assert hash_tensors({FILE: dict(reversed(weights.items()))}) == reference
    assert hash_tensors({FILE: {**weights, "note": "text"}}) == reference
    turned = {key: value.t().contiguous().t() if value.ndim == 2 else value for key, value in weights.items()}
    assert hash_tensors({FILE: turned}) == reference
    others = [
        {**weights, "conv_inp.bias": weights["conv_inp.bias"] + 1e-3},
        {**weights, "conv_inp.bias": weights["conv_inp.bias"].double()},
        {**weights, "conv_inp.bias": weights["conv_inp.bias"][None]},
        {**weights, "more": torch.zeros(0)},
        {**weights, "more": torch.tensor(1.0)},
        {**weights, "more": torch.tensor(2.0)},
        {key.replace("conv_inp.bias", "conv_inp.beam"): value for key, value in weights.items()},
    ]
    hashes = {hash_tensors({FILE: other}) for other in others} | {hash_tensors({"other.pt": weights}), reference}
    assert len(hashes) == len(others) + 2


def test_every_refusal_is_an_error_of_this_package() -> None:
    for kind in (CheckpointError, ConfigError, OutputError, VerificationError, Cancelled):
        assert issubclass(kind, MusicRTError)
