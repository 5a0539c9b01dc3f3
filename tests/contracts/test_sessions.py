"""Every stage of every system keeps the Session contract on every backend that is usable here."""

from __future__ import annotations

import gc
import weakref
from pathlib import Path

import numpy as np
import pytest

from musicrt.runtime.bundle import Bundle
from musicrt.runtime.errors import BackendError, BundleError, InputError
from musicrt.runtime.fake_session import FakeSession
from musicrt.runtime.select import BACKENDS
from musicrt.runtime.session import Array, Session
from musicrt.runtime.verify import probe_sizes, relative_error
from tests.conftest import refused
from tests.contracts.stages import (
    EVERYWHERE,
    SPECS,
    STAGES,
    USABLE,
    OpenStage,
    is_untouched,
    make_feeds,
    make_results,
    states_of,
)

# What comes out


@pytest.mark.parametrize("session", EVERYWHERE, indirect=True)
def test_outputs_are_those_of_the_spec_for_all_sizes(session: Session) -> None:
    for base in (2, 1, 3):
        sizes = probe_sizes(session.stage, base)
        outputs = session.run(make_feeds(session.stage, base))
        assert list(outputs) == [tensor.name for tensor in session.outputs]
        for tensor in session.outputs:
            value = outputs[tensor.name]
            assert value.dtype == tensor.dtype
            assert value.shape == tensor.resolve(sizes)
            assert np.isfinite(value).all()
            assert np.any(value != 0)


@pytest.mark.parametrize("session", EVERYWHERE, indirect=True)
def test_results_are_the_callers_own(session: Session) -> None:
    feeds = make_feeds(session.stage)
    given = {name: feed.copy() for name, feed in feeds.items()}
    first = session.run(feeds)
    kept = {name: value.copy() for name, value in first.items()}
    second = session.run(make_feeds(session.stage, seed=2))
    for name, value in kept.items():
        np.testing.assert_array_equal(first[name], value)
        assert not np.array_equal(second[name], value)
        first[name][...] = 0.0  # the caller's own: writable, and no part of the session
    for name, feed in given.items():
        assert np.array_equal(feeds[name], feed) == (name not in states_of(session))
    again = session.run(feeds)
    assert relative_error(again, kept) < 1e-6


@pytest.mark.parametrize("session", EVERYWHERE, indirect=True)
def test_only_the_wanted_outputs_are_given(session: Session) -> None:
    feeds = make_feeds(session.stage)
    everything = session.run(feeds)
    wanted = session.outputs[-1].name
    some = session.run(feeds, [wanted])
    assert list(some) == [wanted]
    assert relative_error(some, {wanted: everything[wanted]}) < 1e-6


@pytest.mark.parametrize("session", EVERYWHERE, indirect=True)
def test_inputs_may_be_strided_or_read_only(session: Session) -> None:
    feeds = make_feeds(session.stage)
    expected = session.run(feeds)
    strided = {name: np.repeat(feed, 2, axis=-1)[..., ::2] for name, feed in feeds.items() if name not in states_of(session)}
    assert relative_error(session.run({**feeds, **strided}), expected) < 1e-6
    for tensor in session.inputs:
        feeds[tensor.name].flags.writeable = False
    assert relative_error(session.run(feeds), expected) < 1e-6


@pytest.mark.parametrize(("system", "stage"), STAGES)
@pytest.mark.parametrize("kind", [kind for kind in USABLE if kind != "torch-cpu"])
def test_backends_agree(kind: str, system: str, stage: str, open_stage: OpenStage) -> None:
    pytest.importorskip("torch")
    with open_stage(kind, system, stage) as tested, open_stage("torch-cpu", system, stage) as reference:
        for base in (1, 2, 5):
            feeds = make_feeds(tested.stage, base, seed=base)
            assert relative_error(tested.run(feeds), reference.run(feeds)) <= tested.stage.tolerance.rel_l2


@pytest.mark.parametrize(("system", "stage"), [one for one in STAGES if SPECS[one[0]].stage(one[1]).states])
@pytest.mark.parametrize("kind", [kind for kind in USABLE if kind != "torch-cpu"])
def test_backends_agree_on_states(kind: str, system: str, stage: str, open_stage: OpenStage) -> None:
    """Whether run or bound, a call changes the same part of the states, and nothing else of them."""
    pytest.importorskip("torch")
    with open_stage(kind, system, stage) as tested, open_stage("torch-cpu", system, stage) as reference:
        given, expected, bound = (make_feeds(tested.stage) for _ in range(3))
        before = {name: given[name].copy() for name in states_of(tested)}
        tested.run(given)
        reference.run(expected)
        tested.bind(bound, make_results(tested.stage))()
        for name, value in before.items():
            assert not np.array_equal(given[name], value)
            np.testing.assert_array_equal(given[name] != value, expected[name] != value)
            np.testing.assert_allclose(given[name], expected[name], rtol=0, atol=1e-4)
            np.testing.assert_array_equal(given[name], bound[name])


# Bound buffers


@pytest.mark.parametrize("session", EVERYWHERE, indirect=True)
def test_bound_call_writes_what_run_gives_and_reads_inputs_again(session: Session) -> None:
    feeds, results = make_feeds(session.stage), make_results(session.stage)
    call = session.bind(feeds, results)
    assert all(is_untouched(value) for value in results.values()), "binding alone must not run"
    call()
    assert relative_error(results, session.run(feeds)) < 1e-6
    for name, changed in make_feeds(session.stage, seed=2).items():
        feeds[name][...] = changed
    call()
    assert relative_error(results, session.run(feeds)) < 1e-6


