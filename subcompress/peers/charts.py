"""Plots of a run: its frontier, its trainings, and its comparison with others."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from subcompress.peers.bench import Row
from subcompress.support.charts import CYCLE, DASHED, INK, OTHER, OURS, TARGET, Chart
from subcompress.training.probe import Fit, Probe

FEW = 6
"""The most points or lines that are named in place. More are identified by a legend or by numbers."""

PLOTTED = 3
"""The fewest files of a frontier that is drawn as a plot. Fewer are shown as a table."""


def made(fit: Fit) -> list[Probe]:
    """The trainings that made a file."""
    return [p for p in fit.probes if p.bytes]


def has_frontier_chart(fit: Fit) -> bool:
    """Whether there are enough files for a plot of them."""
    return len(made(fit)) >= PLOTTED


def frontier_chart(fit: Fit) -> Chart:
    """Bytes against the metric: every training that made a file, and the line that nothing outdoes."""
    chart = Chart("bytes of the whole file (log scale)", f"validation {fit.metric}")
    axes, edge, few = chart.axes, fit.frontier, len(fit.frontier) <= FEW
    axes.plot([p.bytes for p in made(fit)], [p.value for p in made(fit)], "o", color=OTHER, alpha=0.4, mew=0)
    axes.plot([p.bytes for p in edge], [p.value for p in edge], "-o", color=OTHER, linewidth=1.6)
    chart.keep_free([p.bytes for p in edge], [p.value for p in edge])
    axes.plot([fit.bytes], [fit.validation], "o", color=OURS, markersize=9)
    axes.margins(y=0.12)
    _goals(chart, fit)
    chart.log_bytes([p.bytes for p in made(fit)] + ([fit.within] if fit.within else []))
    chart.name_point(fit.bytes, fit.validation, f"the file: {fit.bytes:,} bytes", bold=True)
    for p in made(fit):
        if (p.bytes, p.value) != (fit.bytes, fit.validation):
            chart.name_point(p.bytes, p.value, f"d = {p.d:,}" if few and p in edge else "")
    return chart


def _goals(chart: Chart, fit: Fit) -> None:
    """Lines at what was asked for, and at what direct training reaches."""
    if fit.target is not None:
        chart.level(fit.target, f"target {fit.target:.4g}", TARGET, DASHED)
    if fit.baseline is not None:
        chart.level(fit.baseline, f"trained directly\n{fit.baseline:.4f}", INK)
    if fit.within is not None:
        chart.axes.axvline(fit.within, color=TARGET, linestyle=DASHED, linewidth=1.2)
        across, place = chart.axes.get_xaxis_transform(), {"ha": "center", "va": "bottom"}
        chart.axes.text(
            fit.within, 1.02, f"{fit.within:,} bytes allowed", transform=across, fontsize=chart.font, color=INK, **place
        )


def curves_chart(fit: Fit) -> Chart:
    """The metric after each epoch, a line a training, those of one d in one color."""
    from matplotlib.ticker import MaxNLocator

    chart = Chart("epoch", f"validation {fit.metric}")
    ds = sorted({p.d for p in fit.probes})
    few = len(ds) <= FEW
    for p in fit.probes:
        first = not few and p is next(q for q in fit.probes if q.d == p.d)
        style = ":" if p.stopped or not p.whole else "-"
        line = {"color": _color(ds, p.d), "linewidth": 1.4, "marker": ".", "label": _name(p.d) if first else None}
        chart.axes.plot(range(1, len(p.curve) + 1), p.curve, style, **line)
    chart.axes.xaxis.set_major_locator(MaxNLocator(8, integer=True, min_n_ticks=1))
    if fit.target is not None:
        chart.level(fit.target, f"target {fit.target:.4g}", TARGET, DASHED)
    if fit.baseline is not None:
        chart.level(fit.baseline, f"trained directly\n{fit.baseline:.4f}", INK)
    if few:
        for d in ds:
            ends = [p.curve[-1] for p in fit.probes if p.d == d and p.curve]
            if ends:
                chart.name_line(statistics.fmean(ends), _name(d), _color(ds, d))
    else:
        chart.axes.legend(frameon=False, fontsize=chart.font, ncols=1 + len(ds) // 9)
    return chart


def _name(d: int) -> str:
    return f"d = {d:,}" if d else "trained directly"


def _color(ds: Sequence[int], d: int) -> str:
    return CYCLE[ds.index(d) % len(CYCLE)]


def comparison_chart(rows: Sequence[Row], metric: str, legend: bool = False) -> Chart:
    """Bytes on a log scale against the metric, a point a method, the first one ours.

    A few methods are named at their points; more are numbered. legend: say which number is which; a table beside the
    chart says it otherwise.
    """
    few = len(rows) <= FEW
    wide = legend and not few
    chart = Chart("bytes on disk (log scale)", f"test {metric}", (7.5, 4.2) if legend else (5.4, 3.4))
    for i, row in enumerate(rows):
        chart.axes.plot([row.bytes], [row.value], "o", color=OTHER if i else OURS, markersize=6 if i else 9)
        chart.name_point(row.bytes, row.value, row.name if few else str(i + 1), bold=i == 0)
    chart.axes.margins(y=0.14)
    chart.log_bytes([r.bytes for r in rows])
    if wide:
        names, style = "\n".join(f"{i}  {row.name}" for i, row in enumerate(rows, 1)), {"va": "top", "linespacing": 1.5}
        across = chart.axes.transAxes
        chart.axes.text(1.03, 1.0, names, transform=across, fontsize=chart.font, parse_math=False, **style)
    return chart


__all__ = ["comparison_chart", "curves_chart", "frontier_chart", "has_frontier_chart", "made"]
