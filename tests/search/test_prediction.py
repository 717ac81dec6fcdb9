"""The first guess of d, from short trainings."""

from __future__ import annotations

import json
import math
from types import SimpleNamespace

import networks
import numpy as np
import pytest
from commands import cli

import subcompress
from subcompress import Listener, SubcompressError
from subcompress.search.curve import Curve, expected_lag
from subcompress.search.goal import SearchGoal
from subcompress.search.prediction import MAX_SHORT, PredictionSearch, first_d
from subcompress.search.simulation import laws, simulate
from subcompress.search.trials import Trial
from subcompress.training.settings import Settings


def predicted(law):
    engine = PredictionSearch(law, law.target)
    while (trial := engine.ask()) is not None:
        assert trial.short
        engine.tell(trial, law.probe(trial))
    return engine.prediction()


def test_a_guess_is_far_better_than_sqrt_d():
    guesses = [(predicted(law), law) for law in laws(100, spread=1.0)]
    errors = [abs(math.log2(guess.d / law.d_true)) for guess, law in guesses]
    assert np.median(errors) < 0.3
    assert np.median(errors) < 0.4 * np.median([abs(math.log2(first_d(law.D) / law.d_true)) for _, law in guesses])
    assert np.mean([guess.low <= law.d_true <= guess.high for guess, law in guesses]) > 0.85
    assert max(len(guess.trainings) for guess, _ in guesses) <= MAX_SHORT
    assert np.mean([guess.full_fits for guess, _ in guesses]) < 0.6


def test_short_trainings_lie_above_the_line():
    law = laws(1)[0]
    curve = Curve(law.task, law.target, 1, law.D, lag=expected_lag(200, 2000))
    curve.probes = [law.probe(Trial(100, 0, short=True))]
    assert curve.expected(100, short=True) < curve.expected(100)
    assert expected_lag(200, 200) == 0.0
    assert expected_lag(200, 2000) > expected_lag(400, 2000) > 0


def test_a_network_that_learns_late_does_not_mislead_a_search():
    """Its short trainings ask for a d that is 5 times too large, in the median; whole ones tell."""
    ratios, heard = [], []
    for law in laws(30):
        law.lag, law.listener = 2.0, Listener()
        law.listener.note = heard.append
        found = simulate(law, SearchGoal(value=law.target, max_fits=8.0))
        ratios.append(found.chosen.d / law.d_true if found.found.get("reached", True) else np.nan)
    assert np.isnan(ratios).mean() < 0.1
    assert np.nanmedian(ratios) < 1.6
    assert sum("only whole ones are used" in line for line in heard) > 25


@pytest.mark.parametrize(
    ("examples", "epochs", "expected"),
    [(55_000, 10, 1), (55_000, 100, 10), (45_000, 3, 1), (1_000, 100, 29), (100, 5, 5), (1_000, 20, 20)],
)
def test_epochs_of_a_short_training(examples, epochs, expected):
    """A tenth, and 200 steps at least."""
    assert Settings(epochs=epochs).short_epochs(examples) == expected


def test_a_prediction_of_a_network(tmp_path):
    data = networks.blobs()
    options = {"epochs": 4, "batch_size": 16, "threads": 1}
    found = subcompress.predict_dimension(networks.mlp, data, tmp_path / "run", threshold=0.5, **options)
    assert 1 <= found.low <= found.d <= found.high <= found.D
    assert found.baseline is None
    assert found.threshold == 0.5
    held = json.loads((tmp_path / "run" / "prediction.json").read_text())
    assert held == found.to_json()
    assert "short trainings" in repr(found)
    (state,) = subcompress.runs([tmp_path / "run"])
    assert state.state == "finished"


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--predict", "--d", "5"], "--predict does not work with --d"),
        (["--predict", "--threshold", "0.5", "--threshold", "0.6"], "or with several --threshold"),
        (["--predict", "--threshold", "nan"], "--threshold must be a finite number; got nan"),
        (["--predict", "--jobs", "2"], "cannot use --jobs 2, because each training depends on the last"),
    ],
)
def test_options_that_do_not_go_together(tmp_path, args, words):
    result = cli("dim", "--model", "mlp", "--data", "digits", *args, "-o", tmp_path / "run")
    assert result.exit_code == 1
    assert words in result.stderr
    assert result.stderr.count("\n") == 1


def test_a_training_that_died_is_said():
    engine = PredictionSearch(laws(1)[0], 0.9)
    probe = SimpleNamespace(note="died twice", warnings=("the loss is nan",))
    with pytest.raises(SubcompressError, match="the loss is nan"):
        engine.tell(Trial(5, 0, short=True), probe)
