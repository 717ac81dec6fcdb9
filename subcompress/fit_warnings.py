"""What looks wrong with a training that went through: lines for the log, the run's JSON and the report."""

from __future__ import annotations

import math
from collections.abc import Iterator

from subcompress.tasks import Task
from subcompress.training import Outcome

APART = 0.01
"""Of the metric: how far the packed weights may be from the last value of the training (of an error, of itself)."""


def warnings_of(
    task: Task, outcome: Outcome, d: int, value: float, constant: float | None, packed: bool
) -> Iterator[str]:
    """Lines about one training. value: the metric on the validation split, of the packed weights where there are some;
    constant: that of the best answer that does not depend on the input, where it is known."""
    if outcome.silent:
        yield (
            f"{outcome.silent} of {d} coordinates got no gradient in the whole training: lower --d, or look at what "
            "the loss depends on"
        )
    if constant is not None and not task.better(value, constant):
        yield (
            f"the final {task.metric_name} of {value:.4g} on validation is no better than that of a constant answer, "
            f"{constant:.4g}: nothing was learned; raise --d or --epochs, or look at the data and the loss"
        )
    if packed and _apart(task, value, outcome.value):
        yield (
            f"the packed weights score {value:.4g} ({task.metric_name}, validation), the training ended at "
            f"{outcome.value:.4g}: what --drop left out, or the rounding of running statistics, matters, or the model "
            "evaluates other weights than it is given"
        )


def _apart(task: Task, packed: float, trained: float) -> bool:
    """Whether two values of the metric differ by more than evaluations of the same weights would."""
    if not (math.isfinite(packed) and math.isfinite(trained)):
        return packed != trained
    size = max(abs(packed), abs(trained)) if task.minimise else 1.0
    return abs(packed - trained) > APART * size
