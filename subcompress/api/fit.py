"""fit: a network and its data to a run folder with seed and coordinates."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Unpack

import torch
from torch import nn
from torch.utils.data import Dataset

from subcompress.data import Data
from subcompress.data.splits import as_data
from subcompress.errors import SubcompressError
from subcompress.search.baseline import given_baseline
from subcompress.search.budget import BudgetSearch, check_budget
from subcompress.search.executors import helping
from subcompress.search.goal import SearchGoal, checked
from subcompress.search.knobs import knob_of
from subcompress.search.listed import Listed
from subcompress.search.noise import USUAL, Belief, learned
from subcompress.search.target import TargetSearch
from subcompress.search.trials import Engine, Trial
from subcompress.search.working import finish, work
from subcompress.support.bars import with_bars
from subcompress.support.listener import Listener
from subcompress.training import recipe_file, run, schemas
from subcompress.training.fitter import Fitter
from subcompress.training.likeness import same_network
from subcompress.training.options import Goal, Machine, Options, Recipe, Shortcuts
from subcompress.training.preparing import check_base_options, divided, prepared, task_of
from subcompress.training.probe import Fit, TargetMissedError
from subcompress.training.run import Run
from subcompress.training.sharding import sharing


@with_bars
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

    Give one goal: `d` for a single training; or a target (`min_accuracy`, `max_drop` or `target`) to search for the
    smallest file that meets it; or `bytes` to search for the best file of at most that size (with `d`, the file has
    exactly d coordinates). The given network is not changed. Before the first training, at most about 100 steps of
    direct training measure how far each tensor moves. On a CPU, the same seed, data, options and machine give the
    same file, even if the call was interrupted and repeated. On CUDA, some sums have no fixed order. If the parent
    folder holds runs of other networks or data, a search for a target begins with the noise between seeds that they
    have shown; command.json keeps what it began with. If torchrun started several processes and each makes this call,
    they share the shards of each batch. The first process writes the folder and reports progress.

    Args:
        model: The network, or a function without arguments that builds it. A function is better: `fit` calls it under
            several seeds to tell constants from random values.
        data: A `Data`, or its three data sets or loaders (train, validation, test).
        run_folder: Where to write the run. If it holds an interrupted run of the same call, that run continues.
        recipe: How to train; or a recipe file, such as the recipe.toml of a run folder, which holds goal, base and
            machine too.
        goal: What to reach, and what a search may cost.
        base: Weights to fine-tune: a `Base`, or its source alone.
        machine: Where to compute.
        restart: Discard what the folder holds.
        origin: Where the run came from, for `report` and `compare`.
        listener: Receives progress; see `Listener`. By default, progress bars in a terminal and in a notebook.
        **shortcuts: Fields of `Recipe`, `Goal`, `Base` and `Machine`.

    Returns:
        The result: the metric on validation and test split, bytes, all trainings, and the frontier of a search.

    Raises:
        SubcompressError: The options cannot be met, or a training failed twice.
        TargetMissedError: The target is not reached. The run folder still holds the best file.
    """
    options = recipe_file.given_options("fit", shortcuts, recipe=recipe, goal=goal, base=base, machine=machine)
    found = _fit(model, data, Path(run_folder), options, listener or Listener(), restart, origin or {})
    if not found.reached:
        raise TargetMissedError(found)
    return found


def _fit(
    model: Any,
    data: Any,
    path: Path,
    options: Options,
    listener: Listener,
    restart: bool,
    origin: dict[str, Any],
    begun: Begun | None = None,
) -> Fit:
    """The fit of these options. begun: what the process that began it says, where this one helps it with --jobs."""
    with sharing(options.recipe.shards) as shards:
        listener = listener if shards.first else Listener()
        options = _of_use(options, listener)
        options = replace(options, machine=divided(options.machine))
        task = task_of(options.recipe, given := as_data(data, options.machine.workers))
        goal = checked(options.goal, task, options.machine.jobs)
        check_base_options(options.base)
        schemas.check_origin(origin)
        data = task.prepare_labels(given)
        with prepared(model, data, options, task, listener, shards=shards) as fitter:
            shards.check_same("network, code and data", repr(fitter.command()["network"]))
            call = Call(model, given, path.absolute(), options, origin, goal.max_fits)
            return shards.alone(partial(_run, fitter, goal, call, restart, begun), fitter.join)


