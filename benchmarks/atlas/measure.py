"""What is measured of a task that gradients train: all by public calls, in a folder that remembers each training."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import torch
from families.direct import made
from families.family import outputs_of, stacked

import subcompress
from atlas.exporting import exported
from atlas.remarks import Findings, remark_of
from atlas.row import Crossing, Row
from atlas.task import Task
from subcompress.api.bound import bound_of
from subcompress.training.dimension import Dimension
from subcompress.training.probe import Fit, TargetMissedError

SHARE = 0.95
"""The share of the direct result that the smallest file should keep."""

FITS = 7
"""Trainings of the search for it, at most."""

FILE = "net.safetensors"


def dimension_of(task: Task, folder: Path, seeds: int) -> Dimension:
    """The measurement of the folder, finished first where it is not."""
    held = folder / "dim.json"
    if held.exists():
        return Dimension.from_json(json.loads(held.read_text()))
    known = task.is_accuracy and task.threshold == 0.9
    return subcompress.measure_dimension(
        task.family.make_net,
        task.family.load(),
        folder,
        repeats=seeds,
        thresholds=[] if known else [task.threshold],
        baseline_lr=task.lr,
        names=(task.name, "its data"),
        **task.options,
    )


def file_of(task: Task, folder: Path, direct: float, seeds: int) -> Fit:
    """The fit of the smallest file that keeps SHARE of the direct result, or of the best one that was found."""
    try:
        fit = subcompress.fit(
            task.family.make_net,
            task.family.load(),
            folder,
            target=task.target(direct, SHARE),
            seeds=seeds,
            max_fits=FITS,
            **task.options,
        )
    except TargetMissedError as e:
        fit = e.fit
    if fit.bytes and not (folder / FILE).exists():
        subcompress.pack(folder, folder / FILE)
    return fit


def row_of(task: Task, folder: Path, seeds: int) -> Row:
    """The row of the task. Raises SubcompressError if the tool refuses it."""
    dimension = dimension_of(task, folder / "dim", seeds)
    assert dimension.baseline is not None
    direct = math.fsum(dimension.baseline) / len(dimension.baseline)
    fit = file_of(task, folder / "fit", direct, seeds)
    data = task.family.load()
    packed = folder / "fit" / FILE
    bound = bound_of(fit.bytes, len(data[0]))  # type: ignore[arg-type]
    own, absolute = crossings(dimension, task)
    return Row(
        task.name,
        task.title,
        task.literature,
        fit.metric,
        task.family.minimize,
        dimension.D,
        list(dimension.baseline),
        own,
        absolute,
        fit.bytes,
        fit.d,
        subcompress.info(packed)["bits_per_coordinate"],
        [p.value for p in fit.probes if p.at(fit.d) and not p.stopped],
        fit.reached,
        bound.examples,
        bound.gap,
        training_error(task, packed, data),
        exported(packed, made(task.family, 0), folder),
        remark_of(task, Findings(dimension, fit, direct, task.target(direct, SHARE)), folder),
        warnings=sorted({w for w in (*dimension.warnings, *fit.warnings) if w != fit.failure}),
    )


def crossings(dimension: Dimension, task: Task) -> tuple[Crossing, Crossing]:
    """At 0.9 of the baseline, and at the task's threshold."""
    found = [
        Crossing(e.threshold.value, e.d, dimension.d_text(e), dimension.interval_text(e)) for e in dimension.estimates
    ]
    absolute = next(c for c in found[1:] if math.isclose(c.threshold, task.threshold))
    return found[0], absolute


def training_error(task: Task, packed: Path, data: Any) -> float | None:
    """The share of the training split that the file's network gets wrong; None for a metric that is no accuracy."""
    if not task.is_accuracy:
        return None
    net = subcompress.load(packed, made(task.family, 1)).eval()
    x, y = stacked(data[0])
    with torch.no_grad():
        return 1 - float((outputs_of(net, x).argmax(1) == y).double().mean())


__all__ = ["FILE", "SHARE", "row_of"]
