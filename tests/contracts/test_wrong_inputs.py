"""Inputs that a stage does not take are refused by name, by every session."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from musicrt.runtime.errors import InputError
from musicrt.runtime.session import Session
from musicrt.runtime.spec import StageSpec
from musicrt.runtime.tensors import Dim, TensorSpec
from tests.conftest import refused
from tests.contracts.stages import (
    EVERYWHERE,
    SPECS,
    Feeds,
    make_feeds,
    make_results,
)

# Each changes `feeds` in one way and gives the name that the error has to hold; None where the stage has no such dimension.


def spoil_by_missing(stage: StageSpec, feeds: Feeds) -> str:
    del feeds[stage.inputs[-1].name]
    return stage.inputs[-1].name


def spoil_by_unknown(stage: StageSpec, feeds: Feeds) -> str:
    feeds["surplus"] = feeds[stage.inputs[0].name]
    return "surplus"


def spoil_type(stage: StageSpec, feeds: Feeds) -> str:
    name = stage.inputs[-1].name
    feeds[name] = feeds[name].tolist()
    return name


def spoil_dtype(stage: StageSpec, feeds: Feeds) -> str:
    name = stage.inputs[-1].name
    feeds[name] = feeds[name].astype(np.float64)
    return name


def spoil_byte_order(stage: StageSpec, feeds: Feeds) -> str:
    name = stage.inputs[-1].name
    feeds[name] = feeds[name].astype(feeds[name].dtype.newbyteorder())
    return name


def spoil_rank(stage: StageSpec, feeds: Feeds) -> str:
    name = stage.inputs[-1].name
    feeds[name] = feeds[name][None]
    return name


def spoil_fixed_size(stage: StageSpec, feeds: Feeds) -> str | None:
    return enlarge(feeds, stage.inputs, lambda dim: isinstance(dim, int))


def spoil_multiple(stage: StageSpec, feeds: Feeds) -> str | None:
    return enlarge(feeds, stage.inputs, lambda dim: isinstance(dim, Dim) and dim.times > 1)


def spoil_agreement(stage: StageSpec, feeds: Feeds) -> str | None:
    seen = [dim.axis for dim in stage.inputs[0].dims if isinstance(dim, Dim)]
    return enlarge(feeds, stage.feeds[1:], lambda dim: isinstance(dim, Dim) and dim.times == 1 and dim.axis in seen)


def spoil_minimum(stage: StageSpec, feeds: Feeds) -> str:
    name = stage.inputs[0].name
    feeds[name] = feeds[name][:0]
    return name


def spoil_maximum(stage: StageSpec, feeds: Feeds) -> str | None:
    name, dim = stage.inputs[0].name, stage.inputs[0].dims[0]
    if isinstance(dim, int):
        return None
    shape = (dim.size(dim.axis.maximum + 1), *feeds[name].shape[1:])
    feeds[name] = np.broadcast_to(feeds[name][:1], shape)  # takes no memory
    return name


def enlarge(feeds: Feeds, tensors: tuple[TensorSpec, ...], wanted: Callable[[int | Dim], bool]) -> str | None:
    """Add one to the first wanted dimension; the tensor's name."""
    for tensor in tensors:
        for position, dim in enumerate(tensor.dims):
            if wanted(dim):
                feeds[tensor.name] = np.repeat(feeds[tensor.name], [2, *[1] * (feeds[tensor.name].shape[position] - 1)], axis=position)
                return tensor.name
    return None


SPOILERS: list[Callable[[StageSpec, Feeds], str | None]] = [
    spoil_by_missing,
    spoil_by_unknown,
    spoil_type,
    spoil_dtype,
    spoil_byte_order,
    spoil_rank,
    spoil_fixed_size,
    spoil_multiple,
    spoil_agreement,
    spoil_minimum,
    spoil_maximum,
]


@pytest.mark.parametrize("session", EVERYWHERE, indirect=True)
def test_wrong_inputs_are_refused_by_name(session: Session) -> None:
    stage = session.stage
    results = make_results(stage)
    for spoil in SPOILERS:
        feeds = make_feeds(stage)
        name = spoil(stage, feeds)
        if name is None:
            continue
        with refused(InputError, stage.name, name):
            session.run(feeds)
        with refused(InputError, stage.name, name):
            session.bind(feeds, results)
    session.run(make_feeds(stage))  # and is none the worse for it


@pytest.mark.parametrize("spoil", SPOILERS)
def test_every_kind_of_wrong_input_meets_a_stage(spoil: Callable[[StageSpec, Feeds], str | None]) -> None:
    assert any(spoil(stage, make_feeds(stage)) for spec in SPECS.values() for stage in spec.stages)
