"""What a system is, as data: stages, tensors, axes, licences, checkpoint files.

Specs are read by export (what to trace), the runtime (what to check), benchmarks and documentation. They are frozen and
need the standard library only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

DType = Literal["float32", "float16", "int8", "int64"]

Precision = Literal["float32", "bfloat16", "float16", "int8"]
"""What the bulk of a network is computed in."""

ORT, TRT, INT8, TRT_INT8 = "ort", "trt", "int8", "trt-int8"
"""The flavours of a stage's graph: float32 for ONNX Runtime, half precision for TensorRT, and 8-bit integers for CPUs and for TensorRT."""
LOWERED: Mapping[str, str] = {INT8: ORT, TRT_INT8: TRT}
"""The flavours of 8-bit integers, and what each is made from: stages that are not lowered have the graphs of that."""


@dataclass(frozen=True)
class Axis:
    """A dimension that changes from call to call. `minimum` to `maximum` is what a session accepts; `optimum` what is tuned for.

    `fixed`: an engine has one size of it, as TensorRT wants of the room in a cache. `longest`: a size far beyond the optimum that calls
    have as well if nobody asks for another, and that can't be cut without changing the result; engines have a profile of its own for it.
    """

    name: str
    minimum: int
    optimum: int
    maximum: int
    fixed: bool = False
    longest: int = 0

    def __mul__(self, times: int) -> Dim:
        return Dim(self, times)

    def __floordiv__(self, per: int) -> Dim:
        return Dim(self, 1) // per


@dataclass(frozen=True)
class Dim:
    """A dimension that follows an axis: `times * axis + plus`; 8 frames for each latent frame, say.

    Of an output it may be that divided by `per`, rounded down: a latent frame for every 8 whole frames.
    """

    axis: Axis
    times: int
    plus: int = 0
    per: int = 1

    def __add__(self, plus: int) -> Dim:
        return Dim(self.axis, self.times, self.plus + plus * self.per, self.per)

    def __floordiv__(self, per: int) -> Dim:
        return Dim(self.axis, self.times, self.plus, self.per * per)

    def __str__(self) -> str:
        product = self.axis.name if self.times == 1 else f"{self.times}*{self.axis.name}"
        total = f"{product}+{self.plus}" if self.plus else product
        if self.per == 1:
            return total
        return f"({total})//{self.per}" if self.plus else f"{total}//{self.per}"

    def size(self, count: int) -> int:
        """The dimension where the axis has `count` entries."""
        return (self.times * count + self.plus) // self.per

    def count(self, size: int) -> int:
        """The entries of the axis where the dimension is `size`, if there is such a number; `size` of it tells."""
        return (self.per * size - self.plus) // self.times


@dataclass(frozen=True)
class TensorSpec:
    """Name, dtype and shape of an input or output. A shape holds ints, axes and multiples of axes.

    `values`: what test values look like: normal with deviation `scale`, the exponential of that ("positive"), or whole numbers
    from 0 to `codes` - 1 ("codes", for int64).
    """

    name: str
    dtype: DType
    shape: tuple[int | Axis | Dim, ...]
    values: Literal["normal", "positive", "codes"] = "normal"
    scale: float = 1.0
    codes: int = 0

    @property
    def dims(self) -> tuple[int | Dim, ...]:
        """The shape with every bare axis as a `Dim`."""
        return tuple(dim * 1 if isinstance(dim, Axis) else dim for dim in self.shape)

    def describe(self) -> str:
        """`x: float32 [batch, 2, 1024, 8*latents]`."""
        return f"{self.name}: {self.dtype} [{', '.join(str(dim) for dim in self.dims)}]"

    def resolve(self, sizes: Mapping[str, int]) -> tuple[int, ...]:
        """The shape for given sizes of the axes."""
        return tuple(dim.size(sizes[dim.axis.name]) if isinstance(dim, Dim) else dim for dim in self.dims)


def floats(name: str, *shape: int | Axis | Dim, scale: float = 1.0) -> TensorSpec:
    """A float32 tensor whose test values are normal with deviation `scale`."""
    return TensorSpec(name, "float32", shape, scale=scale)


@dataclass(frozen=True)
class Tolerance:
    """Largest accepted distance between two FP32 implementations of a stage: relative L2; of integers, the share that differs."""

    rel_l2: float


