"""dim: the measurement of Li et al. 2018, "Measuring the Intrinsic Dimension of Objective Landscapes"
(arXiv:1804.08838): a metric against d, and the d at which it crosses a threshold."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Unpack

from torch import nn
from torch.utils.data import Dataset

from subcompress.data import Data, shuffle_labels, shuffle_pixels
from subcompress.data.splits import as_data
from subcompress.errors import SubcompressError, shown
from subcompress.search.crossing import Crossing
from subcompress.search.engine import seeds_from
from subcompress.search.executors import helping
from subcompress.search.knobs import first_d
from subcompress.search.listed import Listed
from subcompress.search.trials import Trial
from subcompress.search.working import work
from subcompress.support.bars import with_bars
from subcompress.support.files import write_bytes
from subcompress.support.listener import Listener
from subcompress.support.suggestions import suggestion
from subcompress.training import run
from subcompress.training.dimension import Dimension, Point, Threshold, absolute, estimate, of_baseline
from subcompress.training.fitter import Fitter
from subcompress.training.options import Machine, Options, Recipe, RecipeShortcuts, check_number, options_of
from subcompress.training.preparing import divided, prepared, task_of
from subcompress.training.probe import Probe
from subcompress.training.run import Run
from subcompress.training.tasks import Task

FOUND = 4
"""About how many dimensions are trained with all repeats if no dimensions are given; this estimates the cost."""

MARKDOWN, JSON, PLOT = "dim.md", "dim.json", "dim.png"
SHUFFLES = {"pixels": shuffle_pixels, "labels": shuffle_labels}


BITS = 8
"""Bits that the plan assumes; coordinates stay float32."""


@with_bars
def measure_dimension(
    model: nn.Module | Callable[[], nn.Module],
    data: Data | Sequence[Dataset[Any]],
    folder: str | Path,
    *,
    ds: Sequence[int] | None = None,
    repeats: int = 3,
    thresholds: Sequence[float] = (),
    baseline_lr: float | None = None,
    shuffle: str | None = None,
    recipe: Recipe | None = None,
    machine: Machine | None = None,
    names: tuple[str, str] = ("", ""),
    restart: bool = False,
    listener: Listener | None = None,
    **shortcuts: Unpack[RecipeShortcuts],
) -> Dimension:
    """Measure the intrinsic dimension of a network on its data (Li et al. 2018).

    The network is trained at each d with `repeats` seeds, and directly (all weights) with as many. Coordinates stay
    float32, as in the paper. The thresholds are 0.9 of the baseline, 0.9 itself if the metric is an accuracy, and the
    given ones. If the call is interrupted, make the same call again: it continues.

    Args:
        model: The network, or a function without arguments that builds it.
        data: A `Data`, or its three data sets or loaders (train, validation, test).
        folder: Where dim.md, dim.json and dim.png are written.
        ds: The dimensions to train in. By default they are found: one training in each on the way to where the metric
            meets a threshold, and all repeats in the two on either side of it.
        repeats: Trainings in each dimension.
        thresholds: More values of the metric whose dimension is estimated.
        baseline_lr: Adam's largest step in direct training. By default 0.002.
        shuffle: `pixels` or `labels`: run a control experiment of the paper. The metric is measured on the validation
            split, but with `labels` on the training split, since shuffled labels do not generalize.
        recipe: How to train.
        machine: Where to compute.
        names: Names of network and data in table and plot.
        restart: Discard what the folder holds.
        listener: Receives progress; see `Listener`. By default, progress bars in a terminal and in a notebook.
        **shortcuts: Fields of `Recipe` and `Machine`.

    Returns:
        The accuracies at each d, and the estimates with their intervals.

    Raises:
        SubcompressError: Options or data that cannot be trained with.
    """
    options = options_of("measure_dimension", {"bits": BITS, **shortcuts}, recipe=recipe, machine=machine)
    options = replace(options, machine=divided(options.machine))
    dimensions = None if ds is None else _numbers("ds", ds, "int")
    wanted = _numbers("thresholds", thresholds, "float")
    _check(dimensions, repeats, shuffle)
    baseline_lr = _step("baseline_lr", baseline_lr)
    data = as_data(data, options.machine.workers)
    dimensions = None if dimensions is None else sorted(set(dimensions))
    path = Path(folder).absolute()
    call = Call(model, data, path, options, dimensions, repeats, wanted, baseline_lr, shuffle, names)
    found = _dimension(call, listener or Listener(), restart)
    assert found is not None, "only a helper returns without a result"
    return found


@dataclass(frozen=True)
class Call:
    """A call of `measure_dimension`, to be made again in other processes."""

    model: Any
    data: Data
    path: Path
    options: Options
    ds: list[int] | None
    repeats: int
    thresholds: list[float]
    baseline_lr: float | None
    shuffle: str | None
    names: tuple[str, str]


def _dimension(call: Call, listener: Listener, restart: bool = False, code: str | None = None) -> Dimension | None:
    """The measurement. code: the digest of the user's code, where this process helps the one that began; it trains,
    and writes no result."""
    data, on = _measured_on(call.data, call.shuffle, call.options.recipe.seed)
    task = task_of(call.options.recipe, data)
    data = task.prepare_labels(data)
    with prepared(call.model, data, call.options, task, listener, rounded=False) as fitter:
        for d in call.ds or [fitter.possible(first_d(fitter.D))]:
            fitter.check(d)
        command = _command(fitter, call, code)
        with run.working(call.path, command, "dim", listener.note) as folder:
            with folder.worker.alone("begin"):
                if (finished := folder.finished is not None) and code is not None:
                    return None  # nothing is left to help with
                fitter.begin(folder, restart or finished)
            if code is not None:
                _trained(fitter, folder, call)
                return None
            machine, join = call.options.machine, partial(_join, call, command["network"]["code"])
            with helping(machine.executor, machine.jobs - 1, folder.path, join, listener):
                found = _trained(fitter, folder, call)
            return _finish(folder, _result(fitter, found, call.thresholds, call.names, on, call.shuffle))


def _command(fitter: Fitter, call: Call, code: str | None) -> dict[str, Any]:
    """What makes two measurements the same."""
    step = {} if call.baseline_lr is None else {"baseline_lr": call.baseline_lr}
    goal = {"ds": call.ds or [], "thresholds": call.thresholds} | step
    command = fitter.command() | {"goal": goal, "limits": {"repeats": call.repeats}}
    if code is not None:
        command["network"]["code"] = code
    return command


def _join(call: Call, code: str) -> None:
    """Train as a further worker of a measurement that another process began."""
    machine = replace(call.options.machine, jobs=1)
    _dimension(replace(call, options=replace(call.options, machine=machine)), Listener(), code=code)


def _trained(fitter: Fitter, folder: Run, call: Call) -> tuple[tuple[float, ...], list[Point], tuple[Probe, ...]]:
    """What `_measure` gives, after what all trainings need."""
    fitter.measure()
    if call.ds is None:
        fitter.say_cost(first_d(fitter.D), FOUND * call.repeats)
    else:
        fitter.say_cost(max(call.ds), len(call.ds) * call.repeats)
    return _measure(fitter, folder, call)


def _finish(folder: Run, result: Dimension) -> Dimension:
    """Write the result."""
    with folder.worker.alone("finish"):
        folder.check_own()
        _write(folder.path, result)
        folder.finish(None, {"dim": result.to_json()})
    return result


def _numbers(name: str, values: Iterable[Any], kind: str) -> list[Any]:
    """The values of an option as a list. Raises SubcompressError unless each is of that kind, see `check_number`."""
    if not isinstance(values, Iterable) or isinstance(values, str):
        raise SubcompressError(f"{name} must be a list of numbers; got {shown(repr(values))}")
    found = list(values)
    for value in found:
        check_number(f"each of {name}", value, kind)
    return found


def _step(name: str, value: float | None) -> float | None:
    """A step size as a run folder names it, to six digits. Raises SubcompressError for one that is not positive."""
    check_number(name, value, "float | None")
    if value is None:
        return None
    if not 0 < value < math.inf:
        raise SubcompressError(f"{name} must be positive; got {value:g}")
    return float(f"{value:g}")


def _check(ds: Sequence[int] | None, repeats: int, shuffle: str | None) -> None:
    """Raise SubcompressError for options that cannot be measured with."""
    check_number("repeats", repeats, "int")
    if ds is not None and (not ds or min(ds) < 1):
        raise SubcompressError(f"--d must be a list of dimensions of at least 1, such as 100,200,400; got {ds}")
    if not 1 <= repeats <= 100:
        raise SubcompressError(f"--repeats must be between 1 and 100; got {repeats}")
    if shuffle is not None and shuffle not in SHUFFLES:
        raise SubcompressError(
            f"--shuffle must be {' or '.join(SHUFFLES)}; got {shuffle}{suggestion(shuffle, SHUFFLES)}"
        )


def _measured_on(data: Data, shuffle: str | None, seed: int) -> tuple[Data, str]:
    """The data of the experiment, and the split that is measured on."""
    if shuffle is None:
        return data, "validation"
    data = SHUFFLES[shuffle](data, seed)
    return (replace(data, validation=data.train), "training") if shuffle == "labels" else (data, "validation")


def _measure(fitter: Fitter, run_folder: Run, call: Call) -> tuple[tuple[float, ...], list[Point], tuple[Probe, ...]]:
    """The metrics of the network trained directly, and of each d, and each training."""
    seeds = seeds_from(fitter.settings.seed, call.repeats)
    direct = [Trial(0, seed, lr=call.baseline_lr) for seed in seeds]
    engine: Listed | Crossing
    if call.ds is None:
        wanted = partial(_sought, fitter.task, given=call.thresholds)
        engine = Crossing(direct, wanted, fitter.D, fitter.task, fitter.listener)
    else:
        trials = [Trial(d, seed) for d in call.ds for seed in seeds]
        engine = Listed([*direct, *trials], fitter.task, fitter.listener)
    work(fitter, engine, run_folder)
    probes = tuple(engine.probes())
    points = [_point(d, [p for p in probes if p.d == d]) for d in sorted({p.d for p in probes})]
    return engine.values(direct), points, probes


def _point(d: int, probes: Sequence[Probe]) -> Point:
    return Point(d, tuple(p.value for p in probes), sum(p.seconds for p in probes))


def _thresholds(task: Task, baseline: tuple[float, ...], given: Sequence[float]) -> list[Threshold]:
    """The usual ones, and those that are given."""
    return _usual(task, baseline) + [Threshold(f"given, {t:g}", t) for t in given]


def _usual(task: Task, baseline: tuple[float, ...]) -> list[Threshold]:
    """0.9 of the baseline where it is positive, and 0.9 of an accuracy."""
    wanted = [of_baseline(baseline, minimise=task.minimise)] if sum(baseline) > 0 else []
    return [*wanted, absolute(0.9)] if task.has_accuracy_range else wanted


def _sought(task: Task, baseline: tuple[float, ...], given: Sequence[float]) -> list[Threshold]:
    """The thresholds whose crossing is searched: all given ones, and the default ones that direct training meets."""
    mean = math.fsum(baseline) / len(baseline)
    missed = [t for t in _usual(task, baseline) if not task.meets(mean, t.value)]
    return [t for t in _thresholds(task, baseline, given) if t not in missed]


def _result(
    fitter: Fitter,
    found: tuple[tuple[float, ...], list[Point], tuple[Probe, ...]],
    thresholds: Sequence[float],
    names: tuple[str, str],
    on: str,
    shuffle: str | None,
) -> Dimension:
    baseline, points, probes = found
    task = fitter.task
    wanted = _thresholds(task, baseline, thresholds)
    s = fitter.settings
    notes = [f"{task.metric_name} on the {on} split; coordinates in float32; operator {fitter.operator}, {s.optimiser}"]
    if not sum(baseline) > 0:
        notes.append("no share of the baseline: it is not positive")
    if shuffle is not None:
        notes.append(f"with shuffled {shuffle}")
    return Dimension(
        names[0] or type(fitter.model).__name__,
        names[1],
        fitter.D,
        task.metric_name,
        task.minimise,
        baseline,
        tuple(points),
        tuple(estimate(points, t, task.minimise) for t in wanted),
        s.epochs,
        "",
        tuple(notes),
        _warnings(fitter, probes),
    )


def _warnings(fitter: Fitter, probes: Sequence[Probe]) -> tuple[str, ...]:
    """Those about the network, then those about each training, which are named."""
    told = [f"d = {p.d}, seed {p.seed}: {w}" for p in probes for w in p.warnings]
    return tuple(dict.fromkeys((*fitter.warnings, *told)))


def _write(folder: Path, result: Dimension) -> None:
    write_bytes(folder / MARKDOWN, result.markdown().encode())
    write_bytes(folder / JSON, (json.dumps(result.to_json(), indent=2) + "\n").encode())
    result.plot(folder / PLOT)


__all__ = ["Dimension", "measure_dimension"]
