"""Intrinsic dimension from a metric measured at several subspace dimensions: crossing, spread, tables and plot.

After Li, Farkhoor, Liu, Yosinski, "Measuring the Intrinsic Dimension of Objective Landscapes" (arXiv:1804.08838): the
intrinsic dimension is the first d at which training in a random d-dimensional subspace meets a threshold, there 0.9 of
what training all D weights reaches. Nothing here trains.

The crossing is the first one of the curve of means, as the paper reads it off, and not the last: a larger subspace can
hold whatever a smaller one does, so a mean that falls again is noise or the optimizer's, not the landscape's. The note
names the d's where it does. Noise can only make a first crossing earlier, so a ragged curve wants more repeats, not a
smoother.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from subcompress.errors import SubcompressError
from subcompress.support.files import write_bytes
from subcompress.support.tables import html_png, html_table
from subcompress.training.dimension_chart import HEIGHT, WIDTH, dimension_png, number

FRACTION = 0.9  # of the baseline, the paper's threshold
RESAMPLES = 2_000
SEED = 0  # of the resampling: the same points give the same interval
TAIL = 0.05  # left out at each end of the interval

# Leaving the repeat out instead would count only the ones that went well.
_DIVERGED = "repeat that training with a lower learning rate"


def _refuse_unless_finite(what: str, values: Sequence[float], remedy: str) -> None:
    if not values:
        raise SubcompressError(f"{what} has no value: measure it at least once")
    for v in values:
        if not math.isfinite(v):
            raise SubcompressError(f"{what} must be a finite number; got {v}: {remedy}")


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


def _std(values: Sequence[float]) -> float | None:
    """Sample standard deviation, divisor n - 1; None for one value."""
    return float(np.std(values, ddof=1)) if len(values) > 1 else None


@dataclass(frozen=True)
class Point:
    """The metric of each repeat at subspace dimension d, and the wall-clock seconds of those repeats together.

    Raises SubcompressError for d below 1, no values, or values or seconds that are no finite numbers.
    """

    d: int
    values: tuple[float, ...]
    seconds: float

    def __post_init__(self) -> None:
        if self.d < 1:
            raise SubcompressError(f"d must be at least 1; got {self.d}")
        _refuse_unless_finite(f"the metric at d = {self.d}", self.values, _DIVERGED)
        _refuse_unless_finite(f"the time at d = {self.d}", [self.seconds], "give seconds")

    @property
    def mean(self) -> float:
        """The number of repeats."""
        return _mean(self.values)

    @property
    def std(self) -> float | None:
        """Sample standard deviation of the repeats, divisor n - 1; None for one repeat."""
        return _std(self.values)


@dataclass(frozen=True)
class Threshold:
    """A value the metric has to meet, and what to call it. Raises SubcompressError if it is no finite number."""

    name: str
    value: float

    def __post_init__(self) -> None:
        _refuse_unless_finite(f"the threshold '{self.name}'", [self.value], "give another")


def of_baseline(baseline: Sequence[float], fraction: float = FRACTION, minimise: bool = False) -> Threshold:
    """`fraction` of the baseline's mean, as in the paper; for a metric to be minimized, the mean over `fraction`.

    The paper defines the share only for metrics to be maximized. Dividing is its counterpart for errors and losses: a
    solution may be 1 / 0.9 times as bad. 0.9 of an accuracy and 1 / 0.9 of its error are different thresholds.
    Raises SubcompressError for a baseline that is not positive, where neither means anything, and for a fraction
    outside (0, 1].
    """
    _refuse_unless_finite("the baseline", baseline, _DIVERGED)
    if not 0 < fraction <= 1:
        raise SubcompressError(f"the threshold is a share of the baseline, above 0 and at most 1: {fraction}")
    mean = _mean(baseline)
    if mean <= 0:
        raise SubcompressError(
            f"a share of the baseline needs a positive baseline; got {mean:g}: give the threshold as a number"
        )
    if minimise:
        return Threshold(f"baseline / {fraction:g}", mean / fraction)
    return Threshold(f"{fraction:g} of the baseline", mean * fraction)


def absolute(value: float) -> Threshold:
    """The metric itself, whatever the baseline: where networks of different baselines are compared."""
    return Threshold(f"{value:g} absolute", value)


@dataclass(frozen=True)
class Estimate:
    """Where the mean first meets a threshold.

    d: interpolated, linear in log d, between the last d measured before d_grid and d_grid; None if the threshold is
    never met or met at the smallest d already, as the note says. d_grid: the smallest d measured whose mean meets it.
    low, high: 5 and 95 % of the bootstrap; None for an end beyond the d's measured, or without spread. never, at_once:
    shares of the resamples that never meet the threshold, or at the smallest d already; None without spread.
    """

    threshold: Threshold
    d: float | None
    d_grid: int | None
    low: float | None
    high: float | None
    never: float | None
    at_once: float | None
    note: str


def _ordered(points: Sequence[Point]) -> list[Point]:
    """The points in the order of d. Raises SubcompressError if there are none, or if a d is given twice."""
    if not points:
        raise SubcompressError("no d was measured: give at least one")
    ordered = sorted(points, key=lambda p: p.d)
    for p, q in pairwise(ordered):
        if p.d == q.d:
            raise SubcompressError(f"d = {p.d} is given twice: put its repeats into one point")
    return ordered


def _crossings(ds: NDArray[np.float64], means: NDArray[np.float64], target: float, slack: float) -> NDArray[np.float64]:
    """Where each row of means, one column a d, first meets the target: -inf at the first column, inf nowhere."""
    met = means >= target - slack
    first = met.argmax(axis=1)
    crossings = np.where(met.any(axis=1), -np.inf, np.inf)
    rows = np.flatnonzero(first > 0)
    high = first[rows]
    below, above = means[rows, high - 1], means[rows, high]
    part = np.clip((target - below) / (above - below), 0.0, 1.0)
    low_d, high_d = ds[high - 1], ds[high]
    crossings[rows] = np.clip(low_d * (high_d / low_d) ** part, low_d, high_d)
    return crossings


def _list(ds: Sequence[int]) -> str:
    return "d = " + ", ".join(f"{d:,}" for d in ds)


def _finite(x: float) -> float | None:
    return float(x) if math.isfinite(x) else None


def estimate(points: Sequence[Point], threshold: Threshold, minimise: bool = False) -> Estimate:
    """The intrinsic dimension at a threshold, which is met by a mean at least as good as it.

    The interval is a percentile bootstrap: the repeats of each d are drawn again, 2,000 times from a fixed seed. It
    holds the spread between the repeats only, neither that of the baseline nor the spacing of the d's, and n repeats
    make it too narrow, by about the square root of (n - 1) / n.
    The order of points and of repeats does not matter. Raises SubcompressError for no points or a d that comes twice.
    """
    ordered = _ordered(points)
    sign = -1.0 if minimise else 1.0
    target = sign * threshold.value
    ds = np.array([p.d for p in ordered], dtype=np.float64)
    # Sorted, so that the draws do not depend on the order in which the repeats were run.
    values = [np.sort(sign * np.array(p.values, dtype=np.float64)) for p in ordered]
    # The last bit of a mean must not decide whether a threshold is met.
    slack = 1e-12 * max(abs(target), *(float(np.abs(v).max()) for v in values))
    means = np.array([v.mean() for v in values])
    met = [p.d for p, mean in zip(ordered, means, strict=True) if mean >= target - slack]
    d_grid = met[0] if met else None

    notes = []
    if d_grid is None:
        notes.append(f"not reached up to {_list([ordered[-1].d])}")
    elif d_grid == ordered[0].d:
        notes.append(f"met at the smallest d measured, {d_grid:,}: try smaller ones")
    fallen = [p.d for p in ordered if d_grid is not None and p.d > d_grid and p.d not in met]
    if fallen:
        notes.append(f"missed again at {_list(fallen)}")

    low = high = never = at_once = None
    once = [p.d for p in ordered if len(p.values) == 1]
    if len(once) == len(ordered):
        notes.append("one repeat, so no spread")
    else:
        if once:
            notes.append(f"no spread at {_list(once)}, measured once")
        rng = np.random.default_rng(SEED)
        drawn = [v[rng.integers(0, len(v), (RESAMPLES, len(v)))].mean(axis=1) for v in values]
        crossings = np.sort(_crossings(ds, np.stack(drawn, axis=1), target, slack))
        # Members of the sorted list and no interpolation: some of it may be infinite.
        tail = round(TAIL * RESAMPLES)
        low, high = _finite(crossings[tail]), _finite(crossings[-1 - tail])
        never, at_once = float(np.mean(crossings == np.inf)), float(np.mean(crossings == -np.inf))
        if never:
            notes.append(f"{_percent(never)} of the resamples never meet it")
        if at_once:
            notes.append(f"{_percent(at_once)} of the resamples meet it at the smallest d")
    d = _finite(_crossings(ds, means[None, :], target, slack)[0])
    return Estimate(threshold, d, d_grid, low, high, never, at_once, "; ".join(notes))


def _percent(share: float) -> str:
    return f"{100 * share:.2g} %" if share < 0.995 else f"{math.floor(1000 * share) / 10:g} %"


def _spread(values: Sequence[float]) -> str:
    std = _std(values)
    return number(_mean(values)) + (f" ± {number(std, 2)}" if std is not None else "")


def _dimensions(d: float) -> str:
    return f"{d:,.0f}" if d >= 10 or d == int(d) else f"{d:.1f}"


def _row(*cells: str) -> str:
    return "| " + " | ".join(c.replace("|", "\\|").replace("\n", " ") for c in cells) + " |"


@dataclass(frozen=True)
class Dimension:
    """A measurement of the intrinsic dimension of a network on a data set.

    D: weights of the network. metric: its name, and minimise whether smaller is better. baseline: the metric of each
    training of all D weights, or None. command: what measures it again. notes: sentences for the reader. warnings:
    what looks wrong with the network or with a training, a line each.
    Raises SubcompressError for no points, a d that comes twice or is above D, or a baseline that is no finite number.
    """

    model: str
    data: str
    D: int
    metric: str
    minimise: bool
    baseline: tuple[float, ...] | None
    points: tuple[Point, ...]
    estimates: tuple[Estimate, ...]
    epochs: int | None = None
    command: str = ""
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "points", tuple(_ordered(self.points)))
        if self.points[-1].d > self.D:
            raise SubcompressError(f"d must be at most D = {self.D}; got {self.points[-1].d}")
        if self.baseline is not None:
            _refuse_unless_finite("the baseline", self.baseline, _DIVERGED)

    def d_text(self, e: Estimate) -> str:
        """The intrinsic dimension for a reader: a number, or the bound that is known."""
        if e.d is not None:
            return _dimensions(e.d)
        return f"> {self.points[-1].d:,}" if e.d_grid is None else f"≤ {e.d_grid:,}"

    def interval_text(self, e: Estimate) -> str:
        """The 5 to 95 % interval for a reader, its open ends as bounds; empty without spread."""
        if e.never is None or e.at_once is None:
            return ""
        below, above = f"≤ {self.points[0].d:,}", f"> {self.points[-1].d:,}"
        # An end without a number is open to its own side, unless nearly all resamples lie beyond the other.
        low = _dimensions(e.low) if e.low is not None else above if e.never >= 1 - TAIL else below
        high = _dimensions(e.high) if e.high is not None else below if e.at_once >= 1 - TAIL else above
        return low if low == high and e.low is None else f"{low} to {high}"

    def __repr__(self) -> str:
        on = f" on {self.data}" if self.data else ""
        lines = [f"Dimension of {self.model}{on}, D = {self.D:,}, measured at {_list([p.d for p in self.points])}"]
        warnings = [f"warning: {w}" for w in self.warnings]
        return "\n  ".join([*lines, *map(self._estimate_text, self.estimates), *warnings])

    def _estimate_text(self, e: Estimate) -> str:
        """An estimate in one line."""
        interval, text = self.interval_text(e), self.d_text(e)
        spread = f" ({interval})" if interval not in ("", text) else ""
        sign = "= " if e.d is not None else ""
        return f"d_int {sign}{text}{spread} at {e.threshold.name}, {self.metric} {number(e.threshold.value)}"

    def _repr_html_(self) -> str:
        """The tables and the plot, for a notebook."""
        points = [(f"{p.d:,}", _spread(p.values), len(p.values), f"{p.seconds:,.3g}") for p in self.points]
        estimates = [
            (e.threshold.name, number(e.threshold.value), self.d_text(e), self.interval_text(e), e.note)
            for e in self.estimates
        ]
        told = [f"<p>warning: {escape(warning)}</p>" for warning in self.warnings]
        return "".join(
            [
                html_table(estimates, ("threshold", self.metric, "d_int", "5 to 95 %", "note")),
                html_table(points, ("d", self.metric, "repeats", "seconds")),
                *told,
                html_png(dimension_png(self), WIDTH // 2, f"d against {self.metric}"),
            ]
        )

    def to_json(self) -> dict[str, Any]:
        """Everything, as JSON holds it: plain numbers, None for what is not known."""
        baseline = None
        if self.baseline is not None:
            values = [float(v) for v in self.baseline]
            baseline = {"values": values, "mean": _mean(values), "std": _std(values)}
        return {
            "model": self.model,
            "data": self.data,
            "D": int(self.D),
            "metric": self.metric,
            "minimise": self.minimise,
            "epochs": self.epochs,
            "baseline": baseline,
            "points": [
                {
                    "d": int(p.d),
                    "values": [float(v) for v in p.values],
                    "mean": p.mean,
                    "std": p.std,
                    "seconds": float(p.seconds),
                }
                for p in self.points
            ],
            "estimates": [
                {
                    "threshold": {"name": e.threshold.name, "value": float(e.threshold.value)},
                    "d": e.d,
                    "d_grid": None if e.d_grid is None else int(e.d_grid),
                    "low": e.low,
                    "high": e.high,
                    "never": e.never,
                    "at_once": e.at_once,
                    "note": e.note,
                }
                for e in self.estimates
            ],
            "bootstrap": {"resamples": RESAMPLES, "seed": SEED, "percentiles": [100 * TAIL, 100 - 100 * TAIL]},
            "command": self.command,
            "notes": list(self.notes),
            "warnings": list(self.warnings),
        }

    @classmethod
    def from_json(cls, held: Mapping[str, Any]) -> Dimension:
        """What `to_json` gave, also before there were warnings."""
        fields = {k: held[k] for k in ("model", "data", "D", "metric", "minimise", "epochs", "command")}
        baseline = held["baseline"]
        return cls(
            **fields,
            baseline=None if baseline is None else tuple(baseline["values"]),
            points=tuple(Point(p["d"], tuple(p["values"]), p["seconds"]) for p in held["points"]),
            estimates=tuple(Estimate(**e | {"threshold": Threshold(**e["threshold"])}) for e in held["estimates"]),
            notes=tuple(held["notes"]),
            warnings=tuple(held.get("warnings", ())),
        )

    def markdown(self, known: Mapping[str, str] | None = None) -> str:
        """A line on what was measured, a table with a row a d, and a table with a row a threshold.

        known: threshold's name -> what others found, for a column of its own.
        """
        about = [f"{self.model} on {self.data}, D = {self.D:,}"]
        if self.epochs is not None:
            about.append(f"{self.epochs:,} epochs")
        if self.baseline is not None:
            times = f"{len(self.baseline)} repeat{'s' if len(self.baseline) > 1 else ''}"
            about.append(f"all D weights trained: {self.metric} {_spread(self.baseline)} ({times})")
        lines = ["; ".join(about) + ".", ""]
        lines += [_row("d", self.metric, "repeats", "seconds"), "|---|---|---|---|"]
        for p in self.points:
            lines.append(_row(f"{p.d:,}", _spread(p.values), str(len(p.values)), f"{p.seconds:,.3g}"))
        head = ["threshold", self.metric, "d_int", "5 to 95 %", "first d measured that meets it"]
        head += ([] if known is None else ["known"]) + ["note"]
        lines += ["", _row(*head), "|" + "---|" * len(head)]
        for e in self.estimates:
            cells = [e.threshold.name, ("≤ " if self.minimise else "≥ ") + number(e.threshold.value)]
            cells += [self.d_text(e), self.interval_text(e), "" if e.d_grid is None else f"{e.d_grid:,}"]
            cells += ([] if known is None else [known.get(e.threshold.name, "")]) + [e.note]
            lines.append(_row(*cells))
        for note in self.notes:
            lines += ["", note]
        if self.command:
            lines += ["", "```", self.command, "```"]
        if self.warnings:
            lines += ["", *(f"- warning: {' '.join(w.split())}" for w in self.warnings)]
        return "\n".join([*lines, ""])

    def plot(self, path: str | Path) -> None:
        """Write a PNG of 1600 x 1000 pixels: d on a log scale against the metric, with thresholds and crossings.

        Raises SubcompressError if matplotlib is not installed or the file cannot be written.
        """
        write_bytes(path, dimension_png(self))


__all__ = [
    "HEIGHT",
    "WIDTH",
    "Dimension",
    "Estimate",
    "Point",
    "Threshold",
    "absolute",
    "estimate",
    "of_baseline",
]
