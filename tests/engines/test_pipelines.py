"""What pipelines ask of their stages, if nobody says otherwise, fits into the engines of every bucket."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest

from musicrt.engines.profiles import BUCKETS, LONGEST, stage_profiles
from musicrt.runtime.cuda.engine import fitting_profile
from musicrt.runtime.errors import InputError
from musicrt.runtime.fake_session import FakeSession
from musicrt.runtime.model import Model
from musicrt.runtime.models.mucodec.lengths import SPAN
from musicrt.runtime.models.mucodec.pipeline import Pipeline as MuCodec
from musicrt.runtime.models.music2latent.pipeline import Pipeline as Music2Latent
from musicrt.runtime.models.semanticodec.lengths import SEGMENT
from musicrt.runtime.models.semanticodec.pipeline import SEGMENTS
from musicrt.runtime.models.semanticodec.pipeline import Pipeline as SemantiCodec
from musicrt.runtime.models.vidmuse.frames import Clip
from musicrt.runtime.models.vidmuse.pipeline import VIDEOS
from musicrt.runtime.models.vidmuse.pipeline import Pipeline as VidMuse
from musicrt.runtime.registry import build_spec, system_module, system_names
from musicrt.runtime.select import Choice
from musicrt.runtime.session import Array
from musicrt.runtime.spec import StageSpec
from tests.conftest import refused, tiny_layout


class EngineSession(FakeSession):
    """Gives zeros, and takes what the engines of all buckets take, each with one of its profiles. `largest`: sizes seen, by axis."""

    def __init__(self, stage: StageSpec) -> None:
        super().__init__(stage.in_flavour("trt"), lambda _: {})
        self.engines = [stage_profiles(stage, [bucket]) for bucket in BUCKETS.values()]
        self.largest: dict[str, int] = {}

    @property
    def limits(self) -> Mapping[str, tuple[int, int]]:
        def ends(axis: str, end: int) -> list[list[int]]:
            return [[profile.axes[axis][end] for profile in profiles] for profiles in self.engines]

        names = [axis.name for axis in self.stage.axes]
        return {name: (max(map(min, ends(name, 0))), min(map(max, ends(name, 2)))) for name in names}

    def _run(self, feeds: Mapping[str, Array], names: tuple[str, ...]) -> dict[str, Array]:
        sizes = self._check_inputs(feeds)
        for bucket, profiles in zip(BUCKETS, self.engines, strict=True):
            if fitting_profile(profiles, sizes) is None:
                raise InputError(f"{self.stage.name}: got {sizes}, {bucket} has {[profile.axes for profile in profiles]}")
        self.largest = {name: max(size, self.largest.get(name, 0)) for name, size in sizes.items()}
        return {tensor.name: np.zeros(tensor.resolve(sizes), tensor.dtype) for tensor in self.outputs if tensor.name in names}


Sessions = dict[str, EngineSession]


def open_pipeline(system: str) -> tuple[Any, Sessions]:
    """The pipeline of a system with its tiny hyper-parameters, which windows and batches do not depend on.

    But for those of Music2Latent: its official chunks are 12 s, which is a thousand latents here and enough.
    """
    config = dict(tiny_layout(system)["config"])
    config |= {name: value // 5 for name, value in config.items() if name.startswith("max_waveform_length")}
    spec = build_spec(system, config, "tiny")
    sessions = {stage.name: EngineSession(stage) for stage in spec.stages}
    model = Model(spec, sessions.__getitem__, Choice("engines", "a test"))
    return system_module(system, "pipeline").Pipeline(model), sessions


def sound(samples: int) -> Any:
    return np.random.default_rng(1).standard_normal((1, samples), np.float32) * 0.1


def use_mucodec(pipeline: MuCodec) -> None:
    """Two windows, the second behind a part of the first; and a prompt."""
    codes = pipeline.encode(sound(SPAN + 48_000))
    pipeline.decode(codes)
    pipeline.decode(codes[:, :, :64], prompt=sound(48_000 * 11))


def use_music2latent(pipeline: Music2Latent) -> None:
    """More than an official chunk, and more than a window of the streaming calls; in one step and in two."""
    latents = pipeline.encode(sound(pipeline.config.max_waveform_length_encode + 44_100))
    for steps in (1, 2):
        pipeline.decode(latents, steps=steps)
    stream = np.concatenate(list(pipeline.encode_stream(sound(44_100 * 6))), axis=-1)
    for block in pipeline.decode_stream(stream):
        assert block.shape[0] == 1


def use_semanticodec(pipeline: SemantiCodec) -> None:
    """More segments than are encoded together."""
    tokens = pipeline.encode(sound(SEGMENT * (SEGMENTS + 1)))
    pipeline.decode(tokens[:, : pipeline.config.tokens + 10])


def use_vidmuse(pipeline: VidMuse) -> None:
    """Videos of more than a window, as many as are worked on together, behind a prompt; and half a minute of audio."""
    seconds = 31
    pictures = np.random.default_rng(2).integers(0, 256, (3, 2 * seconds, 8, 8), np.uint8)
    clips = [Clip.from_tensors(np.repeat(np.repeat(pictures, 28, axis=2), 28, axis=3), np.zeros((3, 32, 224, 224), np.uint8))] * VIDEOS
    pipeline.generate_batch(clips, duration=seconds, prompt=pipeline.encode(sound(32_000 * 20)).repeat(VIDEOS, axis=0))
    pipeline.decode(pipeline.encode(sound(32_000 * 30)))


USES: dict[str, Callable[[Any], None]] = {
    "mucodec": use_mucodec,
    "music2latent": use_music2latent,
    "semanticodec": use_semanticodec,
    "vidmuse": use_vidmuse,
}


@pytest.mark.parametrize("system", system_names())
def test_defaults_fit_into_every_bucket(system: str) -> None:
    pipeline, sessions = open_pipeline(system)
    USES[system](pipeline)
    unused = {name for name, session in sessions.items() if not session.largest}
    assert unused == {stage.name for stage in pipeline.model.spec.stages if stage.host}, "front ends are computed by the pipelines"


def test_a_minute_of_music2latent_has_a_profile_of_its_own() -> None:
    spec = build_spec("music2latent", {}, "full")
    config = spec.config
    chunk = config["max_waveform_length_encode"] // config["hop"] // 8
    for bucket in BUCKETS.values():
        *usual, longest = stage_profiles(spec.stage("decoder"), [bucket])
        assert [profile.bucket for profile in usual] == [bucket.name]
        assert (longest.bucket, longest.axes) == (LONGEST, {"latents": (1, chunk, chunk), "batch": (1, 1, 1)})
    assert LONGEST not in {profile.bucket for profile in stage_profiles(spec.stage("conditioning"), list(BUCKETS.values()))}


def test_more_than_the_defaults_is_refused() -> None:
    """The session of these tests would be worth nothing if it took everything."""
    pipeline, _ = open_pipeline("music2latent")
    with refused(InputError, "encoder", "latency"):
        pipeline.encode_batch([sound(44_100 * 13)] * 2, max_batch_size=3)
