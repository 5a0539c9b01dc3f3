"""One ONNX graph -> one plan: parse, check the types, configure, build. The only module that calls TensorRT's builder."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from musicrt.engines.layers import Layer, read_layers, read_nodes
from musicrt.engines.profiles import tensor_range
from musicrt.runtime.errors import EngineError
from musicrt.runtime.manifest import ProfileEntry
from musicrt.runtime.spec import StageSpec, updated_name
from musicrt.runtime.tensorrt_family import Family, type_name
from musicrt.runtime.tensorrt_messages import Messages, messages_of
from musicrt.runtime.tensors import Dim

STRIPPED = ("STRIP_PLAN", "REFIT_IDENTICAL")
"""Builder flags of a plan without weights, which are put in when it is opened."""
_MEMORY = re.compile(r"Total (Activation|Weights) Memory: (\d+) bytes")

OnPhase = Callable[[str, int, int], None]
"""Called with a phase of the builder, and how many of its steps are done."""


@dataclass(frozen=True)
class Plan:
    """A serialised engine, its layers, and what the builder said of memory: of activations at the largest sizes, and of weights."""

    data: memoryview
    layers: list[Layer]
    activation_bytes: int | None
    weight_bytes: int | None
    seconds: float


def builder_options(family: Family, *, stripped: bool) -> tuple[str, ...]:
    """Names of the builder flags that are set. TF32 is never: float32 means float32."""
    return (*family.flags, *(STRIPPED if stripped else ()))


def compile_plan(
    family: Family,
    stage: StageSpec,
    graph: Path,
    profiles: Sequence[ProfileEntry],
    *,
    targets: Sequence[str] = (),
    stripped: bool = False,
    on_phase: OnPhase | None = None,
) -> Plan:
    """Build a strongly typed engine of an ONNX file for the sizes of all profiles.

    stage: as the graph has it (`StageSpec.in_flavour`). targets: architectures, for a family that builds ahead of time; else none.
    Raises BackendError where the family is not there, EngineError with stage, node and reason where the graph can't be built.
    """
    trt = family.load()
    started, said = time.perf_counter(), _Memory()
    messages = messages_of(trt)
    with messages.awaited(said.listen):
        builder = trt.Builder(messages.logger)
        # TensorRT 11 and tensorrt-rtx know nothing else and ignore the flag; 10 needs it.
        network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
        parser = trt.OnnxParser(network, messages.logger)
        if not _parse(parser, stage, graph):
            raise EngineError(f"{stage.name}: {_parser_reason(parser, messages)}")
        _check_tensors(trt, stage, network)
        _decompose_attention(trt, network)
        layers = read_layers(trt, network, read_nodes(graph))
        config = builder.create_builder_config()
        monitor = _make_monitor(trt, on_phase) if on_phase else None
        if monitor:
            config.progress_monitor = monitor
        config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
        config.clear_flag(trt.BuilderFlag.TF32)
        for option in builder_options(family, stripped=stripped):
            config.set_flag(getattr(trt.BuilderFlag, option))
        if family.ahead:
            config.num_compute_capabilities = len(targets)
            for index, target in enumerate(targets):
                config.set_compute_capability(getattr(trt.ComputeCapability, target.replace("sm_", "SM")), index)
        for profile in profiles:
            _add_profile(builder, config, stage, profile)
        data = builder.build_serialized_network(network, config)
        if monitor and monitor.error:
            raise monitor.error
        if data is None:
            raise EngineError(f"{stage.name}: {family.name} can't build it: {messages.reason()}")
    return Plan(memoryview(data), layers, said.of.get("Activation"), said.of.get("Weights"), time.perf_counter() - started)


def _parse(parser: Any, stage: StageSpec, graph: Path) -> bool:
    """Parse a graph. Axes that engines can't change get their size before: TensorRT refuses caches of a dynamic length."""
    dims = {str(dim): dim for tensor in (*stage.feeds, *stage.outputs) for dim in tensor.dims if isinstance(dim, Dim)}
    sizes = {name: dim.size(dim.axis.optimum) for name, dim in dims.items() if dim.axis.fixed}
    if not sizes:
        return bool(parser.parse_from_file(str(graph)))
    import onnx

    model = onnx.load(graph, load_external_data=False)
    for value in (*model.graph.input, *model.graph.output, *model.graph.value_info):
        for dimension in value.type.tensor_type.shape.dim:
            if dimension.dim_param in sizes:
                dimension.dim_value = sizes[dimension.dim_param]
    return bool(parser.parse(model.SerializeToString(), str(graph)))  # the path leads to the weights


