"""`musicrt bench`: what it refuses, whom it measures, what its numbers follow from, and short real runs."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import musicrt
from musicrt.runtime.bench import calls, peaks, suite
from musicrt.runtime.bench.calls import decoding_options, time_decode, time_stages
from musicrt.runtime.bench.contenders import AGAINST, REFERENCE, Contender, Field, names_of
from musicrt.runtime.bench.files import write_report
from musicrt.runtime.bench.operations import Work, count_flop, count_stages, count_weights
from musicrt.runtime.bench.report import Report, Row
from musicrt.runtime.bench.rounds import in_turn, split_repeats
from musicrt.runtime.bench.settings import Settings
from musicrt.runtime.bench.suite import bench_bundle
from musicrt.runtime.bench.throughput import Load, call_at_once
from musicrt.runtime.bundle import Bundle
from musicrt.runtime.errors import BackendError, InputError, MusicRTError
from musicrt.runtime.measure import Measurement, run_isolated
from tests.command import call, fails
from tests.conftest import refused

ORT = Contender("onnxruntime-cpu", "onnxruntime-cpu", "float32")


@pytest.mark.parametrize(("repeats", "count", "expected"), [(7, 3, [3, 2, 2]), (4, 1, [4]), (3, 3, [1, 1, 1])])
def test_repeats_are_spread_over_the_rounds(repeats: int, count: int, expected: list[int]) -> None:
    assert split_repeats(repeats, count) == expected


@pytest.mark.parametrize(("repeats", "count"), [(2, 3), (3, 0)])
def test_rounds_without_repeats_are_refused(repeats: int, count: int) -> None:
    with pytest.raises(InputError, match=f"{count} rounds and {repeats} repeats"):
        split_repeats(repeats, count)


def test_another_contender_is_the_first_in_each_round() -> None:
    assert [in_turn("abc", index) for index in range(4)] == [list("abc"), list("bca"), list("cab"), list("abc")]


def test_operations_follow_from_shapes() -> None:
    def flop(name: str, inputs: list[list[int]], output: list[int]) -> float:
        shapes = [{"float": shape} for shape in inputs]
        return count_flop({"op_name": name, "input_type_shape": shapes, "output_type_shape": [{"float": output}]})

    assert flop("Conv", [[1, 8, 10, 10], [16, 8, 3, 3], [16]], [1, 16, 10, 10]) == 2 * 1600 * 72
    assert flop("MatMul", [[5, 3, 4], [5, 4, 7]], [5, 3, 7]) == 2 * 5 * 3 * 4 * 7
    assert flop("FusedMatMul", [[5, 4, 3], [5, 4, 7]], [5, 3, 7]) == 2 * 5 * 3 * 4 * 7
    assert flop("ConvTranspose", [[1, 8, 10], [8, 4, 16], [4]], [1, 4, 51]) == 2 * 10 * 8 * 4 * 16
    assert flop("LSTM", [[7, 1, 3], [2, 20, 3], [2, 20, 5], [2, 40]], [7, 2, 1, 5]) == 2 * 7 * 2 * 20 * (3 + 5)
    attention = 2 * 2 * 9 * 5 * 32 * 2  # batch 2, 9 queries of width 32 on 5 keys: scores, and as much for what they weigh
    assert flop("MultiHeadAttention", [[2, 9, 32], [2, 5, 32], [2, 5, 32]], [2, 9, 32]) == attention
    assert flop("MultiHeadAttention", [[2, 9, 32], [2, 4, 5, 8], [2, 4, 5, 8]], [2, 9, 32]) == attention
    assert flop("Add", [[5, 5], [5, 5]], [5, 5]) == 0


def test_of_a_table_the_rows_that_are_looked_up_count() -> None:
    assert count_weights({"op_name": "Gather", "parameter_size": "4000", "output_size": "40"}) == 40
    assert count_weights({"op_name": "Gather", "parameter_size": "40", "output_size": "4000"}) == 40
    assert count_weights({"op_name": "MatMul", "parameter_size": "4000", "output_size": "40"}) == 4000
    assert count_weights({"op_name": "Add", "output_size": "40"}) == 0


def test_operations_and_weights_of_a_graph_are_those_of_the_network() -> None:
    """Linears by themselves: what Music2Latent makes of the noise levels."""
    pytest.importorskip("onnxruntime")
    bundle = Bundle.open(musicrt.EMBEDDED)
    stage = bundle.spec.stage("conditioning")
    sizes = {axis.name: 3 for axis in stage.axes}
    found = count_stages(str(musicrt.EMBEDDED), "ort", {stage.name: sizes}, 1)[stage.name]
    more = count_stages(str(musicrt.EMBEDDED), "ort", {stage.name: dict.fromkeys(sizes, 6)}, 1)[stage.name]
    assert more["gflop"] == pytest.approx(2 * found["gflop"], rel=0.02)  # linears only: a row more, so much more
    assert more["weights"] == found["weights"]
    linear = 2 * found["weights"] / 4 * 3  # each weight of 4 bytes is multiplied and added once for each row
    assert found["gflop"] * 1e9 == pytest.approx(linear, rel=0.05)


def test_shares_and_bounds_follow_from_the_peaks() -> None:
    work = Work(gflop=10.0, weights=2e9)
    assert work.compute_share(seconds=0.5, gflops=100.0) == 0.2
    assert work.memory_share(seconds=0.5, gigabytes=8.0) == 0.5
    assert work.bound(gflops=100.0, gigabytes=8.0) == "memory"  # 0.1 s of products, 0.25 s of reading
    assert work.bound(gflops=100.0, gigabytes=40.0) == "compute"


def test_peaks_are_rates_of_known_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peaks, "measure", lambda _call, _warmup, repeats: tuple(0.5 + i for i in range(repeats)))
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    found = peaks.measure_peaks(None, 1, megabytes=1)
    assert found == {"float32": 2.0 * 1536**3 / 0.5 / 1e9, "copy": pytest.approx(2e6 / 0.5 / 1e9), "read": pytest.approx(1e6 / 0.5 / 1e9)}


def make_report(**changes: Any) -> Report:
    torch = Row(REFERENCE, Measurement("encoder", (0.4, 0.4), 0.5))
    whole = Row(AGAINST["torch-bf16"], Measurement("encode", (0.1, 0.2, 0.3), 0.5, (250.0,), (1.25,), 2.5e-6, idle=(0.02,)))
    stage = Row(ORT, Measurement("encoder", (0.1, 0.1), 0.5))
    fields: dict[str, Any] = {
        "bundle": {"system": "some", "variant": "full", "identity": "0" * 64},
        "settings": Settings(seconds=0.5, repeats=3, against=["torch", "torch-bf16"]),
        "environment": {"cpu": "a processor", "cores": 2, "versions": {"numpy": "2.0"}},
        "rows": (torch, whole, stage),
        "skipped": {"onnxruntime-cuda in float32": "no GPU"},
        "base": "torch",
        "peaks": {"float32": 100.0, "copy": 10.0, "read": 8.0},
        "work": {"ort": {"encoder": Work(5.0, 1e8)}},
        "loads": {ORT: [Load("encode", "batch", 1, 0.5, (0.25, 0.25)), Load("encode", "batch", 4, 2.0, (0.5,))]},
    }
    return Report(**{**fields, **changes})


def test_a_report_shows_every_row_and_every_reason() -> None:
    lines = make_report().to_markdown().splitlines()
    assert "| torch-bf16 | bfloat16 | encode |  | 200.0 | 290.0 | 298.0 | 0.400 | 2.5e-06 | 250 | 1.25 | 2.0% |  |" in lines
    assert "| onnxruntime-cpu | float32 | encoder |  | 100.0 | 100.0 | 100.0 | 0.200 |  |  |  |  | 4.00 |" in lines
    assert "| onnxruntime-cpu | float32 | encoder | compute | 5 | 50.0 | 50% | 100.0 | 1.00 | 10% |" in lines
    assert "| onnxruntime-cpu | float32 | encode | batch | 4 | 4.00 | 2.00 |" in lines
    assert "Not measured: onnxruntime-cuda in float32: no GPU" in lines
    assert any("`musicrt bench BUNDLE --seconds 0.5 --repeats 3 --against torch,torch-bf16`" in line for line in lines)
    content = json.loads(make_report().to_json())
    assert content["rows"][1]["times"] == [0.1, 0.2, 0.3]
    assert content["rows"][2]["roof"]["compute_share"] == 0.5
    assert [load["throughput"] for load in content["throughput"]] == [2.0, 4.0]


def test_a_report_without_others_has_no_ratios() -> None:
    text = make_report(base=None, peaks={}, loads={}).to_markdown()
    assert "times as fast" not in text
    assert "GFLOP" not in text
    assert "Concurrency" not in text


def test_a_report_names_whose_results_errors_are_distances_from() -> None:
    assert "end to end against torch in float32," in make_report().to_markdown()
    report = make_report(reference=Contender("onnxruntime-cpu", "onnxruntime-cpu", "int8"))
    assert "end to end against onnxruntime-cpu in int8," in report.to_markdown()
    assert json.loads(report.to_json())["reference"]["precision"] == "int8"


def test_a_gpu_is_not_held_against_the_peaks_of_the_cpu() -> None:
    cuda, small = Contender("onnxruntime-cuda", "onnxruntime-cuda", "float32"), Contender("onnxruntime-cpu", "onnxruntime-cpu", "int8")
    rows = tuple(Row(one, Measurement("encoder", (0.1,), 0.5)) for one in (cuda, ORT, small))
    report = make_report(rows=rows, work={"ort": {"encoder": Work(5.0, 1e8)}, "int8": {"encoder": Work(5.0, 3e7)}})
    found = [roof and (roof.compute_share, round(roof.memory_share, 6)) for roof in map(report.roof, rows)]
    assert found == [None, (0.5, 0.1), (0.5, 0.03)]


def test_a_report_is_written_with_pictures(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    lines = write_report(tmp_path / "a" / "some", make_report())
    names = ["some.json", "some.md", "some-times.png", "some-roofline.png", "some-throughput.png"]
    assert lines == [f"wrote {tmp_path / 'a' / name}" for name in names]
    assert all((tmp_path / "a" / name).read_bytes().startswith(b"\x89PNG") for name in names[2:])
    assert "![](some-roofline.png)" in (tmp_path / "a" / "some.md").read_text()


def test_the_command_says_again_what_was_asked() -> None:
    settings = Settings(
        repeats=1, steps=2, backends=["torch-cpu", "openvino-cpu"], precisions=["int8"], parts=["stages"], sizes={"rows": 8}, batches=[1, 2]
    )
    asked = "--repeats 1 --steps 2 --backend torch-cpu --backend openvino-cpu --precision int8"
    assert settings.command == f"musicrt bench BUNDLE {asked} --what stages --sizes rows=8 --batches 1,2"
    assert Settings().command == "musicrt bench BUNDLE"


def test_what_is_not_known_is_refused_before_any_work() -> None:
    def refuses(kind: type[MusicRTError], *words: str, **settings: Any) -> None:
        with refused(kind, *words):
            bench_bundle(musicrt.EMBEDDED, Settings(**settings))

    refuses(BackendError, "unknown backend 'abacus'; known: ", backends=["abacus"])
    refuses(BackendError, "unknown contender 'jax'; known: torch, torch-compile, torch-bf16", against=["jax"])
    refuses(InputError, "unknown part 'generate'; known: encode, decode, stages", parts=["generate"])
    refuses(InputError, "unknown stage 'nothing'; known: ", stages=["nothing"])
    refuses(InputError, "unknown axis 'rows'; known: ", sizes={"rows": 3})
    refuses(InputError, "got 0 repeats in 2 rounds", repeats=0)
    refuses(InputError, "got 0 as a number of signals or threads", batches=[0])
    refuses(InputError, "the parts stages, expected encode or decode", batches=[2], parts=["stages"])
    fails(3, "bench", "embedded", "--batches", "1,x", says=("'1,x'", "such as 1,2,4"))
    fails(3, "bench", "embedded", "--sizes", "rows", says=("'rows'", "rows=128"))


def test_audio_that_is_too_short_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("onnxruntime")
    monkeypatch.setattr(suite, "run_peaks", lambda *_: {"float32": 1.0, "copy": 1.0, "read": 1.0})
    with pytest.raises(InputError, match="needs at least"):
        bench_bundle(musicrt.EMBEDDED, Settings(backends=["onnxruntime-cpu"], seconds=0.001))


def test_what_stands_against_is_not_measured_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    reasons = {"torch-compile": "there is no g++", "tensorrt": "no GPU"}
    monkeypatch.setattr(Contender, "obstacle", lambda self, _bundle: reasons.get(self.backend))
    bundle = Bundle.open(musicrt.EMBEDDED)
    found = Field.find(bundle, Settings(against=["torch", "torch-compile", "torch-bf16"], backends=["torch-cpu", "onnxruntime-cpu"]))
    assert [one.name for one in found.contenders] == ["torch", "torch-bf16", "onnxruntime-cpu"]
    assert found.skipped == {"torch-compile in float32": "there is no g++"}
    assert found.rivals == ("torch", "torch-bf16")
    with refused(BackendError, "tensorrt can't run here in float16", "no GPU"):
        Field.find(bundle, Settings(backends=["tensorrt"]))
    two = [ORT, Contender("onnxruntime-cpu", "onnxruntime-cpu", "int8"), REFERENCE]
    assert names_of(two) == ["onnxruntime-cpu float32", "onnxruntime-cpu int8", "torch"]


def test_a_rival_that_fails_is_left_out_and_the_others_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    torch, compiled = REFERENCE, AGAINST["torch-compile"]
    field = Field((torch, compiled, ORT), {}, (torch.name, compiled.name))
    monkeypatch.setattr(Field, "find", lambda *_: field)
    monkeypatch.setattr(Contender, "obstacle", lambda *_: None)

    def answer(target: str, arguments: dict[str, Any]) -> dict[str, Any]:
        function = target.partition(":")[2]
        if function == "time_part":
            if arguments["contender"]["name"] == compiled.name:
                raise BackendError("it does not compile")
            return {"measurements": [Measurement(arguments["part"], (1.0,) * arguments["repeats"]).to_json()]}
        return {}

    monkeypatch.setattr(suite, "run_isolated", answer)
    monkeypatch.setattr(suite, "run_peaks", lambda *_: {"float32": 1.0, "copy": 1.0, "read": 1.0})
    told: list[tuple[int, int]] = []
    report = bench_bundle(musicrt.EMBEDDED, Settings(repeats=3, parts=["encode"]), lambda _text, done, total: told.append((done, total)))
    assert report.skipped == {"torch-compile": "it does not compile"}
    assert [(row.contender.name, len(row.measurement.times)) for row in report.rows] == [("torch", 3), ("onnxruntime-cpu", 3)]
    assert (report.base, report.reference) == ("torch", torch)
    assert told[0] == (0, 6)
    field = Field((ORT, compiled), {})  # asked for by name, not to compare with
    with refused(BackendError, "it does not compile"):
        bench_bundle(musicrt.EMBEDDED, Settings(parts=["encode"]))


def test_without_torch_errors_are_distances_from_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    small = Contender("onnxruntime-cpu", "onnxruntime-cpu", "int8")
    monkeypatch.setattr(Field, "find", lambda *_: Field((small, ORT), {}))
    monkeypatch.setattr(Contender, "obstacle", lambda self, _bundle: "not installed" if self.backend == "torch-cpu" else None)
    asked: list[Any] = []

    def answer(target: str, arguments: dict[str, Any]) -> dict[str, Any]:
        asked.append((target.partition(":")[2], arguments))
        return {"measurements": [Measurement("encode", (1.0,)).to_json()]} if target.endswith("time_part") else {}

    monkeypatch.setattr(suite, "run_isolated", answer)
    monkeypatch.setattr(suite, "run_peaks", lambda *_: {"float32": 1.0, "copy": 1.0, "read": 1.0})
    assert bench_bundle(musicrt.EMBEDDED, Settings(repeats=1, parts=["encode"])).reference == small
    assert [one["contender"] for name, one in asked if name == "leave_results"] == [small.to_json()]
    assert [one["reference"] for name, one in asked if name == "time_part"] == [small.to_json()] * 2


def test_who_made_the_reference_has_no_distance(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    common: dict[str, Any] = {"bundle": str(musicrt.EMBEDDED), "contender": ORT.to_json(), "folder": str(tmp_path), "seconds": 0.2}
    calls.leave_results(**common, steps=None, threads=1, decoded=False)
    asked = {**common, "part": "encode", "repeats": 1, "steps": None, "threads": 1, "stages": {}, "resized": False}
    for reference, error in ((ORT, None), (REFERENCE, 0.0)):
        (measured,) = calls.time_part(**asked, reference=reference.to_json())["measurements"]
        assert measured["error"] == error


def test_threads_call_at_once_and_hand_their_errors_on() -> None:
    together = threading.Barrier(3, timeout=10)  # breaks unless all three wait at a time
    (seconds,) = call_at_once([together.wait] * 3, repeats=4)
    assert 0 < seconds < 10
    with pytest.raises(ZeroDivisionError):
        call_at_once([lambda: 1 / 0, lambda: None], 1)


class Windowed:
    """Stands in for a codec that takes one step more than it is asked for."""

    sample_rate = 8000

    def axis_sizes(self, seconds: float, steps: int | None = None) -> dict[str, int]:
        assert seconds == 0.5
        return {"batch": 1, "steps": 1 + (steps or 9)}

    def check_options(self, _method: object, _options: object) -> None:
        return

    def decode_stream(self, values: Any, *, steps: int | None = None) -> Any:
        raise NotImplementedError

    def decode(self, values: Any, *, steps: int | None = None) -> Any:
        del steps
        return values


@pytest.mark.parametrize(("asked", "ran"), [(None, 10), (4, 5)])
def test_decode_says_how_many_steps_ran(asked: int | None, ran: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("musicrt.runtime.measure.measure_idle", lambda *_: 0.0)
    np.save(tmp_path / calls.ENCODED, np.ones((1, 4000), np.float32))
    np.save(tmp_path / calls.DECODED, np.full((1, 4000), 2.0, np.float32))
    row = time_decode(Windowed(), tmp_path, 0.5, asked, 1)
    assert (row.name, row.audio_seconds, row.error) == (f"decode, {ran} steps", 0.5, 0.5)
    assert decoding_options(Windowed(), asked) == ({} if asked is None else {"steps": asked})


def test_stages_are_timed_at_the_sizes_given_and_held_against_the_record() -> None:
    pytest.importorskip("onnxruntime")
    bundle = Bundle.open(musicrt.EMBEDDED)
    with musicrt.load(backend="onnxruntime-cpu", threads=1) as codec:
        sizes = {name: {axis.name: 2 for axis in bundle.spec.stage(name).axes} for name in ("frontend", "conditioning")}
        first, second = time_stages(codec, bundle, sizes, 2.0, 3)
    assert first.note == "graph; the pipeline uses an FFT instead"
    assert (first.name, len(first.times), first.audio_seconds) == ("frontend", 3, 2.0)
    assert second.note == ""
    assert second.error is not None
    assert 0 < second.error < 1e-4


def test_bench_measures_all_of_a_bundle(tmp_path: Path) -> None:
    for module in ("torch", "onnxruntime"):
        pytest.importorskip(module)
    out = tmp_path / "nano"
    options = ["--seconds", "0.2", "--repeats", "2", "--rounds", "1", "--steps", "2", "--threads", "1", "--backend", "onnxruntime-cpu"]
    ended = call("bench", "embedded", *options, "--batches", "1,2", "--concurrency", "2", "--out", str(out))
    report = json.loads(out.with_suffix(".json").read_text())
    spec = Bundle.open(musicrt.EMBEDDED).spec
    names = ["encode", "decode, 2 steps", *(stage.name for stage in spec.stages)]
    assert [row["name"] for row in report["rows"]] == names
    for row in report["rows"]:
        assert (row["contender"], len(row["times"])) == ("onnxruntime-cpu", 2)
        if row["name"] in names[:2]:
            assert 0.0 < row["error"] < 5e-5
            assert row["cold_start"] > row["times"][0]
            assert row["peak_mb"] > 20.0
            assert row["idle_cpu"] < 0.5
        else:
            assert row["error"] <= spec.stage(row["name"]).tolerance.rel_l2
            assert 0.0 < row["roof"]["compute_share"] < 1.5
    loads = [(load["part"], load["by"], load["count"]) for load in report["throughput"]]
    lengths = {"encode": 0.2, "decode": next(row["audio_seconds"] for row in report["rows"] if row["name"] == names[1])}
    assert 0.1 < lengths["decode"] < 0.2  # whole latents
    assert all(load["audio_seconds"] == load["count"] * lengths[load["part"]] for load in report["throughput"])
    ways = [("batch", 1), ("batch", 2)], [("concurrency", 2)]
    assert loads == [(part, *way) for some in ways for part in ("encode", "decode") for way in some]
    assert report["peaks"]["float32"] > 1.0
    assert (report["base"], report["skipped"]) == (None, {})
    assert ended.out == out.with_suffix(".md").read_text().partition("\n\n")[2].partition("\n\n![]")[0] + "\n"


def test_bench_compares_with_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(suite, "run_peaks", lambda *_: {"float32": 1.0, "copy": 1.0, "read": 1.0})
    for module in ("torch", "onnxruntime"):
        pytest.importorskip(module)
    settings = Settings(0.2, 1, threads=1, backends=["onnxruntime-cpu"], against=["torch"], parts=["encode"])
    torch, ours = bench_bundle(musicrt.EMBEDDED, settings).rows
    assert (torch.contender, torch.measurement.error) == (REFERENCE, None)
    assert (ours.contender, ours.measurement.name) == (ORT, "encode")
    assert ours.measurement.error is not None
    assert 0.0 < ours.measurement.error < 5e-5


def test_torch_compile_gives_what_torch_gives(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    compiled, bundle = AGAINST["torch-compile"], Bundle.open(musicrt.EMBEDDED)
    if reason := compiled.obstacle(bundle):
        pytest.skip(reason)
    asked = {"bundle": str(bundle.path), "contender": compiled.to_json(), "folder": str(tmp_path), "part": "stages", "repeats": 1}
    sizes = {axis.name: 2 for axis in bundle.spec.stage("conditioning").axes}
    more = {
        "seconds": 0.2,
        "steps": None,
        "threads": 1,
        "stages": {"conditioning": sizes},
        "resized": True,
        "reference": REFERENCE.to_json(),
    }
    (measured,) = run_isolated(f"{calls.__name__}:time_part", {**asked, **more})["measurements"]
    assert 0.0 < measured["error"] < 1e-4


def test_torch_compile_needs_a_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torch")
    monkeypatch.setattr("shutil.which", lambda _: None)
    assert "needs a C++ compiler" in str(AGAINST["torch-compile"].obstacle(Bundle.open(musicrt.EMBEDDED)))
