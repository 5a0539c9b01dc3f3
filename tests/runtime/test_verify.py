"""Verification of bundles, with torch and without, and the recorded runs that it goes by."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from musicrt.runtime import verify as verify_module
from musicrt.runtime.backends.torch import TorchCpu
from musicrt.runtime.bundle import Bundle
from musicrt.runtime.errors import BackendError, BundleError
from musicrt.runtime.files import sha256_of
from musicrt.runtime.manifest import Probe
from musicrt.runtime.precision import Tolerance
from musicrt.runtime.spec import StageSpec
from musicrt.runtime.tensors import Axis, TensorSpec
from musicrt.runtime.verify import probe_error, probe_inputs, record_probe, relative_error, verify_bundle
from tests.conftest import refused
from tests.runtime.test_bundle import WEIGHTS, change_manifest


@pytest.mark.parametrize("backend", ["onnxruntime-cpu", "torch-cpu"])
def test_good_bundle_passes_verification(tiny_bundle: Path, backend: str) -> None:
    pytest.importorskip(backend.removesuffix("-cpu"))
    checks = verify_bundle(tiny_bundle, backend=backend, threads=1)
    bundle = Bundle.open(tiny_bundle)
    assert [check.stage for check in checks] == [stage.name for stage in bundle.spec.stages]
    for check in checks:
        assert check.ok
        assert 0.0 <= check.error <= check.tolerance == bundle.spec.stage(check.stage).tolerance.rel_l2
        assert check.backend == backend
        assert check.reference == ("recorded at export" if backend == "torch-cpu" else "torch-cpu")


def test_verification_works_without_torch(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TorchCpu, "obstacle", classmethod(lambda _: "torch is not installed"))
    checks = verify_bundle(tiny_bundle, backend="onnxruntime-cpu")
    assert {check.reference for check in checks} == {"recorded at export"}
    assert all(check.ok for check in checks)
    with refused(BackendError, "torch is not installed"):
        verify_bundle(tiny_bundle, backend="torch-cpu")


@pytest.mark.parametrize("backend", ["onnxruntime-cpu", "torch-cpu"])
def test_verification_finds_weights_that_were_changed_with_their_hash(copy_bundle: Path, backend: str) -> None:
    """Graphs and torch agree with each other on the changed weights; what was recorded at export does not."""
    pytest.importorskip(backend.removesuffix("-cpu"))
    weights = load_file(copy_bundle / WEIGHTS)
    changed = next(name for name, value in sorted(weights.items()) if name.startswith("encoder.") and value.ndim == 4 and value.size > 500)
    weights[changed] = weights[changed] * np.float32(1.1)
    size = (copy_bundle / WEIGHTS).stat().st_size
    save_file(weights, copy_bundle / WEIGHTS)
    assert (copy_bundle / WEIGHTS).stat().st_size == size, "the graphs refer to places in the file"
    change_manifest(copy_bundle, lambda manifest: manifest["weights"].update(sha256=sha256_of(copy_bundle / WEIGHTS)))
    checks = {check.stage: check for check in verify_bundle(copy_bundle, backend=backend, threads=1)}
    assert checks["encoder"].error > 10 * checks["encoder"].tolerance
    assert [stage for stage, check in checks.items() if not check.ok] == ["encoder"]


BATCH = Axis("batch", 1, 1, 8)
CODES = TensorSpec("codes", "int64", (BATCH, 500), values="codes", codes=300)
LOOKUP = StageSpec("lookup", "", (TensorSpec("x", "float32", (BATCH, 4)), CODES), (CODES,), Tolerance(1e-2))


def test_probe_inputs_of_codes_cover_the_codebook() -> None:
    feeds = probe_inputs(LOOKUP, {"batch": 8}, seed=3)
    codes = feeds["codes"]
    assert codes.dtype == np.int64
    assert codes.shape == (8, 500)
    assert (codes.min(), codes.max()) == (0, 299)
    assert np.bincount(codes.reshape(-1)).max() < 40, "13 each on average"
    assert codes[0, :6].tolist() == [49, 175, 23, 265, 52, 263], "for ever: bundles are verified with them"
    np.testing.assert_array_equal(probe_inputs(LOOKUP, {"batch": 3}, seed=3)["codes"], codes[:3])
    assert not np.array_equal(probe_inputs(LOOKUP, {"batch": 8}, seed=4)["codes"], codes)


def test_error_of_codes_is_the_share_that_differs() -> None:
    codes = probe_inputs(LOOKUP, {"batch": 2}, seed=3)["codes"]
    other = codes.copy()
    other[0, :5] += 1000
    floats = np.ones(3, np.float32)
    assert relative_error({"codes": codes, "x": floats}, {"codes": codes.copy(), "x": floats}) == 0.0
    assert relative_error({"codes": other, "x": floats}, {"codes": codes, "x": floats}) == 5 / 1000
    assert relative_error({"codes": codes, "x": floats * 2}, {"codes": other, "x": floats}) == 1.0


def test_recorded_codes_are_compared_exactly() -> None:
    codes = probe_inputs(LOOKUP, {"batch": 2}, seed=3)["codes"]
    probe = Probe.model_validate_json(record_probe({"batch": 2}, 3, {"codes": codes}).model_dump_json())
    assert probe.outputs["codes"].stride == 15
    assert probe_error(probe, {"codes": codes}) == 0.0
    other = codes.copy()
    other[0, 0] += 1
    assert probe_error(probe, {"codes": other}) == 1 / 67
    damaged = probe.model_copy(update={"outputs": {"codes": probe.outputs["codes"].model_copy(update={"values": [np.nan] * 67})}})
    assert probe_error(damaged, {"codes": codes}) == 1.0


PROBES: dict[str, Callable[[dict[str, Any]], object]] = {
    "no outputs": lambda probe: probe.update(outputs={}),
    "unknown output": lambda probe: probe["outputs"].update(surplus=probe["outputs"]["latents"]),
    "missing output": lambda probe: probe["outputs"].pop("features"),
    "another shape": lambda probe: probe["outputs"]["latents"]["shape"].append(1),
    "fewer values": lambda probe: probe["outputs"]["latents"]["values"].pop(),
    "unknown axis": lambda probe: probe["sizes"].update(surplus=1),
    "missing axis": lambda probe: probe["sizes"].pop("latents"),
    "size out of range": lambda probe: probe["sizes"].update(batch=0),
    "negative seed": lambda probe: probe.update(seed=-1),
}


def test_probe_that_would_take_gigabytes_is_refused_before_it_is_made(copy_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its sizes are ones that a session would take, and all that was recorded fits them."""
    stage = Bundle.open(copy_bundle).spec.stage("frontend")
    sizes = {axis.name: axis.maximum for axis in stage.axes}
    recorded = {}
    for tensor in stage.outputs:
        shape = tensor.resolve(sizes)
        recorded[tensor.name] = {"shape": shape, "stride": math.prod(shape), "values": [0.0]}
    probe = {"sizes": sizes, "seed": 1, "outputs": recorded}
    change_manifest(copy_bundle, lambda manifest: manifest["stages"]["frontend"].update(probe=probe))
    monkeypatch.setattr(verify_module, "probe_inputs", lambda *_: pytest.fail("must not get this far"))
    with refused(BundleError, copy_bundle, "'frontend'", "expected at most 67108864", "export the bundle again"):
        verify_bundle(copy_bundle, backend="onnxruntime-cpu")


@pytest.mark.parametrize("name", PROBES)
def test_damaged_probe_is_refused(copy_bundle: Path, name: str) -> None:
    change_manifest(copy_bundle, lambda manifest: PROBES[name](manifest["stages"]["encoder"]["probe"]))
    with refused(BundleError, copy_bundle, "encoder"):
        verify_bundle(copy_bundle, backend="onnxruntime-cpu")
