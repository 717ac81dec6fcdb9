"""What looks wrong with a training that went through: lines for the log, the run's JSON and the report."""

from __future__ import annotations

import math
from collections.abc import Iterator

from subcompress.base import BaseTensors
from subcompress.base.changes import split_changes
from subcompress.training.loop import Outcome
from subcompress.training.tasks import Task

FELL = 0.05
"""How far the metric of a file may be from the best one of an epoch (of an error: as a share)."""

APART = 0.01
"""How far the metric of the packed weights may be from the last one of the training (of an error: as a share)."""


def warnings_of(
    task: Task,
    outcome: Outcome,
    d: int,
    value: float,
    constant: float | None,
    packed: bool,
    examples: int,
    rounded: bool = False,
) -> Iterator[str]:
    """Lines about one training. value: the metric on the validation split, of the packed weights if there are any;
    constant: that of the best answer that does not depend on the input, if it is known; packed: whether they were
    packed as they were trained; examples: the size of the split; rounded: whether there is a file."""
    if outcome.silent:
        yield (
            f"{outcome.silent} of {d} coordinates got no gradient in the whole training: lower --d, or check "
            "what the loss depends on"
        )
    if (why := nothing_learned(task, value, constant, examples)) is not None:
        yield why
    best = (min if task.minimise else max)(outcome.curve, default=value)
    if rounded and task.better(best, value) and _apart(task, value, best, FELL):
        yield (
            f"the {task.metric_name} on validation was {best:.4g} after an earlier epoch and is {value:.4g} in the "
            "file: rounding or the limit of bytes costs that much, or the network overfits; raise --bits, or --bytes "
            "if it is given, or train for fewer epochs"
        )
    if packed and _apart(task, value, outcome.value, APART):
        yield (
            f"the packed weights score {value:.4g} ({task.metric_name}, validation), the training ended at "
            f"{outcome.value:.4g}: they differ because of what --drop left out, because running statistics were "
            "rounded, or because the model does not evaluate the weights that it is given"
        )


def nothing_learned(task: Task, value: float, constant: float | None, examples: int) -> str | None:
    """A line if a metric is no better than that of a constant answer. An accuracy must be better by more than one
    standard error for this number of examples. None if it is better, or if the constant's metric is not known."""
    if constant is None:
        return None
    chance = math.sqrt(max(constant * (1 - constant), 0.0) / max(examples, 1)) if task.has_accuracy_range else 0.0
    if task.better(value, constant + chance):
        return None
    return (
        f"the final {task.metric_name} of {value:.4g} on validation is no better than that of a constant answer, "
        f"{constant:.4g}: nothing was learned; raise --d or --epochs, or check the data and the loss"
    )


def unnamed_base(base: BaseTensors) -> str | None:
    """A line where the file would name a base in a way that tells nobody else where to get it."""
    if base.origin is None:
        return None
    hint = "; this name is from its config.json and may be that of an older model" if base.origin.likely else ""
    return (
        f"the file will name its base {split_changes(base.name)[0]!r}, and nobody else can fetch it by that "
        "name: pass the base on with the file, or give its place on the Hub with --base-name "
        f"{base.origin.where}{hint}"
    )


def _apart(task: Task, packed: float, trained: float, share: float) -> bool:
    """Whether two values of the metric differ by more than this, or this share of the larger error."""
    if not (math.isfinite(packed) and math.isfinite(trained)):
        return packed != trained
    size = max(abs(packed), abs(trained)) if task.minimise else 1.0
    return abs(packed - trained) > share * size
