"""What a search turns, and what it believes of the noise before it begins."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import dataclass
from pathlib import Path

import networks
import numpy as np
import pytest
import torch

import subcompress
from subcompress import Listener, SubcompressError
from subcompress.search.curve import Curve
from subcompress.search.goal import SearchGoal
from subcompress.search.knobs import KNOBS, Coordinates, Knob, Price, knob_of
from subcompress.search.noise import USUAL, Belief, learned
from subcompress.search.simulation import PowerLaw, laws, simulate
from subcompress.search.trials import Trial, trial_of
from subcompress.training import run
from subcompress.training.probe import Probe
from subcompress.training.tasks import Task

OPTIONS = {"min_accuracy": 0.5, "epochs": 3, "batch_size": 32, "threads": 1, "seeds": 1, "max_fits": 4, "bits": 4}


@pytest.mark.parametrize("name", KNOBS)
def test_a_trial_keeps_how_far_its_knob_is_turned(name):
    knob = knob_of(name, 5_000)
    low, high = knob.range
    for turn in (low, knob.first, high, *np.geomspace(low, high, 50)):
        near = knob.nearest(turn)
        assert low <= near <= high
        trial = knob.trial(near, 3, short=True)
        assert knob.turn(trial) == near == knob.nearest(near)
        assert trial_of(trial.key) == trial
        assert f"{knob.value(trial):g}" in knob.words(trial)


def test_a_price_is_turned_the_other_way():
    knob = Price(900)
    assert knob.value(knob.trial(1e4, 0)) == 1e-4
    assert knob.turn(Trial(900, 0, rate=1e-3)) < knob.turn(Trial(900, 0, rate=1e-5))
    assert knob.whole is None
    assert Coordinates(900, given=40).range == (40, 40)


def test_a_price_is_searched_as_d_is():
    """The dearest bit at which the target is met, in exactly D coordinates."""
    ratios, fits = [], []
    for law in laws(30):
        price = 10 ** law.rng.uniform(-5, -3)
        law.D, law.d_true, law.slope, law.knob = 2_000, 1 / price, law.slope / 2, Price(2_000)
        end = simulate(law, SearchGoal(value=law.target))
        assert end.chosen.d == 2_000
        assert "d_spread" not in end.found
        if end.found.get("reached", True):
            ratios.append(end.chosen.rate / price)
        fits.append(end.found["full_fits"])
    assert len(ratios) >= 28
    assert 0.85 < np.median(ratios) < 1.1
    assert np.mean(fits) < 5.5


def test_a_knob_of_ones_own_is_searched():
    """A new knob is a class: no engine knows of it."""

    @dataclass(frozen=True)
    class Halves(Knob):
        name = "halves"
        slope = (-0.6, 0.2)
        bounds = (2.0, 4_000.0)
        first = 100.0

        def value(self, made):
            return 2.0 * made.d

        def nearest(self, turn):
            return self.within(2.0 * round(turn / 2))

        def trial(self, turn, seed, *, short=False, limit=None, room=None):
            return Trial(round(turn / 2), seed, short)

    law = PowerLaw(0.9, 4_000, 300.0, -0.6, 0.05, 0)
    law.knob = Halves()
    end = simulate(law, SearchGoal(value=0.9))
    assert 0.9 < 2 * end.chosen.d / 300 < 1.2
    law.slope = -0.1
    missed = simulate(law, SearchGoal(value=0.99)).found["failure"]
    assert "even the largest value, halves = 4000, misses it" in missed
    law.d_true = 1e6
    with pytest.raises(SubcompressError, match="every training failed"):
        simulate(law, SearchGoal(value=0.95))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"min_accuracy": 0.9, "knob": "prise"}, "--knob must be d or price; got prise: did you mean price"),
        ({"d": 9, "knob": "price"}, "--knob needs a search for a target, and --d is not one"),
        ({"bytes": 900, "knob": "price"}, "--bytes is not one"),
    ],
)
def test_knobs_that_nothing_turns(tmp_path, options, words):
    with pytest.raises(SubcompressError, match=words):
        subcompress.fit(networks.mlp, networks.blobs(), tmp_path / "run", **options)


def fit(folder: Path, **options) -> subcompress.Fit:
    torch.manual_seed(0)
    return subcompress.fit(networks.mlp, networks.blobs(), folder, **OPTIONS | options)


def test_the_price_of_a_network_is_searched(tmp_path):
    found = fit(tmp_path / "run", knob="price")
    assert {p.d for p in found.probes} == {found.D} == {found.d}
    assert all(p.rate for p in found.probes)
    held = json.loads((tmp_path / "run" / "command.json").read_text())
    assert held["goal"]["knob"] == "price"
    chosen = max((p for p in found.probes if p.value == found.validation), key=lambda p: p.bytes)
    assert run.summary(tmp_path / "run")["recipe"]["rate"] == chosen.rate == found.rate
    assert found.mean_words.endswith(f"at or near price {found.rate:g}")
    prices = [(p["rate"], p["short"]) for p in found.to_json()["probes"]]
    assert sorted(prices) == sorted({(p.rate, p.short) for p in found.probes})
    assert subcompress.pack(tmp_path / "run", tmp_path / "net.safetensors") == found.bytes
    assert fit(tmp_path / "run", knob="price") == found


# --- noise ---


def other_run(folder: Path, name: str, values: list[list[float]], **changed) -> None:
    """A run folder with trainings of these accuracies at d = 100, 200, and so on."""
    at = folder / name
    at.mkdir()
    command = json.loads((folder / "run" / "command.json").read_text())
    command["network"] |= {"start": name}
    for group, fields in changed.items():
        command[group] |= fields
    (at / "command.json").write_text(json.dumps(command))
    entries = {}
    for i, each in enumerate(values, 1):
        for seed, value in enumerate(each):
            probe = Probe(100 * i, seed, value, (value,), 1, 1.0)
            entries[f"d{probe.d}-s{seed}"] = vars(probe) | {"curve": [value], "warnings": []}
    (at / "journal.json").write_text(json.dumps(entries))


def noisy(factor: float) -> list[list[float]]:
    rng = np.random.default_rng(0)
    return [[1 - 0.1 * math.exp(rng.normal(0, 0.1 * factor)) for _ in range(3)] for _ in range(8)]


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    """A folder with one run."""
    folder = tmp_path_factory.mktemp("runs")
    fit(folder / "run")
    return folder


def copied(folder: Path, to: Path) -> Path:
    (to / "run").mkdir()
    (to / "run" / "command.json").write_bytes((folder / "run" / "command.json").read_bytes())
    return to


def test_noise_is_learned_from_other_runs(one, tmp_path):
    place = copied(one, tmp_path)
    command = json.loads((place / "run" / "command.json").read_text())
    assert learned(place / "run", command) == USUAL
    assert "noise" not in command
    other_run(place, "a", noisy(0.4))
    calm = learned(place / "run", command)
    assert calm.factor < 0.7
    assert (calm.n, calm.runs) == (9, 1)
    other_run(place, "b", noisy(3.0))
    assert learned(place / "run", command).factor > 1.2
    shutil.rmtree(place / "a")
    shutil.rmtree(place / "b")
    other_run(place, "b", noisy(6.0))  # one run, however unusual, tells of twice the usual at most
    assert 1.5 < learned(place / "run", command).factor < 2
    curves = [Curve(Task.of(), 0.9, 3, 1_000, belief=b) for b in (calm, USUAL, Belief(2.0))]
    assert [round(c.noise(), 3) for c in curves] == sorted(round(c.noise(), 3) for c in curves)


def test_runs_that_say_nothing_of_noise_are_left_alone(one, tmp_path):
    place = copied(one, tmp_path)
    command = json.loads((place / "run" / "command.json").read_text())
    other_run(place, "same", noisy(3.0), network={"start": command["network"]["start"]})
    other_run(place, "metric", noisy(3.0), recipe={"metric": "mse"})
    other_run(place, "apart", [[0.9], [0.95], [0.97]])
    other_run(place, "poor", [[0.2, 0.4, 0.3]])
    other_run(place, "damaged", noisy(3.0))
    (place / "damaged" / "journal.json").write_text("{")
    (place / "file").write_text("")
    assert learned(place / "run", command) == USUAL
    assert learned(place / "nowhere" / "run", command) == USUAL


def test_a_search_keeps_to_the_noise_that_it_began_with(one, tmp_path):
    place = copied(one, tmp_path)
    other_run(place, "a", noisy(0.4))
    (place / "run" / "command.json").unlink()
    heard: list[str] = []
    listener = Listener()
    listener.note = heard.append
    found = fit(place / "run", listener=listener)
    held = json.loads((place / "run" / "command.json").read_text())
    assert held["noise"]["runs"] == 1
    assert any("noise between seeds: 0." in line for line in heard)
    other_run(place, "b", noisy(3.0))
    assert fit(place / "run") == found
    (place / "run" / "run.json").unlink()
    again = fit(place / "run")
    assert again.probes == found.probes
    assert json.loads((place / "run" / "command.json").read_text())["noise"] == held["noise"]
