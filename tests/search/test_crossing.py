"""The dimensions that a measurement finds for itself."""

from __future__ import annotations

import json
import math

import networks
import pytest

import subcompress
from subcompress import SubcompressError
from subcompress.search.crossing import STRIDE, Crossing, ladder, next_rung
from subcompress.search.trials import Trial
from subcompress.subspace import measuring
from subcompress.support.listener import Listener
from subcompress.training.dimension import Dimension, absolute
from subcompress.training.probe import DIED, Probe
from subcompress.training.tasks import Task


def climbed(value, begin: int, top: int, repeats: int = 3, least: float = 0.5) -> dict[int, list[float]]:
    """All that is asked for where value(rung, repeat) is the metric."""
    values: dict[int, list[float]] = {}
    while (rung := next_rung(values, lambda mean: mean >= least, begin, top, repeats)) is not None:
        each = values.setdefault(rung, [])
        each.append(value(rung, len(each)))
        assert len(each) <= repeats, "no training comes twice"
    return values


def test_ladder_goes_up_by_the_root_of_2_and_ends_at_the_most():
    ds = ladder(100)
    assert ds[:6] == [1, 2, 3, 4, 6, 8] and ds[-2:] == [91, 100]
    assert ladder(1) == [1]


@pytest.mark.parametrize("crossing", [1, 5, 12, 19])
def test_all_repeats_are_on_both_sides_of_the_crossing(crossing):
    found = climbed(lambda rung, repeat: float(rung >= crossing), 10, 20)
    assert len(found[crossing]) == len(found[crossing - 1]) == 3
    assert all(len(each) == 1 for rung, each in found.items() if rung not in (crossing - 1, crossing))
    assert sum(map(len, found.values())) <= 12


def test_repeats_that_change_a_mean_move_the_crossing():
    found = climbed(lambda rung, repeat: 1.0 if rung >= 8 or (rung == 7 and repeat == 0) else 0.0, 8, 20)
    assert len(found[7]) == len(found[8]) == 3


@pytest.mark.parametrize(("value", "at"), [(0.0, 20), (1.0, 0)])
def test_a_threshold_that_is_met_nowhere_or_everywhere(value, at):
    found = climbed(lambda rung, repeat: value, 10, 20)
    assert len(found[at]) == 3
    assert len(found) <= 2 + 10 // STRIDE + 1


def told(engine: Crossing, values) -> list[Trial]:
    """The trials of a measurement whose trainings give values(d)."""
    asked = []
    while (trial := engine.ask([])) is not None:
        asked.append(trial)
        value = 1.0 if trial.d == 0 else values(trial.d)
        died = not math.isfinite(value)
        engine.tell(trial, Probe(trial.d, trial.seed, 0.0 if died else value, (), 1, 0.1, note=DIED if died else ""))
    return asked


def crossing(repeats: int = 2) -> Crossing:
    direct = [Trial(0, seed) for seed in range(repeats)]
    return Crossing(direct, lambda baseline: [absolute(0.5 * baseline[0])], 1000, Task.of(), Listener())


def test_direct_trainings_come_first_and_one_training_in_coordinates_runs_at_a_time():
    engine = crossing()
    assert engine.ask([Trial(0, 0)]) == Trial(0, 1)
    assert engine.ask([Trial(0, 0), Trial(0, 1)]) is None
    asked = told(engine, lambda d: min(1.0, d / 100))
    assert [trial.d for trial in asked[:2]] == [0, 0]
    assert {p.d for p in engine.probes() if p.value >= 0.5} >= {64}
    assert engine.ask([Trial(5, 0)]) is None


def test_a_training_that_died_meets_nothing():
    engine = crossing()
    told(engine, lambda d: math.nan if d < 40 else 1.0)
    assert min(p.d for p in engine.probes()) == 45
    with pytest.raises(SubcompressError, match="the loss is nan"):
        crossing().tell(Trial(0, 0), Probe(0, 0, 0.0, (), 1, 0.1, note=DIED, warnings=("the loss is nan",)))


def test_a_measurement_without_dimensions_finds_its_own(tmp_path, monkeypatch):
    monkeypatch.setattr(measuring, "STEPS", 4)
    monkeypatch.setattr(measuring, "LEAST", 4)
    monkeypatch.setattr(Dimension, "plot", lambda found, path: path.touch())
    options = {"steps": 4, "batch_size": 16, "threads": 1, "baseline_lr": 0.01234567, "repeats": 1}
    found = subcompress.measure_dimension(networks.mlp, networks.blobs(), tmp_path / "dim", **options)
    assert len(found.baseline) == 1 and len(found.points) > 1
    assert {len(p.values) for p in found.points} == {1}
    journal = (tmp_path / "dim" / "command.json").read_text()
    assert json.loads(journal)["goal"]["baseline_lr"] == 0.0123457


@pytest.mark.parametrize(("lr", "words"), [(0.0, "must be positive"), ("fast", "must be a number")])
def test_a_step_of_the_baseline_that_is_none_is_refused(tmp_path, lr, words):
    with pytest.raises(SubcompressError, match=f"baseline_lr {words}"):
        subcompress.measure_dimension(networks.mlp, networks.blobs(), tmp_path / "dim", baseline_lr=lr)