def _parser_reason(parser: Any, messages: Messages) -> str:
    """The first error of the parser in one line: node, operator, reason."""
    if not parser.num_errors:
        return f"the graph can't be parsed: {messages.reason()}"
    error = parser.get_error(0)
    code, text = error.code().name, " ".join(error.desc().split())[:300]
    where = f"node {error.node_name()!r} ({error.node_operator()})" if error.node_name() or error.node_operator() else "the graph"
    if code.startswith("UNSUPPORTED_") or "Plugin not found" in text:
        return f"{where} is not supported by TensorRT ({code}: {text})"
    return f"{where} is wrong ({code}: {text})"


def _check_tensors(trt: Any, stage: StageSpec, network: Any) -> None:
    """Hold inputs and outputs against the spec. Raises EngineError."""
    updated = {updated_name(state.name): state for state in stage.states}
    wanted = {tensor.name: tensor for tensor in (*stage.feeds, *stage.outputs)} | updated
    inputs = [network.get_input(i) for i in range(network.num_inputs)]
    found = {tensor.name: tensor for tensor in (*inputs, *(network.get_output(i) for i in range(network.num_outputs)))}
    if found.keys() != wanted.keys():
        raise EngineError(f"{stage.name}: the graph has the tensors {sorted(found)}, expected {sorted(wanted)}; export the bundle again")
    for name, tensor in found.items():
        dtype = type_name(trt, tensor.dtype)
        if dtype != wanted[name].dtype:
            raise EngineError(f"{stage.name}: tensor {name!r} is {dtype}, expected {wanted[name].dtype}; export the bundle again")


def _decompose_attention(trt: Any, network: Any) -> None:
    """Let attention be computed by plain layers where no fused kernel fits: there is none for float32 and several queries."""
    for index in range(network.num_layers):
        layer = network.get_layer(index)
        if layer.type == trt.LayerType.ATTENTION_OUTPUT:
            layer.__class__ = trt.IAttentionOutputLayer  # how the Python API gets at what only such a layer has
            layer.attention.decomposable = True


def _add_profile(builder: Any, config: Any, stage: StageSpec, profile: ProfileEntry) -> None:
    optimization = builder.create_optimization_profile()
    for tensor in stage.feeds:
        optimization.set_shape(tensor.name, *tensor_range(tensor, profile))
    if config.add_optimization_profile(optimization) < 0:
        raise EngineError(f"{stage.name}: TensorRT refuses the profile {profile.bucket!r} with {profile.axes}")


class _Memory:
    """Picks out what the builder's log says of memory; of several profiles the most."""

    def __init__(self) -> None:
        self.of: dict[str, int] = {}

    def listen(self, line: str) -> None:
        if found := _MEMORY.search(line):
            self.of[found[1]] = max(int(found[2]), self.of.get(found[1], 0))


def _make_monitor(trt: Any, on_phase: OnPhase) -> Any:
    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        """Hands phases on. An error of `on_phase` ends the build and is kept, because it can't pass through TensorRT."""

        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.error: BaseException | None = None
            self.steps: dict[str, int] = {}

        def phase_start(self, phase: str, parent: str | None, steps: int) -> None:
            del parent
            self.steps[phase] = steps
            self._tell(phase, 0)

        def phase_finish(self, phase: str) -> None:
            self._tell(phase, self.steps.get(phase, 0))

        def step_complete(self, phase: str, step: int) -> bool:
            self._tell(phase, step + 1)
            return self.error is None

        def _tell(self, phase: str, done: int) -> None:
            try:
                if self.error is None:
                    on_phase(phase, done, self.steps.get(phase, 0))
            except BaseException as error:  # raised by `compile_plan` once TensorRT has stopped
                self.error = error

    return Monitor()
