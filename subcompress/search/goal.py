"""Checks the goal of a fit: d coordinates, the fewest bytes that meet a target, or the best file within a budget."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from subcompress.errors import SubcompressError, shown
from subcompress.search.knobs import KNOBS, Coordinates
from subcompress.support.files import MAX_FILE_BYTES
from subcompress.support.suggestions import suggestion
from subcompress.training.options import Goal
from subcompress.training.tasks import Task

MAX_FITS, TRIED = 8.0, 2.0
"""The default limit of trainings in a search, and the increase if it has to find the learning rate of the baseline."""


@dataclass(frozen=True)
class SearchGoal:
    """A goal that can be met: one of d, value (of the metric), drop (below the baseline) and bytes (of the whole file)
    is given, or d and bytes. knob: the name of what is varied for a value or a drop."""

    d: int | None = None
    value: float | None = None
    drop: float | None = None
    bytes: int | None = None
    baseline: float | str | Path | None = None
    seeds: int = 3
    max_fits: float = MAX_FITS
    max_minutes: float = math.inf
    baseline_lr: float | None = None
    knob: str = Coordinates.name

    @property
    def single(self) -> bool:
        """Whether the goal is a single training."""
        return self.d is not None and self.bytes is None

    def command(self) -> dict[str, Any]:
        """The fields that must agree for two commands to be the same, and the limits, which may differ; see
        `subcompress.training.schemas`."""
        named: dict[str, Any] = {"d": self.d, "target": self.value, "max_drop": self.drop, "bytes": self.bytes}
        if self.single:
            return {"goal": named}
        limits = {"seeds": self.seeds, "max_fits": self.max_fits, "max_minutes": self.max_minutes}
        more = {"baseline_lr": self.baseline_lr, "knob": None if self.knob == Coordinates.name else self.knob}
        given = {name: value for name, value in more.items() if value is not None}
        return {"goal": named | {"baseline": self.baseline} | given, "limits": limits}


def checked(goal: Goal, task: Task, jobs: int = 1) -> SearchGoal:
    """Fill in the defaults of a goal. Raises SubcompressError if it gives no goal, several, or an impossible one.

    jobs: number of trainings at the same time. They cannot learn from each other, so a search needs more of them.
    """
    options = {
        "--d": goal.d,
        "--min-accuracy": goal.min_accuracy,
        "--max-drop": goal.max_drop,
        "--target": goal.target,
        "--bytes": goal.bytes,
    }
    given = [name for name, value in options.items() if value is not None]
    if len(given) != 1 and given != ["--d", "--bytes"]:
        words = " and ".join(given) if given else "none of them"
        raise SubcompressError(f"fit takes one of {', '.join(options)}, or --d with --bytes; got {words}")
    _check_target(goal, task, given[0])
    _check_baseline(goal, given[0])
    _check_knob(goal, given[0])
    if not 1 <= goal.seeds <= 100:
        raise SubcompressError(f"--seeds must be between 1 and 100; got {goal.seeds}")
    return SearchGoal(
        goal.d,
        goal.target if goal.min_accuracy is None else goal.min_accuracy,
        goal.max_drop,
        goal.bytes,
        goal.baseline,
        goal.seeds,
        _max_fits(goal, jobs),
        _max_minutes(goal),
        goal.baseline_lr,
        goal.knob,
    )


def _check_knob(goal: Goal, given: str) -> None:
    """Raise SubcompressError for a knob that there is not, or that nothing turns."""
    if goal.knob not in KNOBS:
        near = suggestion(str(goal.knob), KNOBS)
        raise SubcompressError(f"--knob must be {' or '.join(KNOBS)}; got {shown(str(goal.knob))}{near}")
    if goal.knob != Coordinates.name and (goal.d is not None or goal.bytes is not None):
        raise SubcompressError(f"--knob needs a search for a target, and {given} is not one: leave one out")


def _check_target(goal: Goal, task: Task, given: str) -> None:
    """Raise SubcompressError for a target that no metric of that kind can meet."""
    if (goal.min_accuracy is not None or goal.max_drop is not None) and task.minimise:
        raise SubcompressError(
            f"{given} is for metrics that are maximized, but {task.metric_name} is minimized: give --target"
        )
    if goal.min_accuracy is not None and not (task.has_accuracy_range and 0 < goal.min_accuracy <= 1):
        raise SubcompressError(
            f"--min-accuracy must be an accuracy above 0 and at most 1; got {goal.min_accuracy} with the metric "
            f"{task.metric_name}: for another metric give --target"
        )
    if goal.max_drop is not None and not 0 <= goal.max_drop < math.inf:
        raise SubcompressError(f"--max-drop must be at least 0; got {goal.max_drop}")
    if goal.max_drop is not None and task.has_accuracy_range and goal.max_drop >= 1:
        raise SubcompressError(
            f"--max-drop must be below 1 for an accuracy; got {goal.max_drop:g}: for one percentage point give 0.01"
        )
    if goal.bytes is not None and goal.bytes > MAX_FILE_BYTES:
        raise SubcompressError(f"--bytes must be at most {MAX_FILE_BYTES}; got {shown(str(goal.bytes))}")
    if goal.target is not None and not math.isfinite(goal.target):
        raise SubcompressError(f"--target must be a finite number; got {goal.target}")


def _check_baseline(goal: Goal, given: str) -> None:
    """Raise SubcompressError for a baseline that is not used, or an invalid learning rate."""
    if goal.baseline is not None and (goal.d is not None or goal.bytes is not None):
        raise SubcompressError(f"--baseline cannot be combined with {given}, which has no target: leave one out")
    if goal.baseline_lr is None:
        return
    if goal.max_drop is None or goal.baseline is not None:
        raise SubcompressError(
            "--baseline-lr is the learning rate of the direct training for --max-drop: give it with "
            "--max-drop, and without --baseline"
        )
    if not 0 < goal.baseline_lr < math.inf:
        raise SubcompressError(f"--baseline-lr must be positive; got {goal.baseline_lr:g}")


def _max_fits(goal: Goal, jobs: int) -> float:
    """The limit of trainings. Raises SubcompressError if it is below the number of seeds of a single d."""
    tries_steps = goal.max_drop is not None and goal.baseline is None and goal.baseline_lr is None
    limit = goal.max_fits if goal.max_fits is not None else MAX_FITS + jobs - 1 + (TRIED if tries_steps else 0)
    least, words = (goal.seeds, "--seeds") if goal.bytes is not None else (goal.seeds + 1, "--seeds + 1")
    if (goal.d is None or goal.bytes is not None) and not limit >= least:
        raise SubcompressError(f"--max-fits must be at least {words} = {least}; got {limit:g}")
    return limit


def _max_minutes(goal: Goal) -> float:
    if goal.max_minutes is None:
        return math.inf
    if goal.d is not None and goal.bytes is None:
        raise SubcompressError("--max-minutes limits a search, but with --d there is one training: leave one out")
    if not goal.max_minutes > 0:
        raise SubcompressError(f"--max-minutes must be positive; got {goal.max_minutes:g}")
    return goal.max_minutes
