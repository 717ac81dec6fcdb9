"""dim --predict: a guess of the intrinsic dimension from short trainings."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Unpack

from torch import nn
from torch.utils.data import Dataset

from subcompress.api.dim import BITS
from subcompress.data import Data
from subcompress.data.splits import as_data
from subcompress.errors import SubcompressError
from subcompress.search.prediction import MAX_SHORT, PredictedDimension, PredictionSearch, first_d
from subcompress.search.working import work
from subcompress.support.bars import with_bars
from subcompress.support.files import write_bytes
from subcompress.support.listener import Listener
from subcompress.training import run
from subcompress.training.fitter import Fitter
from subcompress.training.options import Machine, Recipe, RecipeShortcuts, check_number, options_of
from subcompress.training.preparing import prepared, task_of
from subcompress.training.run import Run

JSON = "prediction.json"


@with_bars
def predict_dimension(
    model: nn.Module | Callable[[], nn.Module],
    data: Data | Sequence[Dataset[Any]],
    folder: str | Path,
    *,
    threshold: float | None = None,
    recipe: Recipe | None = None,
    machine: Machine | None = None,
    restart: bool = False,
    listener: Listener | None = None,
    **shortcuts: Unpack[RecipeShortcuts],
) -> PredictedDimension:
    """Predict the d at which a network meets a threshold, from at most nine short trainings.

    Each takes a tenth of the epochs, but at least 200 steps. Coordinates stay float32, as in `measure_dimension`. If
    the call is interrupted, make the same call again: it continues.

    The prediction assumes that the error after a short training is close to that after a full one. For a network whose
    error hardly falls at first, the predicted d is far too large. A search of `fit` notices that, since it also runs
    full trainings.

    Args:
        model: The network, or a function without arguments that builds it.
        data: A `Data`, or its three data sets or loaders (train, validation, test).
        folder: The run folder, where prediction.json is written.
        threshold: The value of the metric to meet on the validation split. By default 0.9 of that of the network
            trained directly, which costs one more full training.
        recipe: How a full training would run.
        machine: Where to compute.
        restart: Discard what the folder holds.
        listener: Receives progress; see `Listener`. By default, progress bars in a terminal and in a notebook.
        **shortcuts: Fields of `Recipe` and `Machine`.

    Returns:
        The predicted d and its interval of two standard errors.

    Raises:
        SubcompressError: Options or data that cannot be trained with.
    """
    listener = listener or Listener()
    options = options_of("predict_dimension", {"bits": BITS, **shortcuts}, recipe=recipe, machine=machine)
    _check(threshold, options.machine.jobs)
    data = as_data(data, options.machine.workers)
    task = task_of(options.recipe, data)
    with prepared(model, task.prepare_labels(data), options, task, listener, rounded=False) as fitter:
        fitter.check(first_d(fitter.D))
        goal = {"predict": True, "thresholds": [] if threshold is None else [threshold]}
        with run.working(folder, fitter.command() | {"goal": goal, "limits": {}}, "dim", listener.note) as run_folder:
            with run_folder.worker.alone("begin"):
                fitter.begin(run_folder, restart or run_folder.finished is not None)
            return _predicted(fitter, run_folder, threshold)


def _check(threshold: float | None, jobs: int) -> None:
    """Raise SubcompressError for what nothing can be predicted with."""
    if threshold is not None:
        check_number("threshold", threshold, "float")
        if not math.isfinite(threshold):
            raise SubcompressError(f"--threshold must be a finite number; got {threshold}")
    if jobs != 1:
        raise SubcompressError(
            f"a prediction cannot use --jobs {jobs}, because each training depends on the last: leave it out"
        )


def _predicted(fitter: Fitter, folder: Run, threshold: float | None) -> PredictedDimension:
    """Train, predict, and write the result."""
    fitter.measure()
    most = MAX_SHORT * fitter.short_epochs / fitter.settings.epochs + (threshold is None)
    fitter.say_cost(first_d(fitter.D), most)
    engine = PredictionSearch(fitter, threshold)
    work(fitter, engine, folder)
    result = engine.prediction()
    with folder.worker.alone("finish"):
        folder.check_own()
        write_bytes(folder.path / JSON, (json.dumps(result.to_json(), indent=2) + "\n").encode())
        folder.finish(None, {"prediction": result.to_json()})
    return result


__all__ = ["PredictedDimension", "predict_dimension"]
