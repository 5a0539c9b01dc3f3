"""The samplers of the systems, and a whole pipeline, on a GPU of host memory against those of the host."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import musicrt
from musicrt.runtime.fake_session import FakeSession
from musicrt.runtime.model import Model
from musicrt.runtime.models.mucodec.sampler import Sampler as MuCodecSampler
from musicrt.runtime.models.music2latent.config import Config as Music2LatentConfig
from musicrt.runtime.models.music2latent.sampler import Sampler as Music2LatentSampler
from musicrt.runtime.models.semanticodec.config import Config as SemantiCodecConfig
from musicrt.runtime.models.semanticodec.sampler import Sampler as SemantiCodecSampler
from musicrt.runtime.noise import PlacedNoise
from musicrt.runtime.registry import build_spec, system_module
from musicrt.runtime.select import Choice
from musicrt.runtime.session import Array, Session
from musicrt.runtime.spec import StageSpec
from tests.conftest import tiny_layout
from tests.runtime.denoising_gpu import rounded
from tests.runtime.fake_gpu import FakeDevice, FakeGpuSession

Float = NDArray[np.float32]


def test_music_of_a_pipeline() -> None:
    """The stand-in inside the package, with seeds and with noise that is drawn in order, in batches and with windows that are dropped."""
    pytest.importorskip("onnxruntime")
    device, results = FakeDevice(), []
    for on_gpu in (False, True):
        with musicrt.load(backend="onnxruntime-cpu", threads=1) as codec:
            if on_gpu:
                for name in ("denoiser", "decoder"):
                    codec.model._sessions[name] = FakeGpuSession(codec.model.session(name), device)
            latents = np.random.default_rng(0).normal(size=(2, codec.config.bottleneck_channels, 12)).astype(np.float32)
            shape = (2, codec.config.bins, 12 * codec.config.frames_per_latent)
            noise = [np.random.default_rng(seed).normal(size=(2, *shape)).astype(np.float32) for seed in range(4)]
            results.append(
                [
                    codec.decode(latents, steps=1, seed=3),
                    codec.decode(latents, steps=3, seed=3, max_batch_size=2),
                    codec.decode(latents, steps=3, noise=noise, max_batch_size=2),
                    np.concatenate(list(codec.decode_stream(latents, steps=2, seed=3, window=0.5, overlap=0.2)), axis=1),
                ]
            )
    assert len(device.named("record")) > 3
    assert len(device.named("replay")) >= 2
    for got, expected in zip(results[1], results[0], strict=True):
        np.testing.assert_array_equal(got, expected)


def light(spec: StageSpec) -> FakeSession:
    """A session whose outputs depend on all inputs; those that are shaped like `x`, value by value."""

    def compute(feeds: Mapping[str, Array]) -> Mapping[str, Array]:
        sizes = session._check_inputs(feeds)
        mean = np.float32(sum(np.sin(np.arange(1, 1 + value.size) * value.ravel()).mean() for name, value in feeds.items() if name != "x"))
        results = {}
        for tensor in spec.outputs:
            shape = tensor.resolve(sizes)
            ramp = np.cos(np.arange(np.prod(shape), dtype=np.float32)).reshape(shape)
            results[tensor.name] = ramp * mean + (np.float32(0.4) * feeds["x"] if "x" in feeds else 0)
        return rounded(results, "float32")

    session = FakeSession(spec, compute)
    return session


def model_of(system: str, device: FakeDevice | None, *networks: str) -> Model:
    spec = build_spec(system, tiny_layout(system)["config"], "tiny")

    def open_session(name: str) -> Session:
        session = light(spec.stage(name))
        return FakeGpuSession(session, device) if device and name in networks else session

    return Model(spec, open_session, Choice("fake", "fake"))


@pytest.mark.parametrize("steps", [1, 3])
def test_music2latent(steps: int) -> None:
    device = FakeDevice()
    models = [model_of("music2latent", where, "denoiser", "decoder") for where in (None, device)]
    config = Music2LatentConfig.from_mapping(models[0].spec.config)
    latents = np.random.default_rng(0).normal(size=(2, config.bottleneck_channels, 3)).astype(np.float32)
    noise = PlacedNoise(5, ((0, 16), (1, 16)), (2, config.bins, 3 * config.frames_per_latent))
    host, gpu = (Music2LatentSampler(model, config).prepare(steps).run(latents, noise, lambda: None) for model in models)
    np.testing.assert_array_equal(gpu, host)
    assert len(device.named("run")) == steps


@pytest.mark.parametrize(("name", "guidance"), [("ddim", 1.0), ("ddim", 2.0), ("dpm-solver++", 2.0)])
def test_semanticodec(name: Any, guidance: float) -> None:
    device = FakeDevice()
    models = [model_of("semanticodec", where, "denoiser") for where in (None, device)]
    config = SemantiCodecConfig.from_mapping(models[0].spec.config)
    feature = np.random.default_rng(0).normal(size=(1, config.tokens, 2 * config.feature_dim)).astype(np.float32)
    noise = PlacedNoise(5, ((0, 240),), (8, 256, 16), frames_last=False)
    samples = [SemantiCodecSampler(model, config).prepare(name, 4, guidance, None) for model in models]
    host, gpu = (sample.run(feature, noise, lambda: None) for sample in samples)
    np.testing.assert_array_equal(gpu, host)
    assert len(device.named("run")) == samples[1].steps


@pytest.mark.parametrize("known", [0, 5])
def test_mucodec(known: int) -> None:
    device = FakeDevice()
    models = [model_of("mucodec", where, "estimator") for where in (None, device)]
    numbers = np.random.default_rng(0)
    condition = numbers.normal(size=(1, 32, 12, 32)).astype(np.float32)
    held = numbers.normal(size=(1, 32, known, 32)).astype(np.float32)
    noise = PlacedNoise(5, ((0, 0),), (32, 12, 32), frames_last=False)
    samples = [MuCodecSampler(model).prepare(3, 1.5) for model in models]
    host, gpu = (sample.run(condition, held, noise, lambda: None) for sample in samples)
    np.testing.assert_array_equal(gpu, host)
    assert len(device.named("run")) == 3


@pytest.mark.parametrize(
    ("system", "name"),
    [("music2latent", "denoiser"), ("music2latent", "decoder"), ("semanticodec", "denoiser"), ("mucodec", "estimator"), ("vidmuse", "lm")],
)
def test_networks_of_torch_ask_the_host_for_nothing(system: str, name: str) -> None:
    """A recording could not answer. On the meta device there are no values to ask for, and nothing to mix with arrays of the host."""
    torch = pytest.importorskip("torch")
    spec = build_spec(system, tiny_layout(system)["config"], "tiny")
    with torch.device("meta"):
        module = system_module(system, "stages").build_stages(spec.config)[name].eval().to("meta")
    for most in (3, 1 << 30):
        sizes = {axis.name: max(min(most, axis.optimum), axis.minimum) for axis in spec.stage(name).axes}
        feeds = [torch.empty(t.resolve(sizes), dtype=getattr(torch, t.dtype), device="meta") for t in spec.stage(name).feeds]
        with torch.inference_mode():
            values = module(*feeds)
        result, expected = values[0] if isinstance(values, tuple) else values, spec.stage(name).outputs[0]
        assert tuple(result.shape) == expected.resolve(sizes)
