"""Metrics other than an accuracy: each has a scale on which a search draws its line, and is searched like one."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from subcompress.search.curve import Curve
from subcompress.search.goal import SearchGoal
from subcompress.search.scale import Errors, Linear, Shares, scale_of
from subcompress.search.simulation import PowerLaw, simulate
from subcompress.search.target import TargetSearch
from subcompress.search.trials import Trial
from subcompress.training.probe import DIED, Probe
from subcompress.training.tasks import Task

MORE, LESS = Task.of(metric=lambda outputs, y: 0.0), Task.of("mse")

METRICS = {
    "a reward of about 36": (MORE, lambda share: 40 * share, 36.0),
    "one that grows past 1": (MORE, lambda share: 2 * share, 1.8),
    "one whose target is 1": (MORE, lambda share: share / 0.9, 1.0),
    "one that grows past 1, from a target below": (MORE, lambda share: share + 0.09, 0.99),
    "an error": (LESS, lambda share: 1 - share, 0.1),
    "a loss that falls below zero": (LESS, lambda share: 5 * (1 - share) - 1, -0.5),
    "one whose target is zero": (LESS, lambda share: 5 * (1 - share) - 0.5, 0.0),
    "one whose target is nearly zero": (LESS, lambda share: 5 * (1 - share) - 0.4999, 1e-4),
}


class Measured(PowerLaw):
    """A power law whose accuracies are turned into another metric."""

    def __init__(self, task, metric, seed: int) -> None:
        super().__init__(0.9, 10_000, 150.0, -0.6, 0.08, seed)
        self.task, self.metric = task, metric

    def probe(self, trial, hopeless=None):
        told = hopeless and (lambda curve: hopeless(tuple(map(self.metric, curve))))
        p = super().probe(trial, told)
        return replace(p, value=self.metric(p.value), curve=tuple(map(self.metric, p.curve)))


@pytest.mark.parametrize("name", METRICS)
def test_any_metric_is_searched(name):
    task, metric, target = METRICS[name]
    ends = [simulate(Measured(task, metric, seed), SearchGoal(value=target)) for seed in range(8)]
    assert all(end.found.get("reached", True) for end in ends)
    assert 0.9 < np.median([end.chosen.d / 150 for end in ends]) < 1.25
    assert np.mean([end.found["full_fits"] for end in ends]) < 5.5
    for end in ends:
        assert task.meets(end.found["validation_mean"], target)


@pytest.mark.parametrize("scale", [Shares(), Errors(), Linear(36.0, -4.0), Linear(-0.5, 2.0)])
def test_a_scale_gives_a_metric_back(scale):
    values = np.linspace(0.1, 0.9, 9)
    logs = [scale.log_error(v) for v in values]
    assert [scale.metric(log) for log in logs] == pytest.approx(values)
    assert all(np.diff(logs) * (1 if scale.metric(1.0) > scale.metric(0.0) else -1) > 0)


def test_all_values_of_a_search_are_on_one_scale():
    assert isinstance(scale_of(MORE, 0.9, [0.5, 0.99]), Shares)
    assert scale_of(MORE, 0.9, [0.5, 1.01]) is None
    assert scale_of(LESS, 0.1, [0.5, -0.01]) is None
    curve = Curve(LESS, 0.1, 3, 1_000)
    curve.probes = [Probe(100 + i, 0, value, (), 5, 1.0) for i, value in enumerate((0.5, 0.1, -0.2))]
    gaps = [curve.gap(p.value) for p in curve.probes]
    assert gaps[0] > gaps[1] == 0 > gaps[2]


def ended(d: int, seed: int, value: float, early: float) -> Probe:
    """A whole training of ten epochs that had the metric `early` from the fifth on."""
    return Probe(d, seed, value, (*[early] * 9, value), 10, 1.0, bytes=200)


def told(*probes: Probe) -> TargetSearch:
    engine = TargetSearch(PowerLaw(0.9, 10_000, 300.0, -0.6, 0.05, 0), SearchGoal(value=0.9))
    for probe in probes:
        engine.tell(Trial(probe.d, probe.seed), probe)
    return engine


def test_a_training_is_not_given_up_because_one_in_far_fewer_coordinates_gained_little():
    engine = told(ended(60, 0, 0.46, 0.45))
    engine.ask()
    assert engine.hopeless(Trial(1_000, 1)) is None
    stop = engine.hopeless(Trial(80, 1))
    assert stop is not None
    assert stop((0.45,) * 5)


def test_the_mean_that_is_told_counts_stopped_trainings_as_the_decision_did():
    three = [ended(300, 0, 0.92, 0.85), ended(302, 1, 0.92, 0.85), ended(304, 2, 0.92, 0.85)]
    low = Probe(303, 0, 0.80, (0.80,) * 5, 5, 1.0, True)
    mean = {n: told(*probes).result()[1]["validation_mean"] for n, probes in ((3, three), (4, [*three, low]))}
    assert 0.9 < mean[4] < mean[3] - 0.005


def test_a_training_that_died_says_nothing_of_smaller_ones():
    died = Probe(4_000, 0, 0.0, (), 2, 1.0, True, DIED, warnings=("too large a step",))
    engine = told(died)
    wanted = engine.ask()
    assert wanted is not None
    assert wanted.d != 4_000
    assert engine.failed == 0
    failure = engine._not_reached()
    assert failure == "the target is not reached: every training failed; the last one: too large a step"
