"""The picture of the atlas: intrinsic dimension against weights, a point and a name a task."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

from atlas.row import Row

SIZE, DOTS = (11.0, 7.5), 130
"""Inches, and dots an inch."""

INK, MUTED, BLUE, AMBER = "#1b2733", "#6b7885", "#2a6fbb", "#c97a16"

PLACES = sorted(
    product((-1, 0, 1), (-3, -2.2, -1.5, -1, -0.5, 0, 0.5, 1, 1.5, 2.2, 3)), key=lambda p: abs(p[1]) + (p[0] != 1)
)
"""Where a name may stand beside its point: left, above or right of it, and by how many heights of a line higher."""


def drawn(rows: Sequence[Row], path: Path) -> None:
    """Write the PNG. A task whose dimension is a bound alone is drawn there, hollow, with an arrow to its side."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=SIZE, dpi=DOTS, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    points = [(row, row.D, _height(row)) for row in rows]
    _frame(axes, points)
    for row, x, y in points:
        _point(axes, row, x, y)
    canvas.draw()
    _name(axes, canvas.get_renderer(), points)
    canvas.print_png(str(path))


def _height(row: Row) -> float:
    """The dimension, or the bound that stands in the row's text."""
    return row.own.d or float(row.own.text.strip("≤> ").replace(",", ""))


def _frame(axes: Any, points: Sequence[tuple[Row, int, float]]) -> None:
    """Axes, and lines of equal shares of the weights."""
    xs, ys = [x for _, x, _ in points], [max(y, 1) for *_, y in points]
    left, right = min(xs) / 2, max(xs) * 2.5
    bottom, top = min(ys) / 2, max(ys) * 2.5
    axes.set(xscale="log", yscale="log", xlim=(left, right), ylim=(bottom, top))
    axes.set_xlabel("D, weights of the network", color=INK)
    axes.set_ylabel("d, coordinates that reach 0.9 of direct training", color=INK)
    axes.set_title("Intrinsic dimension against weights", loc="left", color=INK)
    for share, words in ((1, "d = D"), (0.1, "10 %"), (0.01, "1 %"), (0.001, "0.1 %")):
        ends = (left, right)
        axes.plot(ends, [share * e for e in ends], color=MUTED, linewidth=0.7, linestyle=(0, (4, 4)), zorder=0)
        x = min(right * 0.92, top * 0.9 / share)
        if left < x and bottom < share * x < top:
            axes.text(x, share * x, words, color=MUTED, fontsize=8, ha="right", va="bottom")
    axes.set_xticks(marks := _ticks(left, right), [f"{m:,}" for m in marks])
    axes.set_yticks(marks := _ticks(bottom, top), [f"{m:,}" for m in marks])
    axes.minorticks_off()
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(colors=MUTED)


def _ticks(low: float, high: float) -> list[int]:
    """1, 2, 5, 10 and so on, between the two."""
    return [m for m in (k * 10**n for n in range(7) for k in (1, 2, 5)) if low <= m <= high]


def _point(axes: Any, row: Row, x: float, y: float) -> None:
    """The point with its interval."""
    if row.own.d is None:
        way = 1.5 if row.own.text.startswith(">") else 1 / 1.5
        axes.annotate("", (x, y * way), (x, y), arrowprops={"arrowstyle": "->", "color": AMBER})
        axes.plot([x], [y], "o", markerfacecolor="white", markeredgecolor=AMBER, markersize=7)
        return
    ends = [part.strip() for part in row.own.interval.split(" to ")]
    if len(ends) == 2 and all(_plain(end) for end in ends):
        axes.plot([x, x], [float(end.replace(",", "")) for end in ends], color=BLUE, linewidth=2, alpha=0.45)
    axes.plot([x], [y], "o", color=BLUE, markersize=7)


def _plain(text: str) -> bool:
    return text.replace(",", "").replace(".", "", 1).isdigit()


def _name(axes: Any, renderer: Any, points: Sequence[tuple[Row, int, float]]) -> None:
    """Write each name beside its point, where it covers no point and no other name."""
    spots = [axes.transData.transform((x, y)) for _, x, y in points]
    taken: list[tuple[float, float, float, float]] = [(u - 7, v - 7, u + 7, v + 7) for u, v in spots]
    frame = axes.get_window_extent(renderer)
    for (row, x, y), (u, v) in sorted(zip(points, spots, strict=True), key=lambda each: each[1][0]):
        text = axes.annotate(row.name, (x, y), (0, 0), textcoords="offset pixels", color=INK, fontsize=10, zorder=3)
        box = text.get_window_extent(renderer)
        best = min(PLACES, key=lambda p: _cost(_box(p, u, v, box.width, box.height), taken, frame))
        placed = _box(best, u, v, box.width, box.height)
        taken.append(placed)
        text.set_position((placed[0] - u, placed[1] - v + box.height * 0.2))
        if abs(best[1]) > 1.2:
            middle = (placed[0] + placed[2]) / 2 if best[0] == 0 else placed[0] if best[0] > 0 else placed[2]
            axes.annotate(
                "",
                (u, v),
                (middle, (placed[1] + placed[3]) / 2),
                xycoords="figure pixels",
                textcoords="figure pixels",
                arrowprops={"arrowstyle": "-", "color": MUTED, "linewidth": 0.6, "shrinkB": 5, "shrinkA": 1},
            )


def _box(place: tuple[float, float], u: float, v: float, width: float, height: float) -> tuple[float, ...]:
    """Left, bottom, right and top of a name at a place beside (u, v), in pixels."""
    side, up = place
    left = u + 11 if side > 0 else u - 11 - width if side < 0 else u - width / 2
    middle = v + up * height * 1.1 + (0 if side else height * (0.9 if up >= 0 else -0.9))
    return left, middle - height / 2, left + width, middle + height / 2


def _cost(box: tuple[float, ...], taken: Sequence[tuple[float, ...]], frame: Any) -> float:
    """The part of a box that others cover, or that is outside."""
    covered = sum(
        max(0.0, min(box[2], t[2]) - max(box[0], t[0])) * max(0.0, min(box[3], t[3]) - max(box[1], t[1])) for t in taken
    )
    outside = max(0.0, frame.x0 - box[0]) + max(0.0, box[2] - frame.x1)
    return covered + 1e3 * (outside + max(0.0, frame.y0 - box[1]) + max(0.0, box[3] - frame.y1))
