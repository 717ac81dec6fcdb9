"""Plots of a run: its frontier, its trainings, and its comparison with others."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

from subcompress.peers.bench import Row
from subcompress.training.probe import Fit

# Okabe and Ito's palette, told apart by colour-blind readers too.
OURS, OTHER, TARGET, INK, QUIET = "#D55E00", "#0072B2", "#009E73", "#333333", "#8c8c8c"
_CYCLE = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#333333", "#8c8c8c")


class _Chart:
    """One pair of axes in the common style; `svg` and `png` end it."""

    def __init__(self, x: str, y: str, size: tuple[float, float] = (5.0, 3.4)) -> None:
        from matplotlib.figure import Figure

        self.figure = Figure(figsize=size, facecolor="none", layout="constrained")
        self.axes: Any = self.figure.add_subplot(facecolor="none")
        self.axes.set_xlabel(x, color=INK)
        self.axes.set_ylabel(y, color=INK, parse_math=False)
        self.axes.grid(color="#dddddd", linewidth=0.6)
        self.axes.set_axisbelow(True)
        for side in ("top", "right"):
            self.axes.spines[side].set_visible(False)

    def log_bytes(self, sizes: Sequence[int]) -> None:
        """A logarithmic axis of bytes, ticks where numbers are read."""
        from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

        room = max(1.2, (max(sizes) / min(sizes)) ** 0.12)
        self.axes.set_xlim(min(sizes) / room, max(sizes) * room)
        self.axes.set_xscale("log")
        narrow = max(sizes) < 30 * min(sizes)
        self.axes.xaxis.set_major_locator(LogLocator(10, (1.0, 2.0, 5.0) if narrow else (1.0,)))
        self.axes.xaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:,.0f}"))
        self.axes.xaxis.set_minor_formatter(NullFormatter())

    def _written(self, kind: str, **options: Any) -> bytes:
        import matplotlib

        data = io.BytesIO()
        with matplotlib.rc_context(
            {"svg.fonttype": "none", "svg.hashsalt": "subcompress", "font.family": "sans-serif"}
        ):
            self.figure.savefig(data, format=kind, **options)
        return data.getvalue()

    def svg(self) -> str:
        """For a page: no prolog, no date, text as text."""
        text = self._written("svg", metadata={"Date": None, "Creator": None}).decode()
        return text[text.index("<svg") :]

    def png(self) -> bytes:
        """1,500 pixels wide at the usual size, on white."""
        return self._written("png", dpi=300, facecolor="white", metadata={"Software": None})


def frontier_chart(fit: Fit) -> _Chart:
    """Bytes against the metric: every training that made a file, the line that nothing outdoes, the target."""
    chart = _Chart("bytes of the whole file (log scale)", f"validation {fit.metric}")
    made = [p for p in fit.probes if p.bytes]
    axes = chart.axes
    axes.plot([p.bytes for p in made], [p.value for p in made], "o", color=OTHER, alpha=0.5, label="a training")
    edge = fit.frontier
    axes.plot([p.bytes for p in edge], [p.value for p in edge], "-o", color=OTHER, linewidth=1.6, label="the frontier")
    axes.plot([fit.bytes], [fit.validation], "o", color=OURS, markersize=10, label="the file")
    if fit.target is not None:
        axes.axhline(fit.target, color=TARGET, linestyle=(0, (6, 2)), label=f"target {fit.target:.4g}")
    if fit.within is not None:
        axes.axvline(fit.within, color=TARGET, linestyle=(0, (6, 2)), label=f"{fit.within} bytes")
    axes.margins(y=0.1)
    chart.log_bytes([p.bytes for p in made])
    axes.legend(frameon=False, fontsize=9)
    return chart


def curves_chart(fit: Fit) -> _Chart:
    """The metric after each epoch, a line a training, those of one d in one colour."""
    chart = _Chart("epoch", f"validation {fit.metric}")
    ds = sorted({p.d for p in fit.probes})
    for p in fit.probes:
        colour = _CYCLE[ds.index(p.d) % len(_CYCLE)]
        first = p is next(q for q in fit.probes if q.d == p.d)
        style = ":" if p.stopped or p.warm else "-"
        epochs = range(1, len(p.curve) + 1)
        chart.axes.plot(
            epochs, p.curve, style, color=colour, linewidth=1.4, marker=".", label=f"d = {p.d:,}" if first else None
        )
    chart.axes.legend(frameon=False, fontsize=9)
    return chart


def comparison_chart(rows: Sequence[Row], metric: str, legend: bool = False) -> _Chart:
    """Bytes on a log scale against the metric, a numbered point a method, the first one ours. legend: say which number
    is which; a table beside the chart says it otherwise."""
    chart = _Chart("bytes on disk (log scale)", f"test {metric}", (7.5, 4.2) if legend else (5.4, 3.4))
    for i, row in enumerate(rows):
        chart.axes.plot([row.bytes], [row.value], "o", color=OTHER if i else OURS, markersize=6 if i else 9)
        place = ((7, 4), (-7, 4), (7, -11), (-7, -11))[i % 4]
        chart.axes.annotate(
            str(i + 1),
            (row.bytes, row.value),
            place,
            textcoords="offset points",
            ha="left" if place[0] > 0 else "right",
            fontsize=9,
            weight="normal" if i else "bold",
        )
    chart.axes.margins(y=0.14)
    chart.log_bytes([r.bytes for r in rows])
    if legend:
        names = "\n".join(f"{i}  {row.name}" for i, row in enumerate(rows, 1))
        chart.axes.text(
            1.03, 1.0, names, transform=chart.axes.transAxes, va="top", fontsize=9, linespacing=1.5, parse_math=False
        )
    return chart
