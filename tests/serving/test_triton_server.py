"""A repository on a real tritonserver: answers equal those of the pipeline, and what can't be answered is said."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import musicrt
from musicrt.triton.config import Settings
from musicrt.triton.repository import write_repository
from tests.serving import triton_server

pytestmark = pytest.mark.skipif(triton_server.obstacle() is not None, reason=str(triton_server.obstacle()))

Array = NDArray[Any]
_TYPES = {"float32": "FP32", "float64": "FP64", "int64": "INT64", "bool": "BOOL", "uint8": "UINT8"}

_STAGE = """
import onnxruntime
import triton_python_backend_utils as utils

from musicrt.triton.tensors import to_array, to_tensor


class TritonPythonModel:
    def initialize(self, args):
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(f"{args['model_repository']}/1/model.onnx", options)

    def execute(self, requests):
        return [self.answer(request) for request in requests]

    def answer(self, request):
        names = list(request.requested_output_names())
        values = self.session.run(names, {one.name(): to_array(one) for one in request.inputs()})
        return utils.InferenceResponse([to_tensor(utils, name, value) for name, value in zip(names, values)])
"""


class Client:
    """tritonclient over gRPC."""

    def __init__(self, address: str) -> None:
        with triton_server.client_packages():
            import tritonclient.grpc as grpc
        self.grpc = grpc
        self.client = grpc.InferenceServerClient(address)

    def ask(self, model: str, output: str, parameters: Any = None, timeout: Any = None, **inputs: Array) -> Array:
        """The output of one request. inputs: with the axis of rows. timeout: microseconds."""
        result = self.client.infer(model, self.tensors(inputs), parameters=parameters, timeout=timeout)
        found: Array = result.as_numpy(output)
        return found

    def tensors(self, inputs: dict[str, Array]) -> list[Any]:
        given = []
        for name, value in inputs.items():
            tensor = self.grpc.InferInput(name, list(value.shape), _TYPES[str(value.dtype)])
            tensor.set_data_from_numpy(value)
            given.append(tensor)
        return given

    def refusal(self, model: str, output: str, **asked: Any) -> tuple[str, str]:
        """Status and message of a request that fails."""
        from tritonclient.utils import InferenceServerException

        with pytest.raises(InferenceServerException) as caught:
            self.ask(model, output, **asked)
        return str(caught.value.status()), str(caught.value.message())


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    folder = tmp_path_factory.mktemp("triton")
    write_repository(musicrt.EMBEDDED, folder / "first", Settings(threads=1, max_seconds=30.0))
    (folder / "first").rename(folder / "moved")  # a repository can be moved, and needs no bundle beside it
    write_repository(musicrt.EMBEDDED, folder / "batched", Settings(threads=1, max_batch=4, max_delay=0.2), name="batched")
    write_repository(musicrt.EMBEDDED, folder / "stages", Settings(threads=1, stage_models=True), name="staged")
    for model in (folder / "stages").glob("staged_stage_*"):  # the server here has no backend but Python's
        config = model / "config.pbtxt"
        config.write_text(config.read_text().replace('platform: "onnxruntime_onnx"', 'backend: "python"'))
        (model / "1" / "model.py").write_text(_STAGE)
    (folder / "work").mkdir()
    with triton_server.serving([folder / "moved", folder / "batched", folder / "stages"], folder / "work") as address:
        yield Client(address)


@pytest.fixture(scope="module")
def nano() -> Iterator[Any]:
    with musicrt.load(threads=1) as codec:
        yield codec


@pytest.fixture(scope="module")
def audio(nano: Any) -> Array:
    return np.random.default_rng(0).normal(size=(2, nano.sample_rate)).astype(np.float32) * np.float32(0.1)


def row(value: Any, dtype: str = "int64") -> Array:
    return np.array([[value]], dtype)


def test_answers_are_those_of_the_pipeline(client: Client, nano: Any, audio: Array) -> None:
    values = client.ask("music2latent_encode", "values", audio=audio[None])
    expected = nano.encode(audio)
    np.testing.assert_array_equal(values[0], expected)
    for options in ({"seed": 7}, {"seed": 8, "steps": 3}):
        inputs = {"values": values, **{name: row(value) for name, value in options.items()}}
        made = client.ask("music2latent_decode", "audio", **inputs)
        np.testing.assert_array_equal(made[0], nano.decode(expected, **options))


def test_words_are_parameters_of_a_request(client: Client, nano: Any, audio: Array) -> None:
    short = audio[:, :3000]
    values = client.ask("music2latent_encode", "values", {"tail": "pad"}, audio=short[None], sample_rate=row(44100))
    np.testing.assert_array_equal(values[0], nano.encode(short, tail="pad"))


def test_many_clients_at_once(client: Client, nano: Any, audio: Array) -> None:
    values = nano.encode(audio)
    with ThreadPoolExecutor(4) as pool:
        calls = [pool.submit(client.ask, "music2latent_decode", "audio", values=values[None], seed=row(seed)) for seed in range(8)]
    for seed, call in enumerate(calls):
        np.testing.assert_array_equal(call.result()[0], nano.decode(values, seed=seed))


def test_rows_of_several_requests_run_together(client: Client, nano: Any, audio: Array) -> None:
    values = nano.encode(audio)
    expected = nano.decode(values, seed=5)
    with ThreadPoolExecutor(3) as pool:
        calls = [pool.submit(client.ask, "batched_decode", "audio", values=values[None], seed=row(5)) for _ in range(3)]
    for call in calls:
        np.testing.assert_allclose(call.result()[0], expected, atol=1e-4)
    both = client.ask("batched_encode", "values", audio=np.stack([audio, audio[::-1]]))
    np.testing.assert_allclose(both, np.stack([values, values[::-1]]), atol=1e-4)
    counts = client.client.get_inference_statistics("batched_decode").model_stats[0]
    assert counts.execution_count < counts.inference_count


def test_stages_may_be_models_of_the_server(client: Client, nano: Any, audio: Array) -> None:
    values = client.ask("staged_encode", "values", audio=audio[None])
    np.testing.assert_array_equal(values[0], nano.encode(audio))
    made = client.ask("staged_decode", "audio", values=values, seed=row(3), steps=row(2))
    np.testing.assert_array_equal(made[0], nano.decode(values[0], seed=3, steps=2))
    ran = client.client.get_inference_statistics("staged_stage_denoiser").model_stats[0]
    assert ran.inference_count >= 2


def test_errors_are_ours(client: Client, audio: Array) -> None:
    status, message = client.refusal("music2latent_encode", "values", audio=audio[None, :, :3000])
    assert "INVALID_ARGUMENT" in status
    assert "needs at least 3584" in message
    _, message = client.refusal("music2latent_decode", "audio", values=np.zeros((1, 1, 63, 4), np.float32))
    assert "63" in message
    _, message = client.refusal("music2latent_decode", "audio", values=np.zeros((1, 1, 64, 700), np.float32))
    assert "expected at most 30 s" in message
    _, message = client.refusal("music2latent_encode", "values", audio=audio[None], parameters={"tail": "cut"})
    assert "'cut'" in message
    _, message = client.refusal("music2latent_encode", "values", audio=audio[None], parameters={"head": "pad"})
    assert "no parameter 'head'" in message


def test_a_deadline_ends_a_request_between_two_steps(client: Client) -> None:
    values = np.zeros((1, 2, 64, 40), np.float32)
    status, message = client.refusal("music2latent_decode", "audio", values=values, steps=row(200), timeout=100_000)
    assert "CANCELLED" in status
    assert "the deadline of 0.1 s passed while the request was at work" in message


def test_a_client_that_goes_away_frees_the_model(client: Client, nano: Any, audio: Array) -> None:
    values = np.zeros((1, 2, 64, 300), np.float32)
    inputs = client.tensors({"values": values, "steps": row(1000)})
    ended: list[Any] = []
    pending = client.client.async_infer("music2latent_decode", inputs, callback=lambda **end: ended.append(end["error"]))
    time.sleep(0.3)  # it is most likely at work by then; right is what follows in either case
    pending.cancel()
    made = client.ask("music2latent_decode", "audio", values=nano.encode(audio)[None], seed=row(1))  # after it, in the one process
    np.testing.assert_array_equal(made[0], nano.decode(nano.encode(audio), seed=1))
    assert len(ended) == 1
    assert "cancelled" in str(ended[0]).lower()