@pytest.mark.parametrize("session", EVERYWHERE, indirect=True)
def test_bound_call_may_take_some_outputs(session: Session) -> None:
    feeds, results = make_feeds(session.stage), make_results(session.stage)
    wanted = session.outputs[-1].name
    session.bind(feeds, {wanted: results[wanted]})()
    assert relative_error({wanted: results[wanted]}, session.run(feeds, [wanted])) < 1e-6
    assert all(is_untouched(value) for name, value in results.items() if name != wanted)


@pytest.mark.parametrize("session", EVERYWHERE, indirect=True)
def test_bound_call_keeps_its_buffers_alive(session: Session) -> None:
    feeds, results = make_feeds(session.stage), make_results(session.stage)
    call = session.bind(feeds, results)
    buffers = [weakref.ref(array) for array in (*feeds.values(), *results.values())]
    del feeds, results
    gc.collect()
    assert all(buffer() is not None for buffer in buffers)
    call()


@pytest.mark.parametrize("session", EVERYWHERE, indirect=True)
def test_unusable_buffers_are_refused_by_name(session: Session) -> None:
    stage, tensor, output = session.stage, session.inputs[-1], session.outputs[-1]
    feeds, results = make_feeds(stage), make_results(stage)
    strided = np.repeat(feeds[tensor.name], 2, axis=-1)[..., ::2]
    with refused(InputError, stage.name, tensor.name, "C-contiguous"):
        session.bind({**feeds, tensor.name: strided}, results)
    for state in session.states:
        fixed = feeds[state.name].copy()
        fixed.flags.writeable = False
        halves = np.repeat(feeds[state.name], 2, axis=-1)[..., ::2]
        for word, buffer in {"read-only": fixed, "C-contiguous": halves}.items():
            for use in (session.run, lambda feeds: session.bind(feeds, results)):
                with refused(InputError, stage.name, state.name, word):
                    use({**feeds, state.name: buffer})
    unwritable = results[output.name].copy()
    unwritable.flags.writeable = False
    spoiled: dict[str, Array] = {
        "C-contiguous": np.repeat(results[output.name], 2, axis=-1)[..., ::2],
        "float64": results[output.name].astype(np.float64),
        "shape": np.zeros((*results[output.name].shape, 1), output.dtype),
        "read-only": unwritable,
    }
    for word, buffer in spoiled.items():
        with refused(InputError, stage.name, output.name, word):
            session.bind(feeds, {**results, output.name: buffer})
    larger = make_results(stage, base=3)
    with refused(InputError, stage.name, "the same for all"):
        session.bind(feeds, {output.name: larger[output.name]})


# What is refused


@pytest.mark.parametrize("session", EVERYWHERE, indirect=True)
def test_unknown_or_no_outputs_are_refused(session: Session) -> None:
    feeds, results = make_feeds(session.stage), make_results(session.stage)
    known = [tensor.name for tensor in session.outputs]
    for wanted in (["surplus"], [*known, "surplus"]):
        with refused(InputError, session.stage.name, "surplus", *known):
            session.run(feeds, wanted)
    with refused(InputError, session.stage.name, "surplus", *known):
        session.bind(feeds, {**results, "surplus": results[known[0]]})
    with refused(InputError, session.stage.name, *known):
        session.run(feeds, [])
    with refused(InputError, session.stage.name, *known):
        session.bind(feeds, {})


@pytest.mark.parametrize("session", EVERYWHERE, indirect=True)
def test_closed_session_refuses_everything(session: Session) -> None:
    feeds, results = make_feeds(session.stage), make_results(session.stage)
    call = session.bind(feeds, results)
    session.close()
    session.close()
    for use in (lambda: session.run(feeds), lambda: session.bind(feeds, results), call):
        with refused(BackendError, session.stage.name, "closed"):
            use()
    assert all(is_untouched(value) for value in results.values())


# Backends


@pytest.mark.parametrize("kind", BACKENDS)
def test_backend_describes_what_runs(kind: str) -> None:
    backend = BACKENDS[kind]
    assert backend.name == kind
    assert kind.startswith("tensorrt") or kind.endswith(backend.device)
    assert backend.device == ("cpu" if kind.endswith("cpu") else "cuda")
    if obstacle := backend.obstacle():
        assert "\n" not in obstacle
        pytest.skip(f"{kind}: {obstacle}")
    assert backend.name.split("-")[0] in backend(threads=2).describe()


@pytest.mark.parametrize("kind", [kind for kind in USABLE if kind.startswith(("onnxruntime", "openvino"))])
def test_bundle_without_a_graph_is_refused(kind: str, tiny_bundle: Path) -> None:
    bundle = Bundle.open(tiny_bundle)
    stages = dict(bundle.manifest.stages)
    stages["encoder"] = stages["encoder"].model_copy(update={"graphs": {}})
    bundle.manifest = bundle.manifest.model_copy(update={"stages": stages})
    with refused(BundleError, tiny_bundle, "encoder"):
        BACKENDS[kind]().open_session(bundle, "encoder")


@pytest.mark.parametrize(("system", "stage"), STAGES)
def test_fake_session_gives_zeros_and_records_its_calls(system: str, stage: str) -> None:
    fake = FakeSession(SPECS[system].stage(stage))
    feeds = make_feeds(fake.stage)
    outputs = fake.run(feeds)
    assert [(name, value.shape) for name, value in outputs.items()] == [(n, v.shape) for n, v in make_results(fake.stage).items()]
    assert not any(value.any() for value in outputs.values())
    first = {name: feed.copy() for name, feed in feeds.items()}
    for feed in feeds.values():
        feed[...] = 7.0
    fake.run(feeds)
    assert len(fake.calls) == 2
    for name, feed in first.items():
        np.testing.assert_array_equal(fake.calls[0][name], feed)
        assert (fake.calls[1][name] == 7.0).all()
