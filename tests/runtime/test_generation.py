"""VidMuse's loop over columns on a GPU, a fake one: the same tokens as on the host, and nothing of the host between columns."""

from __future__ import annotations

import numpy as np
import pytest

from musicrt.runtime.loops.sampling import Sampling, Tokens
from musicrt.runtime.models.vidmuse.chunks import Chunk
from musicrt.runtime.models.vidmuse.noise import InjectedNumbers, Numbers, SeededNumbers
from musicrt.runtime.models.vidmuse.options import GenerateOptions, Settings
from musicrt.runtime.models.vidmuse.pipeline import Pipeline
from musicrt.runtime.models.vidmuse.plan import Task
from tests.conftest import ForSystem
from tests.reference import signals
from tests.reference.systems.vidmuse_chains import OnHost
from tests.runtime.fake_gpu import FakeGpuSession
from tests.runtime.vidmuse_codecs import CARD, clip, open_tiny, uniforms
from tests.runtime.vidmuse_gpu import COLUMNS, Gpu, open_on, write

pytestmark = pytest.mark.usefixtures("short_blocks")


# The same tokens


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": 0.0},
        {"top_k": 1},
        {"top_k": 20},
        {"top_k": 0},
        {"top_k": CARD, "temperature": 1.7},
        {"top_p": 0.8},
        {"top_p": 1.0, "temperature": 0.6},
        {"temperature": 1e-3, "guidance": 1.0},
        {"guidance": -2.0},
    ],
    ids=str,
)
@pytest.mark.parametrize("given", [False, True], ids=["seed", "given"])
def test_tokens_are_those_of_the_host(host: Pipeline, options: GenerateOptions, given: bool) -> None:
    told: GenerateOptions = {**options, "noise": uniforms(COLUMNS, 8)} if given else {**options, "seed": 5}
    np.testing.assert_array_equal(write(open_on(Gpu()), 2, **told), write(host, 2, **told))


@pytest.mark.parametrize("batch", [1, 7])
def test_batches(host: Pipeline, batch: int) -> None:
    tokens = write(open_on(Gpu()), batch, seed=3)
    np.testing.assert_array_equal(tokens, write(host, batch, seed=3))
    assert len(np.unique(tokens, axis=0)) > batch // 2


@pytest.mark.parametrize("known", [1, 2, 9, 11])
@pytest.mark.parametrize("most", [1, 3, 100], ids="at once {}".format)
def test_prompts(host: Pipeline, known: int, most: int) -> None:
    """Of which `most` columns may be fed at once; the others go one by one, and choose nothing."""
    prompt = np.random.default_rng(0).integers(0, CARD, (2, 4, known))
    pipeline = open_on(Gpu(), {"columns": (1, most)})
    tokens = write(pipeline, 2, prompt=prompt, noise=uniforms(COLUMNS - known, 8))
    np.testing.assert_array_equal(tokens, write(host, 2, prompt=prompt, noise=uniforms(COLUMNS - known, 8)))
    np.testing.assert_array_equal(tokens[:, :, :known], prompt)


def test_a_network(tiny_checkpoints: ForSystem) -> None:
    """The tiny one, with a prompt of audio."""
    options: GenerateOptions = {"duration": 0.4, "seed": 1, "prompt": signals.audio("vidmuse-prompt", 0.1, 32000, 1)}
    with open_tiny(tiny_checkpoints("vidmuse")) as pipeline:
        expected = pipeline.generate_tokens(clip(), **options)
        pipeline.model._sessions["lm"] = FakeGpuSession(pipeline.model.session("lm"), Gpu())
        np.testing.assert_array_equal(pipeline.generate_tokens(clip(), **options), expected)


def test_windows_one_after_the_other(host: Pipeline) -> None:
    """Whose draws are counted over all of them; the second one is of another size."""
    settings, draws = Settings(Sampling(), 3.0), 15 + 14 - 4

    def compose(pipeline: Pipeline, numbers: Numbers) -> Tokens:
        chunks = (Chunk(0, 12, 0, range(2)), Chunk(8, 11, 4, range(1, 2)))
        blocks = pipeline.composer.write([Task(clip(), chunks, np.zeros((1, 4, 0), np.int64))], settings, numbers, lambda: None)
        return np.concatenate(list(blocks), axis=2)

    for numbers in (SeededNumbers(4, 8), InjectedNumbers(uniforms(draws), draws, 4)):
        tokens = compose(open_on(Gpu()), numbers)
        assert tokens.shape == (1, 4, 19)
        np.testing.assert_array_equal(tokens, compose(host, numbers))


def test_numbers_that_only_the_host_can_draw(host: Pipeline) -> None:
    device, prompt = Gpu(), np.zeros((1, 4, 3), np.int64)
    expected = write(host, 2, seed=1, prompt=prompt)
    np.testing.assert_array_equal(write(open_on(device), 2, noise=OnHost(SeededNumbers(4, 1)), prompt=prompt), expected)
    assert not device.named("launch")
    assert len(device.named("wait")) == COLUMNS - 3  # one for each choice