FLOAT32_OPERATORS = (
    *("BatchNormalization", "GroupNormalization", "InstanceNormalization", "LayerNormalization", "RMSNormalization"),
    *("Softmax", "LogSoftmax", "Exp", "Log", "Pow", "Sqrt", "Reciprocal", "Sin", "Cos", "CumSum"),
    *("ReduceL2", "ReduceLogSumExp", "ReduceMean", "ReduceProd", "ReduceSum", "ReduceSumSquare"),
)
"""ONNX operators that stay float32 in every stage: they add up many values, or leave the range of float16 (6e-8 to 65504) on the way.

Attention stays half: TensorRT takes no `softmax_precision`, and its fused kernels keep sums in float32 by themselves.
"""


@dataclass(frozen=True)
class Half:
    """What a stage is where it runs in half precision (the flavour `trt`): float16, and float32 on the islands named here.

    operators: ONNX operators that stay float32. modules: torch modules of the stage that do, with all inside them, by their names; single
    nodes as well (`pin_name`), which calibration finds.
    tensors: inputs and outputs that are float16 as well, as states are: what one stage hands to another in every step.
    tolerance: largest accepted distance from the float32 network, as in `Tolerance`. Rounding to 11 bits once costs 2.1e-4 (root mean
    square, at most 4.9e-4), and k roundings one after the other about sqrt(k) times that. Those of the specs are about three times what
    export measures with the tiny stand-in weights; the stages measured at full size (`encoder` and `denoiser` of Music2Latent) are as near.
    """

    tolerance: float = 6e-3
    operators: tuple[str, ...] = FLOAT32_OPERATORS
    modules: tuple[str, ...] = ()
    tensors: tuple[str, ...] = ()


@dataclass(frozen=True)
class Int8:
    """What a stage is where it runs in 8-bit integers (the flavours `int8` and `trt-int8`).

    method: "static": convolutions and linears compute in integers, activations in ranges that calibration finds; "weights": the weights of
    linears are stored in fewer bits, and activations stay as they are, as serves where few rows meet large matrices.
    keep: layers that stay as they are, by the names of their modules (with all inside them) or nodes.
    tolerance: largest accepted distance from the float32 network, on music that calibration heard.

    Of "weights": bits, 8 or 4 (0: weights stay), and how many weights of a row have a scale of their own; for TensorRT it is 8 bits, and
    all of a row. For CPUs only: tensors: keys and values of attention, [rows, heads, n, head width], that are 8-bit integers too, among
    outputs, states, and inputs, which are states of the lowered graph; each with the name of the range that it has, in all stages.
    single: an axis of which the lowered graph takes one entry in a call.
    """

    method: Literal["static", "weights"] = "static"
    keep: tuple[str, ...] = ()
    tolerance: float = 0.3
    bits: int = 8
    block: int = 64
    tensors: Mapping[str, str] = field(default_factory=dict, hash=False)
    single: str = ""


@dataclass(frozen=True)
class Gate:
    """What a lowered system has to keep: a measure of `calibration/quality.py`, and the least or the most that it may be."""

    measure: str
    least: float | None = None
    most: float | None = None

    def holds(self, value: float | None) -> bool:
        """Whether a measured value is good enough; None, which was not measured, and NaN are not."""
        if value is None:
            return False
        return (self.least is None or value >= self.least) and (self.most is None or value <= self.most)

    @property
    def limits(self) -> str:
        """`at least 20`."""
        return " and ".join(f"at {word} {limit:g}" for word, limit in (("least", self.least), ("most", self.most)) if limit is not None)

    def __str__(self) -> str:
        return f"{self.measure} {self.limits}"


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


def kept_name(module: str, node: str) -> str:
    """What a node of a graph in half precision is called that stays float32 because its module does (`Half.modules`)."""
    return f"float32:{module}/{node}"


def pin_name(module: str, node: str) -> str:
    """What `Half.modules` calls a single node; "" is the stage itself. Exporters number nodes, so that the module makes sure."""
    return f"{module}/{node}"


def is_pin(name: str) -> bool:
    """Whether a name of `Half.modules` is that of a node."""
    return "/" in name


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
