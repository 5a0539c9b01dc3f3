"""What a system is, as data: stages, licences, checkpoint files.

Specs are read by export (what to trace), the runtime (what to check), benchmarks and documentation. They are frozen and
need the standard library only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from musicrt.runtime.precision import INT8, LOWERED, TRT, TRT_INT8, Gate, Half, Int8, Precision, Tolerance
from musicrt.runtime.tensors import Axis, Dim, TensorSpec


@dataclass(frozen=True)
class StageSpec:
    """One exported network. `host`: the pipeline computes it outside the graph, with an FFT; the graph is for engines on GPUs.

    `half`: what it is in half precision; None: it stays float32 as a whole. A front end does, as it works on powers of spectra, and so does
    what compares distances, or runs once for a schedule and decides where a sampler goes.

    `states`: what is fed like an input, and changed in place by a call: the caches of a language model. A graph can't change what it
    is given; it gives the changed ones as further outputs (`updated_name`), which sessions bind to the same memory.

    `int8`: how it may be lowered to 8-bit integers; None: it stays float32, like what `half` leaves alone.
    """

    name: str
    summary: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    tolerance: Tolerance
    host: bool = False
    states: tuple[TensorSpec, ...] = ()
    half: Half | None = field(default_factory=Half)
    int8: Int8 | None = None

    @property
    def feeds(self) -> tuple[TensorSpec, ...]:
        """All that a call is given: inputs, then states."""
        return (*self.inputs, *self.states)

    @property
    def has_integer_values(self) -> bool:
        """Whether some values, such as keys, go in or out as 8-bit integers: they are not those of float32."""
        return any(tensor.dtype == "int8" for tensor in (*self.feeds, *self.outputs))

    @property
    def axes(self) -> tuple[Axis, ...]:
        """The axes of this stage's inputs and states, each once."""
        found = {dim.axis.name: dim.axis for tensor in self.feeds for dim in tensor.dims if isinstance(dim, Dim)}
        return tuple(found.values())

    @property
    def in_bfloat16(self) -> bool:
        """Whether it is lowered where networks are computed in bfloat16. What stays float32 in half precision does here too, and so do
        stages with states, which are float32 in memory, and would be converted to and fro in each call.
        """
        return self.half is not None and not self.states

    def in_flavour(self, flavour: str) -> StageSpec:
        """The stage as a graph of one flavour has it: in half precision, states and what `half.tensors` names are float16; of 8-bit
        integers, what `int8.tensors` names is int8, and inputs among that are states.
        """
        if flavour == INT8 and self.int8 is not None and self.int8.tensors:
            return self._with_bytes(self.int8)
        if flavour not in (TRT, TRT_INT8) or self.half is None:
            return self
        named = {*self.half.tensors, *(state.name for state in self.states)}

        def typed(tensors: tuple[TensorSpec, ...]) -> tuple[TensorSpec, ...]:
            return tuple(replace(tensor, dtype="float16") if tensor.name in named else tensor for tensor in tensors)

        return replace(self, inputs=typed(self.inputs), outputs=typed(self.outputs), states=typed(self.states))

    def _with_bytes(self, int8: Int8) -> StageSpec:
        def typed(tensor: TensorSpec) -> TensorSpec:
            shape = tuple(_limited(dim, int8.single) for dim in tensor.shape)
            return replace(tensor, shape=shape, dtype="int8" if tensor.name in int8.tensors else tensor.dtype)

        inputs = [typed(tensor) for tensor in self.inputs]
        return replace(
            self,
            inputs=tuple(tensor for tensor in inputs if tensor.name not in int8.tensors),
            states=(*(typed(tensor) for tensor in self.states), *(tensor for tensor in inputs if tensor.name in int8.tensors)),
            outputs=tuple(typed(tensor) for tensor in self.outputs),
        )

    def tolerance_of(self, flavour: str, precision: Precision = "float32") -> float:
        """The largest accepted distance of a graph of one flavour, computed in `precision`, from the float32 network.

        bfloat16 has 8 bits where float16 has 11, so it may be eight times as far.
        """
        if flavour in LOWERED and self.int8 is not None:
            return self.int8.tolerance
        flavour = LOWERED.get(flavour, flavour)
        if self.half is not None and precision == "bfloat16" and self.in_bfloat16:
            return 8 * self.half.tolerance
        return self.tolerance.rel_l2 if self.half is None or flavour != TRT else self.half.tolerance


def _limited(dim: int | Axis | Dim, single: str) -> int | Axis | Dim:
    """A dimension whose axis, if it is the one called `single`, has one entry."""
    axis = dim.axis if isinstance(dim, Dim) else dim
    if isinstance(axis, int) or axis.name != single:
        return dim
    limited = replace(axis, minimum=1, optimum=1, maximum=1)
    return replace(dim, axis=limited) if isinstance(dim, Dim) else limited


def updated_name(state: str) -> str:
    """What a graph calls the output that holds a changed state."""
    return f"updated_{state}"


@dataclass(frozen=True)
class Licences:
    """Licence of our code for the system, and of the official weights (shown at export and by `inspect`)."""

    code: str
    weights: str
    weights_url: str


@dataclass(frozen=True)
class CheckpointSpec:
    """Where the official weights lie: paths of the official layout, no two with the same last part, and their hub repository.

    `with_objects`: those that hold objects of training beside the tensors, which are left out and not made. `companions`: files that a
    checkpoint may do without, by the repository that has them: they come along in a download, and else from the hub's cache.
    """

    files: tuple[str, ...]
    hub_repository: str
    with_objects: tuple[str, ...] = ()
    companions: Mapping[str, str] = field(default_factory=dict)

    @property
    def url(self) -> str:
        """The repository's page."""
        return f"https://huggingface.co/{self.hub_repository}"


@dataclass(frozen=True)
class ModelSpec:
    """One system in one configuration. `bit_rate`: nominal bits per second of a channel's tokens; None where values are floats.

    `gates`: what it has to keep where it is lowered to 8-bit integers.
    """

    system: str
    variant: str
    sample_rate: int
    stages: tuple[StageSpec, ...]
    checkpoint: CheckpointSpec
    config: Mapping[str, Any] = field(repr=False)
    defaults: Mapping[str, Any] = field(repr=False)
    bit_rate: float | None = None
    gates: tuple[Gate, ...] = ()

    def pinned(self, pins: Mapping[str, Sequence[str]]) -> ModelSpec:
        """The same system with more modules and nodes, by stage, that stay float32 in half precision."""

        def pin(stage: StageSpec) -> StageSpec:
            more = pins.get(stage.name, ())
            return stage if stage.half is None else replace(stage, half=replace(stage.half, modules=(*stage.half.modules, *more)))

        return replace(self, stages=tuple(pin(stage) for stage in self.stages)) if pins else self

    def given(self, option: str, value: Any) -> Any:
        """The value that an option is given, its default for None."""
        return self.defaults[option] if value is None else value

    def stage(self, name: str) -> StageSpec:
        """The stage called `name`; KeyError if the system has none."""
        return {stage.name: stage for stage in self.stages}[name]


@dataclass(frozen=True)
class System:
    """What the registry knows of a system before a configuration is chosen. `variants`: hyper-parameters by name, the default first."""

    name: str
    title: str
    task: str
    paper: str
    licences: Licences
    variants: Mapping[str, Mapping[str, Any]] = field(repr=False)
