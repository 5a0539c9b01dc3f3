"""What all suites share: rounds, tables, plain exports, result files, charts."""

from __future__ import annotations

import itertools
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import rounds
from benchmarks.plain import PlainGraphs, export_once, export_part
from benchmarks.results import describe_run, write_results
from benchmarks.tables import render_contest
from musicrt.runtime.errors import OutputError
from musicrt.runtime.measure import Measurement


def test_the_latency_tables_compare_medians() -> None:
    def measured(name: str, seconds: float, error: float | None = None) -> Measurement:
        return Measurement(name, (seconds, 2 * seconds, 9 * seconds), 1.0, (100.0,), (0.5,), error)

    eager = {"encode": measured("encode", 0.2), "conditioning": measured("conditioning", 0.01)}
    plain = {"encode": measured("encode", 0.1, 1e-6)}
    lines = render_contest({"eager": eager, "plain-onnx": plain}, ("encode",), ("conditioning",), "A note.").splitlines()
    assert "| encode | 400.0 (1660.0) | 200.0 (830.0) |" in lines
    assert "| encode | 1.00 | 2.00 |" in lines
    assert "| encode | 0.50 | 1.00 |" in lines
    assert "| conditioning | 1.00 | – |" in lines
    assert "| encode | – | 1.0e-06 |" in lines
    assert lines[-1] == "A note."


def test_results_name_no_paths_and_need_a_folder(tiny_bundle: Path, tmp_path: Path) -> None:
    content = describe_run("memory", tiny_bundle, {"seconds": 1.0}, 2)
    write_results(tmp_path / "a" / "b", content, "| table |")
    text = (tmp_path / "a" / "b.md").read_text()
    assert text.startswith("# Memory: music2latent")
    assert "seconds 1.0, threads 2" in text
    assert str(tiny_bundle) not in text + (tmp_path / "a" / "b.json").read_text()
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="choose another --out"):
        write_results(tmp_path / "file" / "b", content, "")


def test_bars_are_drawn_where_matplotlib_is(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    from benchmarks.charts import draw_bars

    draw_bars(tmp_path / "bars.png", ["encode", "decode"], {"eager": [2.0, 3.0], "ours": [1.0, 1.5]})
    assert (tmp_path / "bars.png").read_bytes().startswith(b"\x89PNG")


def test_contenders_take_turns_and_another_one_is_first_in_each_round(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, str, int]] = []

    def answer(target: str, arguments: dict[str, Any]) -> dict[str, Any]:
        name = arguments["opening"]["name"]
        if target == "suite:compare_contender":
            asked.append((target, name, 0))
            return {} if name == "eager" else {"encode": 0.25}
        asked.append((arguments["task"], name, arguments["repeats"]))
        return {"measurements": [Measurement(arguments["task"], (1.0,) * arguments["repeats"]).to_json()]}

    monkeypatch.setattr(rounds, "run_isolated", answer)
    results = rounds.run_contest("suite", ["ours", "eager"], ["encode"], [2, 1], {"opening": {"threads": 1}, "work": {}})
    first, second = [("encode", "ours", 2), ("encode", "eager", 2)], [("encode", "eager", 1), ("encode", "ours", 1)]
    assert asked == [*first, *second, ("suite:compare_contender", "eager", 0), ("suite:compare_contender", "ours", 0)]
    assert results["ours"]["encode"].times == (1.0, 1.0, 1.0)
    assert [results[name]["encode"].error for name in ("ours", "eager")] == [0.25, None]


def test_calls_in_turn_leave_their_first_round_out() -> None:
    order: list[str] = []
    times = rounds.time_in_turn({name: partial(order.append, name) for name in "ab"}, 2)
    assert order == ["a", "b"] * 3
    assert [len(values) for values in times.values()] == [2, 2]


def test_outputs_are_held_against_those_that_were_kept(tmp_path: Path) -> None:
    reference = str(tmp_path / "eager.npz")
    kept = {"encode": {"tokens": np.array([1, 2, 3, 4])}, "vae": {"mel": np.array([3.0, 4.0], np.float32)}}
    assert rounds.compare_outputs(kept, reference, keep=True) == {}
    found = {"encode": {"tokens": np.array([1, 2, 3, 5])}, "vae": {"mel": np.array([3.0, 4.5], np.float32)}}
    assert rounds.compare_outputs(found, reference, keep=False) == pytest.approx({"encode": 0.25, "vae": 0.1})


@pytest.mark.filterwarnings("ignore")  # the exporter warns of its own parts
def test_a_plain_export_is_made_once_and_runs(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    (tmp_path / "checkpoint").write_bytes(b"weights")
    layer, made = torch.nn.Linear(3, 2).eval(), itertools.count()

    def export(folder: Path) -> None:
        next(made)
        export_part(folder / "layer.onnx", layer, (torch.ones(1, 3),), ["x"], ["y"])

    folders = [export_once(tmp_path / "cache", [tmp_path / "checkpoint"], {"width": width}, export) for width in (3, 3, 4)]
    assert folders[0] == folders[1] != folders[2]
    assert next(made) == 2
    x = np.array([[1.0, -2.0, 0.5]], np.float32)
    y = PlainGraphs(folders[0], 1).run("layer", {"x": x})["y"]
    assert y == pytest.approx(layer(torch.from_numpy(x)).detach().numpy(), abs=1e-6)
