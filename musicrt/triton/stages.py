"""Stages as models of Triton's ONNX Runtime backend, which the Python models call (BLS), so that all of them share one copy of each."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from musicrt.runtime.bundle import Bundle
from musicrt.runtime.errors import BackendError
from musicrt.runtime.model import Model
from musicrt.runtime.precision import ORT
from musicrt.runtime.select import Choice
from musicrt.runtime.session import Array, Session
from musicrt.runtime.spec import StageSpec
from musicrt.runtime.tensors import Dim, TensorSpec
from musicrt.triton.config import Settings, instance_group, tensor_config
from musicrt.triton.tensors import to_array, to_tensor
from musicrt.triton.verbs import Tensor


def is_served(stage: StageSpec) -> bool:
    """Whether a stage becomes a model. Those with states, which are changed in place, stay in the Python process, and what the host
    computes is no network.
    """
    return not stage.states and not stage.host


def stage_model(name: str, stage: str) -> str:
    """What the model of a stage is called. name: what those of the bundle begin with."""
    return f"{name}_stage_{stage}"


def stage_config(name: str, stage: StageSpec, settings: Settings) -> dict[str, Any]:
    """The configuration of a stage's model. All axes stand in its shapes; rows of several requests are gathered before it is called."""
    threads = [{"key": "intra_op_thread_count", "value": {"string_value": str(settings.threads)}}] if settings.threads else []

    def describe(tensors: tuple[TensorSpec, ...]) -> list[dict[str, Any]]:
        shapes = [tuple(-1 if isinstance(dim, Dim) else dim for dim in one.dims) for one in tensors]
        return [tensor_config(Tensor(one.name, one.dtype, shape)) for one, shape in zip(tensors, shapes, strict=True)]

    return {
        "name": name,
        "platform": "onnxruntime_onnx",
        "max_batch_size": 0,
        "input": describe(stage.inputs),
        "output": describe(stage.outputs),
        "instance_group": [instance_group(settings)],
        "parameters": threads,
    }


class StageSession(Session):
    """A stage that another model of the same server runs."""

    def __init__(self, stage: StageSpec, model: str) -> None:
        super().__init__(stage)
        self._model = model

    def _run(self, feeds: Mapping[str, Array], names: tuple[str, ...]) -> dict[str, Array]:
        import triton_python_backend_utils as utils  # the server's own, only there inside it

        inputs = [to_tensor(utils, name, value) for name, value in feeds.items()]
        response = utils.InferenceRequest(model_name=self._model, requested_output_names=list(names), inputs=inputs).exec()
        if response.has_error():
            raise BackendError(f"{self._model} failed: {response.error().message()}")
        return {name: np.array(to_array(utils.get_output_tensor_by_name(response, name))) for name in names}


def open_model(folder: Path, settings: Settings) -> Model:
    """The model of a bundle whose stages all run in this process. Raises BundleError, BackendError."""
    return Model.open(
        folder,
        backend=settings.backend,
        device=settings.device if settings.backend == "auto" else None,
        threads=settings.threads or None,
        precision=settings.precision or None,
    )


def open_stages(folder: Path, name: str, settings: Settings) -> Model:
    """The model of a bundle whose stages run in the server, but for those with states. Raises BundleError, BackendError."""
    bundle = Bundle.open(folder)
    own = open_model(folder, settings)

    def open_session(stage: str) -> Session:
        spec = bundle.spec.stage(stage)
        return StageSession(spec.in_flavour(ORT), stage_model(name, stage)) if is_served(spec) else own.session(stage)

    return Model(bundle.spec, open_session, Choice("triton", "stages as models of the server"), identity=bundle.identity)