def _of_use(options: Options, listener: Listener) -> Options:
    """The options, with one job where there is one training. A line names those that only a search has a use for."""
    goal, machine = options.goal, options.machine
    given = {"--jobs": machine.jobs > 1, "--seeds": goal.seeds != Goal.seeds, "--max-fits": goal.max_fits is not None}
    if goal.d is None or goal.bytes is not None or not any(given.values()):
        return options
    named = ", ".join(name for name, is_given in given.items() if is_given)
    listener.note(f"not used, because with --d there is one training and no search: {named}")
    return replace(options, machine=replace(machine, jobs=1))


@dataclass(frozen=True)
class Call:
    """A call of `fit`, to be made again in other processes. max_fits: the limit of its search."""

    model: Any
    data: Data
    path: Path
    options: Options
    origin: dict[str, Any]
    max_fits: float


@dataclass(frozen=True)
class Begun:
    """What a helper cannot find out. code: the digest of the user's code, of which it has no source."""

    code: str


def _run(fitter: Fitter, goal: SearchGoal, call: Call, restart: bool, begun: Begun | None) -> Fit:
    """Take what the folder holds of this fit, or train. The first worker does; others join in its trainings."""
    check(fitter, goal)
    command = fitter.command() | goal.command()
    if begun is not None:
        command["network"]["code"] = begun.code
    if goal.baseline is not None:
        goal = replace(goal, baseline=given_baseline(fitter, goal.baseline))
    with run.working(call.path, command, "fit", fitter.listener.note) as folder:
        with folder.worker.alone("begin"):
            found = _finished(folder, fitter, goal, restart)
            if found is None and begun is None:
                recipe_file.write(folder.path, call.options, call.origin, torch.get_num_threads())
        machine, join = call.options.machine, partial(_join, call, Begun(command["network"]["code"]))
        if found is not None:
            return found
        with helping(machine.executor, machine.jobs - 1, folder.path, join, fitter.listener):
            fitter.measure()
            chosen, details = work(fitter, engine_of(fitter, goal, folder.noise), folder)
            if not details.get("reached", True):
                fitter.warn(details["failure"])
            return finish(fitter, folder, chosen, details, call.origin)


def _join(call: Call, begun: Begun) -> None:
    """Work in a run folder as a further worker. The process that began the run reports the result."""
    options = call.options
    machine = replace(options.machine, jobs=1)
    goal = replace(options.goal, max_fits=call.max_fits)
    options = replace(options, machine=machine, goal=goal)
    _fit(call.model, call.data, call.path, options, Listener(), False, call.origin, begun)


def check(fitter: Fitter, goal: SearchGoal) -> None:
    """Raise SubcompressError for what cannot be trained or met, before anything is written."""
    knob = knob_of(goal.knob, fitter.D)
    fitter.check(knob.trial(knob.first, fitter.settings.seed).d if goal.d is None else goal.d)
    if goal.bytes is not None and not fitter.exact:
        operator = fitter.settings.operator
        raise SubcompressError(
            f"--bytes needs an operator that can be packed, and {operator} cannot: give --d, or another --operator"
        )
    check_budget(fitter, goal)


def _finished(folder: Run, fitter: Fitter, goal: SearchGoal, restart: bool) -> Fit | None:
    """The fit of a folder that holds this run already, else None, with the folder ready to train in."""
    summary = None if restart else folder.finished
    changed = summary is not None and not same_network(folder.path, fitter.outputs)
    if changed:
        fitter.listener.note(
            f"{folder.path} holds a finished run of another network (its code or its data were different)"
        )
    elif summary is not None:
        fitter.listener.note(f"{folder.path} already holds this run, and it is finished; --restart trains it again")
        return Fit.from_json(summary["fit"])
    searches = goal.d is None and goal.bytes is None
    fitter.begin(folder, restart or changed, partial(_noise_beside, folder) if searches else lambda: None)
    return None


def _noise_beside(folder: Run) -> dict[str, Any] | None:
    """What a search that begins in this folder believes of the noise between seeds, None for the usual."""
    belief = learned(folder.path, folder.command)
    return None if belief == USUAL else belief.to_json()


def engine_of(fitter: Fitter, goal: SearchGoal, noise: dict[str, Any] | None = None) -> Engine:
    """The search for a goal. noise: what the run folder says of a `Belief`."""
    if goal.bytes is not None:
        return BudgetSearch(fitter, goal)
    if goal.d is None:
        belief = USUAL if noise is None else Belief(**noise)
        if belief.runs:
            fitter.listener.note(belief.words)
        return TargetSearch(fitter, goal, knob_of(goal.knob, fitter.D), belief)
    d = fitter.lowered(goal.d)
    fitter.say_cost(d, 1)
    return Listed([Trial(d, fitter.settings.seed)], fitter.task, Listener())


__all__ = ["Fit", "fit"]
