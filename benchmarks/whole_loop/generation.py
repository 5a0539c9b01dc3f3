"""The generation of tokens as nodes, in the order of operations of `musicrt.runtime.loops.autoregressive` and `sampling`.

Without a prompt, so one column is fed in each step. What is known of a sequence before is its special tokens: a table. The caches go from
step to step as values of the loop.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto

from benchmarks.whole_loop.compose import INDEX, Carried, Nodes, Sampler
from musicrt.runtime.errors import InputError
from musicrt.runtime.loops.delays import UNKNOWN, Tokens
from musicrt.runtime.loops.sampling import Sampling
from musicrt.runtime.spec import updated_name

TOKENS = "chosen"
"""What the model gives: the tokens of all columns that it writes, int64 [steps, batch, codebooks]."""


def write_generation(
    known: Tokens, mask: NDArray[np.bool_], special: int, sampling: Sampling, guidance: float, states: Sequence[str]
) -> Sampler:
    """Of a network `tokens`, `length` -> `logits`.

    known: int64 [batch, codebooks, columns] of which the first is fed; mask: where there are tokens, bool [codebooks, columns]. states: the
    names of the caches. The model is given `uniform`, float64 [steps, batch, codebooks], unless sampling is greedy. Raises InputError:
    top_p is not among what is composed.
    """
    if sampling.top_p > 0:
        raise InputError(f"got top_p {sampling.top_p}, expected 0: a whole graph is composed for greedy choice, top_k and all tokens")
    begin, before, behind = Nodes("begin"), Nodes("before"), Nodes("behind")
    tokens, length = begin.constant(known[:, :, :1], np.int64), begin.constant([0], np.int64)
    rows = behind.add("Squeeze", "logits", behind.constant([3], np.int64))
    logits = behind.add("Gather", rows, behind.constant(0, np.int64), axis=0)
    if guidance != 1:
        without = behind.add("Gather", rows, behind.constant(1, np.int64), axis=0)
        logits = behind.add("Mul", behind.add("Sub", logits, without), behind.constant(guidance))
        logits = behind.add("Add", logits, without)
    choice = behind.add("ArgMax", logits, axis=-1, keepdims=0) if sampling.is_greedy else _draw(behind, logits, sampling)
    table = np.moveaxis(known[:, :, 1:], 2, 0)
    wanted = behind.add("Where", behind.row(np.ascontiguousarray(mask.T[1:])), choice, behind.constant(special, np.int64))
    before_known = behind.row(np.ascontiguousarray(table))
    free = behind.add("Equal", before_known, behind.constant(UNKNOWN, np.int64))
    written = behind.add("Where", free, wanted, before_known)
    following = behind.add("Unsqueeze", written, behind.constant([2], np.int64))
    longer = behind.add("Add", "length", behind.constant([1], np.int64))
    carried = [Carried("tokens", tokens, following, "last_tokens"), Carried("length", length, longer, "last_length")]
    carried += [Carried(state, f"initial_{state}", updated_name(state), f"last_{state}") for state in states]
    return Sampler(len(table), begin, before, behind, Nodes("end"), carried, {written: TOKENS})


def _draw(nodes: Nodes, logits: str, sampling: Sampling) -> str:
    """See `Sampling.weigh` and `pick`."""
    weights = nodes.add("Softmax", nodes.add("Div", logits, nodes.constant(sampling.temperature)), axis=-1)
    last = nodes.constant([-1], np.int64)
    if sampling.top_k > 0:
        largest = nodes.add("TopK", weights, nodes.constant([sampling.top_k], np.int64), more=1, axis=-1)
        least = nodes.add("Gather", largest, last, axis=-1)
        weights = nodes.add("Where", nodes.add("Less", weights, least), nodes.constant(0.0), weights)
        weights = nodes.add("Div", weights, nodes.add("ReduceSum", weights, last, keepdims=1))
    sums = nodes.add("CumSum", nodes.add("Cast", weights, to=TensorProto.DOUBLE), nodes.constant(-1, np.int64))
    sums = nodes.add("Div", sums, nodes.add("Gather", sums, last, axis=-1))
    uniform = nodes.add("Unsqueeze", nodes.add("Gather", "uniform", INDEX, axis=0), last)
    passed = nodes.add("Cast", nodes.add("LessOrEqual", sums, uniform), to=TensorProto.INT64)
    return nodes.add("ReduceSum", passed, last, keepdims=0)
