"""The search for the smallest d: on known curves it must be cheap and near; on a network it must tell the truth."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import subcompress
from subcompress import Listener, SubcompressError
from subcompress.search.curve import frontier
from subcompress.search.goal import SearchGoal
from subcompress.search.noise import NEARBY
from subcompress.search.simulation import PowerLaw, laws, simulate
from subcompress.search.target import FAR, TargetSearch
from subcompress.search.trials import Trial
from subcompress.training import run
from subcompress.training.preflight import resolution_note
from subcompress.training.probe import Probe
from subcompress.training.tasks import Task


def searched(law: PowerLaw, workers: int = 1, **goal) -> float:
    """The d that is found over d_true, nan where the target was not reached."""
    limits = SearchGoal(value=law.target, **goal)
    end = simulate(law, limits, workers)
    chosen, found = end.chosen, end.found
    assert found["full_fits"] == pytest.approx(law.epochs / 10)
    if not found.get("reached", True):
        return math.nan

    def near(factor: float) -> list[Probe]:
        return [p for p in found["probes"] if p.whole and chosen.d / factor <= p.d <= chosen.d * factor]

    spent = found["full_fits"] > limits.max_fits - 1 or limits.max_minutes is not None  # no whole training was left
    assert len(near(NEARBY)) >= 3 or (len(near(FAR)) >= 3 and spent)
    assert found["validation_mean"] >= law.target
    assert chosen.value == max(p.value for p in near(FAR) if p.d == chosen.d) >= law.target
    assert found["frontier"] == frontier(found["probes"], False)
    return chosen.d / law.d_true


MANY = [pytest.param(2, 9, marks=pytest.mark.slow), pytest.param(4, 11, marks=pytest.mark.slow)]


@pytest.mark.parametrize(("workers", "most"), [(1, 8), *MANY])
def test_known_curves_are_searched_in_few_trainings(workers, most):
    ratios, spent = [], []
    for law in laws(80):
        ratios.append(searched(law, workers, max_fits=float(most)))
        spent.append(law.epochs)
        assert law.epochs <= 10 * most
    assert np.isnan(ratios).sum() <= 2
    assert 0.95 < np.nanmedian(ratios) < 1.08, np.nanmedian(ratios)
    assert np.nanquantile(ratios, 0.1) > 0.9
    assert np.nanquantile(ratios, 0.9) < 1.25
    if workers == 1:
        assert np.mean(spent) < 41


def test_flat_curves_that_begin_far_too_low_end_with_a_file():
    """As below direct training on CIFAR-10: d is many times the square root of D, and six trainings are left."""
    rng, ratios = np.random.default_rng(3), []
    for i in range(60):
        D = int(10 ** rng.uniform(4.5, 5.5))
        d_true, slope, noise = D * 10 ** rng.uniform(-1.5, -0.5), -rng.uniform(0.1, 0.3), rng.uniform(0.01, 0.05)
        law = PowerLaw(float(rng.choice([0.57, 0.75])), D, d_true, slope, noise, i)
        end = simulate(law, SearchGoal(value=law.target, max_fits=6.0))
        ratios.append(end.chosen.d / d_true if end.found.get("reached", True) else math.nan)
    assert np.isnan(ratios).sum() <= 12, np.isnan(ratios).sum()
    assert 0.95 < np.nanmedian(ratios) < 1.3, np.nanmedian(ratios)


def test_trainings_farther_off_do_not_outvote_near_ones():
    """Once nothing is left to spend, two lucky trainings far below three that meet the target decide nothing."""
    law = PowerLaw(0.9, 100_000, 300.0, -0.6, 0.05, 0)
    engine = TargetSearch(law, SearchGoal(value=0.9, max_fits=5.0))
    told = [(300, 0, 0.905), (300, 1, 0.905), (300, 2, 0.905), (150, 0, 0.93), (140, 1, 0.92)]
    for d, seed, value in told:
        engine.tell(Trial(d, seed), replace(law.probe(Trial(d, seed)), value=value, stopped=False))
    chosen, found = engine.result()
    assert found["validation_trainings"] == 3
    assert chosen.d == 300


def test_two_workers_take_less_time():
    def rounds_of(workers: int) -> float:
        curves = [PowerLaw(0.9, 100_000, 300.0, -0.6, 0.05, seed) for seed in range(20)]
        goal = SearchGoal(value=0.9, max_fits=8.0 + workers - 1)
        return float(np.mean([simulate(curve, goal, workers).rounds for curve in curves]))

    rounds = {workers: rounds_of(workers) for workers in (1, 2, 4)}
    assert rounds[2] < 0.85 * rounds[1]  # one worker wastes less: each of its trainings knows all those before
    assert rounds[4] < rounds[2]


@given(st.permutations(range(5)))
@settings(max_examples=20, deadline=None)
def test_a_search_depends_on_the_trials_alone(order):
    """Whoever ran them, and in whichever order they ended."""
    law = PowerLaw(0.9, 100_000, 300.0, -0.6, 0.05, 0)
    trials = [Trial(d, seed) for d, seed in ((200, 0), (400, 0), (400, 1), (400, 2), (300, 0))]
    probes = [law.probe(trial) for trial in trials]
    ends = []
    for places in (range(5), order):
        engine = TargetSearch(law, SearchGoal(value=0.9))
        for i in places:
            engine.tell(trials[i], probes[i])
        chosen, found = engine.result()
        ends.append((chosen, found["frontier"], found["full_fits"]))
    assert ends[0] == ends[1]


def test_no_training_begins_that_would_end_after_the_time_is_up():
    """Two minutes a training."""
    for minutes, most in ((8.5, 4.25), (12.5, 6.25), (100.0, 8)):
        for seed in range(20):
            known = PowerLaw(0.9, 100_000, 300.0, -0.6, 0.05, seed)
            searched(known, max_minutes=minutes)
            assert known.epochs <= 10 * most


def test_the_frontier_is_what_nothing_outdoes():
    at = [(200, 0.9), (300, 0.89), (250, 0.91), (250, 0.92), (400, 0.92), (500, 0.95), (0, 0.99)]
    probes = [Probe(1, i, value, (), 1, 1.0, bytes=size) for i, (size, value) in enumerate(at)]
    assert [(p.bytes, p.value) for p in frontier(probes, False)] == [(200, 0.9), (250, 0.92), (500, 0.95)]
    assert [(p.bytes, p.value) for p in frontier(probes, True)] == [(200, 0.9), (300, 0.89)]


def test_errors_are_searched_downwards():
    """The same law of a metric that is minimized."""

    class Errors(PowerLaw):
        def probe(self, trial, hopeless=None):
            p = super().probe(trial)
            return replace(p, value=1 - p.value, curve=tuple(1 - v for v in p.curve))

    known = Errors(0.9, 100_000, 300.0, -0.6, 0.05, 0)
    known.task = Task.of("mse")
    end = simulate(known, SearchGoal(value=0.1))
    chosen, found = end.chosen, end.found
    assert 230 < chosen.d < 450
    assert found["target"] == 0.1


def test_a_target_that_is_out_of_reach_gives_the_best_and_says_how_near_it_came():
    known = PowerLaw(0.9, 2_000, 30_000.0, -0.3, 0.02, 0)
    end = simulate(known, SearchGoal(value=0.9))
    chosen, found = end.chosen, end.found
    assert re.search(r"accuracy 0.9 was asked for, and the best training had 0\.\d+ with d = \d+", found["failure"])
    assert found["reached"] is False
    assert chosen.value == max(p.value for p in found["probes"] if p.bytes)


@pytest.mark.slow
def test_far_targets_are_looked_for_far_away():
    """Flat curves, whose d is near D: few trainings lie below a quarter of it, fewer where a baseline is known."""
    for baseline, most_low, most_missed in ((False, 2.6, 12), (True, 1.8, 8)):
        rng, low, ratios = np.random.default_rng(1), [], []
        for seed in range(40):
            D = int(10 ** rng.uniform(4, 6))
            d_true, slope = D * rng.uniform(0.15, 0.6), -rng.uniform(0.15, 0.35)
            known = PowerLaw(float(rng.choice([0.9, 0.97])), D, d_true, slope, rng.uniform(0.03, 0.12), seed)
            whole = 1 - math.exp(math.log(1 - known.target) + slope * math.log(D / d_true))
            ratios.append(searched(known, **({"baseline": whole} if baseline else {})))
            low.append(sum(d < d_true / 4 for d in known.seen))
        assert np.mean(low) < most_low
        assert np.isnan(ratios).sum() <= most_missed
        assert np.nanmedian(ratios) < 1.45


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({}, "one of --d, --min-accuracy, --max-drop, --target, --bytes, or --d with --bytes; got none"),
        ({"d": 9, "min_accuracy": 0.9}, "got --d and --min-accuracy"),
        ({"target": 0.9, "max_drop": 0.1}, "got --max-drop and --target"),
        ({"min_accuracy": 90}, "above 0 and at most 1; got 90"),
        ({"min_accuracy": 0.9, "loss": "mse"}, "--min-accuracy is for metrics that are maximized"),
        ({"min_accuracy": 0.9, "metric": lambda a, b: 0.0}, "for another metric give --target"),
        ({"max_drop": -0.1}, "--max-drop must be at least 0"),
        ({"target": float("nan")}, "--target must be a finite number"),
        ({"d": 9, "baseline": 0.9}, "combined with --d, which has no target"),
        ({"min_accuracy": 0.9, "seeds": 0}, "--seeds must be between 1 and 100"),
        ({"min_accuracy": 0.9, "max_fits": 3}, "--max-fits must be at least --seeds \\+ 1 = 4; got 3"),
        ({"min_accuracy": 0.99, "baseline": 0.95}, "better than the 0.9500 that direct training"),
        ({"max_drop": 0.1, "baseline": "nowhere.safetensors"}, "must be a number or a safetensors file"),
        ({"d": 9, "max_minutes": 1}, "with --d there is one training"),
        ({"min_accuracy": 0.9, "max_minutes": 0}, "--max-minutes must be positive"),
        ({"within": 300, "target": 0.9}, "got --target and --bytes"),
        ({"within": 300, "baseline": 0.9}, "combined with --bytes, which has no target"),
        ({"within": 300, "operator": "dense"}, "and dense cannot"),
        ({"within": 300, "max_fits": 2}, "--max-fits must be at least --seeds = 3; got 2"),
        ({"within": 60}, r"--bytes must be at least \d+, the smallest file of this network"),
        ({"within": -1}, "--bytes must be at least"),
        ({"d": 9, "operator": "magic"}, "--operator must be auto or one of hadamard"),
        ({"d": 9, "structured": "maybe"}, "--structured must be random, store, guess"),
        ({"d": 9, "loss": "hinge"}, "--loss must be one of cross-entropy"),
        ({"d": 9, "metric": "beauty"}, "--metric must be one of accuracy"),
    ],
)
def test_contradictory_options(digits, tmp_path, options, words):
    net = nn.Sequential(nn.Flatten(), nn.Linear(784, 10))
    with pytest.raises(SubcompressError, match=words):
        subcompress.fit(net, digits, tmp_path / "run", **options)


class Heard(Listener):
    def __init__(self) -> None:
        self.notes: list[str] = []
        self.tables: list[int] = []

    def note(self, text):
        self.notes.append(text)

    def probes(self, probes):
        self.tables.append(len(probes))


def test_a_search_on_a_network(few_digits, tmp_path):
    torch.manual_seed(0)
    net, heard = nn.Sequential(nn.Flatten(), nn.Linear(784, 16), nn.ReLU(), nn.Linear(16, 10)), Heard()
    options = {"max_drop": 0.2, "baseline_lr": 2e-3, "epochs": 5, "batch_size": 32, "threads": 1, "seeds": 2}
    found = subcompress.fit(net, few_digits, tmp_path / "run", **options, listener=heard)
    values = [p.value for p in found.probes if p.at(found.d)]
    near = [p for p in found.probes if p.whole and found.d / NEARBY <= p.d <= found.d * NEARBY]
    assert len(near) >= 2
    assert found.validation_mean >= found.target == found.baseline - 0.2
    assert found.validation == max(values) >= found.target
    assert found.validation_trainings == len(near)
    assert found.mean_words.endswith(f" of {len(near)} trainings at or near d = {found.d}")
    assert found.full_fits <= 8
    assert found.bits == 4
    assert found.bytes == subcompress.pack(tmp_path / "run", tmp_path / "net.safetensors")
    assert found.validation in [p.value for p in found.frontier] or found.bytes > found.frontier[-1].bytes
    assert heard.tables == list(range(1, len(found.probes) + 1))
    assert any("a step" in n and "about" in n for n in heard.notes)
    record = run.load(tmp_path / "run")
    assert record.d == found.d
    told = found.to_json()
    assert told["baseline_accuracy"] == found.baseline
    (at,) = [p for p in told["probes"] if p["d"] == found.d and not p["short"]]
    assert at["accuracies"] == values
    assert {0, 1} <= {p.seed for p in near}
    assert at["seconds"] > 0
    again = subcompress.fit(net, few_digits, tmp_path / "run", **options, listener=heard)
    assert again == found
    assert "finished" in heard.notes[-1]
    assert all(p.bytes == 0 for p in found.probes if p.short)


def test_a_small_validation_split_is_warned_of():
    data = SimpleNamespace(validation=range(360))
    words = "with 360 validation examples, an accuracy of 0.97 has a standard error of 0.009"
    assert words in resolution_note(Task.of(), data, 0.97)
    assert resolution_note(Task.of(), SimpleNamespace(validation=range(5_000)), 0.97) is None
    assert resolution_note(Task.of(), data, 0.97, drop=0.1) is None
    assert resolution_note(Task.of("mse"), data, 0.5) is None


def test_a_given_baseline_is_measured(digits, tmp_path):
    import safetensors.torch

    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(784, 10))
    safetensors.torch.save_file(net.state_dict(), tmp_path / "net.safetensors")
    with pytest.raises(SubcompressError, match=r"better than the 0\.[01]"):
        subcompress.fit(
            net, digits, tmp_path / "run", min_accuracy=0.9, baseline=tmp_path / "net.safetensors", threads=1
        )


@pytest.mark.parametrize("limit", [200, pytest.param(260, marks=pytest.mark.slow)])
def test_the_best_within_a_number_of_bytes(few_digits, tmp_path, limit):
    torch.manual_seed(0)
    net, heard = nn.Sequential(nn.Flatten(), nn.Linear(784, 16), nn.ReLU(), nn.Linear(16, 10)), Heard()
    options = {"within": limit, "epochs": 2, "batch_size": 32, "threads": 1, "seeds": 2}
    found = subcompress.fit(net, few_digits, tmp_path / "run", **options, listener=heard)
    assert found.bytes == subcompress.pack(tmp_path / "run", tmp_path / "net.safetensors")
    assert 0.95 * limit < found.bytes <= limit
    assert found.validation == max(p.value for p in found.probes if 0 < p.bytes <= limit)
    assert {p.seed for p in found.probes} == {0, 1}
    assert found.full_fits == len(found.probes) <= 4
    assert all(p.cut <= max(2, 0.01 * limit) for p in found.probes[1:])
    assert subcompress.verify(tmp_path / "net.safetensors").ok
    assert subcompress.fit(net, few_digits, tmp_path / "run", **options) == found


@pytest.mark.slow
def test_running_statistics_count(tmp_path):
    """A budget that the coordinates alone would meet, and the statistics break: the next training takes fewer."""
    import networks

    case = networks.CASES["batch norm"]
    torch.manual_seed(0)
    net = case.make()
    found = subcompress.fit(net, case.data(), tmp_path / "run", within=800, epochs=3, batch_size=32, seeds=3, bits=4)
    assert found.bytes <= 800
    one = subcompress.fit(net, case.data(), tmp_path / "one", within=650, epochs=3, batch_size=32, seeds=1, bits=4)
    assert 550 < one.bytes <= 650  # shortened, with the statistics in the same stream
    assert found.probes[0].d > found.probes[1].d or found.probes[0].bytes <= 800
    with pytest.raises(SubcompressError) as e:
        subcompress.fit(net, case.data(), tmp_path / "least", within=1, epochs=1)
    least = int(str(e.value).split("at least ")[1].split(",")[0])
    with pytest.raises(SubcompressError, match=r"3 trainings gave no file of at most \d+ bytes: the smallest"):
        subcompress.fit(net, case.data(), tmp_path / "least", within=least, epochs=1, batch_size=32, bits=4, seeds=3)
