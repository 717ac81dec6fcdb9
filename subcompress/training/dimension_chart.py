"""The plot of a measurement of the intrinsic dimension: d on a log scale against the metric."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from subcompress.support.charts import INK, OTHER, Chart

if TYPE_CHECKING:
    from subcompress.training.dimension import Dimension, Estimate

WIDTH, HEIGHT = 1600, 1000
"""The width of the plot, in pixels. Its letters stay readable at half of that."""

DPI, FONT = 200, 9.5

AXIS = 60
"""The number of characters that fit under the horizontal axis."""

# The dashes tell the lines apart without any color.
LINES = (("#D55E00", (0, (6, 2))), ("#009E73", (0, (2, 2))), ("#CC79A7", (0, (6, 2, 1, 2))), ("#E69F00", (0, (1, 1))))


def dimension_chart(found: Dimension) -> Chart:
    """Each training, the line of means, the thresholds with their crossings and intervals, and the baseline.

    Raises SubcompressError if matplotlib is not installed.
    """
    chart = Chart("d, dimensions of the subspace (log scale)", found.metric, (WIDTH / DPI, HEIGHT / DPI), FONT)
    title = f"{found.model} on {found.data}, D = {found.D:,}" if found.data else f"{found.model}, D = {found.D:,}"
    chart.axes.set_title(title, loc="left", fontsize=FONT + 1.5, color=INK, parse_math=False)
    _scale(chart, found)
    if found.baseline is not None:
        mean = math.fsum(found.baseline) / len(found.baseline)
        chart.level(mean, f"all D weights: {number(mean)}", INK)
    for i, e in enumerate(found.estimates):
        _threshold(chart, found, e, *LINES[i % len(LINES)])
    _trainings(chart, found)
    return chart


def dimension_png(found: Dimension) -> bytes:
    """The plot as a PNG of WIDTH x HEIGHT pixels."""
    return dimension_chart(found).png(DPI)


def _scale(chart: Chart, found: Dimension) -> None:
    """Axes that hold all points and all lines."""
    from matplotlib.ticker import NullFormatter, NullLocator

    values = [v for p in found.points for v in p.values] + [e.threshold.value for e in found.estimates]
    values += [] if found.baseline is None else [math.fsum(found.baseline) / len(found.baseline)]
    span = max(values) - min(values) or abs(max(values)) or 1.0
    ds, axes = [p.d for p in found.points], chart.axes
    left, right = ds[0] / 1.25, ds[-1] * 1.25
    axes.set_xscale("log")
    axes.set_xlim(left, right)
    axes.set_ylim(min(values) - 0.06 * span, max(values) + 0.06 * span)
    shown = ticks(ds, left, right, AXIS)
    axes.set_xticks(shown, [f"{d:,}" for d in shown])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xticks([d for d in ds if d not in shown], minor=True)
    axes.xaxis.set_minor_formatter(NullFormatter())


def _threshold(chart: Chart, found: Dimension, e: Estimate, color: str, dashes: Any) -> None:
    """A line at the threshold, where the means cross it, and the interval of that below it."""
    axes, value, interval = chart.axes, e.threshold.value, found.interval_text(e)
    (left, right), bottom = axes.get_xlim(), axes.get_ylim()[0]
    if interval and (e.low is not None or e.high is not None):
        low, high = e.low if e.low is not None else left, e.high if e.high is not None else right
        axes.fill_between([low, high], bottom, value, color=color, alpha=0.2, linewidth=0, zorder=1)
    if e.d is not None:
        axes.vlines(e.d, bottom, value, color=color, linewidth=1.1, zorder=4)
        axes.plot([e.d], [value], "o", color=color, markersize=5, mew=0, zorder=6)
    name = textwrap.fill(f"{e.threshold.name}: {number(value)}", 32)
    text = found.d_text(e)
    crossing = f"d_int {'= ' if e.d is not None else ''}{text}"
    more = f" ({interval})" if interval not in ("", text) else ""
    chart.level(value, f"{name}\n{crossing}{more}", color, dashes)


def _trainings(chart: Chart, found: Dimension) -> None:
    """Each repeat as a pale dot, and the line of their means."""
    each = [(p.d, v) for p in found.points for v in p.values]
    ds, means = [p.d for p in found.points], [p.mean for p in found.points]
    pale: dict[str, Any] = {"color": OTHER, "alpha": 0.35, "markersize": 4.5, "mew": 0, "zorder": 3}
    chart.axes.plot([d for d, _ in each], [v for _, v in each], "o", **pale)
    chart.axes.plot(ds, means, "-o", color=OTHER, linewidth=1.8, markersize=3, zorder=5)


def ticks(ds: Sequence[int], left: float, right: float, width: float) -> list[int]:
    """The measured d's whose numbers fit side by side on a log axis of `width` characters, the ends first."""
    kept: list[tuple[float, int]] = []
    for d in [ds[0], ds[-1], *ds[1:-1]]:
        at = width * math.log(d / left) / math.log(right / left)
        if all(abs(at - x) > 1 + (len(f"{d:,}") + len(f"{other:,}")) / 2 for x, other in kept):
            kept.append((at, d))
    return sorted(d for _, d in kept)


def number(x: float, digits: int = 4) -> str:
    """A metric's value with a fixed number of digits, including zeros at the end."""
    return f"{x:,.0f}" if abs(x) >= 10 ** (digits - 1) else f"{x:#.{digits}g}".rstrip(".")


__all__ = ["HEIGHT", "WIDTH", "dimension_chart", "dimension_png"]
