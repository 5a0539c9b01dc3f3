"""Greedy un-quantising, on stages whose noise is known."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from musicrt.runtime.precision import Gate

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from musicrt.calibration.quality import measure_outputs, missed
from musicrt.calibration.search import Round, search


@dataclass(frozen=True)
class Layer:
    name: str


@dataclass
class Stage:
    """Layers that add noise, each as much as its name says in thousandths."""

    candidates: list[Layer]
    kept: list[str] = field(default_factory=list)
    noise: dict[str, float] = field(default_factory=dict)

    @property
    def lowered(self) -> list[Layer]:
        return [layer for layer in self.candidates if layer.name not in self.kept]

    def keep(self, names: Iterable[str]) -> None:
        self.kept += names

    def find_noise(self, _on_layer: object = None) -> None:
        self.noise = {layer.name: int(layer.name) / 1000 for layer in self.candidates}

    @property
    def decibels(self) -> float:
        return float(-10 * np.log10(sum(int(layer.name) / 1000 for layer in self.lowered)))


def run(gates: list[Gate], most: int | None = None) -> tuple[dict[str, Stage], list[Round]]:
    stages = {
        "encoder": Stage([Layer(str(noise)) for noise in range(1, 17)]),
        "decoder": Stage([Layer(str(noise)) for noise in (50, 1, 1, 1)]),
    }
    users = {"encode": {"encoder"}, "decode": {"decoder", "conditioning"}}

    def measure() -> dict[str, float]:
        return {"encode SNR dB": stages["encoder"].decibels, "decode SNR dB": stages["decoder"].decibels}

    anything: Any = stages
    return stages, search(anything, gates, users, measure, lambda _text, _done, _total: None, most)


def test_nothing_goes_back_where_all_gates_hold() -> None:
    stages, rounds = run([Gate("encode SNR dB", least=8.0), Gate("decode SNR dB", least=8.0)])
    assert [one.lowered for one in rounds] == [20]
    assert stages["encoder"].noise == {}


def test_the_worst_go_back_first_an_eighth_at_a_time() -> None:
    stages, rounds = run([Gate("encode SNR dB", least=10.0)])
    assert [one.kept for one in rounds[:2]] == [(), ("encoder: 16", "encoder: 15")]
    assert stages["encoder"].kept[:2] == ["16", "15"]
    qualities = [one.quality["encode SNR dB"] for one in rounds]
    assert qualities == sorted(qualities)
    assert qualities[-2] < 10.0 <= qualities[-1]
    assert stages["decoder"].kept == []


def test_only_stages_behind_the_missed_gate_change() -> None:
    stages, rounds = run([Gate("encode SNR dB", least=5.0), Gate("decode SNR dB", least=20.0)])
    assert stages["decoder"].kept == ["50"]
    assert (stages["encoder"].kept, stages["encoder"].noise) == ([], {})
    assert [one.lowered for one in rounds] == [20, 19]


def test_search_ends_where_half_of_the_layers_are_left() -> None:
    gates = [Gate("encode SNR dB", least=60.0)]
    stages, rounds = run(gates)
    assert rounds[-1].lowered == 10
    assert missed(gates, rounds[-1].quality) == gates
    assert len(stages["encoder"].lowered) == 6


@pytest.mark.parametrize(("most", "lowered"), [(0, [20]), (1, [20, 18]), (2, [20, 18, 16]), (9, [20, 18, 16, 14, 12, 11, 10])])
def test_rounds_can_be_bounded(most: int, lowered: list[int]) -> None:
    gates = [Gate("encode SNR dB", least=60.0)]
    stages, rounds = run(gates, most)
    assert [one.lowered for one in rounds] == lowered
    assert (stages["encoder"].noise == {}) == (most == 0)  # where nothing goes back, nobody asks what should


def test_measures_of_outputs() -> None:
    logits = np.log(np.array([[0.7, 0.2, 0.1], [0.1, 0.2, 0.7]], np.float32))
    other = np.log(np.array([[0.5, 0.4, 0.1], [0.7, 0.2, 0.1]], np.float32))
    found = measure_outputs({"logits": other + 3.0, "codes": np.array([1, 2, 3, 5])}, {"logits": logits, "codes": np.array([1, 2, 3, 4])})
    divergence = (0.7 * np.log(0.7 / 0.5) + 0.2 * np.log(0.2 / 0.4) + 0.1 * np.log(0.1 / 0.7) + 0.7 * np.log(0.7 / 0.1)) / 2
    assert found["logits top-1"] == 0.5
    assert found["logits KL"] == pytest.approx(divergence, abs=1e-6)
    assert found["codes"] == 0.75
    assert measure_outputs({"x": np.full(3, np.nan)}, {"x": np.ones(3)}) == {"x": -120.0}
    assert measure_outputs({"x": np.ones(3)}, {"x": np.ones(3)}) == {"x": 120.0}


def test_gates() -> None:
    least, most = Gate("a", least=1.0), Gate("b", most=2.0)
    assert [least.holds(value) for value in (1.0, 0.9, None, float("nan"))] == [True, False, False, False]
    assert most.holds(2.0)
    assert not most.holds(2.1)
    assert (str(least), str(most)) == ("a at least 1", "b at most 2")
