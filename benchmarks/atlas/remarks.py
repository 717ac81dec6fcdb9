"""Why a task does worse in a subspace than directly, if so: the start, the scale, the rounding or the dimension."""

from __future__ import annotations

import copy
import json
import math
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import torch
from families.direct import made, train
from families.family import stacked
from torch import nn

import subcompress
from atlas.task import Task
from subcompress.training.dimension import Dimension
from subcompress.training.dimension_chart import number
from subcompress.training.probe import Fit

CLOSING = 0.15
"""A curve still rises if its last step in d shortens its distance from direct training by at least this share."""


@dataclass(frozen=True)
class Findings:
    """What was measured. direct: the mean; target: what the smallest file should reach."""

    dimension: Dimension
    fit: Fit
    direct: float
    target: float


def remark_of(task: Task, found: Findings, folder: Path) -> str:
    """A sentence where the file or the dimension misses its goal, naming the reason; empty if neither does."""
    own = found.dimension.estimates[0]
    if own.d_grid is None:
        return _why_not_at_all(task, found, folder)
    if own.d_grid == found.dimension.points[0].d == 1:
        return "one coordinate beside a random start is enough; the absolute threshold tells more of this task"
    return "" if found.fit.reached else _why_no_file(task, found)


def _why_no_file(task: Task, found: Findings) -> str:
    """Float coordinates of about the same d tell rounding from dimension."""
    last = found.dimension.points[-1]
    enough = [p for p in found.dimension.points if p.d <= found.fit.d and task.family.meets(p.mean, found.target)]
    if enough:
        return f"rounding: with float coordinates d = {enough[0].d:,} reaches 95 %, and the files of up to d = " + (
            f"{found.fit.d:,} do not"
        )
    return (
        f"dimension: the search ended at d = {found.fit.d:,} without 95 %; float coordinates were measured up to "
        f"d = {last.d:,}, {number(last.mean)}"
    )


def _why_not_at_all(task: Task, found: Findings, folder: Path) -> str:
    """Direct training from the subspace's start tells the start from the rest; a curve that still rises, the dimension
    from the scale."""
    last, goal = found.dimension.points[-1], found.dimension.estimates[0].threshold.value
    words = f"float coordinates reach {number(last.mean)} at d = {last.d:,}, and direct training {number(found.direct)}"
    value = value_from_start(task, folder)
    if not task.family.meets(value, goal):
        return f"start: {words}; from the subspace's own start direct training reaches {number(value)} only"
    if _rises(found.dimension, found.direct):
        return f"dimension: {words}, and still gains with d; from the subspace's own start direct training reaches " + (
            number(value)
        )
    return f"scale: {words}, and hardly gains with d, though direct training from the same start reaches " + (
        number(value)
    )


def _rises(dimension: Dimension, direct: float) -> bool:
    """Whether the mean at the last d is closer to direct training by CLOSING than at the one before."""
    *_, (before, last) = pairwise(dimension.points) if len(dimension.points) > 1 else [(None, None)]
    if before is None or last is None:
        return True
    return abs(direct - last.mean) < (1 - CLOSING) * abs(direct - before.mean)


def value_from_start(task: Task, folder: Path) -> float:
    """The metric after direct training of the weights that a subspace of seed 0 starts from; kept in the folder."""
    held = folder / "from-start.json"
    if not held.exists():
        value = _trained_from_start(task)
        held.write_text(json.dumps(value if math.isfinite(value) else None))
    value = json.loads(held.read_text())
    return (math.inf if task.family.minimize else -math.inf) if value is None else float(value)


def _trained_from_start(task: Task) -> float:
    net = made(task.family, 0)
    data = [stacked(split) for split in task.family.load()]
    model = train(task.family, started(net), data[0], task.lr, 0)
    return task.family.value(model, data[1])


def started(net: nn.Module) -> nn.Module:
    """A copy of the network with the weights that a subspace of seed 0 starts from."""
    subspace, found = subcompress.Subspace.of(copy.deepcopy(net), 1, seed=0), copy.deepcopy(net)
    with torch.no_grad():
        subspace.z.zero_()
        weights = subspace.weights()
        for name, p in found.named_parameters():
            if name in weights:
                p.copy_(weights[name])
    return found
