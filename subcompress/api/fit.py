"""fit: a network and its data to a run folder with seed and coordinates."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Unpack

import torch
from torch import nn
from torch.utils.data import Dataset

from subcompress.data import Data
from subcompress.errors import SubcompressError
from subcompress.support.listening import Listener
from subcompress.training import recipe_file, schemas
from subcompress.training.baseline import given_baseline
from subcompress.training.budget import best_within, check_budget
from subcompress.training.curve import frontier
from subcompress.training.fitter import Fitter
from subcompress.training.goal import SearchGoal, checked
from subcompress.training.likeness import same_network
from subcompress.training.options import Goal, Machine, Options, Recipe, Shortcuts
from subcompress.training.preparing import check_base_options, data_of, prepared, task_of
from subcompress.training.probe import Fit, Probe, TargetMissedError
from subcompress.training.run import Run
from subcompress.training.searching import first_d, search
from subcompress.training.sharding import sharing
from subcompress.training.sharding.folder import held


def fit(
    model: nn.Module | Callable[[], nn.Module],
    data: Data | Sequence[Dataset[Any]],
    run_folder: str | Path,
    *,
    recipe: Recipe | str | Path | None = None,
    goal: Goal | None = None,
    base: Any = None,
    machine: Machine | None = None,
    restart: bool = False,
    origin: dict[str, Any] | None = None,
    listener: Listener | None = None,
    **shortcuts: Unpack[Shortcuts],
) -> Fit:
    """Train a network in d coordinates and write a run folder.

    Every field of `Recipe`, `Goal` and `Machine` can be given as a keyword in place of the object, or beside it to
    change it: `fit(model, data, "run", d=2000, epochs=20)`.

    Give one goal: `d`, or a target (`min_accuracy`, `max_drop` or `target`), for which the smallest file is searched,
    or `bytes`, for which the best file of at most so many bytes is searched. The network that is given stays as it
    was. Before the first training, at most about 100 steps of direct training measure how far each tensor moves. The
    same seed, data, options and machine give the same file on a CPU, also if the call was interrupted and made again.
    On CUDA, some sums have no fixed order. Several processes that torchrun started, each of which makes this call,
    share the shards of each batch; the first of them writes the folder and hears of progress.

    Args:
        model: The network, or a function without arguments that builds it. A function is better: it is called under
            several seeds, which tells values that were chosen from values that were drawn.
        data: A `Data`, or its three data sets or loaders (train, validation, test).
        run_folder: Where to write the run. If it holds an interrupted run of the same call, that run continues.
        recipe: How to train; or a recipe file, such as the recipe.toml of a run folder, which holds goal, base and
            machine too.
        goal: What to reach, and what a search may cost.
        base: Weights to fine-tune: a `Base`, or its source alone.
        machine: Where to compute.
        restart: Discard what the folder holds.
        origin: Where the run came from, for `report` and `compare`.
        listener: Hears of progress; see `Listener`.
        **shortcuts: Fields of `Recipe`, `Goal` and `Machine`, and `base_name`, `act_on` and `new` of `Base`.

    Returns:
        What was reached: the metric on validation and test split, bytes, all trainings, and the frontier of a search.

    Raises:
        SubcompressError: Options that cannot be met, or a training that died twice.
        TargetMissedError: The target is not reached. The run folder holds the best file all the same.
    """
    options = recipe_file.given_options("fit", shortcuts, recipe=recipe, goal=goal, base=base, machine=machine)
    with sharing(options.recipe.shards) as shards:
        task = task_of(options.recipe)
        search_goal = checked(options.goal, task)
        check_base_options(options.base)
        schemas.check_origin(origin or {})
        listener = listener if listener is not None and shards.first else Listener()
        data = task.prepare_labels(data_of(data, options.machine.workers))
        with prepared(model, data, options, task, listener, shards=shards) as fitter:
            found = _found(fitter, search_goal, options, Path(run_folder), restart, origin or {})
    if not found.reached:
        raise TargetMissedError(found)
    return found


def _found(
    fitter: Fitter, goal: SearchGoal, options: Options, path: Path, restart: bool, origin: dict[str, Any]
) -> Fit:
    """What a folder holds of this fit, or what training gives. Each worker takes the same way through it: what reads
    the folder, evaluates or looks at a clock is done by the first one alone."""
    shards, baseline = fitter.shards, goal.baseline
    shards.alone(lambda: check(fitter, goal))
    command = fitter.command() | goal.command()
    shards.alike("network, code and data", repr(command["network"]))
    if baseline is not None:
        goal = replace(goal, baseline=shards.alone(lambda: given_baseline(fitter, baseline)))
    with held(shards, path, command) as folder:
        fitter.run = folder
        if (finished := shards.alone(lambda: _finished(folder, fitter, restart))) is not None:
            return finished
        folder.earlier = shards.alone(lambda: folder.earlier)
        shards.alone(lambda: recipe_file.write(folder.path, options, origin, torch.get_num_threads()))
        fitter.measure()
        return fitter.finish(*_trained(fitter, goal, folder), origin)


def check(fitter: Fitter, goal: SearchGoal) -> None:
    """Raise SubcompressError for what cannot be trained or met, before anything is written."""
    fitter.check(first_d(fitter.D) if goal.d is None else goal.d)
    if goal.bytes is not None and not fitter.exact:
        operator = fitter.settings.operator
        raise SubcompressError(f"--bytes is of a file, and {operator} is a reference that makes none: give --d")
    check_budget(fitter, goal)


def _finished(folder: Run, fitter: Fitter, restart: bool) -> Fit | None:
    """The fit of a folder that holds this run already, else None, with the folder ready to train in."""
    summary = None if restart else folder.finished
    changed = summary is not None and not same_network(folder.path, fitter.outputs)
    if changed:
        fitter.listener.note(f"{folder.path} holds a finished run of another network, whose code or data were others")
    elif summary is not None:
        fitter.listener.note(f"{folder.path} holds this run already, finished; --restart trains it again")
        return Fit.from_json(summary["fit"])
    fitter.begin(folder, restart or changed)
    return None


def _trained(fitter: Fitter, goal: SearchGoal, folder: Run) -> tuple[Probe, dict[str, Any]]:
    """The training that is chosen, and what was found on the way."""
    goal = goal.after(folder.earlier)
    if goal.bytes is not None:
        return best_within(fitter, goal)
    if goal.d is None:
        chosen, found = search(fitter, goal)
        if not found.get("reached", True):
            fitter.warn(found["failure"])
        return chosen, found
    d = goal.d
    if d > fitter.D:
        fitter.warn(f"--d {d} is more than the D = {fitter.D} weights that can be trained: it is lowered to D")
        d = fitter.D
    fitter.say_cost(d, 1)
    chosen = fitter.probe(d, fitter.settings.seed)
    return chosen, {"probes": (chosen,), "frontier": frontier([chosen], fitter.task.minimise)}


__all__ = ["Fit", "fit"]
