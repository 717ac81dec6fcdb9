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
from subcompress.search.looking import LOOKS, Looks, PredictedDimension, first_d
from subcompress.search.working import work
from subcompress.support.bars import with_bars
from subcompress.support.files import write_bytes
from subcompress.support.listener import Listener
from subcompress.training import run
from subcompress.training.options import Machine, Recipe, RecipeShortcuts, options_of
from subcompress.training.preparing import prepared, task_of

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
    """Predict the d at which a network meets a threshold, from at most nine trainings of a tenth of the epochs.

    Coordinates stay float32, as in `measure_dimension`. If the call is interrupted, the same call continues.

    Args:
        model: The network, or a function without arguments that builds it.
        data: A `Data`, or its three data sets or loaders (train, validation, test).
        folder: The run folder, where prediction.json is written.
        threshold: The value of the metric to meet on the validation split; by default 0.9 of that of the network
            trained directly, which costs one whole training more.
        recipe: How a whole training would be.
        machine: Where to compute.
        restart: Discard what the folder holds.
        listener: Hears of progress; see `Listener`. By default, progress bars at a terminal and in a notebook.
        **shortcuts: Fields of `Recipe` and `Machine`.

    Returns:
        The predicted d and its interval of two standard errors.

    Raises:
        SubcompressError: Options or data that cannot be trained with.
    """
    listener = listener or Listener()
    if threshold is not None and not math.isfinite(threshold):
        raise SubcompressError(f"--threshold must be a finite number; got {threshold}")
    options = options_of("predict_dimension", {"bits": BITS, **shortcuts}, recipe=recipe, machine=machine)
    data = as_data(data, options.machine.workers)
    task = task_of(options.recipe, data)
    data = task.prepare_labels(data)
    with prepared(model, data, options, task, listener, rounded=False) as fitter:
        fitter.check(first_d(fitter.D))
        command = fitter.command() | {
            "goal": {"predict": True, "thresholds": [] if threshold is None else [threshold]},
            "limits": {},
        }
        with run.working(folder, command, "dim", listener.note) as run_folder:
            with run_folder.worker.alone("begin"):
                fitter.begin(run_folder, restart or run_folder.finished is not None)
            fitter.measure()
            most = LOOKS * fitter.short_epochs / fitter.settings.epochs + (threshold is None)
            fitter.say_cost(first_d(fitter.D), most)
            engine = Looks(fitter, threshold)
            work(fitter, engine, run_folder)
            result = engine.prediction()
            with run_folder.worker.alone("finish"):
                write_bytes(run_folder.path / JSON, (json.dumps(result.to_json(), indent=2) + "\n").encode())
                run_folder.finish(None, {"prediction": result.to_json()})
            return result


__all__ = ["PredictedDimension", "predict_dimension"]
